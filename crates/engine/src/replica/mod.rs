//! One of several servers on a database: it follows what is committed, leads while it holds the
//! lease, and knows at any time whether what it shows is what is.
//!
//! A replica that follows answers reads from memory, after one look at the database that all
//! requests of the moment share: so a create, a delete or a revoked key that was acknowledged
//! anywhere is seen everywhere. A replica that leads looks at its clock only: while its lease holds
//! nobody else writes.

mod follow;
mod lead;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use stackd_core::clock::BootTime;
use stackd_store::Candidate;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::book::SharedEngine;
use crate::command::Unavailable;
use crate::keys::Keys;
use crate::shared::unavailable;
use crate::view::View;
use follow::Place;

/// Between two attempts to reach the database.
const RETRY: Duration = Duration::from_millis(200);
/// How long a read waits for the database before it is refused.
const LOOK_PATIENCE: Duration = Duration::from_secs(4);

/// How a replica takes part.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Who it is, and where the others reach it.
    pub candidate: Candidate,
    /// How long a lease is good that is not renewed.
    pub lease: Duration,
    /// How often it is renewed, and how often a follower looks when it hears nothing.
    pub renew: Duration,
}

/// Who may change things now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leadership {
    /// This process.
    Here,
    /// Another replica.
    There {
        /// Which of all who ever led.
        epoch: u64,
        /// Where it is.
        leader: Candidate,
    },
    /// Nobody, for the moment.
    Nobody,
}

/// How a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaHealth {
    /// Whether it leads.
    pub leads: bool,
    /// Of the leader that it knows of; 0 where it knows none.
    pub epoch: u64,
    /// Whether it has heard from the database within the time of a lease.
    pub in_step: bool,
}

pub(crate) struct Replica {
    view: Arc<View>,
    keys: Keys,
    config: ReplicaConfig,
    place: tokio::sync::Mutex<Place>,
    /// Looks that have begun.
    looks: AtomicU64,
    /// When the last look that ended well began.
    looked: Mutex<Option<BootTime>>,
    leadership: watch::Sender<Leadership>,
    term: RwLock<Option<SharedEngine>>,
    /// No longer a candidate, since the process is about to end.
    resigned: CancellationToken,
    /// Whether it holds a lease, or has not given it back yet.
    holding: watch::Sender<bool>,
    /// When the lease of the leader that is followed runs out, unless it is renewed.
    lease_ends: Mutex<Option<BootTime>>,
    /// The leader has something to tell with its lease.
    renew_now: Notify,
}

impl Replica {
    pub(crate) fn new(view: Arc<View>, keys: Keys, config: ReplicaConfig) -> Arc<Self> {
        Arc::new(Self {
            resigned: view.stop.child_token(),
            view,
            keys,
            config,
            place: Default::default(),
            looks: AtomicU64::new(0),
            looked: Mutex::default(),
            leadership: watch::Sender::new(Leadership::Nobody),
            term: RwLock::default(),
            holding: watch::Sender::new(false),
            lease_ends: Mutex::default(),
            renew_now: Notify::new(),
        })
    }

    /// The engine, while this replica leads.
    pub(crate) fn term(&self) -> Option<SharedEngine> {
        self.term.read().clone().filter(|term| term.may_act())
    }

    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    pub(crate) fn health(&self) -> ReplicaHealth {
        let leads = self.term().is_some();
        let now = self.view.clock.boot();
        let fresh = |at: &BootTime| now < at.after(self.config.lease);
        let epoch = match (&*self.leadership.borrow(), &*self.term.read()) {
            (Leadership::Here, Some(term)) => term.right.epoch,
            (Leadership::There { epoch, .. }, _) => *epoch,
            _ => 0,
        };
        ReplicaHealth {
            leads,
            epoch,
            in_step: leads || self.looked.lock().as_ref().is_some_and(fresh),
        }
    }

    /// Completes when memory holds everything that was committed before the call.
    pub(crate) async fn in_step(&self) -> Result<(), Unavailable> {
        if self.term().is_some() {
            return Ok(());
        }
        let clock = &self.view.clock;
        let deadline = clock.boot().after(LOOK_PATIENCE);
        let looking = async {
            loop {
                match self.look().await {
                    Ok(_) => return,
                    Err(error) => tracing::debug!(%error, "the database cannot be read"),
                }
                clock.sleep_until(clock.boot().after(RETRY)).await;
            }
        };
        tokio::select! {
            () = looking => Ok(()),
            () = clock.sleep_until(deadline) => {
                let place = self.place.try_lock().ok().and_then(|place| place.outcome.clone());
                let reason = "the database cannot be reached".to_owned();
                Err(place.map_or(Unavailable { reason }, unavailable))
            }
        }
    }

    /// Follows and leads in turns until the engine ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut commits = None;
        loop {
            tokio::select! {
                () = self.follow(&mut commits) => {}
                () = self.view.stop.cancelled() => return,
            }
            match self.try_to_lead().await {
                Some(term) => self.lead(term, &mut commits).await,
                None => self.view.clock.sleep_until(self.view.clock.boot().after(RETRY)).await,
            }
            self.holding.send_replace(false);
        }
    }

    /// Gives the lease back, if this replica holds it, and does not take it again.
    pub(crate) async fn resign(&self) {
        self.resigned.cancel();
        // The sender is this one's own.
        let _ = self.holding.subscribe().wait_for(|holding| !holding).await;
    }
}
