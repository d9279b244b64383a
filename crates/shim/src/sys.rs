//! The few system calls that no crate wraps in the form needed here.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The result of a system call as `libc` reports it.
pub(crate) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A child, held by a descriptor, so that its number cannot be taken for another's.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its number in this process's namespace.
    pub(crate) pid: i32,
    /// The process itself; readable once it has ended.
    pub(crate) pidfd: OwnedFd,
}

/// Which side of a [`fork`] this is.
pub(crate) enum Side {
    /// The new process.
    Child,
    /// The old one.
    Parent(Child),
}

/// Makes a child, with namespaces of its own as `flags` say (`CLONE_NEW…`), and on cgroup v2 born
/// into a group.
///
/// # Safety
/// The process must have one thread only: locks that other threads hold would stay held in the
/// child for ever. The child must leave by `execve` or [`exit`].
pub(crate) unsafe fn fork(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_sign_loss, reason = "a set of bits")]
    let wanted = (flags | libc::CLONE_PIDFD) as u32;
    args.flags = u64::from(wanted);
    args.pidfd = (&raw mut pidfd) as u64;
    if flags & libc::CLONE_PARENT == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(fd) = cgroup {
        /// `CLONE_INTO_CGROUP`
        const INTO_CGROUP: u64 = 0x2_0000_0000;
        args.flags |= INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: no memory is shared with the child (no CLONE_VM), so this is a fork; `args` outlives
    // the call, and the caller promises a single thread.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel has just put a new descriptor there.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    #[expect(clippy::cast_possible_truncation, reason = "process ids are 32 bits wide")]
    Ok(Side::Parent(Child { pid: pid as i32, pidfd }))
}

/// Ends the process at once, without running destructors or exit handlers.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process; nothing follows.
    unsafe { libc::_exit(code) }
}

/// Leaves namespaces or other shared parts of this process.
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: used by single-threaded processes only, so no other thread's descriptors or working
    // directory change under it.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Joins a namespace.
pub(crate) fn setns(fd: BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    // SAFETY: takes a descriptor and a number only.
    check(unsafe { libc::setns(fd.as_raw_fd(), kind) }.into()).map(drop)
}

/// Makes a detached mount show other owners: ids of its file system as `userns` maps them.
pub(crate) fn map_ids(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> io::Result<()> {
    mount_setattr(mount, libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY, Some(userns))
}

/// Sets attributes of a mount (`MOUNT_ATTR_…`), not of those below it.
pub(crate) fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    mount_setattr(mount, attributes, None)
}

fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: u64,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    #[expect(clippy::cast_sign_loss, reason = "a descriptor is not negative")]
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: the path is a constant, `attr` outlives the call, and its size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: closes descriptors by number. Callers do so before an exec, or before any of these
    // numbers has an owner in this process.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Marks every descriptor from `first` on to be closed by `execve`.
pub(crate) fn close_from_on_exec(first: u32) -> io::Result<()> {
    const CLOEXEC: u32 = 4;
    // SAFETY: sets a flag on descriptors by number.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) }).map(drop)
}

/// `prctl` with up to two numbers.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> io::Result<()> {
    // SAFETY: used with options whose arguments are numbers only.
    check(unsafe { libc::prctl(option, a, b, 0, 0) }.into()).map(drop)
}

/// Sets the name of the machine, in the UTS namespace of this process.
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Runs a program; returns only if that fails.
pub(crate) fn execve(
    path: &CStr,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> io::Error {
    debug_assert!(argv.last().is_some_and(|p| p.is_null()));
    debug_assert!(envp.last().is_some_and(|p| p.is_null()));
    // SAFETY: both lists end with a null pointer and their strings live in the caller.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Collects an ended child by its descriptor: 128 + n after signal n. `None` while it runs.
pub(crate) fn try_wait(child: &Child) -> io::Result<Option<Exit>> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_sign_loss, reason = "a descriptor is not negative")]
    // SAFETY: `info` outlives the call.
    check(
        unsafe {
            libc::waitid(
                libc::P_PIDFD,
                child.pidfd.as_raw_fd() as u32,
                &raw mut info,
                libc::WEXITED | libc::WNOHANG,
            )
        }
        .into(),
    )?;
    // SAFETY: waitid has filled in a child's end, or left zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => Exit { code: status, signal: None },
        _ => Exit { code: 128 + status, signal: Some(status) },
    }))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Its code; 128 + n after signal n.
    pub(crate) code: i32,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
}

/// Sends a signal to a child.
pub(crate) fn signal(child: &Child, number: i32) -> io::Result<()> {
    // SAFETY: a descriptor and numbers; no information structure is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            child.pidfd.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Waits until a child has ended.
pub(crate) fn wait(child: &Child) -> io::Result<Exit> {
    loop {
        let mut fds = [rustix::event::PollFd::new(&child.pidfd, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        if let Some(exit) = try_wait(child)? {
            return Ok(exit);
        }
    }
}
