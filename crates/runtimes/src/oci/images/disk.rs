//! The store's directory. What is there under its final name is whole: everything is made under
//! `tmp/` and renamed, so that a kill at any point leaves nothing but rubbish there.
//!
//! ```text
//! images/<manifest digest>.json   an image: its documents and its layers
//! names.json                      name → image
//! layers/<diff id>/fs             a layer, unpacked, as overlayfs wants it
//! layers/<diff id>/layer.json     its size
//! partial/<blob digest>           a download that is under way or was broken off
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
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 3600);

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
}

impl Disk {
    /// Makes the directories and removes what was left over.
    pub(super) fn open(root: &Path) -> Result<Self, ImageError> {
        let root = std::path::absolute(root).map_err(|e| ImageError::io("opening", root, &e))?;
        let disk = Self { root };
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
        disk.remove_partials(PARTIAL_KEPT)?;
        Ok(disk)
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

    pub(super) fn partial(&self, blob: Digest) -> PathBuf {
        self.root.join("partial").join(blob.hex())
    }

    /// Removes broken downloads that nobody has touched for so long; tells how many bytes.
    pub(super) fn remove_partials(&self, untouched: Duration) -> Result<u64, ImageError> {
        let dir = self.root.join("partial");
        let mut freed = 0;
        for name in list(&dir)? {
            let path = dir.join(name);
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let age =
                metadata.modified().ok().and_then(|t| SystemTime::now().duration_since(t).ok());
            if untouched.is_zero() || age.is_some_and(|age| age > untouched) {
                fs::remove_file(&path).map_err(|e| ImageError::io("removing", &path, &e))?;
                freed += metadata.len();
            }
        }
        Ok(freed)
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
