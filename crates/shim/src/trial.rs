//! What of the machine can only be known by trying it. Nothing is left of a trial.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, XattrFlags};
use rustix::mount::OpenTreeFlags;

use crate::sys;

/// Whether a directory's files can be shown to a stack as its own: its layers are.
pub fn id_mapped_mount(directory: &Path, first_id: u32) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, directory, flags)?;
    let namespace = user_namespace(first_id)?;
    sys::map_ids(mount.as_fd(), namespace.as_fd())
}

/// Whether a directory can hold files without a name: disks are.
pub fn nameless_file(directory: &Path) -> io::Result<()> {
    nameless(directory).map(drop)
}

/// Whether its files can have attributes that are the machine's alone: a layer that hides what is
/// below one of its directories says so in one.
pub fn trusted_attribute(directory: &Path) -> io::Result<()> {
    let file = nameless(directory)?;
    rustix::fs::fsetxattr(&file, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
    Ok(())
}

fn nameless(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR)?)
}

/// A user namespace in which root is `first_id`.
fn user_namespace(first_id: u32) -> io::Result<OwnedFd> {
    let (wait, hold) = io::pipe()?;
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    const NONE: libc::c_long = 0;
    // SAFETY: a fork without the C library's handlers. Other threads may hold locks for ever in the
    // child, so it makes system calls only.
    let child =
        sys::check(unsafe { libc::syscall(libc::SYS_clone, flags, NONE, NONE, NONE, NONE) })?;
    if child == 0 {
        let mut byte = 0u8;
        // SAFETY: numbers, and one byte that there is room for. The process ends here.
        unsafe {
            libc::close(hold.as_raw_fd());
            libc::read(wait.as_raw_fd(), (&raw mut byte).cast(), 1);
            libc::_exit(0)
        }
    }
    let map = || {
        for ids in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{child}/{ids}"), format!("0 {first_id} 1\n"))?;
        }
        let namespace = std::fs::File::open(format!("/proc/{child}/ns/user"))?;
        Ok(OwnedFd::from(namespace))
    };
    let namespace = map();
    drop(hold);
    let child = i32::try_from(child).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: collects the child made above; nothing is written but through null.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_lacks_something_is_found() {
        // Root of this machine, or nothing could be tried.
        let good = tempfile::tempdir().unwrap();
        assert_eq!(id_mapped_mount(good.path(), 1 << 28).map_err(|e| e.to_string()), Ok(()));
        assert!(nameless_file(good.path()).is_ok());
        assert!(trusted_attribute(good.path()).is_ok());
        let proc = Path::new("/proc");
        assert!(id_mapped_mount(proc, 1 << 28).is_err());
        assert!(nameless_file(proc).is_err());
        assert!(trusted_attribute(proc).is_err());
        assert_eq!(std::fs::read_dir(good.path()).unwrap().count(), 0, "nothing is left");
    }
}
