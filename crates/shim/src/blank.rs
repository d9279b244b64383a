//! From a fresh process to a blank that waits, and from there to a stack's shim.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::fault::{At, Fault};
use crate::keeper;
use crate::launch::cell::Cell;
use crate::protocol::wire::{Inbox, send_all};
use crate::protocol::{Event, Request};
use crate::supervisor;
use crate::sys::{self, Side};
use crate::trace::Trace;

/// Runs a shim on the socket that is its standard input.
pub(crate) fn run() -> ! {
    let code = match blank() {
        Ok(()) => 0,
        Err(fault) => {
            eprintln!("shim: {fault}");
            1
        }
    };
    sys::exit(code)
}

fn blank() -> Result<(), Fault> {
    let mut trace = Trace::new();
    // Whatever the server holds open besides is its own.
    sys::close_from(3).at("close descriptors")?;
    let socket = take_standard_input().at("take over standard input")?;
    rustix::process::setsid().at("make a session")?;
    // It holds no directory of whoever has started the server.
    rustix::process::chdir("/").at("leave the server's directory")?;
    let mut inbox = Inbox::default();
    let prepare = match inbox.receive(&socket).at("hear what to prepare")? {
        Some(Request::Prepare(prepare)) => prepare,
        Some(Request::Keep(keep)) => {
            let sockets = if keep.outside.is_none() { keep.ports.len() } else { 0 };
            let mut fds = inbox.take_fds(1 + sockets).into_iter();
            let listener = fds.next().ok_or(std::io::ErrorKind::InvalidData);
            let listener = listener.at("take over the control socket")?;
            return keeper::run(*keep, socket, inbox, listener, fds.collect());
        }
        _ => return Ok(()),
    };
    trace.step("begin");
    first_of_its_namespace(&socket)?;
    trace.step("process namespace");
    let cell = match Cell::new(&prepare, &mut trace) {
        Ok(cell) => cell,
        Err(fault) => {
            tell(&socket, &Event::Unfit { message: fault.to_string() })?;
            return Err(fault);
        }
    };
    let shim = supervisor::Parts::new(cell, prepare.network)?;
    trace.step("filter");
    tell(&socket, &Event::Blank { trace: trace.finish() })?;
    match inbox.receive(&socket).at("wait for a stack")? {
        Some(Request::Start(start)) => {
            let mut fds = inbox.take_fds(1 + start.ports.len()).into_iter();
            let listener = fds.next().ok_or(std::io::ErrorKind::InvalidData);
            let listener = listener.at("take over the control socket")?;
            supervisor::run(shim, *start, socket, inbox, listener, fds.collect())
        }
        // The server is gone, or needs no more stacks.
        _ => Ok(()),
    }
}

/// Moves the socket away from descriptor 0, which then reads nothing: the numbers 0 to 2 are
/// replaced in every workload and must be held by nothing else.
fn take_standard_input() -> std::io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: nothing in this process owns descriptor 0.
    sys::check(unsafe { libc::dup2(null.as_raw_fd(), 0) }.into())?;
    Ok(socket)
}

fn tell(socket: &OwnedFd, event: &Event) -> Result<(), Fault> {
    send_all(socket.as_fd(), event, &[] as &[BorrowedFd<'_>]).at("tell the server")
}

/// Goes on as the first process of a new process namespace, as a child of the same parent; the old
/// process ends. When the first process of a namespace dies, the kernel ends all others in it and
/// in those below. No workload can undo that, as it could undo a signal at its parent's death.
fn first_of_its_namespace(socket: &OwnedFd) -> Result<(), Fault> {
    // SAFETY: this process has one thread, and the child goes on alone: the parent ends here.
    match unsafe { sys::fork(libc::CLONE_NEWPID | libc::CLONE_PARENT, None) }
        .at("make a process namespace")?
    {
        Side::Child => Ok(()),
        Side::Parent(child) => {
            let pid = u32::try_from(child.pid).unwrap_or_default();
            let told = tell(socket, &Event::Forked { pid });
            sys::exit(i32::from(told.is_err()))
        }
    }
}
