//! What has happened, in order. One stream feeds the API, webhooks and the audit trail.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::StackId;
use crate::stack::Phase;

/// The place of an event in the one order of all events. Order of numbers is order of commits.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

/// What happened to a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// It was accepted.
    Created,
    /// Its phase, reason or message changed.
    Changed,
    /// Its deadline was moved.
    Renewed,
    /// Its removal was asked for, by a caller.
    Deleted,
    /// Its deadline passed.
    Expired,
    /// The runtime has confirmed that nothing of it is left.
    Removed,
}

impl EventKind {
    /// The name shown to callers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Renewed => "renewed",
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::Removed => "removed",
        }
    }

    /// Reads [`EventKind::as_str`] back.
    pub fn parse(text: &str) -> Option<Self> {
        let all = [
            Self::Created,
            Self::Changed,
            Self::Renewed,
            Self::Deleted,
            Self::Expired,
            Self::Removed,
        ];
        all.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// An event before it has its number: what a use case asks the store to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// When.
    pub at: Timestamp,
    /// Of which stack.
    pub stack: StackId,
    /// What happened.
    pub kind: EventKind,
    /// The phase from then on.
    pub phase: Phase,
    /// The reason from then on, if any.
    pub reason: Option<String>,
    /// The message from then on, if any.
    pub message: Option<String>,
}

/// An event with its place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place.
    pub seq: Seq,
    /// What happened.
    pub event: NewEvent,
}
