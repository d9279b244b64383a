//! Leading: the lease is taken, kept by renewing it, and given back or lost.

use std::sync::Arc;
use std::time::Duration;

use stackd_store::{Commits, StoreError};

use super::{Leadership, RETRY, Replica, ReplicaConfig};
use crate::book::SharedEngine;
use crate::random;
use crate::shared::Shared;
use crate::term::{Right, Tenure};

/// How often the leader looks, at most, at what others have committed: little, and seldom.
const LEADER_LOOKS: Duration = Duration::from_millis(50);

impl Replica {
    pub(super) async fn try_to_lead(self: &Arc<Self>) -> Option<SharedEngine> {
        let ReplicaConfig { candidate, lease, .. } = &self.config;
        let store = &self.view.store;
        let begun = self.view.clock.boot();
        let epoch = match store.acquire_lease(candidate, *lease).await {
            Ok(Some(epoch)) => epoch,
            Ok(None) => return None,
            Err(error) => {
                tracing::warn!(%error, "the lease could not be taken; trying again");
                return None;
            }
        };
        self.holding.send_replace(true);
        let tenure = Arc::new(Tenure::default());
        tenure.extend(begun.after(*lease));
        let begin = self.begin(epoch, &tenure);
        // Reading a large database may take longer than a lease.
        let keep = self.keep(epoch, &tenure);
        tokio::select! {
            biased;
            begun = begin => match begun {
                Ok(term) => Some(term),
                Err(error) => {
                    tracing::error!(%error, epoch, "this replica cannot lead: the database cannot be read");
                    let _ = store.release_lease(epoch).await;
                    None
                }
            },
            () = keep => None,
        }
    }

    async fn begin(&self, epoch: u64, tenure: &Arc<Tenure>) -> Result<SharedEngine, StoreError> {
        let store = &self.view.store;
        let mut place = self.place.lock().await;
        let snapshot = store.load().await?;
        // Nobody else commits events any more; readers get the last of what others did.
        store.announce_from(&snapshot);
        store.announce(snapshot.last_event).await?;
        self.keys.reset(snapshot.api_keys.clone());
        place.commit = Some(snapshot.commit);
        place.led = true;
        let right = Right { epoch, tenure: Some(Arc::clone(tenure)), alone: false };
        let mut term = self.term.write();
        let begun = Shared::begin_term(&self.view, snapshot, right, random());
        *term = Some(Arc::clone(&begun));
        drop(term);
        self.leadership.send_replace(Leadership::Here);
        tracing::info!(epoch, "this replica leads");
        Ok(begun)
    }

    /// Renews the lease until it is lost.
    async fn keep(&self, epoch: u64, tenure: &Tenure) {
        let clock = &self.view.clock;
        loop {
            tokio::select! {
                () = clock.sleep_until(clock.boot().after(self.config.renew)) => {}
                () = self.renew_now.notified() => {}
            }
            if !self.renew(epoch, tenure).await {
                return;
            }
        }
    }

    /// Renews the lease; false when it is lost. A database that does not answer is asked again for
    /// as long as the lease lasts.
    async fn renew(&self, epoch: u64, tenure: &Tenure) -> bool {
        let clock = &self.view.clock;
        loop {
            let begun = clock.boot();
            if begun >= tenure.until() {
                return false;
            }
            let applied = self.place.try_lock().ok().and_then(|place| place.commit).unwrap_or(0);
            let renewal = self.view.store.renew_lease(epoch, applied, self.config.lease);
            // An answer that takes long is not waited for: another connection may do.
            let patience = begun.after(self.config.renew).min(tenure.until());
            let renewed = tokio::select! {
                renewed = renewal => renewed,
                () = clock.sleep_until(patience) => continue,
            };
            match renewed {
                Ok(true) if clock.boot() < tenure.until() => {
                    tenure.extend(begun.after(self.config.lease));
                    return true;
                }
                Ok(_) => return false,
                Err(error) => {
                    tracing::warn!(%error, epoch, "the lease could not be renewed; trying again");
                    let again = clock.boot().after(RETRY).min(tenure.until());
                    clock.sleep_until(again).await;
                }
            }
        }
    }

    /// Leads until the lease is lost or given back.
    pub(super) async fn lead(&self, term: SharedEngine, commits: &mut Option<Commits>) {
        let epoch = term.right.epoch;
        let Some(tenure) = term.right.tenure.clone() else { return };
        // Whoever has changed keys waits until the leader says that it knows.
        self.renew_now.notify_one();
        let resigned = tokio::select! {
            () = self.keep(epoch, &tenure) => false,
            () = term.superseded.notified() => false,
            () = self.resigned.cancelled() => true,
            () = self.watch_others(commits) => false,
        };
        // From here on readers are sent to the database.
        term.end_term();
        *self.term.write() = None;
        self.leadership.send_replace(Leadership::Nobody);
        if !resigned {
            tracing::warn!(epoch, "this replica has lost the lease, and follows");
            return;
        }
        term.tasks.wait().await;
        match self.view.store.release_lease(epoch).await {
            Ok(()) => tracing::info!(epoch, "this replica has given the lease back"),
            Err(error) => {
                tracing::warn!(%error, epoch, "the lease could not be given back; it runs out");
            }
        }
    }

    /// Takes over what others may change while this one leads: API keys. Without end.
    async fn watch_others(&self, commits: &mut Option<Commits>) {
        let clock = &self.view.clock;
        loop {
            self.news(commits).await;
            clock.sleep_until(clock.boot().after(LEADER_LOOKS)).await;
            if matches!(self.look().await, Ok(true)) {
                self.renew_now.notify_one();
            }
        }
    }
}
