//! The way of an extension: the new deadline is durable before it holds.

use std::sync::Arc;
use std::time::Duration;

use stackd_core::challenge::extended;
use stackd_core::event::EventKind;
use stackd_core::{Desired, StackId};
use stackd_store::Change;

use crate::book::SharedEngine;
use crate::command::ExtendError;
use crate::live::LiveStack;
use crate::shared::unavailable;

/// Moves a stack's deadline to `ttl` from now, at most `longest` after it was made.
pub(crate) async fn extend(
    shared: &SharedEngine,
    id: StackId,
    ttl: Duration,
    longest: Duration,
) -> Result<Arc<LiveStack>, ExtendError> {
    let (until, changes, at) = {
        let book = shared.book.lock();
        let entry = book.entries.get(&id).ok_or(ExtendError::NotFound)?;
        let gone = entry.deleting || shared.clock.boot() >= entry.expires;
        if gone || !entry.stack.is_active() {
            return Err(ExtendError::NotFound);
        }
        let stack = &entry.stack;
        let at = shared.clock.wall();
        let until = extended(stack.created_at, stack.expires_at, at, ttl, longest);
        let expires_at = until.ok_or(ExtendError::NotLater)?;
        let generation = stack.generation;
        let extend = Change::Extend { id, generation, expires_at, at };
        let event = Change::Event(shared.event(stack, EventKind::Renewed));
        (expires_at, vec![extend, event], at)
    };
    shared.write(changes).await.map_err(unavailable)?;
    let live = {
        let mut book = shared.book.lock();
        let now = shared.clock.boot();
        let entry = book.entries.get_mut(&id).ok_or(ExtendError::NotFound)?;
        // It may have been deleted or have come to its end meanwhile, which wins.
        if entry.stack.desired != Desired::Running {
            return Err(ExtendError::NotFound);
        }
        if until > entry.stack.expires_at {
            let left = Duration::try_from(until.duration_since(shared.clock.wall()));
            entry.expires = now.after(left.unwrap_or_default());
            entry.stack.expires_at = until;
            entry.stack.updated_at = at;
            shared.publish(&entry.stack);
            tracing::info!(stack = %id, %until, "stack extended");
        }
        shared.arm(&mut book, id, now);
        shared.view.live.read().get(id)
    };
    live.ok_or(ExtendError::NotFound)
}
