//! A server by itself, on a database that others reach too: it holds the lease that a replica leads
//! by, so that no other server decides beside it, and writes under its epoch.
//!
//! Unlike a replica it acts on from memory while the database is away, and it does not follow: when
//! another has taken the lease meanwhile, it ends for good.

use std::sync::Arc;
use std::time::Duration;

use stackd_core::Clock;
use stackd_store::{Leader, Store};
use tokio_util::sync::CancellationToken;

use crate::StartError;
use crate::book::SharedEngine;
use crate::replica::ReplicaConfig;
use crate::term::{Right, Tenure};

/// Between two looks at whether the lease of another has run out.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The lease of a server by itself.
pub(crate) struct Hold {
    store: Store,
    clock: Arc<dyn Clock>,
    config: ReplicaConfig,
    epoch: u64,
    tenure: Arc<Tenure>,
    ousted: CancellationToken,
}

impl Hold {
    /// Takes the lease. One that a killed server has left behind is waited for; one that somebody
    /// renews is an error.
    pub(crate) async fn take(
        store: &Store,
        clock: &Arc<dyn Clock>,
        config: ReplicaConfig,
    ) -> Result<Self, StartError> {
        let mut before: Option<Leader> = None;
        let mut after = 0;
        loop {
            let begun = clock.boot();
            if let Some(epoch) = store.acquire_lease(&config.candidate, config.lease).await? {
                let tenure = Arc::new(Tenure::default());
                tenure.extend(begun.after(config.lease));
                let (store, clock) = (store.clone(), Arc::clone(clock));
                let ousted = CancellationToken::new();
                return Ok(Self { store, clock, config, epoch, tenure, ousted });
            }
            let now = store.changes_after(after).await?;
            after = now.commit;
            if let Some(leader) = now.leader {
                match &before {
                    Some(known) if is_renewed(known, &leader) => {
                        return Err(StartError::Held(leader.candidate));
                    }
                    Some(_) => {}
                    None => {
                        let (holder, remaining) = (&leader.candidate.id, leader.remaining);
                        tracing::info!(holder, ?remaining, "waiting for the lease of another");
                    }
                }
                before = Some(leader);
            }
            clock.sleep_until(clock.boot().after(LOOK_AGAIN)).await;
        }
    }

    /// Under which right the server acts.
    pub(crate) fn right(&self) -> Right {
        Right { epoch: self.epoch, tenure: Some(Arc::clone(&self.tenure)), alone: true }
    }

    /// Renews the lease once; false when another has taken it. A database that is away has not
    /// given it to anybody.
    pub(crate) async fn renew(&self) -> bool {
        let begun = self.clock.boot();
        match self.store.renew_lease(self.epoch, 0, self.config.lease).await {
            Ok(true) => {
                self.tenure.extend(begun.after(self.config.lease));
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::debug!(%error, "the lease could not be renewed; trying again");
                true
            }
        }
    }

    /// Renews the lease until the engine ends, or until another has it.
    pub(crate) async fn keep(self: Arc<Self>, term: SharedEngine) {
        loop {
            let again = self.clock.boot().after(self.config.renew);
            tokio::select! {
                () = self.clock.sleep_until(again) => {}
                () = term.superseded.notified() => break,
                () = term.stop.cancelled() => return,
            }
            if !self.renew().await {
                break;
            }
        }
        tracing::error!(epoch = self.epoch, "another server has taken this database over");
        term.end_term();
        self.ousted.cancel();
    }

    /// Completes when another server has taken the lease.
    pub(crate) async fn ousted(&self) {
        self.ousted.cancelled().await;
    }

    /// Gives the lease back, so that the next server need not wait.
    pub(crate) async fn give_back(&self) {
        if let Err(error) = self.store.release_lease(self.epoch).await {
            tracing::warn!(%error, "the lease could not be given back; it runs out");
        }
    }
}

/// Whether the holder of a lease lives: without it the time that is left only gets shorter.
fn is_renewed(before: &Leader, now: &Leader) -> bool {
    now.epoch != before.epoch || now.remaining > before.remaining
}
