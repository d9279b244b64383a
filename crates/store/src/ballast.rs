//! A file that only takes up room, so that there is some to give back when the disk is full.
//!
//! Once it is given back, only what frees room is written, until there is enough for it again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, StatVfs, fallocate, statvfs};
use rustix::io::Errno;

/// After an attempt to make it failed, how long until the next.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The ballast of one database file.
#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
    bytes: u64,
    held: bool,
    not_before: Option<Instant>,
}

impl Ballast {
    /// The ballast beside `database`, made if there is room for it. None where none is wanted.
    pub(crate) fn beside(database: &Path, bytes: u64) -> Option<Self> {
        if bytes == 0 {
            return None;
        }
        let mut path = database.as_os_str().to_owned();
        path.push(".ballast");
        let path = PathBuf::from(path);
        let held = std::fs::metadata(&path).is_ok_and(|meta| meta.len() == bytes);
        let mut ballast = Self { path, bytes, held, not_before: None };
        if !ballast.refill() {
            tracing::warn!(
                path = %ballast.path.display(),
                bytes,
                "the disk is too full for the database's reserve; only removals are written until \
                 there is room for twice as much"
            );
        }
        Some(ballast)
    }

    /// Whether new things may be written.
    #[cfg(test)]
    fn is_held(&self) -> bool {
        self.held
    }

    /// Gives the room back. `false` when it was given back before.
    pub(crate) fn release(&mut self) -> bool {
        if !self.held {
            return false;
        }
        self.held = false;
        match std::fs::remove_file(&self.path) {
            Ok(()) => {
                tracing::warn!(bytes = self.bytes, "the disk is full; the reserve is released");
                true
            }
            Err(error) => {
                tracing::error!(%error, path = %self.path.display(), "the reserve stays");
                error.kind() == io::ErrorKind::NotFound
            }
        }
    }

    /// Makes it again when there is room for twice as much. Says whether it is held.
    pub(crate) fn refill(&mut self) -> bool {
        if self.held {
            return true;
        }
        let now = Instant::now();
        if self.not_before.is_some_and(|at| now < at) || !self.there_is_room() {
            return false;
        }
        match make(&self.path, self.bytes) {
            Ok(()) => {
                self.held = true;
                self.not_before = None;
                tracing::info!(bytes = self.bytes, "the database's reserve is there");
            }
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "no reserve for the database");
                self.not_before = Some(now + RETRY_AFTER);
            }
        }
        self.held
    }

    fn there_is_room(&self) -> bool {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        statvfs(directory).is_ok_and(|of| free_bytes(&of) / 2 >= self.bytes)
    }
}

fn free_bytes(of: &StatVfs) -> u64 {
    of.f_bavail.saturating_mul(of.f_frsize)
}

fn make(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let made = allocate(&file, bytes);
    if made.is_err() {
        // Half of it would only be in the way.
        drop(file);
        std::fs::remove_file(path)?;
    }
    made
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // Zeros take room on every file system that neither compresses nor copies on write.
        Err(Errno::OPNOTSUPP) => {
            let mut file = file;
            io::copy(&mut io::Read::take(io::repeat(0), bytes), &mut file)?;
            Ok(())
        }
        other => other.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_room_and_gives_it_back_once() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("db");
        let file = directory.path().join("db.ballast");
        let mut ballast = Ballast::beside(&database, 65_536).unwrap();
        assert!(ballast.is_held());
        assert_eq!(std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512, 65_536);
        assert!(ballast.release());
        assert!(!file.exists());
        assert!(!ballast.release());
        assert!(ballast.refill());
        assert!(file.exists());
    }

    #[test]
    fn one_that_does_not_fit_is_not_begun() {
        let directory = tempfile::tempdir().unwrap();
        let mut ballast = Ballast::beside(&directory.path().join("db"), u64::MAX / 4).unwrap();
        assert!(!ballast.is_held());
        assert!(!ballast.refill());
        assert!(!directory.path().join("db.ballast").exists());
    }
}
