//! The data directory: who holds it, and where things are in it.
//!
//! One process at a time works on it, the server or a local command. The lock is the kernel's
//! (`flock`), so it is free again the moment its holder ends, however it ends; the text in the file
//! only says who holds it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::exit::{Exit, Failure};

/// The data directory.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

/// Held while this process works on the data directory.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Somebody else works on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder(pub(crate) String);

impl DataDir {
    /// The directory, made if it is not there. What is secret in it has a mode of its own; others
    /// may pass through, because the root of a stack's user namespace is one of them.
    pub(crate) fn make(path: &Path) -> Result<Self, Failure> {
        let failure = |error: std::io::Error| {
            let text = format!("the data directory {} cannot be used: {error}", path.display());
            Failure::new(Exit::Config, text)
                .hint("name another with --data-dir, or run as a user who may write to it")
        };
        DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(failure)?;
        Ok(Self(path.canonicalize().map_err(failure)?))
    }

    /// The directory, which must be there.
    pub(crate) fn existing(path: &Path) -> Result<Self, Failure> {
        path.canonicalize().map(Self).map_err(|error| {
            let text = format!("the data directory {} cannot be used: {error}", path.display());
            Failure::new(Exit::Config, text)
                .hint("name the server's with --data-dir, or start it once with `stackd serve`")
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The SQLite database.
    pub(crate) fn database(&self) -> PathBuf {
        self.0.join("stackd.db")
    }

    /// The image store.
    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// The socket of a running server for local commands.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    /// The key that was made at the first start.
    pub(crate) fn api_key(&self) -> PathBuf {
        self.0.join("api-key")
    }

    /// Takes the lock for `what`, or says who has it.
    pub(crate) fn lock(&self, what: &str) -> Result<Result<Lock, Holder>, Failure> {
        let path = self.0.join("lock");
        let failure = |error: std::io::Error| {
            Failure::new(Exit::Config, format!("{} cannot be locked: {error}", path.display()))
                .hint("run as the user who owns the data directory, for example with sudo")
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failure)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let note = format!("{what}, process {}", std::process::id());
                file.set_len(0).and_then(|()| file.rewind()).map_err(failure)?;
                file.write_all(note.as_bytes()).map_err(failure)?;
                Ok(Ok(Lock { _file: file }))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(failure)?;
                if holder.is_empty() {
                    holder.push_str("another process");
                }
                Ok(Err(Holder(holder)))
            }
            Err(error) => Err(failure(error.into())),
        }
    }
}

/// Writes a secret so that only its owner can read it, whole or not at all.
pub(crate) fn write_secret(path: &Path, secret: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let _ = std::fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(format!("{secret}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_holder_at_a_time_and_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::make(&dir.path().join("a/b")).unwrap();
        let lock = data.lock("stackd serve").unwrap().unwrap();
        let holder = data.lock("stackd key").unwrap().unwrap_err();
        assert_eq!(holder.0, format!("stackd serve, process {}", std::process::id()));
        drop(lock);
        assert!(data.lock("stackd key").unwrap().is_ok());
    }

    #[test]
    fn a_secret_is_its_owners_alone_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api-key");
        std::fs::write(&path, "old").unwrap();
        write_secret(&path, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
