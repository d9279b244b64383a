//! Templates of limited disks: empty, formatted file systems, made once for each size. A stack's
//! disk is a copy of one, which takes a fraction of the time of formatting it.
//!
//! Some sizes are kept for the next start that wants them. Callers choose the sizes, so there may be
//! any number: one that is in use is never among those that go.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use stackd_core::RuntimeError;
use stackd_core::runtime::ErrorKind;
use stackd_core::stack::{Condition, reason};
use tokio::sync::OnceCell;

/// The least size that is formatted; a smaller limit is rounded up to it.
const LEAST_BYTES: u64 = 256 << 10;
/// One inode for so many bytes, as the formatter's own default.
const BYTES_PER_INODE: u64 = 16 << 10;
const LEAST_INODES: u64 = 64;
/// Below this, small blocks: a file system of large ones would be mostly its own tables.
const SMALL_BYTES: u64 = 16 << 20;
/// How many sizes are kept; more while more are in use.
const MOST_TEMPLATES: usize = 64;

/// Where templates are, below the data directory.
const DIRECTORY: &str = "disk-templates";

/// The templates of a data directory.
#[derive(Debug)]
pub(super) struct Templates {
    data_dir: PathBuf,
    /// Sizes and their templates, the most recently used last.
    sizes: Mutex<Vec<(u64, Arc<Template>)>>,
}

/// A template. Its file is there as long as this is held.
#[derive(Debug)]
pub(super) struct Template {
    path: PathBuf,
    formatted: OnceCell<()>,
}

impl Template {
    /// Where it is, below the data directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Templates {
    /// Opens the directory. What an older version has left there is formatted anew.
    pub(super) fn open(data_dir: &Path) -> std::io::Result<Arc<Self>> {
        let directory = data_dir.join(DIRECTORY);
        match std::fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => std::fs::create_dir_all(&directory)?,
        }
        Ok(Arc::new(Self { data_dir: data_dir.to_path_buf(), sizes: Mutex::default() }))
    }

    /// The template of this size; it is formatted now if there is none, and nobody who wants
    /// another size waits for that.
    pub(super) async fn of(&self, bytes: u64) -> Result<Arc<Template>, RuntimeError> {
        // Whole blocks, and small sizes in coarse steps, so that there are few.
        let bytes = bytes.max(LEAST_BYTES).next_multiple_of(64 << 10);
        let template = self.entry(bytes);
        let format = || async {
            let target = self.data_dir.join(&template.path);
            match tokio::task::spawn_blocking(move || format(&target, bytes)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(e)) => Err(failed(&e)),
                Err(e) => Err(failed(&e)),
            }
        };
        template.formatted.get_or_try_init(format).await?;
        Ok(template)
    }

    /// The entry of a size, which may not be formatted yet.
    fn entry(&self, bytes: u64) -> Arc<Template> {
        let mut sizes = self.sizes.lock();
        let known = sizes.iter().position(|(size, _)| *size == bytes);
        let template = match known {
            Some(at) => sizes.remove(at).1,
            None => Arc::new(Template {
                path: Path::new(DIRECTORY).join(format!("ext4-{bytes}")),
                formatted: OnceCell::new(),
            }),
        };
        sizes.push((bytes, Arc::clone(&template)));
        while sizes.len() > MOST_TEMPLATES {
            // Only here, under the lock, does one get further holders.
            let unused = sizes.iter().position(|(_, held)| Arc::strong_count(held) == 1);
            let Some(unused) = unused else { break };
            let (_, unused) = sizes.remove(unused);
            let _ = std::fs::remove_file(self.data_dir.join(&unused.path));
        }
        template
    }
}

fn failed(error: &dyn std::fmt::Display) -> RuntimeError {
    RuntimeError::new(
        ErrorKind::Failed,
        Condition::new(reason::START_ERROR, "the machine could not make the stack's disk"),
        format!("format a disk: {error}"),
    )
}

fn format(path: &Path, bytes: u64) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let file = std::fs::File::create(&new)?;
    file.set_len(bytes)?;
    drop(file);
    let inodes = (bytes / BYTES_PER_INODE).max(LEAST_INODES);
    let block = if bytes < SMALL_BYTES { "1024" } else { "4096" };
    let output = std::process::Command::new("mkfs.ext4")
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["-q", "-F", "-m", "0", "-b", block, "-N"])
        .arg(inodes.to_string())
        .args(["-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg"])
        .args(["-E", "lazy_itable_init=1,nodiscard"])
        .arg(&new)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|e| std::io::Error::new(e.kind(), format!("mkfs.ext4: {e}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(std::io::Error::other(format!("mkfs.ext4: {}", text.trim())));
    }
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_size_is_formatted_once_and_takes_little_room() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::open(directory.path()).unwrap();
        let of = async |bytes| directory.path().join(templates.of(bytes).await.unwrap().path());
        let first = of(1 << 30).await;
        let inode = std::fs::metadata(&first).unwrap().ino();
        let again = of((1 << 30) - 5).await;
        let metadata = std::fs::metadata(&again).unwrap();
        assert_eq!((metadata.ino(), metadata.len()), (inode, 1 << 30));
        assert!(metadata.blocks() * 512 < 4 << 20, "{} blocks", metadata.blocks());
        assert_eq!(std::fs::metadata(of(1).await).unwrap().len(), LEAST_BYTES);
    }

    #[tokio::test]
    async fn one_that_is_in_use_stays_however_many_sizes_are_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::open(directory.path()).unwrap();
        let held = templates.of(1 << 20).await.unwrap();
        let dropped = templates.of(2 << 20).await.unwrap().path().to_owned();
        for n in 0..MOST_TEMPLATES as u64 {
            templates.of((4 << 20) + n * (64 << 10)).await.unwrap();
        }
        assert!(directory.path().join(held.path()).exists(), "it is in use");
        assert!(!directory.path().join(dropped).exists(), "nobody needs it");
        let kept = std::fs::read_dir(directory.path().join(DIRECTORY)).unwrap().count();
        assert_eq!(kept, MOST_TEMPLATES);
        let again = templates.of(1 << 20).await.unwrap();
        assert!(Arc::ptr_eq(&held, &again));
    }
}
