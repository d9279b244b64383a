//! The keeper beside each stack: `stackd shim`, which holds the stack's node ports, enters its
//! network and checks its health. It outlives this process; here it is started and found again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use stackd_shim::protocol::wire::Inbox;
use stackd_shim::protocol::{Keep, Request};

use crate::host::client::{self, Client};

/// How long a keeper may take to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A connection to a keeper.
pub(super) struct Keeper {
    pub(super) client: Arc<Client>,
    pub(super) inbox: Inbox,
}

impl Keeper {
    /// Starts one for a stack, which takes over these sockets.
    pub(super) async fn start(
        program: &OwnedFd,
        log: &Path,
        directory: &Path,
        keep: Keep,
        sockets: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let listener = client::listen(directory)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::io::ioctl_fionbio(&theirs, false)?;
        let errors = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
        // Not waited for: the executor collects it whenever it ends.
        tokio::process::Command::new(format!("/proc/self/fd/{}", program.as_fd().as_raw_fd()))
            .arg0("stackd")
            .arg(stackd_shim::ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()?;
        let client = Arc::new(Client::new(ours)?);
        let fds: Vec<_> = std::iter::once(&listener).chain(&sockets).map(AsFd::as_fd).collect();
        client.send(&Request::Keep(Box::new(keep)), &fds).await?;
        Ok(Self { client, inbox: Inbox::default() })
    }

    /// Finds the one that a stack has already.
    pub(super) fn find(directory: &Path) -> io::Result<Self> {
        let client = Arc::new(Client::new(client::connect(directory)?)?);
        Ok(Self { client, inbox: Inbox::default() })
    }

    /// Ends it. When this completes, its sockets are closed, or it does not answer.
    pub(super) async fn end(mut self) {
        // One that has ended by itself does not hear it.
        let _ = self.client.send(&Request::Stop { grace_ms: 0 }, &[]).await;
        let gone = async { while self.client.next_event(&mut self.inbox).await.is_ok() {} };
        if tokio::time::timeout(LAST_WORDS, gone).await.is_err() {
            tracing::warn!("a keeper does not end");
        }
    }

    /// Has it enter a network.
    pub(super) async fn enter(&self, network: &Network) -> io::Result<()> {
        let fds = [network.namespace.as_fd(), network.holder.as_fd()];
        self.client.send(&Request::Enter, &fds).await
    }
}

/// The network of a container, and the process that it ends with.
#[derive(Debug)]
pub(super) struct Network {
    namespace: OwnedFd,
    pub(super) holder: OwnedFd,
}

impl Network {
    /// Opens the network that a container's first process is in. The engine names the process by a
    /// number, which by now may be another's; so it is held first and compared then.
    pub(super) fn open(pid: i64, container: &str) -> io::Result<Self> {
        let holder = hold(pid, container)?;
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"));
        if has_ended(&holder)? {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the container has ended"));
        }
        let namespace: OwnedFd = namespace?.into();
        let (theirs, own) =
            (rustix::fs::fstat(&namespace)?, rustix::fs::stat("/proc/self/ns/net")?);
        if theirs.st_ino == own.st_ino {
            return Err(io::Error::other("the container has the machine's own network"));
        }
        Ok(Self { namespace, holder })
    }
}

/// A container's process on this machine, by the number that the engine gives.
pub(super) fn hold(pid: i64, container: &str) -> io::Result<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| io::Error::other("the engine names no process"))?;
    let ended = || io::Error::new(io::ErrorKind::NotFound, "the process has ended");
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Err(ended()),
        process => process?,
    };
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    if has_ended(&process)? {
        return Err(ended());
    }
    if !groups?.contains(container) {
        return Err(io::Error::other(format!(
            "process {pid} is not of the container: the engine is not on this machine, or in \
             another process namespace"
        )));
    }
    Ok(process)
}

fn has_ended(process: &OwnedFd) -> io::Result<bool> {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&at_once))? > 0)
}

/// Whether a process does something of its own about a signal: the first process of a namespace
/// never sees one that it does not handle, and to wait for it would be to wait in vain.
pub(super) fn handles(pid: i64, signal: i32) -> bool {
    let text = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/status")));
    let Ok(text) = text else { return true };
    let set = |name: &str| {
        let text = text.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(text.trim(), 16).ok()
    };
    let place = u32::try_from(signal - 1).unwrap_or(u32::MAX);
    let bit = 1u64.checked_shl(place).unwrap_or(0);
    // A process that waits for the signal (sigwait, signalfd) blocks it instead.
    !matches!(set("SigCgt:").zip(set("SigBlk:")), Some((caught, blocked)) if (caught | blocked) & bit == 0)
}
