//! Challenges and their players: the catalogue, who has solved what, and the stacks that players
//! start.
//!
//! A player's stack is a stack like any other: its owner is a user or a team, and its slot is the
//! challenge's number. All of this is read from memory, from `Board`, which is the one place that
//! holds it; what a writer changes is durable first.

mod board;
mod catalogue;
mod flags;
mod play;
mod rate;
mod warm;

use std::sync::Arc;

use stackd_core::challenge::{Invalid, Refusal, Subject};
use stackd_store::Mark;

use crate::book::SharedEngine;
use crate::command::{CreateError, Unavailable};

pub(crate) use board::Board;
pub use catalogue::Challenges;
pub use flags::FlagError;
pub use play::Players;
pub use warm::{Warm, WarmState, Warmed};

/// The dialect that owns players' stacks.
pub const DIALECT: &str = "player";

/// A change of the catalogue was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// There is no such challenge.
    #[error("challenge not found")]
    NotFound,
    /// A challenge of this slug or number exists.
    #[error("challenge already exists")]
    Exists,
    /// The number was that of a challenge which is gone.
    #[error("challenge number already used")]
    NumberUsed,
    /// This is wrong with it.
    #[error("the challenge is not valid")]
    Invalid(Vec<Invalid>),
    /// The database cannot be written now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A player did not get a stack.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PlayError {
    /// The rules say no.
    #[error(transparent)]
    Refused(Refusal),
    /// Too many creates.
    #[error("too many submissions")]
    Rate {
        /// How many are allowed in a window.
        limit: u32,
        /// Whole seconds until the window is over.
        reset_seconds: u64,
    },
    /// The engine could not make it.
    #[error(transparent)]
    Create(CreateError),
    /// The database cannot be written now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Somebody who has solved a challenge, or finds it locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Who.
    pub subject: Subject,
    /// Since when.
    pub at: stackd_core::Timestamp,
}

/// After a start: pulls images ahead of need where configured, and ends stacks that a crash has
/// left to a player who has solved their challenge.
pub(crate) fn resume(shared: &SharedEngine) {
    let solved: Vec<_> = {
        let live = shared.view.live.read();
        let ours = live.after(None).filter(|l| l.stack.owner.dialect == DIALECT);
        ours.filter(|l| l.stack.is_active() && shared.view.board.is_over(&l.stack.owner))
            .map(|l| l.stack.id)
            .collect()
    };
    for id in solved {
        let shared = Arc::clone(shared);
        shared.clone().tasks.spawn(async move {
            if let Err(error) = crate::remove::delete(&shared, id, None).await {
                tracing::warn!(stack = %id, %error, "the stack of a solved challenge was not removed");
            }
        });
    }
    if shared.config.challenges.warm {
        for challenge in shared.view.board.all() {
            warm::in_background(shared, &challenge);
        }
    }
}

/// The words for a mark in logs.
const fn word(mark: Mark) -> &'static str {
    mark.as_str()
}
