//! The runtime behind its handles: the connection, what is known, and what is done about it without
//! being asked for.

use std::collections::HashSet;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::json;
use stackd_core::runtime::{Capabilities, Observation};
use stackd_core::stack::reason;
use stackd_core::{RuntimeError, StackId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cache::{Kind, State};
use super::config::KubernetesConfig;
use super::entry::{Action, Entry};
use super::status::{NodeView, Over};
use super::{dial, error, objects, watches};

/// How long to wait before a call that nobody waits for is made again: first, and at most.
pub(super) const RETRY: (Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(10));

/// How many times longer a node may not answer where the cluster does not give it up.
const SILENT_FOR_LONGER: u32 = 10;

/// How much longer than asked for the cluster may take to take a pod away from a node that is lost.
const COLLECTOR_LAG: Duration = Duration::from_secs(15);

/// How long the API server may hold on to the node ports of a service that is gone.
const PORTS_LINGER: Duration = Duration::from_secs(20);

/// The runtime.
pub(super) struct Inner {
    pub(super) config: KubernetesConfig,
    pub(super) capabilities: Capabilities,
    /// The runtime classes whose stacks get a user namespace.
    pub(super) user_namespaces: HashSet<String>,
    pub(super) client: Client,
    /// What watches go by: it gives up what says nothing for too long.
    pub(super) watching: Client,
    pub(super) policies: Api<NetworkPolicy>,
    pub(super) services: Api<Service>,
    pub(super) pods: Api<Pod>,
    pub(super) nodes: Api<Node>,
    pub(super) state: Mutex<State>,
    /// The number of the listing of all kinds that is asked for.
    pub(super) listing: watch::Sender<u64>,
    /// The latest resource version that the watch of each [`Kind`] has told.
    pub(super) told: [Mutex<u64>; 4],
    /// Ends everything when the last handle is dropped.
    pub(super) stop: CancellationToken,
}

impl Inner {
    /// Runs something until the runtime is closed.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Changes what is known of a stack, and does what follows from it.
    pub(super) fn change(self: &Arc<Self>, id: StackId, change: impl FnOnce(&mut State)) {
        let actions = {
            let mut state = self.state.lock();
            change(&mut state);
            state.assess(id)
        };
        self.act(id, actions);
    }

    /// Changes an entry that is there, and does what follows from it.
    pub(super) fn change_entry(self: &Arc<Self>, id: StackId, change: impl FnOnce(&mut Entry)) {
        self.change(id, |state| {
            if let Some(entry) = state.entries.get_mut(&id) {
                change(entry);
            }
        });
    }

    fn act(self: &Arc<Self>, id: StackId, actions: Vec<Action>) {
        for action in actions {
            let inner = Arc::clone(self);
            match action {
                Action::Dial => self.spawn(async move { dial::until_taken(&inner, id).await }),
                Action::Kill => self.spawn(async move { inner.kill(id).await }),
                Action::DropService => self.spawn(async move { inner.drop_service(id).await }),
                Action::RestoreService => {
                    self.spawn(async move { inner.restore_service(id).await });
                }
            }
        }
    }

    /// Begins to tell an observer, and to act for it.
    pub(super) fn observe(self: &Arc<Self>, observer: mpsc::UnboundedSender<Observation>) {
        let listing = self.state.lock().observe(observer);
        if let Some(listing) = listing {
            self.listing.send_replace(listing);
        }
    }

    fn assess_all(self: &Arc<Self>) {
        let ids: Vec<_> = self.state.lock().entries.keys().copied().collect();
        for id in ids {
            self.change(id, |_| {});
        }
    }

    /// Every kind was listed.
    pub(super) fn synced(self: &Arc<Self>) {
        self.assess_all();
        let begins = self.state.lock().release_observers();
        if begins {
            self.assess_all();
        }
        let state = self.state.lock();
        // A node may have gone while nobody looked.
        let named =
            state.entries.values().filter_map(|entry| entry.pod.as_ref()?.view.node.clone());
        let missing: HashSet<_> = named.filter(|node| !state.nodes.contains_key(node)).collect();
        drop(state);
        for node in missing {
            self.node_gone(node);
        }
    }

    /// The stacks of which a listing has not named the object.
    pub(super) fn unnamed(&self, kind: Kind) -> Vec<StackId> {
        self.state.lock().end_listing(kind)
    }

    /// A node is there, as it is now.
    pub(super) fn node_seen(self: &Arc<Self>, name: Box<str>, view: NodeView) {
        let (stacks, silent) = {
            let mut state = self.state.lock();
            let silent = state.node_answers(&name, view.ready);
            let same = state.nodes.get(&name).is_some_and(|node| node.view == view);
            let seen = state.seen(Kind::Node, view);
            state.nodes.insert(name.clone(), seen);
            (if same { Vec::new() } else { state.on_node(&name) }, silent)
        };
        for id in stacks {
            self.change(id, |_| {});
        }
        if let Some(since) = silent {
            let inner = Arc::clone(self);
            self.spawn(async move { inner.silent_node(name, since).await });
        }
    }

    /// A node does not answer. The cluster takes the pods of such a one away after their time, and that
    /// tells; but not where most of its nodes do not answer, since then it may be itself that is cut off,
    /// and stacks may go on. That is believed for longer, and not for ever.
    async fn silent_node(self: &Arc<Self>, name: Box<str>, since: std::time::Instant) {
        let patience = self.config.node_lost_after.saturating_mul(SILENT_FOR_LONGER);
        tokio::time::sleep(patience.saturating_add(COLLECTOR_LAG)).await;
        loop {
            let acts = {
                let state = self.state.lock();
                if !state.is_silent_since(&name, since) {
                    return;
                }
                state.acts()
            };
            if !acts {
                // Whoever leads decides that, by its own clock.
                tokio::time::sleep(RETRY.1).await;
                continue;
            }
            // A watch may lag, and this cannot be taken back.
            let what = format!("looking for node {name}");
            let found = self.insist(&what, || self.nodes.get_opt(&name)).await;
            let Some(node) = found else { return };
            if !NodeView::of(&self.config, &node).ready {
                break;
            }
            tokio::time::sleep(RETRY.1).await;
        }
        tracing::warn!(node = &*name, "a node does not answer, and its stacks are given up");
        let stacks = {
            let mut state = self.state.lock();
            if !state.is_silent_since(&name, since) {
                return;
            }
            state.lose_node(&name)
        };
        for id in stacks {
            self.change(id, |_| {});
        }
    }

    /// A node is not listed any more. Its stacks are given up only after it was asked for by name:
    /// that cannot be taken back.
    pub(super) fn node_gone(self: &Arc<Self>, name: Box<str>) {
        self.state.lock().nodes.remove(&name);
        let inner = Arc::clone(self);
        self.spawn(async move {
            let what = format!("looking for node {name}");
            let found = inner.insist(&what, || inner.nodes.get_opt(&name)).await;
            if found.is_some() {
                return;
            }
            tracing::warn!(node = &*name, "a node is gone");
            let stacks = {
                let mut state = inner.state.lock();
                if state.nodes.contains_key(&name) {
                    return;
                }
                // One of the same name is another.
                state.silent.remove(&name);
                state.lose_node(&name)
            };
            for id in stacks {
                inner.change(id, |_| {});
            }
        });
    }

    /// One call of the API server about a stack.
    pub(super) async fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, RuntimeError> {
        match tokio::time::timeout(self.config.api_timeout, call).await {
            Ok(result) => result.map_err(|failure| error::of_call(what, &failure)),
            Err(_) => Err(error::retry(format!("{what}: the API server did not answer in time"))),
        }
    }

    /// Makes a call again and again until it works.
    async fn insist<T, C>(&self, what: &str, call: impl Fn() -> C) -> T
    where
        C: Future<Output = kube::Result<T>>,
    {
        let (mut pause, longest) = RETRY;
        loop {
            match self.call(what, call()).await {
                Ok(value) => return value,
                Err(error) => tracing::warn!(error = error.operator, "a call has failed"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Ends what still runs of a stack that is over. The pod stays, for its logs.
    async fn kill(self: &Arc<Self>, id: StackId) {
        let what = format!("ending {id}");
        self.insist(&what, || self.end_pod(id)).await;
    }

    /// Asks for the end of a pod: the kubelet kills what is past its deadline. What no node has
    /// taken has nobody who would, and is deleted.
    pub(super) async fn end_pod(&self, id: StackId) -> kube::Result<()> {
        let name = id.to_string();
        let pod = self.of_entry(id, |entry| {
            entry.pod.as_ref().map(|pod| (pod.view.uid.clone(), pod.view.node.is_some()))
        });
        match pod {
            None => Ok(()),
            Some((uid, true)) => {
                let deadline =
                    json!({"metadata": {"uid": uid}, "spec": {"activeDeadlineSeconds": 1}});
                let patch = Patch::Merge(&deadline);
                or_gone(self.pods.patch(&name, &PatchParams::default(), &patch).await.map(drop))
            }
            Some((uid, false)) => delete(&self.pods, &name, uid, DeleteParams::default()).await,
        }
    }

    /// Takes the service of a stack away, where it has one.
    pub(super) async fn delete_service(&self, id: StackId) -> kube::Result<()> {
        let uid =
            self.of_entry(id, |entry| entry.service.as_ref().map(|seen| seen.view.uid.clone()));
        match uid {
            None => Ok(()),
            Some(uid) => {
                delete(&self.services, &id.service_name(), uid, DeleteParams::default()).await
            }
        }
    }

    /// Something of what is known of a stack.
    pub(super) fn of_entry<T>(&self, id: StackId, what: impl Fn(&Entry) -> Option<T>) -> Option<T> {
        self.state.lock().entries.get(&id).and_then(what)
    }

    async fn drop_service(self: &Arc<Self>, id: StackId) {
        let what = format!("giving back the ports of {id}");
        self.insist(&what, || self.delete_service(id)).await;
    }

    /// Makes a service again that somebody has deleted. Its ports may be another's meanwhile; then
    /// the stack is lost. That they are taken is believed only after a while: the API server gives
    /// ports free after it has told that the service is gone.
    async fn restore_service(self: &Arc<Self>, id: StackId) {
        tracing::warn!(stack = %id, "the service of a stack was deleted; making it again");
        let (mut pause, longest) = RETRY;
        let began = Instant::now();
        loop {
            let service = {
                let state = self.state.lock();
                state.entries.get(&id).and_then(|entry| {
                    let policy = entry.policy.as_ref().map(|seen| &seen.view)?;
                    let owner = objects::owned_by(id, &policy.uid);
                    let version = (policy.generation, policy.epoch);
                    let wanted = entry.service.is_none() && entry.over.is_none();
                    let ports = &entry.ports;
                    (wanted && !entry.removing && state.acts())
                        .then(|| objects::service(&self.config, id, version, ports, owner))
                })
            };
            let Some(service) = service else { break };
            let params = PostParams::default();
            let call = self.services.create(&params, &service);
            match self.call(&format!("making the service of {id} again"), call).await {
                Ok(service) => {
                    watches::made(self, &service);
                    break;
                }
                Err(error)
                    if error.condition.reason == reason::NODE_PORT_TAKEN
                        && began.elapsed() > PORTS_LINGER =>
                {
                    let text = "its service was deleted, and others have its node port";
                    let over = Over::failed(reason::LOST, text);
                    self.change_entry(id, |entry| entry.over = Some(Box::new(over)));
                    break;
                }
                Err(error) => tracing::warn!(stack = %id, error = error.operator, "not yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
        self.change_entry(id, |entry| entry.acting.restoring = false);
    }
}

/// Deletes an object that the watch has shown, and no other: somebody else's may have its name by
/// now.
pub(super) async fn delete<K>(
    api: &Api<K>,
    name: &str,
    uid: Box<str>,
    how: DeleteParams,
) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + Debug,
{
    let only = Preconditions { uid: Some(uid.into()), ..Preconditions::default() };
    or_gone(api.delete(name, &how.preconditions(only)).await.map(drop))
}

/// What is gone already need not be ended.
fn or_gone(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 || is_of_another(&status) => Ok(()),
        other => other,
    }
}

/// Whether a call was refused because the object under its name is another by now.
fn is_of_another(status: &Status) -> bool {
    status.code == 409 && status.message.contains("UID in precondition")
}
