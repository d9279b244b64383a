//! The processes of a container: the one it is started for, and further commands in it. Both end
//! in the same tail, which gives up every right that the container is not to have.

use std::borrow::Cow;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};
use rustix::termios::Winsize;

use super::cgroup::{Group, move_to};
use super::rootfs::{self, Bind, Root};
use super::{capabilities, seccomp};
use crate::fault::{At, Fault};
use crate::sys::{self, Child, Side};

/// Raised in every workload, so that memory running out ends a workload and not this program.
const OOM_SCORE_ADJUSTMENT: &str = "500";
/// The most open files of a process, unless the machine allows fewer.
const OPEN_FILES: u64 = 1 << 20;
/// How long a process may take to become its program.
const MOST_START: std::time::Duration = std::time::Duration::from_secs(10);
/// Where commands are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a process could not be started.
#[derive(Debug)]
pub(crate) enum Failure {
    /// By its description; the text is for the caller.
    Rejected(String),
    /// By this machine.
    Machine(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Machine(fault)
    }
}

/// What a process may do and is.
#[derive(Debug)]
pub(crate) struct Identity<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: &'a [String],
    pub(crate) cwd: &'a str,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'a [u32],
    pub(crate) capabilities: u64,
    pub(crate) filter: &'a [libc::sock_filter],
    pub(crate) userns: BorrowedFd<'a>,
    pub(crate) id_base: u32,
}

/// Where a process's input comes from and its output goes.
#[derive(Debug)]
pub(crate) enum Stdio {
    /// Three descriptors; without an input it reads nothing.
    Pipes {
        /// Standard input.
        input: Option<OwnedFd>,
        /// Standard output.
        output: OwnedFd,
        /// Standard error.
        error: OwnedFd,
    },
    /// The slave side of a terminal.
    Terminal(OwnedFd),
}

/// Both sides of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

/// Opens a terminal in a container's own file system of terminals.
pub(crate) fn terminal(
    terminals: BorrowedFd<'_>,
    owner: u32,
    size: Option<(u16, u16)>,
) -> Result<Terminal, Fault> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master =
        rustix::fs::openat(terminals, "ptmx", flags, Mode::empty()).at("open a terminal")?;
    let unlocked: libc::c_int = 0;
    // SAFETY: reads one integer, which outlives the call.
    sys::check(
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }.into(),
    )
    .at("unlock a terminal")?;
    let wanted = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes a number and returns a new descriptor.
    let slave =
        sys::check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, wanted) }.into())
            .at("open a terminal's other side")?;
    #[expect(clippy::cast_possible_truncation, reason = "descriptors are 32 bits wide")]
    // SAFETY: the kernel has just made this descriptor.
    let slave = unsafe { OwnedFd::from_raw_fd(slave as i32) };
    rustix::fs::fchown(&slave, Some(Uid::from_raw(owner)), None).at("give a terminal away")?;
    if let Some((columns, rows)) = size {
        resize(master.as_fd(), columns, rows).at("size a terminal")?;
    }
    Ok(Terminal { master, slave })
}

fn resize(master: BorrowedFd<'_>, columns: u16, rows: u16) -> rustix::io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)
}

/// The environment of a process. With a terminal it says of which kind that is, unless the image or
/// the Pod does: without it, programs that draw on it do not work.
pub(crate) fn environment(env: &[String], terminal: bool) -> Cow<'_, [String]> {
    if !terminal || env.iter().any(|entry| entry.starts_with("TERM=")) {
        return env.into();
    }
    let mut env = env.to_vec();
    env.push("TERM=xterm".to_owned());
    env.into()
}

/// A container to start.
#[derive(Debug)]
pub(crate) struct NewContainer<'a> {
    pub(crate) identity: Identity<'a>,
    pub(crate) layers: &'a [PathBuf],
    pub(crate) writable: &'a str,
    pub(crate) terminals: BorrowedFd<'a>,
    pub(crate) binds: &'a [Bind],
    /// Whether its own file system cannot be written.
    pub(crate) read_only: bool,
    pub(crate) controllers: &'a [String],
    pub(crate) group: &'a Group,
    /// Whether this process, and so its child, is in the group already.
    pub(crate) inside: bool,
    pub(crate) proc: BorrowedFd<'a>,
}

/// Starts a container; returns once its program runs.
pub(crate) fn start(container: &NewContainer<'_>, stdio: Stdio) -> Result<Child, Failure> {
    let program = Program::new(&container.identity)?;
    let doors = if container.inside { Vec::new() } else { container.group.doors()? };
    spawn(libc::CLONE_NEWPID | libc::CLONE_NEWNS, container.group.birthplace(), stdio, |stdio| {
        join(&doors, container.proc)?;
        sys::unshare(libc::CLONE_NEWCGROUP).at("make a control group namespace")?;
        rootfs::enter(&Root {
            layers: container.layers,
            writable: container.writable,
            userns: container.identity.userns,
            root_id: container.identity.id_base,
            terminals: container.terminals,
            controllers: container.controllers,
            binds: container.binds,
            read_only: container.read_only,
            cwd: container.identity.cwd,
        })?;
        become_program(&container.identity, &program, stdio)
    })
}

/// A command to run in a container.
#[derive(Debug)]
pub(crate) struct NewCommand<'a> {
    pub(crate) identity: Identity<'a>,
    /// The container's first process, not yet collected.
    pub(crate) inside: &'a Child,
    pub(crate) group: &'a Group,
    pub(crate) proc: BorrowedFd<'a>,
}

/// Runs a further command in a container; returns once its program runs.
pub(crate) fn run(command: &NewCommand<'_>, stdio: Stdio) -> Result<Child, Failure> {
    let program = Program::new(&command.identity)?;
    let doors = command.group.doors()?;
    let namespace = |pid: &str, kind: &str| {
        let path = format!("{pid}/ns/{kind}");
        rustix::fs::openat(command.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at("open a namespace of the container")
    };
    let pid = command.inside.pid.to_string();
    let (theirs, ours) = (namespace(&pid, "pid")?, namespace("self", "pid")?);
    let (mounts, groups) = (namespace(&pid, "mnt")?, namespace(&pid, "cgroup")?);
    // Only children made from now on are in that namespace; this process never is.
    sys::setns(theirs.as_fd(), libc::CLONE_NEWPID).at("join the process namespace")?;
    let result = spawn(0, command.group.birthplace(), stdio, |stdio| {
        join(&doors, command.proc)?;
        sys::setns(groups.as_fd(), libc::CLONE_NEWCGROUP).at("join the group namespace")?;
        sys::setns(mounts.as_fd(), libc::CLONE_NEWNS).at("join the mount namespace")?;
        become_program(&command.identity, &program, stdio)
    });
    sys::setns(ours.as_fd(), libc::CLONE_NEWPID).at("leave the process namespace")?;
    result
}

/// A program's path, arguments and environment in the form that `execve` takes, made before the
/// child so that a fault in them is known early.
struct Program {
    candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn new(identity: &Identity<'_>) -> Result<Self, Failure> {
        let text = |value: &str| {
            CString::new(value)
                .map_err(|_| Failure::Rejected("a command holds a NUL character".to_owned()))
        };
        let name = identity
            .args
            .first()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| Failure::Rejected("no command specified".to_owned()))?;
        let candidates = if name.contains('/') {
            vec![text(name)?]
        } else {
            let path = identity.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
            path.unwrap_or(DEFAULT_PATH)
                .split(':')
                .map(|place| {
                    text(&format!("{}/{name}", if place.is_empty() { "." } else { place }))
                })
                .collect::<Result<_, _>>()?
        };
        let all = |values: &[String]| values.iter().map(|v| text(v)).collect::<Result<_, _>>();
        Ok(Self { candidates, args: all(identity.args)?, env: all(identity.env)? })
    }

    /// Becomes the program; returns only if that fails.
    fn exec(&self, name: &str) -> Failure {
        let pointers = |strings: &[CString]| {
            let end = std::iter::once(std::ptr::null());
            strings.iter().map(|s| s.as_ptr()).chain(end).collect::<Vec<_>>()
        };
        let (argv, envp) = (pointers(&self.args), pointers(&self.env));
        let mut worst = libc::ENOENT;
        for path in &self.candidates {
            let error = sys::execve(path, &argv, &envp).raw_os_error().unwrap_or(libc::EIO);
            match error {
                libc::ENOENT | libc::ENOTDIR => {}
                // Perhaps a later place has one that may be run.
                libc::EACCES => worst = error,
                _ => {
                    worst = error;
                    break;
                }
            }
        }
        let why = match worst {
            libc::ENOENT if name.contains('/') => "no such file or directory".to_owned(),
            libc::ENOENT => "executable file not found in $PATH".to_owned(),
            libc::EACCES => "permission denied".to_owned(),
            libc::ENOEXEC => "exec format error".to_owned(),
            other => std::io::Error::from_raw_os_error(other).to_string(),
        };
        Failure::Rejected(format!("exec: {name:?}: {why}"))
    }
}

/// Makes a child that runs `body`, which ends by becoming a program or by a failure that is
/// reported here.
fn spawn(
    flags: i32,
    birthplace: Option<BorrowedFd<'_>>,
    stdio: Stdio,
    body: impl FnOnce(Stdio) -> Result<Infallible, Failure>,
) -> Result<Child, Failure> {
    let stdio = match stdio {
        // This process's own: in a container it may be anything, and the child is still root.
        Stdio::Pipes { input: None, output, error } => {
            let null = File::open("/dev/null").at("open /dev/null")?;
            Stdio::Pipes { input: Some(null.into()), output, error }
        }
        other => other,
    };
    let (report, reporter) = std::io::pipe().at("make a pipe")?;
    // SAFETY: this process has one thread, and the child leaves by `execve` or `exit`.
    let child = match unsafe { sys::fork(flags, birthplace) }.at("make a process")? {
        Side::Child => {
            drop(report);
            let run = std::panic::AssertUnwindSafe(|| body(stdio));
            let text = match std::panic::catch_unwind(run) {
                Ok(Ok(never)) => match never {},
                Ok(Err(Failure::Rejected(text))) => format!("R{text}"),
                Ok(Err(Failure::Machine(fault))) => format!("M{fault}"),
                Err(_) => "Mthe launcher panicked".to_owned(),
            };
            // If nobody listens any more, nobody needs to know.
            let _ = (&reporter).write_all(text.as_bytes());
            sys::exit(127)
        }
        Side::Parent(child) => child,
    };
    drop((reporter, stdio));
    let (read, text) = match hear(report) {
        Ok(text) => (Ok(()), text),
        Err(e) => (Err(e).at("hear from a new process"), String::new()),
    };
    if read.is_ok() && text.is_empty() {
        return Ok(child);
    }
    // It ends by itself; a signal makes sure of it.
    let _ = sys::signal(&child, libc::SIGKILL);
    sys::wait(&child).at("collect a process")?;
    read?;
    Err(match text.strip_prefix('R') {
        Some(message) => Failure::Rejected(message.to_owned()),
        None => Failure::Machine(Fault::new(
            text.get(1..).unwrap_or_default(),
            std::io::Error::other("in the new process"),
        )),
    })
}

/// What a new process says until it has become its program or has ended. It may be stopped by
/// others in its container, so it has only so long.
fn hear(mut report: std::io::PipeReader) -> std::io::Result<String> {
    let deadline = std::time::Instant::now() + MOST_START;
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let left = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [rustix::event::PollFd::new(&report, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(std::io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let mut buffer = [0; 512];
        match report.read(&mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Puts this process under the container's limits.
fn join(doors: &[OwnedFd], proc: BorrowedFd<'_>) -> Result<(), Fault> {
    // From here until `execve` nothing of the stack may look into this process.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).at("hide from the stack")?;
    move_to(doors, "0").at("join a control group")?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(proc, "self/oom_score_adj", flags, Mode::empty())
        .and_then(|fd| rustix::io::write(&fd, OOM_SCORE_ADJUSTMENT.as_bytes()))
        .at("raise the OOM score")
        .map(drop)
}

/// Gives up everything and becomes the program.
fn become_program(
    identity: &Identity<'_>,
    program: &Program,
    stdio: Stdio,
) -> Result<Infallible, Failure> {
    rustix::process::setsid().at("make a session")?;
    connect(stdio)?;
    limits().at("set resource limits")?;
    // SAFETY: sets the default action, which is no handler of ours. Rust's own start ignores it.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: sets a number of this process.
    unsafe { libc::umask(0o022) };
    sys::setns(identity.userns, libc::CLONE_NEWUSER).at("join the user namespace")?;
    capabilities::bound(identity.capabilities).at("bound capabilities")?;
    let groups: Vec<_> = identity.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    rustix::thread::set_thread_groups(&groups).at("set groups")?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).at("set the group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).at("set the user")?;
    let keep = if identity.uid == 0 { identity.capabilities } else { 0 };
    capabilities::reduce(keep).at("drop capabilities")?;
    rustix::process::chdir(identity.cwd).map_err(|e| {
        let e = std::io::Error::from(e);
        Failure::Rejected(format!("cannot enter the working directory {:?}: {e}", identity.cwd))
    })?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).at("refuse new privileges")?;
    sys::close_from_on_exec(3).at("close descriptors")?;
    seccomp::load(identity.filter).at("load the system call filter")?;
    let name = identity.args.first().map_or("", String::as_str);
    Err(program.exec(name))
}

fn connect(stdio: Stdio) -> Result<(), Fault> {
    let put = |fd: BorrowedFd<'_>, number: i32| {
        // SAFETY: 0, 1 and 2 are held by no owner in this process: the launcher never closes them.
        sys::check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into())
            .map(drop)
            .at("connect standard input and output")
    };
    match stdio {
        Stdio::Pipes { input, output, error } => {
            // `spawn` has filled it in.
            if let Some(input) = input {
                put(input.as_fd(), 0)?;
            }
            put(output.as_fd(), 1)?;
            put(error.as_fd(), 2)
        }
        Stdio::Terminal(slave) => {
            rustix::process::ioctl_tiocsctty(&slave).at("take a terminal")?;
            (0..3).try_for_each(|number| put(slave.as_fd(), number))
        }
    }
}

/// How many files a process of a stack may open at once: as many as this process may, up to a bound.
pub fn open_files() -> u64 {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES)
}

fn limits() -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let most = open_files();
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) })?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}
