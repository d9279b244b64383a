//! Makes a stack: its policy, which owns the rest, then its service and its pod at once. All by
//! POST: an object that was deleted must not come back by a late call.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{ListParams, PostParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stackd_core::runtime::{EnsureRequest, ErrorKind};
use stackd_core::stack::{Condition, reason};
use stackd_core::{RuntimeError, StackId};

use super::inner::Inner;
use super::watches::{self, Watched};
use super::{error, names, objects};

/// What an API server does whose gate for user namespaces is off, without a word.
pub(super) const NOT_KEPT: &str =
    "the API server drops what asks for a user namespace: its gate UserNamespacesSupport is off";

/// How long the watch may take to tell of an object that is there.
const ADOPT: Duration = Duration::from_secs(2);

/// What is there of a stack when it is asked for.
struct There {
    policy: Option<Box<str>>,
    service: bool,
    pod: bool,
}

impl Inner {
    /// Makes what is missing of a stack.
    pub(super) async fn ensure(
        self: &Arc<Self>,
        request: EnsureRequest,
    ) -> Result<(), RuntimeError> {
        let id = request.id;
        if !self.capabilities.runtime_classes.contains(&request.runtime_class) {
            let text = format!("runtime class {:?} is not served here", request.runtime_class);
            return Err(RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text));
        }
        let lock = self.lock(id);
        let _one_at_a_time = lock.lock().await;
        let Some(there) = self.there(&request)? else { return Ok(()) };
        let result = self.make(&request, there).await;
        self.change_entry(id, |entry| entry.making = false);
        if let Err(error) = &result
            && error.condition.reason == reason::NODE_PORT_TAKEN
        {
            self.state.lock().avoid(&request.ports);
        }
        result
    }

    /// What is there of it; none where it needs nothing more. Marks it as being made.
    fn there(&self, request: &EnsureRequest) -> Result<Option<There>, RuntimeError> {
        let mut state = self.state.lock();
        if request.epoch < state.epoch {
            return Err(outdated("epoch", request.epoch, state.epoch));
        }
        state.epoch = request.epoch;
        let entry = state.entries.entry(request.id).or_default();
        let there = There {
            policy: entry.policy.as_ref().map(|policy| policy.view.uid.clone()),
            service: entry.service.is_some(),
            pod: entry.pod.is_some(),
        };
        if let Some(policy) = &entry.policy {
            let generation = policy.view.generation;
            if request.generation < generation {
                return Err(outdated("generation", request.generation, generation));
            }
            if policy.view.deleting {
                return Err(error::retry("an earlier try is still being removed"));
            }
        }
        let is_whole = there.policy.is_some() && there.service && there.pod;
        // What ran once is not started again.
        if is_whole || entry.over.is_some() || entry.complete {
            return Ok(None);
        }
        entry.making = true;
        entry.begun = true;
        Ok(Some(there))
    }

    async fn make(
        self: &Arc<Self>,
        request: &EnsureRequest,
        there: There,
    ) -> Result<(), RuntimeError> {
        let id = request.id;
        let version = (request.generation, request.epoch);
        let uid = match there.policy {
            Some(uid) => uid,
            None => {
                let policy = objects::policy(&self.config, request);
                self.post(&self.policies, &policy, id, request.generation).await?;
                let state = self.state.lock();
                let policy = state.entries.get(&id).and_then(|entry| entry.policy.as_ref());
                let gone = || error::retry(format!("the policy of {id} was taken away"));
                policy.map(|policy| policy.view.uid.clone()).ok_or_else(gone)?
            }
        };
        let owner = objects::owned_by(id, &uid);
        let service = async {
            if there.service {
                return Ok(());
            }
            let ports = &request.ports;
            let service = objects::service(&self.config, id, version, ports, owner.clone());
            self.post(&self.services, &service, id, request.generation).await
        };
        let pod = async {
            let wanted = self.user_namespaces.contains(&request.runtime_class);
            if !there.pod {
                let pod = objects::pod(&self.config, request, wanted, owner.clone());
                self.post(&self.pods, &pod, id, request.generation).await?;
            }
            let has = self.of_entry(id, |entry| Some(entry.pod.as_ref()?.view.user_namespace));
            if wanted && has == Some(false) {
                return Err(error::failed(format!("making the pod of {id}: {NOT_KEPT}")));
            }
            Ok(())
        };
        let (service, pod): (Result<(), RuntimeError>, Result<(), RuntimeError>) =
            tokio::join!(service, pod);
        match (pod, service) {
            // What a caller can mend is told first, what passes by itself last.
            (Err(pod), Err(service)) => {
                Err(if rank(service.kind) < rank(pod.kind) { service } else { pod })
            }
            (pod, service) => pod.and(service),
        }
    }

    /// Makes one object. One that is there already is taken over where it is ours and of this
    /// generation: an answer may have been lost. The watch tells; where it does not, it is asked for.
    async fn post<K>(
        self: &Arc<Self>,
        api: &Api<K>,
        object: &K,
        id: StackId,
        generation: u64,
    ) -> Result<(), RuntimeError>
    where
        K: Watched + Resource + Serialize + DeserializeOwned,
    {
        let what = format!("making the {} of {id}", K::kind(&()));
        let params = PostParams::default();
        let call = async {
            match api.create(&params, object).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
                other => other.map(Some),
            }
        };
        let refused = match self.call(&what, call).await {
            Ok(Some(made)) => {
                // Known before the watch tells it.
                watches::made(self, &made);
                return Ok(());
            }
            Ok(None) => None,
            // Node ports and quotas are looked at before names: it may be what holds them.
            Err(error) if error.kind == ErrorKind::Saturated => Some(error),
            Err(error) => return Err(error),
        };
        if refused.is_none() {
            let known = self.until(id, |inner| {
                inner.state.lock().entries.get(&id).and_then(K::generation).is_some()
            });
            let _ = tokio::time::timeout(ADOPT, known).await;
        }
        let told = || self.state.lock().entries.get(&id).and_then(K::generation);
        let mut found = told();
        if found.is_none() {
            let name = object.meta().name.as_deref().unwrap_or_default();
            let only = ListParams::default().fields(&format!("metadata.name={name}"));
            let Some(there) = self.call(&what, api.list(&only)).await?.items.pop() else {
                let gone = || error::retry(format!("{what}: an earlier one is gone by now"));
                return Err(refused.unwrap_or_else(gone));
            };
            if names::is_of(there.meta(), &self.config, id) {
                watches::made(self, &there);
                found = told();
                if found.is_none() {
                    return Err(error::retry(format!("{what}: it was removed meanwhile")));
                }
            }
        }
        match found {
            Some((found, false)) if found == generation => Ok(()),
            Some((_, true)) => {
                Err(error::retry(format!("{what}: an earlier one is being removed")))
            }
            Some(_) | None => Err(refused.unwrap_or_else(|| {
                let text = "an object of this name is there, and is not of this stack";
                error::failed(format!("{what}: {text}"))
            })),
        }
    }

    /// What lets one call at a time change a stack.
    pub(super) fn lock(&self, id: StackId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.state.lock().locks.entry(id).or_default())
    }
}

fn rank(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Rejected => 0,
        ErrorKind::Saturated => 1,
        ErrorKind::Failed => 2,
        ErrorKind::Retry => 3,
    }
}

fn outdated(what: &str, asked: u64, newest: u64) -> RuntimeError {
    let condition = Condition::new(reason::START_ERROR, "the request is outdated");
    let operator = format!("{what} {asked} is older than {newest}");
    RuntimeError::new(ErrorKind::Rejected, condition, operator)
}
