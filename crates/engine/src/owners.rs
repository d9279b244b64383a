//! Who waits for a change of any stack of an owner, also while it has none.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use stackd_core::Owner;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// Above this many, those that nobody waits for any more are forgotten.
const MANY: usize = 4096;

/// By dialect and tenant.
#[derive(Default)]
pub(crate) struct OwnerWaiters(Mutex<HashMap<(String, String), Arc<Notify>>>);

impl OwnerWaiters {
    /// Ends at the next change after this call.
    pub(crate) fn changed(&self, dialect: &str, tenant: &str) -> OwnedNotified {
        let mut waiters = self.0.lock();
        if waiters.len() > MANY {
            waiters.retain(|_, waiter| Arc::strong_count(waiter) > 1);
        }
        let waiter = waiters.entry((dialect.to_owned(), tenant.to_owned())).or_default();
        Arc::clone(waiter).notified_owned()
    }

    /// Lets everybody look again who waits for a change of this owner's stacks.
    pub(crate) fn wake(&self, owner: &Owner) {
        self.wake_tenant(&owner.dialect, &owner.tenant);
    }

    /// Lets everybody look again.
    pub(crate) fn wake_all(&self) {
        for (_, waiter) in self.0.lock().drain() {
            waiter.notify_waiters();
        }
    }

    /// The same, by name.
    pub(crate) fn wake_tenant(&self, dialect: &str, tenant: &str) {
        let mut waiters = self.0.lock();
        if waiters.is_empty() {
            return;
        }
        if let Some(waiter) = waiters.remove(&(dialect.to_owned(), tenant.to_owned())) {
            waiter.notify_waiters();
        }
    }
}
