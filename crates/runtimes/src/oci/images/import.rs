//! Makes an image of one layer from a root file system: a tarball or a directory.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use stackd_core::port::TargetPort;

use super::disk::LayerFacts;
use super::error::ImageError;
use super::load::{Added, blocking, make_layer_root, make_record};
use super::model::{Compression, ConfigDocument, Descriptor, OCI_LAYER_TAR, RootFs, RunConfig};
use super::reference::ImageRef;
use super::store::{ImageLayer, ImageStore, Inner, Origin};
use super::unpack::{Overseer, Unpacked, unpack_layer};

/// How an imported image is named and how it wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImportOptions {
    /// Its name, for example `my-app:1`.
    pub name: String,
    /// The program, and arguments that always hold.
    pub entrypoint: Vec<String>,
    /// Arguments unless others are given; the program too where there is no entrypoint.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The ports that it listens on.
    pub ports: Vec<TargetPort>,
    /// The working directory; empty is `/`.
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty is root.
    pub user: String,
    /// The image's labels.
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to end; empty is `SIGTERM`.
    pub stop_signal: String,
}

impl ImportOptions {
    fn run_config(&self) -> Result<RunConfig, ImageError> {
        if let Some(line) =
            self.env.iter().find(|line| !line.contains('=') || line.starts_with('='))
        {
            return Err(ImageError::refused(
                &self.name,
                format!("\"{line}\" is not a variable: NAME=value is expected"),
            ));
        }
        if !self.working_dir.is_empty() && !self.working_dir.starts_with('/') {
            return Err(ImageError::refused(
                &self.name,
                format!("the working directory \"{}\" is not an absolute path", self.working_dir),
            ));
        }
        let port = |port: &TargetPort| {
            let protocol = port.protocol.as_str().to_ascii_lowercase();
            (format!("{}/{protocol}", port.container_port), serde_json::json!({}))
        };
        Ok(RunConfig {
            user: self.user.clone(),
            exposed_ports: self.ports.iter().map(port).collect(),
            env: self.env.clone(),
            entrypoint: self.entrypoint.clone(),
            cmd: self.command.clone(),
            working_dir: self.working_dir.clone(),
            labels: self.labels.clone(),
            stop_signal: Some(self.stop_signal.clone()).filter(|signal| !signal.is_empty()),
        })
    }
}

impl ImageStore {
    /// Imports a tarball (compressed or not) or a directory.
    pub async fn import(&self, path: &Path, options: ImportOptions) -> Result<Added, ImageError> {
        let inner = Arc::clone(&self.inner);
        let path = path.to_owned();
        blocking(move || {
            let fault = |e: io::Error| {
                ImageError::refused(path.display().to_string(), format!("it cannot be read: {e}"))
            };
            if fs::metadata(&path).map_err(fault)?.is_dir() {
                inner.import_directory(&path, &options)
            } else {
                inner.import(File::open(&path).map_err(fault)?, &options)
            }
        })
        .await
    }

    /// Imports a tarball (compressed or not) that comes as a stream.
    pub async fn import_reader(
        &self,
        reader: impl Read + Send + 'static,
        options: ImportOptions,
    ) -> Result<Added, ImageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.import(reader, &options)).await
    }
}

impl Inner {
    fn import_directory(
        self: &Arc<Self>,
        path: &Path,
        options: &ImportOptions,
    ) -> Result<Added, ImageError> {
        let (reader, writer) =
            io::pipe().map_err(|e| ImageError::store(format!("making a pipe: {e}")))?;
        let root = path.to_owned();
        let archiver = std::thread::spawn(move || archive_directory(&root, writer));
        let result = self.import(reader, options);
        // What stopped the archiver is the reason, where it was not the other end that went away.
        match archiver.join() {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(ImageError::refused(
                    path.display().to_string(),
                    format!("it cannot be read: {error}"),
                ))
            }
            Ok(_) => result,
            Err(_) => Err(ImageError::store("the archiver of a directory died")),
        }
    }

    fn import(
        self: &Arc<Self>,
        mut reader: impl Read,
        options: &ImportOptions,
    ) -> Result<Added, ImageError> {
        let name = ImageRef::parse(&options.name)?;
        if name.digest().is_some() {
            return Err(ImageError::InvalidReference {
                reference: options.name.clone(),
                reason: "an imported image cannot be named by a digest".to_owned(),
            });
        }
        let config = options.run_config()?;

        let mut start = Vec::new();
        (&mut reader)
            .take(4)
            .read_to_end(&mut start)
            .map_err(|e| ImageError::refused(&options.name, format!("it cannot be read: {e}")))?;
        let compression = Compression::of_magic(&start);
        let archive = start.chain(reader);

        let made = self.disk.temporary_dir()?;
        let root = made.path().join("fs");
        make_layer_root(&root)?;
        let what = format!("the root file system of {}", name.familiar());
        let (never, keep_reserve) = (AtomicBool::new(false), || self.keep_reserve());
        let overseer = Overseer::new(&never, &keep_reserve);
        keep_reserve()?;
        let Unpacked { diff_id, plain_bytes, unpacked_bytes, entries, .. } = unpack_layer(
            &what,
            archive,
            compression,
            None,
            &root,
            self.unpack_limits(),
            &overseer,
        )?;
        if entries == 0 {
            return Err(ImageError::refused(what, "it is empty"));
        }
        let _pins = self.pin(&[diff_id]);
        self.disk.keep_layer(made, diff_id, LayerFacts { plain_bytes, unpacked_bytes, entries })?;

        let document = ConfigDocument {
            // No time: the same input is the same image.
            created: None,
            architecture: self.platform.architecture.clone(),
            os: self.platform.os.clone(),
            variant: self.platform.variant.clone(),
            config,
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id] },
        };
        let text = serde_json::to_vec(&document)
            .map_err(|e| ImageError::store(format!("writing a configuration: {e}")))?;
        let descriptor = Descriptor {
            media_type: OCI_LAYER_TAR.to_owned(),
            digest: diff_id,
            size: plain_bytes,
            platform: None,
            annotations: Default::default(),
        };
        let record =
            make_record(text, vec![descriptor], vec![ImageLayer { diff_id, unpacked_bytes }])?;
        let names = vec![name.key()];
        let lease = self.commit(record, &names, Origin::Imported)?;
        Ok(Added { names, lease })
    }
}

/// Writes a directory as a tar archive: sorted, so that the same files are the same archive.
fn archive_directory(root: &Path, writer: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(BufWriter::with_capacity(64 << 10, writer));
    archive.follow_symlinks(false);
    archive.sparse(false);
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let metadata = fs::metadata(root)?;
    append(&mut archive, root, Path::new("./"), &metadata, &mut links)?;
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let mut names: Vec<_> = fs::read_dir(root.join(&directory))?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort_unstable();
        let mut below = Vec::new();
        for name in names {
            let relative = directory.join(name);
            let path = root.join(&relative);
            let metadata = fs::symlink_metadata(&path)?;
            append(&mut archive, &path, &relative, &metadata, &mut links)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", relative.display())))?;
            if metadata.is_dir() {
                below.push(relative);
            }
        }
        pending.extend(below.into_iter().rev());
    }
    archive.into_inner()?.flush()
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    name: &Path,
    metadata: &fs::Metadata,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> io::Result<()> {
    if name.file_name().is_some_and(|name| name.as_bytes().starts_with(b".wh.")) {
        return Err(io::Error::other("names that begin with .wh. have a meaning in images"));
    }
    let kind = metadata.file_type();
    let mut header = tar::Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    if kind.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        archive.append_data(&mut header, name, io::empty())
    } else if kind.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        archive.append_link(&mut header, name, fs::read_link(path)?)
    } else if kind.is_fifo() {
        header.set_entry_type(tar::EntryType::Fifo);
        archive.append_data(&mut header, name, io::empty())
    } else if kind.is_socket() {
        // It is nothing without the process that made it.
        Ok(())
    } else if kind.is_file() {
        if metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = links.get(&inode) {
                header.set_entry_type(tar::EntryType::Link);
                return archive.append_link(&mut header, name, first);
            }
            links.insert(inode, name.to_owned());
        }
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(metadata.len());
        // A file that changes meanwhile has the length that was announced, or it is an error.
        let file = File::open(path)?.take(metadata.len());
        archive.append_data(&mut header, name, file)
    } else {
        Err(io::Error::other("it is a device; every container gets its own /dev"))
    }
}

/// The digest that a layer made of this directory would have.
#[cfg(test)]
pub(super) fn digest_of_directory(root: &Path) -> super::digest::Digest {
    let mut bytes = Vec::new();
    archive_directory(root, &mut bytes).unwrap();
    super::digest::Digest::of(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_are_the_same_layer() {
        let make = |reverse: bool| {
            let dir = tempfile::tempdir().unwrap();
            let mut names = ["a", "b", "c"];
            if reverse {
                names.reverse();
            }
            for name in names {
                let path = dir.path().join(name);
                fs::create_dir(&path).unwrap();
                fs::write(path.join("f"), name).unwrap();
            }
            let epoch = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: epoch, last_modification: epoch };
            for name in ["a/f", "b/f", "c/f", "a", "b", "c", "."] {
                let path = dir.path().join(name);
                rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty())
                    .unwrap();
            }
            digest_of_directory(dir.path())
        };
        assert_eq!(make(false), make(true));
    }
}
