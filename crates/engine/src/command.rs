//! What may be asked of the engine, and how it says no. Free of HTTP: every dialect maps these.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stackd_core::event::{Event, Seq};
use stackd_core::{RuntimeError, StackSpec};

use crate::live::LiveStack;

/// A request for a stack, checked as far as its own text allows.
#[derive(Debug, Clone)]
pub struct CreateStack {
    /// The dialect that asks, for example `provisioner`.
    pub dialect: &'static str,
    /// Whose turn a start is counted as: the request's owner, else the key's name.
    pub tenant: String,
    /// What the tenant may have one of; `None` where there is no such rule.
    pub slot: Option<String>,
    /// What to start.
    pub spec: StackSpec,
    /// Which handler starts it; the runtime's default where `None`.
    pub runtime_class: Option<String>,
    /// Labels to select by.
    pub labels: BTreeMap<String, String>,
    /// How long it may live; the configured default where `None`.
    pub ttl: Option<Duration>,
    /// The `Idempotency-Key`, if one was sent.
    pub idempotency: Option<IdempotencyKey>,
}

/// A key under which the same request gives the same stack for a day.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// Whose it is: of the API key itself, not of its name, which another may get later.
    pub scope: String,
    /// What the caller sent.
    pub key: String,
    /// SHA-256 of the request's body.
    pub body_hash: [u8; 32],
}

/// A stack was not made, and nothing of it is left.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CreateError {
    /// A limit of one stack or container, or what the runtime cannot do; the text follows
    /// `invalid pod spec: `.
    #[error("{0}")]
    LimitRange(String),
    /// The total quota; the text says what is exceeded and follows `cluster saturated: `.
    #[error("{0}")]
    Quota(String),
    /// No room on the machine, or the start queue is full; the text is for the log.
    #[error("{0}")]
    Saturated(String),
    /// Every node port of the range is taken.
    #[error("no available nodeport")]
    NoNodePort,
    /// The lifetime is outside of its bounds.
    #[error("ttl_seconds must be between {min} and {max}", min = .min.as_secs(), max = .max.as_secs())]
    Ttl {
        /// The least that is allowed.
        min: Duration,
        /// The most that is allowed.
        max: Duration,
    },
    /// Nothing here serves this runtime class.
    #[error("runtime class {0:?} is not served here")]
    RuntimeClass(String),
    /// The owner has a live stack in this slot: this one.
    #[error("a live stack of this owner exists")]
    OwnerTaken(Arc<LiveStack>),
    /// The idempotency key was used with another body.
    #[error("the Idempotency-Key was used with another request body")]
    IdempotencyMismatch,
    /// The stack that the idempotency key stands for is gone.
    #[error("the stack of this Idempotency-Key is gone")]
    IdempotencyGone,
    /// The database cannot be written now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Nothing was changed, because it could not be made durable. Try again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("storage unavailable: {reason}")]
pub struct Unavailable {
    /// Why, for callers: for example `the disk is full`.
    pub reason: String,
}

impl Unavailable {
    /// Another replica leads, or none does; this one cannot change anything.
    pub(crate) fn superseded() -> Self {
        Self { reason: "this replica does not lead now".to_owned() }
    }
}

/// A stack was not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// There is no such stack, or not any more.
    #[error("stack not found")]
    NotFound,
    /// The database cannot be written now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The database refuses this very change; another try will not help.
    #[error("{0}")]
    Refused(String),
}

/// A stack's deadline was not moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtendError {
    /// There is no such stack, it has ended, or it is being taken away.
    #[error("stack not found")]
    NotFound,
    /// It would not end later than it does.
    #[error("stack cannot be extended")]
    NotLater,
    /// The database cannot be written now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A call that looks into a running stack did not work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// There is no such stack, or not any more.
    #[error("stack not found")]
    NotFound,
    /// The stack has no container of this name.
    #[error("the stack has no container {0:?}")]
    NoContainer(String),
    /// The stack does not run, so this cannot be done.
    #[error("the stack is {0}")]
    NotRunning(&'static str),
    /// The runtime refused or failed.
    #[error("{0}")]
    Runtime(RuntimeError),
    /// The database cannot be read now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What a waiter waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// Ready for traffic, or ended without.
    Running,
    /// Ended, or gone.
    Ended,
}

/// One message of the stream of all changes.
#[derive(Debug, Clone)]
pub enum EventMessage {
    /// The next event.
    Event(Arc<Event>),
    /// Events between what the reader asked for and `oldest` are no longer kept: the reader must
    /// read the whole state again. The stream goes on from `oldest`.
    Reset {
        /// The first event that follows.
        oldest: Seq,
    },
}
