//! A small file system of its own, to be filled.
#![expect(clippy::unwrap_used, reason = "without it the test has failed")]

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// A memory file system of a few megabytes. Needs root.
pub struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// Mounts one of this size.
    pub fn new(bytes: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("stackd-disk-").tempdir().unwrap();
        let size = std::ffi::CString::new(format!("size={bytes},mode=0700")).unwrap();
        mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), Some(size.as_c_str()))
            .unwrap();
        Self { directory }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Takes all the room that is left, until the file is removed.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        while std::io::Write::write(&mut file, &[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached, as a connection may still be closing its file.
        let _ = unmount(self.directory.path(), UnmountFlags::DETACH);
    }
}
