//! Ends a stack, with its pod kept for its logs, or removes all of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::DeleteParams;
use stackd_core::stack::reason;
use stackd_core::{RuntimeError, StackId};

use super::error;
use super::inner::{Inner, delete};
use super::status::Over;

/// How much later than the others a watch may tell that an object is gone.
const WATCHES_LAG: Duration = Duration::from_secs(5);

/// How many calls the collector of garbage may take the time of without having begun with anything of
/// ours, and how many for one stack while it goes on with others.
const COLLECTOR_PATIENCE: (u32, u32) = (3, 30);

/// How long a removal is waited for before the engine is told to ask again.
const PATIENCE: Duration = Duration::from_secs(60);

impl Inner {
    /// Ends the containers and gives the node ports back.
    pub(super) async fn stop(self: &Arc<Self>, id: StackId) -> Result<(), RuntimeError> {
        let lock = self.lock(id);
        let guard = lock.lock().await;
        // From here on it is over, and what follows from that is done as after any other end.
        self.change_entry(id, |entry| {
            entry.ending = true;
            entry.over.get_or_insert_with(|| {
                Box::new(Over::failed(reason::STOPPED, "the stack was stopped"))
            });
        });
        drop(guard);
        let ended = self.until(id, |inner| {
            inner.state.lock().entries.get(&id).is_none_or(super::entry::Entry::has_ended)
        });
        if tokio::time::timeout(PATIENCE, ended).await.is_err() {
            return Err(error::retry(format!("{id} has not ended in time")));
        }
        self.forget_lock(id);
        Ok(())
    }

    /// Removes everything, and waits until the watches show that nothing is left.
    pub(super) async fn remove(
        self: &Arc<Self>,
        id: StackId,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let lock = self.lock(id);
        let guard = lock.lock().await;
        let result = self.take_away(id, grace).await;
        if result.is_err() {
            // Until it is asked for again, what becomes of it is told as before.
            self.change_entry(id, |entry| entry.removing = false);
        }
        drop(guard);
        if result.is_ok() {
            self.state.lock().unclaim(id);
            self.forget_lock(id);
        }
        result
    }

    async fn take_away(self: &Arc<Self>, id: StackId, grace: Duration) -> Result<(), RuntimeError> {
        let grace = self.mark_removing(id, grace);
        let name = id.to_string();
        // Asked for once: what is already being deleted only takes its time.
        let uid = self.of_entry(id, |entry| {
            let policy = entry.policy.as_ref().map(|seen| &seen.view)?;
            (!policy.deleting || entry.asked.is_none()).then(|| policy.uid.clone())
        });
        if let Some(uid) = uid {
            let call = delete(&self.policies, &name, uid, DeleteParams::foreground());
            self.call(&format!("removing {id}"), call).await?;
            self.change_entry(id, |entry| entry.asked = Some(Instant::now()));
        }
        if let Some((uid, seconds)) = grace {
            let how = DeleteParams::default().grace_period(seconds);
            let call = delete(&self.pods, &name, uid, how);
            self.call(&format!("ending {id}"), call).await?;
        }
        let gone = async {
            if !self.is_collected(id).await {
                tracing::warn!(stack = %id, "the cluster does not take what a policy owned; taking it");
                let what = format!("removing {id} by its parts");
                self.call(&what, self.delete_service(id)).await?;
                self.call(&what, self.delete_pod(id)).await?;
                // What waits for the collector would wait for ever.
                self.call(&what, self.release_policy(id)).await?;
            }
            self.until(id, |inner| inner.is_gone(id) || inner.is_stranded(id)).await;
            if !self.is_on_lost_node(id) {
                let gone = self.until(id, |inner| inner.is_gone(id) || inner.is_on_lost_node(id));
                let _ = tokio::time::timeout(WATCHES_LAG, gone).await;
            }
            if !self.is_gone(id) {
                self.take_what_is_left(id).await?;
                self.until(id, |inner| inner.is_gone(id)).await;
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, gone).await {
            Ok(result) => result,
            Err(_) => Err(error::retry(format!("{id} is not gone yet"))),
        }
    }

    /// Waits until the collector of garbage has begun with what the policy owned, and says whether it
    /// has.
    async fn is_collected(&self, id: StackId) -> bool {
        let since = Instant::now();
        loop {
            // Also across removals that were asked for again.
            let asked = self.of_entry(id, |entry| entry.asked).unwrap_or(since);
            let last = self.state.lock().collected;
            let left = patience(self.config.api_timeout, asked, last, Instant::now());
            let begun = self.until(id, |inner| inner.is_begun(id) || inner.is_stranded(id));
            if tokio::time::timeout(left, begun).await.is_ok() {
                if !self.is_stranded(id) {
                    self.state.lock().collected = Some(Instant::now());
                }
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    /// Nobody hears of it any more. Gives its pod and the seconds of grace that this has to be told,
    /// where its own are too many: the collector of garbage gives it those.
    fn mark_removing(&self, id: StackId, grace: Duration) -> Option<(Box<str>, u32)> {
        let mut state = self.state.lock();
        let entry = state.entries.get_mut(&id)?;
        entry.removing = true;
        let pod = &entry.pod.as_ref()?.view;
        let runs = !pod.phase.is_over() && pod.node.is_some();
        let seconds = grace.as_secs();
        // 0 would take the pod from the API without waiting for its node.
        (runs && seconds < pod.grace)
            .then(|| u32::try_from(seconds.max(1)).unwrap_or(u32::MAX))
            .filter(|seconds| u64::from(*seconds) < pod.grace)
            .map(|seconds| (pod.uid.clone(), seconds))
    }

    fn is_gone(&self, id: StackId) -> bool {
        !self.state.lock().entries.contains_key(&id)
    }

    /// Whether the cluster is taking away what is left.
    fn is_begun(&self, id: StackId) -> bool {
        let state = self.state.lock();
        state.entries.get(&id).is_none_or(|entry| {
            entry.service.as_ref().is_none_or(|service| service.view.deleting)
                && entry.pod.as_ref().is_none_or(|pod| pod.view.deleting)
        })
    }

    /// Whether nobody but us may take what is left: its node does not answer, or its policy, which
    /// owned it, went without it. The latter may also be a watch that tells late.
    fn is_stranded(&self, id: StackId) -> bool {
        let without_policy =
            self.of_entry(id, |entry| Some(entry.policy.is_none())).unwrap_or(false);
        without_policy || self.is_on_lost_node(id)
    }

    fn is_on_lost_node(&self, id: StackId) -> bool {
        let state = self.state.lock();
        let pod = state.entries.get(&id).and_then(|entry| entry.pod.as_ref());
        let node = pod.and_then(|pod| pod.view.node.as_deref());
        node.is_some_and(|node| !state.nodes.get(node).is_some_and(|node| node.view.ready))
    }

    async fn take_what_is_left(self: &Arc<Self>, id: StackId) -> Result<(), RuntimeError> {
        let what = format!("removing what is left of {id}");
        self.call(&what, self.delete_service(id)).await?;
        let uid = self.of_entry(id, |entry| entry.pod.as_ref().map(|it| it.view.uid.clone()));
        let Some(uid) = uid else { return Ok(()) };
        let now = DeleteParams::default().grace_period(0);
        self.call(&what, delete(&self.pods, &id.to_string(), uid, now)).await
    }

    /// Asks for the end of the pod, with the grace that it has.
    async fn delete_pod(&self, id: StackId) -> kube::Result<()> {
        let uid = self.of_entry(id, |entry| entry.pod.as_ref().map(|it| it.view.uid.clone()));
        let Some(uid) = uid else { return Ok(()) };
        delete(&self.pods, &id.to_string(), uid, DeleteParams::default()).await
    }

    /// Takes the policy away without waiting for what it owned.
    async fn release_policy(&self, id: StackId) -> kube::Result<()> {
        let uid = self.of_entry(id, |entry| entry.policy.as_ref().map(|it| it.view.uid.clone()));
        let Some(uid) = uid else { return Ok(()) };
        delete(&self.policies, &id.to_string(), uid, DeleteParams::background()).await
    }

    /// Waits until something holds of a stack, looking at every change of it.
    pub(super) async fn until(&self, id: StackId, holds: impl Fn(&Self) -> bool) {
        loop {
            // Registered before the look, so that no change between the two is missed.
            let changed = self.state.lock().waiter(id).notified_owned();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    /// Locks of stacks that nobody works on are not kept.
    fn forget_lock(&self, id: StackId) {
        let mut state = self.state.lock();
        if state.locks.get(&id).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            state.locks.remove(&id);
        }
        if !state.entries.contains_key(&id) {
            state.wake(id);
        }
    }
}

/// For how long the collector of garbage is still waited for with a stack whose removal was asked for,
/// where it has last begun with one of ours. With many at once it takes as long as it takes, and who
/// helps then only costs the cluster more calls; so it is given up where it does nothing at all.
fn patience(call: Duration, asked: Instant, last: Option<Instant>, now: Instant) -> Duration {
    let (idle, longest) = COLLECTOR_PATIENCE;
    let left = |calls, since| call.saturating_mul(calls).saturating_sub(now - since);
    left(idle, last.map_or(asked, |last| last.max(asked))).min(left(longest, asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_given_up_where_it_does_nothing_or_forgets_one() {
        let call = Duration::from_secs(10);
        let before = Instant::now();
        let at = |seconds| before + Duration::from_secs(seconds);
        let left = |last: Option<u64>, now| patience(call, at(5), last.map(at), at(now)).as_secs();
        assert_eq!(left(None, 5), 30, "it may begin");
        assert_eq!(left(None, 35), 0, "it has never done anything");
        assert_eq!(left(Some(1), 34), 1, "what it did before says little");
        assert_eq!(left(Some(7), 37), 0, "it has stopped");
        assert_eq!(left(Some(34), 35), 29, "it is busy with others");
        assert_eq!(left(Some(300), 304), 1, "it is busy for long");
        assert_eq!(left(Some(304), 305), 0, "it takes others and never this one");
    }
}
