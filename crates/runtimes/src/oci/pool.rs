//! Blank shims, made ahead of need. One that is taken is replaced when no start is under way, so
//! that making blanks does not slow starts; a start that finds none makes its own.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use stackd_shim::protocol::wire::Inbox;
use stackd_shim::protocol::{CgroupLayout, Disk, Event, Network, Prepare, ProcessName, Request};
use tokio::sync::Notify;

use super::client::Client;
use super::disks::Template;
use super::ids::{IdRange, Ids};
use super::machine;

/// How long the machine must have been without a start before a blank is made, while there are
/// enough of them.
const QUIET: Duration = Duration::from_millis(4);
/// The same when few are left: where starts come one after another, there is no longer quiet.
const QUIET_WHEN_FEW: Duration = Duration::from_micros(500);
/// How long after a failure to make a blank the next is made.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// A shim that waits for its stack.
#[derive(Debug)]
pub(super) struct Blank {
    pub(super) client: Client,
    pub(super) inbox: Inbox,
    pub(super) process: ProcessName,
    pub(super) ids: IdRange,
    pub(super) disk: Disk,
}

/// What every blank is made with.
#[derive(Debug)]
pub(super) struct Mold {
    pub(super) program: OwnedFd,
    pub(super) data_dir: PathBuf,
    pub(super) network: Network,
    pub(super) cgroups: CgroupLayout,
    pub(super) disk: Disk,
    /// What that is a copy of; held, so that it stays.
    pub(super) _template: Option<Arc<Template>>,
    pub(super) ids: Arc<Ids>,
}

/// The pool.
#[derive(Debug)]
pub(super) struct Pool {
    mold: Mold,
    size: usize,
    ready: Mutex<VecDeque<Blank>>,
    starts: AtomicUsize,
    changed: Arc<Notify>,
    last_start: Mutex<Instant>,
}

/// Tells the pool that a start is under way, as long as it lives.
#[derive(Debug)]
pub(super) struct Starting(Arc<Pool>);

impl Drop for Starting {
    fn drop(&mut self) {
        *self.0.last_start.lock() = Instant::now();
        self.0.starts.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

impl Pool {
    /// A pool that fills itself as long as it is held.
    pub(super) fn new(mold: Mold, size: usize) -> Arc<Self> {
        let pool = Arc::new(Self {
            mold,
            size,
            ready: Mutex::default(),
            starts: AtomicUsize::new(0),
            changed: Arc::default(),
            last_start: Mutex::new(Instant::now()),
        });
        if size > 0 {
            tokio::spawn(fill(Arc::downgrade(&pool)));
        }
        pool
    }

    /// Says that a start has begun.
    pub(super) fn starting(self: &Arc<Self>) -> Starting {
        self.starts.fetch_add(1, Ordering::AcqRel);
        Starting(Arc::clone(self))
    }

    /// A blank: one that is ready, else a new one.
    pub(super) async fn take(&self) -> io::Result<Blank> {
        let ready = self.ready.lock().pop_front();
        match ready {
            Some(blank) => Ok(blank),
            None => self.make(self.mold.disk.clone()).await,
        }
    }

    /// For how long there must have been no start before the next blank is made.
    fn quiet(&self) -> Duration {
        if self.ready.lock().len() * 2 >= self.size { QUIET } else { QUIET_WHEN_FEW }
    }

    /// Whether as many are ready as should be.
    pub(super) fn is_full(&self) -> bool {
        self.ready.lock().len() >= self.size
    }

    async fn make(&self, disk: Disk) -> io::Result<Blank> {
        let ids = self.mold.ids.allocate()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Only the flag of this end: the shim's own reads wait.
        rustix::io::ioctl_fionbio(&theirs, false)?;
        let mut child = {
            let errors = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(self.mold.data_dir.join("shim.log"))?;
            // Without a directory of its own: then it is spawned and not forked, which would copy
            // what maps this process's memory, however much that is.
            Command::new(format!("/proc/self/fd/{}", self.mold.program.as_fd().as_raw_fd()))
                .arg0("stackd")
                .arg(stackd_shim::ARGUMENT)
                .env_clear()
                .stdin(Stdio::from(theirs))
                .stdout(Stdio::null())
                .stderr(errors)
                .spawn()?
        };
        let made = self.prepare(ours, disk, ids).await;
        // The process that was spawned has made the shim and ended, or ends now that nobody talks
        // to it.
        tokio::task::spawn_blocking(move || child.wait());
        made
    }

    /// Has a process that was spawned make itself ready.
    async fn prepare(&self, socket: OwnedFd, disk: Disk, ids: IdRange) -> io::Result<Blank> {
        let client = Client::new(socket)?;
        let prepare = Prepare {
            data_dir: self.mold.data_dir.clone(),
            id_base: ids.base,
            disk: disk.clone(),
            network: self.mold.network,
            cgroups: self.mold.cgroups.clone(),
        };
        client.send(&Request::Prepare(prepare), &[]).await?;
        let mut inbox = Inbox::default();
        let mut process = None;
        let outcome = loop {
            match client.next_event(&mut inbox).await {
                Ok(Event::Forked { pid }) => process = machine::process_name(pid).ok(),
                Ok(Event::Blank { trace }) => {
                    tracing::debug!(?trace, "a blank shim is ready");
                    break Ok(());
                }
                Ok(Event::Unfit { message }) => break Err(io::Error::other(message)),
                Ok(_) => {}
                Err(e) => break Err(e),
            }
        };
        match (outcome, process) {
            (Ok(()), Some(process)) => Ok(Blank { client, inbox, process, ids, disk }),
            (Ok(()), None) => Err(io::Error::other("a blank shim did not name itself")),
            (Err(e), process) => {
                if let Some(process) = process {
                    reap(process);
                }
                Err(e)
            }
        }
    }
}

/// Collects a shim that has ended, if it was made by this process.
pub(super) fn reap(process: ProcessName) {
    tokio::task::spawn_blocking(move || machine::collect(process));
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// Keeps a pool full until it is gone.
async fn fill(pool: Weak<Pool>) {
    while let Some(held) = pool.upgrade() {
        let (quiet_for, quiet) = (held.last_start.lock().elapsed(), held.quiet());
        if held.is_full() || held.starts.load(Ordering::Acquire) > 0 {
            let changed = Arc::clone(&held.changed);
            drop(held);
            changed.notified().await;
        } else if quiet_for < quiet {
            drop(held);
            tokio::time::sleep(quiet - quiet_for).await;
        } else {
            match held.make(held.mold.disk.clone()).await {
                Ok(blank) => held.ready.lock().push_back(blank),
                Err(error) => {
                    tracing::warn!(%error, "a blank shim could not be made");
                    drop(held);
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }
}
