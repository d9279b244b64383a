//! Following: what others commit is read again, in the order in which it was committed.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use stackd_core::{JobId, StackId};
use stackd_store::{Changes, Commits, StoreError, Touched};

use super::{Leadership, RETRY, Replica};

/// Stacks that are read again in one statement.
const STACKS_AT_ONCE: usize = 500;

/// How far a replica is.
#[derive(Default)]
pub(super) struct Place {
    /// The commit that memory is in step with; none while it has to be read anew.
    pub(super) commit: Option<u64>,
    /// Memory was the leader's own, who knows of more than is committed.
    pub(super) led: bool,
    /// The look that ended last, and how.
    look: u64,
    pub(super) outcome: Option<StoreError>,
}

impl Replica {
    /// Takes over what was committed. One look at a time; who comes while one is under way shares
    /// the next one. True when API keys have changed.
    pub(super) async fn look(&self) -> Result<bool, StoreError> {
        let arrived = self.looks.load(Ordering::SeqCst);
        let mut place = self.place.lock().await;
        if place.look > arrived {
            return place.outcome.clone().map_or(Ok(false), Err);
        }
        let number = self.looks.fetch_add(1, Ordering::SeqCst) + 1;
        let begun = self.view.clock.boot();
        let result = self.take_over(&mut place).await;
        place.look = number;
        place.outcome = result.as_ref().err().cloned();
        if result.is_ok() {
            *self.looked.lock() = Some(begun);
        }
        result
    }

    async fn take_over(&self, place: &mut Place) -> Result<bool, StoreError> {
        let store = &self.view.store;
        let mut keys_changed = false;
        let leads = self.term().is_some();
        if std::mem::replace(&mut place.led, leads) && !leads {
            place.commit = None;
        }
        loop {
            let Some(commit) = place.commit else {
                let snapshot = store.load().await?;
                store.announce_from(&snapshot);
                self.keys.reset(snapshot.api_keys.clone());
                keys_changed = true;
                if !leads {
                    self.view.reset(&snapshot);
                }
                place.commit = Some(snapshot.commit);
                continue;
            };
            let changes = store.changes_after(commit).await?;
            let Changes { touched: Some(touched), .. } = &changes else {
                tracing::info!("too much was missed; everything is read anew");
                place.commit = None;
                continue;
            };
            keys_changed |= self.read_again(touched, leads).await?;
            place.commit = Some(changes.commit);
            if !leads {
                store.announce(changes.last_event).await?;
                self.note_leader(&changes);
            }
            if !changes.more {
                return Ok(keys_changed);
            }
        }
    }

    /// Reads what commits have touched. What the leader itself decides it knows better.
    async fn read_again(&self, touched: &[Touched], leads: bool) -> Result<bool, StoreError> {
        let store = &self.view.store;
        let (mut stacks, mut jobs) = (HashSet::new(), HashSet::new());
        let (mut keys, mut catalogue) = (false, false);
        for touched in touched {
            match touched {
                Touched::Stack(id) => drop(stacks.insert(*id)),
                Touched::Job(id) => drop(jobs.insert(*id)),
                Touched::Keys => keys = true,
                Touched::Catalogue => catalogue = true,
            }
        }
        if keys {
            self.keys.reset(store.api_keys().await?);
        }
        if leads {
            return Ok(keys);
        }
        if catalogue {
            self.view.follow(store.load_catalogue().await?);
        }
        let stacks: Vec<StackId> = stacks.into_iter().collect();
        for ids in stacks.chunks(STACKS_AT_ONCE) {
            let mut gone: HashSet<_> = ids.iter().copied().collect();
            for stack in store.stacks(ids).await? {
                gone.remove(&stack.id);
                self.view.show(&stack);
            }
            gone.into_iter().for_each(|id| self.view.hide(id));
        }
        let jobs: Vec<JobId> = jobs.into_iter().collect();
        if !jobs.is_empty() {
            let mut gone: HashSet<_> = jobs.iter().copied().collect();
            for job in store.jobs(&jobs).await? {
                gone.remove(&job.id);
                self.view.jobs.put(job);
            }
            gone.into_iter().for_each(|id| self.view.jobs.forget(id));
        }
        Ok(keys)
    }

    fn note_leader(&self, changes: &Changes) {
        let ends = changes.leader.as_ref().map(|l| self.view.clock.boot().after(l.remaining));
        *self.lease_ends.lock() = ends;
        let now = match &changes.leader {
            // This one is about to lead, or has just lost the lease.
            Some(leader) if leader.candidate.id == self.config.candidate.id => Leadership::Nobody,
            // It takes nothing from others, and ends before a replica leads.
            Some(leader) if leader.candidate.is_alone() => Leadership::Nobody,
            Some(leader) => {
                Leadership::There { epoch: leader.epoch, leader: leader.candidate.clone() }
            }
            None => Leadership::Nobody,
        };
        let changed = self.leadership.send_if_modified(|before| {
            let changed = *before != now;
            *before = now.clone();
            changed
        });
        if !changed {
            return;
        }
        match now {
            Leadership::There { epoch, leader } => {
                tracing::info!(epoch, leader = leader.address, "following");
            }
            _ => tracing::warn!("no replica leads"),
        }
    }

    /// Follows until nobody leads.
    pub(super) async fn follow(&self, commits: &mut Option<Commits>) {
        let clock = &self.view.clock;
        let mut reachable = true;
        loop {
            let looked = self.look().await;
            if let (Err(error), true) = (&looked, reachable) {
                tracing::error!(%error, "this replica cannot follow: the database cannot be read");
            } else if looked.is_ok() && !reachable {
                tracing::info!("the database can be read again");
            }
            reachable = looked.is_ok();
            let free = reachable && *self.leadership.borrow() == Leadership::Nobody;
            if free && !self.resigned.is_cancelled() {
                return;
            }
            let again = clock.boot().after(if reachable { self.config.renew } else { RETRY });
            let ends =
                self.lease_ends.lock().filter(|_| reachable && !self.resigned.is_cancelled());
            tokio::select! {
                () = self.news(commits) => {}
                () = clock.sleep_until(ends.map_or(again, |ends| again.min(ends))) => {}
            }
        }
    }

    /// Completes when there is something to look at. What was missed without a connection is seen
    /// by the look that follows.
    pub(super) async fn news(&self, commits: &mut Option<Commits>) {
        let clock = &self.view.clock;
        if let Some(listening) = commits {
            if listening.next().await.is_err() {
                *commits = None;
            }
            return;
        }
        match self.view.store.commits().await {
            Ok(listening) => *commits = Some(listening),
            Err(_) => clock.sleep_until(clock.boot().after(RETRY)).await,
        }
    }
}
