//! The store's directory. What is there under its final name is whole: everything is made under
//! `tmp/` and renamed, so that a kill at any point leaves nothing but rubbish there.
//!
//! ```text
//! images/<manifest digest>.json   an image: its documents and its layers
//! names.json                      name → image
//! layers/<diff id>/fs             a layer, unpacked, as overlayfs wants it
//! layers/<diff id>/layer.json     its size
//! partial/<digest>                a download that is under way or was broken off, of a blob of
//!                                 one registry
//! tmp/                            emptied when the store is opened
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::ImageError;

/// How long a broken download is kept to be taken up again.
pub(super) const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A share of the files that a disk can have stays free: one in so many.
const FREE_FILES: u64 = 20;

/// A broken download.
#[derive(Debug)]
pub(super) struct Partial {
    /// What [`Disk::partial`] was given.
    pub(super) of: Digest,
    pub(super) bytes: u64,
    pub(super) touched: SystemTime,
    path: PathBuf,
}

impl Partial {
    pub(super) fn is_older_than(&self, age: Duration) -> bool {
        age.is_zero() || SystemTime::now().duration_since(self.touched).is_ok_and(|had| had > age)
    }
}

/// Less is free than must stay free. The text is for the operator.
#[derive(Debug)]
pub(super) struct Shortage(String);

impl From<Shortage> for ImageError {
    fn from(Shortage(operator): Shortage) -> Self {
        Self::NoRoom { operator }
    }
}

/// What is known of an unpacked layer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct LayerFacts {
    /// Of its tar archive.
    pub(super) plain_bytes: u64,
    /// Of all files.
    pub(super) unpacked_bytes: u64,
    pub(super) entries: u64,
}

/// The directory of the store.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    root: PathBuf,
    free_bytes: u64,
}

impl Disk {
    /// Makes the directories and removes what was left over. `free_bytes` is the setting.
    pub(super) fn open(root: &Path, free_bytes: u64) -> Result<Self, ImageError> {
        let root = std::path::absolute(root).map_err(|e| ImageError::io("opening", root, &e))?;
        let disk = Self { root, free_bytes };
        make_dir(&disk.root)?;
        // A file system of set-id programs and hostile links is nothing for other users.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&disk.root, private)
            .map_err(|e| ImageError::io("protecting", &disk.root, &e))?;
        let tmp = disk.root.join("tmp");
        remove_tree(&tmp)?;
        for dir in ["tmp", "images", "layers", "partial"] {
            make_dir(&disk.root.join(dir))?;
        }
        for partial in disk.partials()?.iter().filter(|one| one.is_older_than(PARTIAL_KEPT)) {
            disk.remove_partial(partial)?;
        }
        Ok(disk)
    }

    fn usage(&self) -> Result<rustix::fs::StatVfs, ImageError> {
        rustix::fs::statvfs(&self.root)
            .map_err(|e| ImageError::io("measuring the disk of", &self.root, &e.into()))
    }

    /// The size of the file system.
    pub(super) fn size_bytes(&self) -> Result<u64, ImageError> {
        let usage = self.usage()?;
        Ok(usage.f_blocks.saturating_mul(usage.f_frsize))
    }

    /// What is short, where the reserve of bytes or files is not free.
    pub(super) fn shortage(&self) -> Result<Option<Shortage>, ImageError> {
        let usage = self.usage()?;
        let bytes = |blocks: u64| blocks.saturating_mul(usage.f_frsize);
        let (free, least) =
            (bytes(usage.f_bavail), self.free_bytes.min(bytes(usage.f_blocks) / 10));
        // Some file systems do not count files.
        let least_files = usage.f_files / FREE_FILES;
        let disk = self.root.display();
        Ok(if free < least {
            Some(Shortage(format!(
                "the disk of {disk} has {free} bytes free, and images leave {least} free; see \
                 free_bytes in [images]"
            )))
        } else if usage.f_favail < least_files {
            let files = usage.f_favail;
            Some(Shortage(format!(
                "the disk of {disk} has room for {files} files, and images leave it for {least_files}"
            )))
        } else {
            None
        })
    }

    /// A new path under `tmp/` that nobody else has.
    pub(super) fn temporary(&self) -> Result<PathBuf, ImageError> {
        let mut random = [0; 12];
        getrandom::fill(&mut random)
            .map_err(|e| ImageError::store(format!("no random bytes: {e}")))?;
        Ok(self.root.join("tmp").join(hex::encode(random)))
    }

    /// A new directory under `tmp/`, removed again when it is dropped.
    pub(super) fn temporary_dir(&self) -> Result<TemporaryDir, ImageError> {
        let path = self.temporary()?;
        make_dir(&path)?;
        Ok(TemporaryDir { path })
    }

    /// A new file under `tmp/` that has no name any more.
    pub(super) fn anonymous_file(&self) -> Result<File, ImageError> {
        let path = self.temporary()?;
        let fault = |e: io::Error| ImageError::io("making", &path, &e);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(fault)?;
        fs::remove_file(&path).map_err(fault)?;
        Ok(file)
    }

    /// Where a layer's files are, or will be.
    pub(super) fn layer_root(&self, diff_id: Digest) -> PathBuf {
        self.layer_dir(diff_id).join("fs")
    }

    fn layer_dir(&self, diff_id: Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    /// The facts of a layer that is here.
    pub(super) fn layer(&self, diff_id: Digest) -> Result<Option<LayerFacts>, ImageError> {
        read_json(&self.layer_dir(diff_id).join("layer.json"))
    }

    /// Puts the layer that was unpacked into `made/fs` in its place.
    pub(super) fn keep_layer(
        &self,
        made: TemporaryDir,
        diff_id: Digest,
        facts: LayerFacts,
    ) -> Result<(), ImageError> {
        let target = self.layer_dir(diff_id);
        write_json(&made.path.join("layer.json"), &facts)?;
        let dir = File::open(&made.path).map_err(|e| ImageError::io("opening", &made.path, &e))?;
        // One call for a layer of thousands of files, before its name says that it is whole.
        rustix::fs::syncfs(&dir)
            .map_err(|e| ImageError::io("writing out", &made.path, &e.into()))?;
        match fs::rename(&made.path, &target) {
            Ok(()) => sync_dir(&self.root.join("layers")),
            // Somebody else was first with the same content.
            Err(_) if target.join("layer.json").exists() => Ok(()),
            Err(e) => Err(ImageError::io("keeping the layer", &target, &e)),
        }
    }

    /// Takes a layer out of its place; the caller removes the directory it gets, in its own time.
    pub(super) fn unlink_layer(&self, diff_id: Digest) -> Result<Option<PathBuf>, ImageError> {
        let from = self.layer_dir(diff_id);
        let to = self.temporary()?;
        match fs::rename(&from, &to) {
            Ok(()) => Ok(Some(to)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ImageError::io("removing the layer", &from, &e)),
        }
    }

    /// All layers that are in place.
    pub(super) fn layers(&self) -> Result<Vec<Digest>, ImageError> {
        let names = list(&self.root.join("layers"))?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name).ok()).collect())
    }

    /// Where a download goes.
    pub(super) fn partial(&self, of: Digest) -> PathBuf {
        self.root.join("partial").join(of.hex())
    }

    /// All downloads that are under way or were broken off.
    pub(super) fn partials(&self) -> Result<Vec<Partial>, ImageError> {
        let mut partials = Vec::new();
        for name in list(&self.root.join("partial"))? {
            let Ok(of) = Digest::from_hex(&name) else { continue };
            let path = self.partial(of);
            // It may end at any moment.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let touched = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            partials.push(Partial { of, bytes: metadata.len(), touched, path });
        }
        Ok(partials)
    }

    /// Removes a broken download.
    pub(super) fn remove_partial(&self, partial: &Partial) -> Result<(), ImageError> {
        match fs::remove_file(&partial.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("removing", &partial.path, &e))
            }
            _ => Ok(()),
        }
    }

    /// The records of all images, with those that cannot be read named in the log.
    pub(super) fn records<T: DeserializeOwned>(&self) -> Result<Vec<T>, ImageError> {
        let dir = self.root.join("images");
        let mut records = Vec::new();
        for name in list(&dir)? {
            let path = dir.join(&name);
            match read_json(&path) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = error.operator(), "an image record is damaged; skipped");
                }
            }
        }
        Ok(records)
    }

    pub(super) fn write_record<T: Serialize>(
        &self,
        image: Digest,
        record: &T,
    ) -> Result<(), ImageError> {
        self.replace(&self.record_path(image), record)
    }

    pub(super) fn remove_record(&self, image: Digest) -> Result<(), ImageError> {
        let path = self.record_path(image);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("removing", &path, &e))
            }
            _ => Ok(()),
        }
    }

    /// When an image was last used: its record's time of modification.
    pub(super) fn last_use(&self, image: Digest) -> SystemTime {
        let modified = fs::metadata(self.record_path(image)).and_then(|record| record.modified());
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(super) fn set_last_use(&self, image: Digest, at: SystemTime) -> Result<(), ImageError> {
        let path = self.record_path(image);
        let set = File::options().write(true).open(&path).and_then(|file| file.set_modified(at));
        match set {
            // Removed meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|e| ImageError::io("dating", &path, &e)),
        }
    }

    fn record_path(&self, image: Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", image.hex()))
    }

    pub(super) fn read_names<T: DeserializeOwned>(&self) -> Result<Option<T>, ImageError> {
        read_json(&self.root.join("names.json"))
    }

    pub(super) fn write_names<T: Serialize>(&self, names: &T) -> Result<(), ImageError> {
        self.replace(&self.root.join("names.json"), names)
    }

    /// Writes a file so that either the old or the new content is there, whatever happens.
    fn replace<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), ImageError> {
        let temporary = self.temporary()?;
        write_json(&temporary, value)?;
        fs::rename(&temporary, path).map_err(|e| ImageError::io("replacing", path, &e))?;
        sync_dir(path.parent().unwrap_or(&self.root))
    }
}

/// A directory under `tmp/`, gone when this is, unless it has been renamed.
#[derive(Debug)]
pub(super) struct TemporaryDir {
    path: PathBuf,
}

impl TemporaryDir {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(error = error.operator(), "left over until the next start");
        }
    }
}

/// Removes a directory and everything in it; nothing there is success.
pub(super) fn remove_tree(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::io("removing", path, &e)),
        _ => Ok(()),
    }
}

pub(super) fn make_dir(path: &Path) -> Result<(), ImageError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| ImageError::io("making", path, &e))
}

fn list(dir: &Path) -> Result<Vec<String>, ImageError> {
    let fault = |e: io::Error| ImageError::io("reading", dir, &e);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(fault)? {
        names.extend(entry.map_err(fault)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ImageError::io("reading", path, &e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| ImageError::store(format!("{} is damaged: {e}", path.display())))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ImageError> {
    let fault = |e: io::Error| ImageError::io("writing", path, &e);
    let text = serde_json::to_vec(value).map_err(|e| fault(e.into()))?;
    let mut file =
        File::options().write(true).create_new(true).mode(0o600).open(path).map_err(fault)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(fault)
}

fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| ImageError::io("writing out", path, &e))
}
