//! The way of a delete: the intent is durable first; from then on the stack is unknown to readers,
//! and the runtime has as long as it needs.

use stackd_core::event::{EventKind, NewEvent};
use stackd_core::{Desired, StackId};
use stackd_store::{Change, StoreError};

use crate::book::SharedEngine;
use crate::command::{DeleteError, Unavailable};
use crate::shared::refused;

/// Takes a stack away. `also` is written with the intent, or not at all.
pub(crate) async fn delete(
    shared: &SharedEngine,
    id: StackId,
    also: Option<Change>,
) -> Result<(), DeleteError> {
    let (generation, event) = loop {
        // Registered before the look, so that no change between the two is missed.
        let changed = shared.waiter(id).notified_owned();
        if let Some(begun) = begin(shared, id)? {
            break begun;
        }
        // Something else is being written; this one is for whatever it leaves.
        tokio::select! {
            () = changed => {}
            () = shared.stop.cancelled() => return Err(Unavailable::superseded().into()),
        }
    };
    let at = shared.clock.wall();
    let mut changes = vec![Change::Desire { id, desired: Desired::Gone, generation, at }];
    changes.push(Change::Event(event));
    changes.extend(also);
    let result = shared.write(changes).await.map_err(|error| match error {
        StoreError::Unavailable { reason, .. } => Unavailable { reason }.into(),
        StoreError::Superseded => Unavailable::superseded().into(),
        other => DeleteError::Refused(other.to_string()),
    });
    {
        let mut book = shared.book.lock();
        if let Some(entry) = book.entries.get_mut(&id) {
            entry.deleting = false;
            if result.is_ok() && entry.stack.desired != Desired::Gone {
                let grace = shared.config.delete_grace.min(entry.stack.spec.termination_grace());
                entry.unwanted(generation, at, grace);
                tracing::info!(stack = %id, "stack deleted");
            }
        }
    }
    match result {
        Ok(()) => {
            shared.runtime.close_ports(id);
            shared.hide(id);
        }
        // Wakes a delete that waits for this one.
        Err(_) => shared.wake(id),
    }
    shared.drive(id);
    result
}

/// Takes a stack away that may be gone already, where the caller has no words for a change that the
/// database refuses.
pub(crate) async fn end(
    shared: &SharedEngine,
    id: StackId,
    also: Option<Change>,
) -> Result<(), Unavailable> {
    match delete(shared, id, also).await {
        Ok(()) | Err(DeleteError::NotFound) => Ok(()),
        Err(DeleteError::Unavailable(error)) => Err(error),
        Err(DeleteError::Refused(error)) => Err(refused(&error)),
    }
}

/// Marks a stack as being deleted. `None` when it is already, or when an earlier change of it is
/// still to be written: events are told in the order in which things happened. A database that is
/// away is not waited for.
fn begin(shared: &SharedEngine, id: StackId) -> Result<Option<(u64, NewEvent)>, DeleteError> {
    let mut book = shared.book.lock();
    let entry = book.entries.get_mut(&id).ok_or(DeleteError::NotFound)?;
    if entry.stack.desired == Desired::Gone {
        return Err(DeleteError::NotFound);
    }
    let writing = entry.flushing || !entry.pending.is_empty();
    let busy = writing && shared.store_fault.lock().is_none();
    if busy || std::mem::replace(&mut entry.deleting, true) {
        return Ok(None);
    }
    let event = shared.event(&entry.stack, EventKind::Deleted);
    Ok(Some((entry.stack.generation + 1, event)))
}
