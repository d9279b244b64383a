//! What a use case may change. Plain data, so that a write can be queued, grouped and tried again.

use serde::{Deserialize, Serialize};
use stackd_core::challenge::{Challenge, ChallengeNumber, Subject};
use stackd_core::event::NewEvent;
use stackd_core::stack::{Desired, Observed};
use stackd_core::{JobId, Stack, StackId, Timestamp};

use crate::records::{ApiKey, IdempotencyRecord, Job, Mark};

/// One change of the database.
///
/// A character NUL in a text is written as U+FFFD, because PostgreSQL keeps none. Times end in the
/// year 2262 and numbers at 2^63 − 1; what is greater is kept as that.
#[derive(Debug, Clone)]
pub enum Change {
    /// Adds a stack with its ports. Fails with `OwnerTaken` or `PortTaken`.
    InsertStack(Box<Stack>),
    /// Writes what is known of a stack. Without effect when the row is gone or of a later
    /// generation.
    Observe {
        /// Which.
        id: StackId,
        /// The generation that was observed.
        generation: u64,
        /// What is known.
        observed: Observed,
        /// Whether its node ports are given back by this: others may have them then. The row still
        /// tells which they were.
        release_ports: bool,
        /// The row's new `updated_at`.
        at: Timestamp,
    },
    /// Changes what is asked of a stack. A row that is not wanted any more is no longer *live*: its
    /// owner may have another. Its ports stay taken until they are released. Without effect when the
    /// row is gone or of a later generation.
    Desire {
        /// Which.
        id: StackId,
        /// What is asked.
        desired: Desired,
        /// The new generation.
        generation: u64,
        /// The row's new `updated_at`.
        at: Timestamp,
    },
    /// Moves a stack's deadline. Without effect when the row is gone, not wanted any more, or of a
    /// later generation.
    Extend {
        /// Which.
        id: StackId,
        /// The generation that is extended.
        generation: u64,
        /// The new deadline.
        expires_at: Timestamp,
        /// The row's new `updated_at`.
        at: Timestamp,
    },
    /// Removes a stack's row and ports. Without effect when it is gone.
    RemoveStack(StackId),
    /// Records what happened; it gets its number at the commit.
    Event(NewEvent),
    /// Forgets the answer to an `Idempotency-Key` whose time is over, so that the key can be used
    /// anew before it is pruned. Without effect when it is gone.
    ForgetIdempotency {
        /// The API key's name that it belongs to.
        scope: String,
        /// The header's value.
        key: String,
    },
    /// Remembers the answer to an `Idempotency-Key`. Fails with `Duplicate`.
    InsertIdempotency(IdempotencyRecord),
    /// Adds a job, or writes its progress: what was asked for stays as it is.
    PutJob(Box<Job>),
    /// Adds an API key. Fails with `Duplicate` when a key of that name exists and is not revoked.
    InsertApiKey(ApiKey),
    /// Revokes the key of this name.
    RevokeApiKey {
        /// The key's name.
        name: String,
        /// When.
        at: Timestamp,
    },
    /// Adds a challenge, and notes its number where it is the greatest so far. Fails with
    /// `Duplicate`.
    InsertChallenge(Box<Challenge>),
    /// Writes a challenge anew. Without effect when its number is gone.
    UpdateChallenge(Box<Challenge>),
    /// Removes a challenge with its marks, and notes that its number is used up. Without effect when
    /// it is gone.
    RemoveChallenge(ChallengeNumber),
    /// Notes that somebody has solved a challenge or finds it locked. Without effect when that is
    /// noted already, or the challenge is gone.
    PutMark {
        /// Which of the two.
        mark: Mark,
        /// The challenge.
        challenge: ChallengeNumber,
        /// Who.
        subject: Subject,
        /// When.
        at: Timestamp,
    },
    /// Takes that back. Without effect when it is not noted.
    RemoveMark {
        /// Which of the two.
        mark: Mark,
        /// The challenge.
        challenge: ChallengeNumber,
        /// Who.
        subject: Subject,
    },
    /// Notes which team a user plays for, in place of an earlier one.
    PutMember {
        /// The user.
        user: String,
        /// The team.
        team: String,
    },
}

impl Change {
    /// Whether this is let through to the last bytes of a full disk, since it frees room, there or
    /// on the machine. All else is new and can wait.
    pub(crate) fn frees(&self) -> bool {
        match self {
            Self::Observe { .. }
            | Self::Desire { .. }
            | Self::RemoveStack(_)
            | Self::Event(_)
            | Self::PutJob(_)
            | Self::ForgetIdempotency { .. }
            | Self::RemoveChallenge(_)
            | Self::RemoveMark { .. }
            | Self::RevokeApiKey { .. } => true,
            Self::InsertStack(_)
            | Self::Extend { .. }
            | Self::InsertIdempotency(_)
            | Self::InsertApiKey(_)
            | Self::InsertChallenge(_)
            | Self::UpdateChallenge(_)
            | Self::PutMark { .. }
            | Self::PutMember { .. } => false,
        }
    }

    /// What a replica must read again after this, of what replicas hold in memory.
    pub(crate) fn touched(&self) -> Option<Touched> {
        match self {
            Self::InsertStack(stack) => Some(Touched::Stack(stack.id)),
            Self::Observe { id, .. }
            | Self::Desire { id, .. }
            | Self::Extend { id, .. }
            | Self::RemoveStack(id) => Some(Touched::Stack(*id)),
            Self::InsertChallenge(_)
            | Self::UpdateChallenge(_)
            | Self::RemoveChallenge(_)
            | Self::PutMark { .. }
            | Self::RemoveMark { .. }
            | Self::PutMember { .. } => Some(Touched::Catalogue),
            Self::PutJob(job) => Some(Touched::Job(job.id)),
            Self::InsertApiKey(_) | Self::RevokeApiKey { .. } => Some(Touched::Keys),
            // Only who leads looks at these, and reads them all when it begins to.
            Self::Event(_) | Self::ForgetIdempotency { .. } | Self::InsertIdempotency(_) => None,
        }
    }
}

/// Something whose rows a commit has changed. Which way is for the reader to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Touched {
    /// A stack.
    Stack(StackId),
    /// A batch delete.
    Job(JobId),
    /// The API keys.
    Keys,
    /// Challenges, or what is told of their players.
    Catalogue,
}
