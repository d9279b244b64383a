//! `Idempotency-Key`: the same key and body give the same stack, for a day.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use stackd_core::StackId;
use stackd_store::{Change, IdempotencyRecord};
use tokio::sync::Notify;

use crate::book::SharedEngine;
use crate::command::{CreateError, IdempotencyKey};

/// How long a key is remembered.
pub(crate) const KEEP: Duration = Duration::from_secs(24 * 3600);

enum Memory {
    /// A request with this key and body is under way.
    UnderWay([u8; 32], Arc<Notify>),
    /// It made this stack.
    Made([u8; 32], StackId, Timestamp),
}

/// What requests with a key have led to.
pub(crate) struct Idempotency {
    known: Mutex<HashMap<(String, String), Memory>>,
}

impl Idempotency {
    pub(crate) fn new(records: Vec<IdempotencyRecord>) -> Self {
        let known = records
            .into_iter()
            .map(|r| ((r.scope, r.key), Memory::Made(r.body_hash, r.stack, r.created_at)))
            .collect();
        Self { known: Mutex::new(known) }
    }

    /// Forgets what is older than [`KEEP`].
    pub(crate) fn prune(&self, now: Timestamp) {
        self.known.lock().retain(|_, memory| match memory {
            Memory::UnderWay(..) => true,
            Memory::Made(_, _, at) => fresh(*at, now),
        });
    }
}

fn fresh(at: Timestamp, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(at)).is_ok_and(|age| age < KEEP)
}

/// What a request with a key may do.
pub(crate) enum Claim {
    /// Make the stack; nobody else does meanwhile.
    Mine(Claimed),
    /// Answer with this one.
    Made(StackId),
}

/// The right to make the stack of a key; given up when dropped.
pub(crate) struct Claimed {
    shared: SharedEngine,
    key: IdempotencyKey,
    /// An earlier use of the key may have left a row.
    used_before: bool,
    made: Option<(StackId, Timestamp)>,
}

impl Claimed {
    /// Remembers the stack that was made.
    pub(crate) fn made(mut self, stack: StackId, at: Timestamp) {
        self.made = Some((stack, at));
    }

    /// What makes the database forget it: the stack was taken back before anybody was told of it.
    pub(crate) fn forget(&self) -> Change {
        Change::ForgetIdempotency { scope: self.key.scope.clone(), key: self.key.key.clone() }
    }

    /// What makes the database remember it.
    pub(crate) fn changes(&self, stack: StackId, created_at: Timestamp) -> Vec<Change> {
        let (scope, key) = (self.key.scope.clone(), self.key.key.clone());
        let body_hash = self.key.body_hash;
        let forget = self
            .used_before
            .then(|| Change::ForgetIdempotency { scope: scope.clone(), key: key.clone() });
        let record = IdempotencyRecord { scope, key, body_hash, stack, created_at };
        forget.into_iter().chain([Change::InsertIdempotency(record)]).collect()
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let name = (self.key.scope.clone(), self.key.key.clone());
        let mut known = self.shared.idempotency.known.lock();
        let before = match self.made {
            Some((stack, at)) => known.insert(name, Memory::Made(self.key.body_hash, stack, at)),
            None => known.remove(&name),
        };
        if let Some(Memory::UnderWay(_, done)) = before {
            done.notify_waiters();
        }
    }
}

/// Claims a key, waiting for a request with the same key that is under way.
pub(crate) async fn claim(
    shared: &SharedEngine,
    key: IdempotencyKey,
) -> Result<Claim, CreateError> {
    let name = (key.scope.clone(), key.key.clone());
    loop {
        let done = {
            let mut known = shared.idempotency.known.lock();
            let now = shared.clock.wall();
            let over =
                |memory: &Memory| matches!(memory, Memory::Made(_, _, at) if !fresh(*at, now));
            match known.get(&name).filter(|memory| !over(memory)) {
                Some(Memory::UnderWay(hash, _) | Memory::Made(hash, _, _))
                    if *hash != key.body_hash =>
                {
                    return Err(CreateError::IdempotencyMismatch);
                }
                Some(Memory::Made(_, stack, _)) => return Ok(Claim::Made(*stack)),
                Some(Memory::UnderWay(_, done)) => Arc::clone(done).notified_owned(),
                None => {
                    let memory = Memory::UnderWay(key.body_hash, Arc::default());
                    let used_before = known.insert(name, memory).is_some();
                    let shared = Arc::clone(shared);
                    return Ok(Claim::Mine(Claimed { shared, key, used_before, made: None }));
                }
            }
        };
        done.await;
    }
}
