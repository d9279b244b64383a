//! Rows that only the store and the engine know.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stackd_core::challenge::{Challenge, ChallengeNumber, Subject};
use stackd_core::event::Seq;
use stackd_core::{JobId, Stack, StackId, Timestamp};

/// Everything that the engine keeps in memory, as it was at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All stacks whose row is there, also those that are not wanted any more; oldest first.
    pub stacks: Vec<Stack>,
    /// All jobs that are kept.
    pub jobs: Vec<Job>,
    /// Idempotency records that are kept.
    pub idempotency: Vec<IdempotencyRecord>,
    /// All API keys, also revoked ones.
    pub api_keys: Vec<ApiKey>,
    /// The newest event.
    pub last_event: Seq,
    /// The newest commit.
    pub commit: u64,
    /// What players start stacks from.
    pub catalogue: Catalogue,
}

/// What is kept about challenges and their players.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// All challenges, by number.
    pub challenges: Vec<Challenge>,
    /// The greatest number that any challenge has had.
    pub last_number: u64,
    /// The numbers of challenges that are gone.
    pub removed: Vec<ChallengeNumber>,
    /// Who has solved what, and for whom it is locked.
    pub marks: Vec<MarkRecord>,
    /// Which team each user plays for.
    pub members: Vec<(String, String)>,
}

/// What the platform has told about a challenge and somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mark {
    /// It is solved.
    Solved,
    /// It is locked.
    Locked,
}

impl Mark {
    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Solved => "solved",
            Self::Locked => "locked",
        }
    }

    /// Reads [`Mark::as_str`] back.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Solved, Self::Locked].into_iter().find(|mark| mark.as_str() == text)
    }
}

/// A mark as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkRecord {
    /// Which of the two.
    pub mark: Mark,
    /// The challenge.
    pub challenge: ChallengeNumber,
    /// Who.
    pub subject: Subject,
    /// Since when.
    pub at: Timestamp,
}

/// What an `Idempotency-Key` stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// The API key's name that it belongs to.
    pub scope: String,
    /// The header's value.
    pub key: String,
    /// SHA-256 of the request's body.
    pub body_hash: [u8; 32],
    /// The stack that it made.
    pub stack: StackId,
    /// When.
    pub created_at: Timestamp,
}

/// A batch delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its identity.
    pub id: JobId,
    /// How far it is.
    pub status: JobStatus,
    /// The distinct ids that were asked for, in order.
    pub stack_ids: Arc<[String]>,
    /// How many of them, from the first, are done with.
    pub done: u64,
    /// How many were deleted.
    pub deleted: u64,
    /// How many did not exist.
    pub not_found: u64,
    /// How many could not be deleted.
    pub failed: u64,
    /// The first hundred failures.
    pub errors: Vec<JobError>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it last went on.
    pub updated_at: Timestamp,
}

/// A stack that a job could not delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// The id as it was asked for.
    pub stack_id: String,
    /// Why, at most 512 characters.
    pub error: String,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Accepted, not begun.
    Queued,
    /// Under way.
    Running,
    /// Ended, with at least one stack deleted or not found, or with nothing to do.
    Completed,
    /// Ended, and every delete failed.
    Failed,
}

impl JobStatus {
    /// The word in the provisioner's document and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Reads [`JobStatus::as_str`] back.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Queued, Self::Running, Self::Completed, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// An API key. The key itself is nowhere: only its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// What it is called; unique among keys that are not revoked.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// What it may do beyond the documented calls.
    pub permissions: Vec<Permission>,
    /// The dialects it is good for; all where empty.
    pub dialects: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// What a key may do beyond the documented calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// Run commands inside stacks.
    Exec,
}
