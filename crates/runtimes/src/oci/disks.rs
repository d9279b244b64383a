//! Templates of limited disks: empty, formatted file systems, made once for each size. A stack's
//! disk is a copy of one, which takes a fraction of the time of formatting it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stackd_core::RuntimeError;
use stackd_core::runtime::ErrorKind;
use stackd_core::stack::{Condition, reason};
use tokio::sync::Mutex;

/// The least size that is formatted; a smaller limit is rounded up to it.
const LEAST_BYTES: u64 = 256 << 10;
/// One inode for so many bytes, as the formatter's own default.
const BYTES_PER_INODE: u64 = 16 << 10;
const LEAST_INODES: u64 = 64;
/// Below this, small blocks: a file system of large ones would be mostly its own tables.
const SMALL_BYTES: u64 = 16 << 20;
/// How many sizes are kept.
const MOST_TEMPLATES: usize = 64;

/// Where templates are, below the data directory.
const DIRECTORY: &str = "disk-templates";

/// The templates of a data directory.
#[derive(Debug)]
pub(super) struct Templates {
    data_dir: PathBuf,
    directory: PathBuf,
    /// Sizes that are there, the most recently used last.
    sizes: Mutex<Vec<u64>>,
}

impl Templates {
    /// Opens the directory. What an older version has left there is formatted anew.
    pub(super) fn open(data_dir: &Path) -> std::io::Result<Arc<Self>> {
        let directory = data_dir.join(DIRECTORY);
        match std::fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => std::fs::create_dir_all(&directory)?,
        }
        Ok(Arc::new(Self {
            data_dir: data_dir.to_path_buf(),
            directory,
            sizes: Mutex::new(Vec::new()),
        }))
    }

    /// The path, below the data directory, of a template of this size; it is formatted now if
    /// there is none.
    pub(super) async fn of(&self, bytes: u64) -> Result<PathBuf, RuntimeError> {
        // Whole blocks, and small sizes in coarse steps, so that there are few.
        let bytes = bytes.max(LEAST_BYTES).next_multiple_of(64 << 10);
        let path = Path::new(DIRECTORY).join(format!("ext4-{bytes}"));
        let mut sizes = self.sizes.lock().await;
        if let Some(at) = sizes.iter().position(|size| *size == bytes) {
            let size = sizes.remove(at);
            sizes.push(size);
            return Ok(path);
        }
        let target = self.data_dir.join(&path);
        let formatted = tokio::task::spawn_blocking(move || format(&target, bytes)).await;
        match formatted {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(failed(&e)),
            Err(e) => return Err(failed(&e)),
        }
        if sizes.len() >= MOST_TEMPLATES {
            let oldest = sizes.remove(0);
            let _ = std::fs::remove_file(self.directory.join(format!("ext4-{oldest}")));
        }
        sizes.push(bytes);
        Ok(path)
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
        let first = directory.path().join(templates.of(1 << 30).await.unwrap());
        let inode = std::fs::metadata(&first).unwrap().ino();
        let again = directory.path().join(templates.of((1 << 30) - 5).await.unwrap());
        let metadata = std::fs::metadata(&again).unwrap();
        assert_eq!((metadata.ino(), metadata.len()), (inode, 1 << 30));
        assert!(metadata.blocks() * 512 < 4 << 20, "{} blocks", metadata.blocks());
        let tiny = directory.path().join(templates.of(1).await.unwrap());
        assert_eq!(std::fs::metadata(tiny).unwrap().len(), LEAST_BYTES);
    }
}
