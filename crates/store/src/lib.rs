//! The database: what must survive a crash, and nothing else.
//!
//! One writer commits what has queued up; a caller's changes are one use case, applied whole or
//! not at all, and durable before [`Store::write`] returns. Reads that serve requests never come
//! here: the engine loads everything once and keeps it in memory.

pub mod change;
pub mod records;

mod apply;
mod ballast;
mod challenges;
mod connect;
mod entities;
mod fault;
mod inner;
mod migrations;
mod queries;
mod replicas;
mod rows;
mod times;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use stackd_core::event::{Event, Seq};
use stackd_core::{StackId, Timestamp};
use tokio::sync::broadcast;

pub use change::{Change, Touched};
pub use records::{
    ApiKey, Catalogue, IdempotencyRecord, Job, JobError, JobStatus, Mark, MarkRecord, Permission,
    Snapshot,
};
pub use replicas::{Candidate, Changes, Commits, Leader};

/// Where the database is.
#[derive(Clone)]
pub enum StoreConfig {
    /// A SQLite file, made if it is not there. `ballast_bytes` are kept beside it and released
    /// when the disk is full, so that removals still commit.
    Sqlite {
        /// The database file. Its directory exists.
        path: PathBuf,
        /// Size of the ballast; 0 keeps none. Removals first grow the write-ahead log, by up to
        /// 4 MiB between two checkpoints: less than 8 MiB is too little.
        ballast_bytes: u64,
    },
    /// A PostgreSQL URL.
    Postgres {
        /// `postgres://user:password@host:port/database`; never logged.
        url: String,
    },
}

/// Without the URL, which may hold a password.
impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { path, ballast_bytes } => f
                .debug_struct("Sqlite")
                .field("path", path)
                .field("ballast_bytes", ballast_bytes)
                .finish(),
            Self::Postgres { .. } => f.debug_struct("Postgres").finish_non_exhaustive(),
        }
    }
}

/// A write or a read did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A live stack of this owner exists already.
    #[error("a live stack of this owner exists")]
    OwnerTaken,
    /// A live stack holds one of the node ports.
    #[error("a node port is taken")]
    PortTaken,
    /// An id, a key's name or another unique value exists already.
    #[error("{0} exists already")]
    Duplicate(&'static str),
    /// The database cannot be used for the moment; nothing was changed. `reason` may be shown to
    /// callers, `operator` only goes to the log.
    #[error("{reason}")]
    Unavailable {
        /// In a few words, for example `the disk is full`.
        reason: String,
        /// The database's own words.
        operator: String,
    },
    /// The database refuses this very change, in its own words: a constraint, a trigger or a right of
    /// the operator's own making. Others go on; another try may not help.
    #[error("the database refuses the change: {0}")]
    Refused(String),
    /// The database cannot be opened as it is, and trying again does not help. The text is for the
    /// operator: what is wrong and what to do.
    #[error("{0}")]
    Unusable(String),
    /// Another replica leads by now; nothing was changed, and nothing will be.
    #[error("another replica leads")]
    Superseded,
    /// The database holds what this program cannot read.
    #[error("the database holds a value that cannot be read: {0}")]
    Corrupt(String),
}

/// What a write did.
#[derive(Debug, Clone, Default)]
pub struct Committed {
    /// The commit's number: what a replica that is in step with it has seen.
    pub commit: u64,
    /// The write's events with their numbers, in the order in which they were given.
    pub events: Vec<Arc<Event>>,
}

/// A handle to the database. Clones share one writer; it ends when the last clone is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<inner::Inner>,
    /// Writes through this handle are made only while the replica of this epoch leads.
    epoch: Option<u64>,
}

impl Store {
    /// Opens the database, brings its schema up to date and starts the writer.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        Ok(Self { inner: inner::Inner::open(config).await?, epoch: None })
    }

    /// Everything that the engine keeps in memory.
    pub async fn load(&self) -> Result<Snapshot, StoreError> {
        self.inner.load().await
    }

    /// What is kept about challenges and their players: a part of [`Store::load`], for who has to
    /// read it anew.
    pub async fn load_catalogue(&self) -> Result<Catalogue, StoreError> {
        self.inner.load_catalogue().await
    }

    /// Applies one use case: all of its changes in order, or none. Durable when this returns `Ok`;
    /// when it returns [`StoreError::Unavailable`] nothing has happened and the same may be tried
    /// again.
    ///
    /// It returns within a few seconds also while the database is away, but for one case: when
    /// the connection is lost in the middle of a commit, it waits until the database is back and
    /// tells what has become of it. Dropping the future does not take the write back: a caller
    /// that may be cancelled runs this in a task of its own.
    pub async fn write(&self, changes: Vec<Change>) -> Result<Committed, StoreError> {
        self.inner.write(self.epoch, changes).await
    }

    /// Every committed event from now on, in order. A receiver that lags reads what it missed with
    /// [`Store::events_after`].
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.inner.subscribe()
    }

    /// The newest event that subscribers were given, or that was there before the first.
    pub fn newest_event(&self) -> Seq {
        self.inner.newest_event()
    }

    /// Up to `limit` events after `after`, in order.
    pub async fn events_after(&self, after: Seq, limit: u64) -> Result<Vec<Event>, StoreError> {
        self.inner.events_after(after, limit).await
    }

    /// The events of one stack, oldest first, at most `limit` of the newest.
    pub async fn events_of(&self, stack: StackId, limit: u64) -> Result<Vec<Event>, StoreError> {
        self.inner.events_of(stack, limit).await
    }

    /// The oldest and the newest number that are kept; equal zeros when there are none. A resume
    /// from before the oldest has lost events.
    pub async fn event_range(&self) -> Result<(Seq, Seq), StoreError> {
        self.inner.event_range().await
    }

    /// Whether the database answers now.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }

    /// Removes what is no longer needed: events beyond `keep_events`, idempotency records and
    /// ended jobs from before `before`.
    pub async fn prune(&self, keep_events: u64, before: Timestamp) -> Result<(), StoreError> {
        self.inner.prune(self.epoch, keep_events, before).await
    }
}
