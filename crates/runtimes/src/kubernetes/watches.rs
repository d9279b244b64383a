//! One watch for each kind of object, for ever: what they say goes into the cache.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use stackd_core::{PortMapping, Protocol, StackId};

use super::cache::Kind;
use super::entry::{Entry, PolicyView, ServiceView};
use super::inner::{Inner, RETRY};
use super::names;
use super::status::{NodeView, PodView};

/// A kind of object that is watched.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static
{
    const KIND: Kind;
    /// It is there, as it is now.
    fn seen(inner: &Arc<Inner>, object: &Self);
    /// It is there no more.
    fn gone(inner: &Arc<Inner>, object: &Self);
    /// The generation of that of a stack, where it is there, and whether it is being deleted.
    fn generation(entry: &Entry) -> Option<(u64, bool)>;
    /// A listing has ended: what it did not name is gone.
    fn unnamed(inner: &Arc<Inner>);
}

/// The seconds that a request for a watch lasts at most: the library takes no more.
const LONGEST: u32 = 290;

/// Begins all watches.
pub(super) fn begin(inner: &Arc<Inner>) {
    // A request for each lasts so long, and one that says nothing for longer is given up: a connection
    // may be dead without a word.
    let lasts = u32::try_from(inner.config.watch_timeout.as_secs()).unwrap_or(u32::MAX);
    let all = || watcher::Config::default().timeout(lasts.clamp(1, LONGEST));
    let ours = || all().labels(&names::selector(&inner.config));
    let (client, namespace) = (|| inner.watching.clone(), &inner.config.namespace);
    inner.spawn(follow::<NetworkPolicy>(
        Arc::clone(inner),
        Api::namespaced(client(), namespace),
        ours(),
    ));
    inner.spawn(follow::<Service>(Arc::clone(inner), Api::namespaced(client(), namespace), ours()));
    inner.spawn(follow::<Pod>(Arc::clone(inner), Api::namespaced(client(), namespace), ours()));
    inner.spawn(follow::<Node>(Arc::clone(inner), Api::all(client()), all()));
}

async fn follow<K: Watched>(inner: Arc<Inner>, api: Api<K>, config: watcher::Config) {
    let mut wanted = inner.listing.subscribe();
    let mut away = false;
    let (mut pause, longest) = RETRY;
    loop {
        let listing = *wanted.borrow_and_update();
        let mut events = std::pin::pin!(watch(api.clone(), config.clone()).default_backoff());
        let is_wanted = loop {
            let event = tokio::select! {
                biased;
                _ = wanted.changed() => break true,
                event = events.next() => event,
            };
            let Some(event) = event else { break false };
            match event {
                Ok(event) => {
                    if std::mem::take(&mut away) {
                        tracing::info!(kind = ?K::KIND, "the watch goes on");
                    }
                    if matches!(event, Event::Apply(_) | Event::Delete(_)) {
                        pause = RETRY.0;
                    }
                    take(&inner, event, listing);
                }
                Err(error) => {
                    // Told once; the library tries again, later and later.
                    if !std::mem::replace(&mut away, true) {
                        let error = super::error::chain(&error);
                        tracing::warn!(kind = ?K::KIND, error, "a watch has broken; trying again");
                    }
                    if is_too_old(&error) {
                        break false;
                    }
                }
            }
        };
        // Who decides waits for this listing.
        if is_wanted || tokio::time::timeout(pause, wanted.changed()).await.is_ok() {
            pause = RETRY.0;
        } else {
            pause = (pause * 2).min(longest);
        }
    }
}

/// Whether a watch cannot go on from where it was, so that all must be listed anew. The library knows
/// that from an event; from the status of an answer it would go on from there for ever.
fn is_too_old(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// An object that was just made here is known before its watch tells of it. Where the watch has
/// told of something later, it has told of this too, and maybe of its end: the answer to a call may
/// come after what happened next.
pub(super) fn made<K: Watched>(inner: &Arc<Inner>, object: &K) {
    let told = inner.told[K::KIND as usize].lock();
    if version_of(object) > *told {
        K::seen(inner, object);
    }
}

/// What the API server counts for each kind, upwards with every change.
fn version_of<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn take<K: Watched>(inner: &Arc<Inner>, event: Event<K>, listing: u64) {
    // Held until the event is in the cache, so that [`made`] comes before it or after it.
    let mut told = inner.told[K::KIND as usize].lock();
    if let Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) = &event {
        *told = version_of(object).max(*told);
    }
    match event {
        Event::Init => inner.state.lock().begin_listing(K::KIND),
        Event::InitApply(object) | Event::Apply(object) => K::seen(inner, &object),
        Event::Delete(object) => K::gone(inner, &object),
        Event::InitDone => {
            K::unnamed(inner);
            let complete = inner.state.lock().listed(K::KIND, listing);
            if complete {
                inner.synced();
            }
        }
    }
}

impl Watched for NetworkPolicy {
    const KIND: Kind = Kind::Policy;

    fn seen(inner: &Arc<Inner>, object: &Self) {
        let Some(id) = names::stack_of(&object.metadata) else { return };
        let number = |key| names::number(&object.metadata, key).unwrap_or(0);
        let ports = names::ports(&object.metadata);
        let view = PolicyView {
            uid: object.uid().unwrap_or_default().into(),
            generation: number(names::GENERATION),
            epoch: number(names::EPOCH),
            deleting: object.metadata.deletion_timestamp.is_some(),
        };
        inner.change(id, |state| {
            state.epoch = state.epoch.max(view.epoch);
            let seen = state.seen(Kind::Policy, view);
            let entry = state.entries.entry(id).or_default();
            if entry.ports.is_empty() {
                entry.ports = ports;
            }
            entry.policy = Some(seen);
        });
    }

    fn gone(inner: &Arc<Inner>, object: &Self) {
        if let Some(id) = names::stack_of(&object.metadata) {
            policy_gone(inner, id);
        }
    }

    fn generation(entry: &Entry) -> Option<(u64, bool)> {
        entry.policy.as_ref().map(|seen| (seen.view.generation, seen.view.deleting))
    }

    fn unnamed(inner: &Arc<Inner>) {
        for id in inner.unnamed(Kind::Policy) {
            policy_gone(inner, id);
        }
    }
}

fn policy_gone(inner: &Arc<Inner>, id: StackId) {
    inner.change(id, |state| {
        if let Some(entry) = state.entries.get_mut(&id) {
            entry.policy = None;
        }
    });
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;

    fn seen(inner: &Arc<Inner>, object: &Self) {
        let Some(id) = names::stack_of(&object.metadata) else { return };
        let ports = object.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let ports = ports.filter_map(|port| {
            Some(PortMapping {
                container_port: u16::try_from(port.port).ok()?,
                protocol: Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?,
                node_port: u16::try_from(port.node_port?).ok()?,
            })
        });
        let view = ServiceView {
            uid: object.uid().unwrap_or_default().into(),
            generation: names::number(&object.metadata, names::GENERATION).unwrap_or(0),
            deleting: object.metadata.deletion_timestamp.is_some(),
            ports: ports.collect(),
        };
        inner.change(id, |state| state.service_seen(id, view));
    }

    fn gone(inner: &Arc<Inner>, object: &Self) {
        if let Some(id) = names::stack_of(&object.metadata) {
            inner.change(id, |state| state.service_gone(id));
        }
    }

    fn generation(entry: &Entry) -> Option<(u64, bool)> {
        entry.service.as_ref().map(|seen| (seen.view.generation, seen.view.deleting))
    }

    fn unnamed(inner: &Arc<Inner>) {
        for id in inner.unnamed(Kind::Service) {
            inner.change(id, |state| state.service_gone(id));
        }
    }
}

impl Watched for Pod {
    const KIND: Kind = Kind::Pod;

    fn seen(inner: &Arc<Inner>, object: &Self) {
        let Some(id) = names::stack_of(&object.metadata) else { return };
        let view = PodView::of(object);
        inner.change(id, |state| {
            let seen = state.seen(Kind::Pod, view);
            state.entries.entry(id).or_default().pod = Some(seen);
        });
    }

    fn gone(inner: &Arc<Inner>, object: &Self) {
        let Some(id) = names::stack_of(&object.metadata) else { return };
        let last = PodView::of(object);
        inner.change(id, |state| {
            // What it was at last says why it went.
            let seen = state.seen(Kind::Pod, last);
            if let Some(pod) = state.entries.get_mut(&id).and_then(|entry| entry.pod.as_mut()) {
                *pod = seen;
            }
            state.pod_gone(id);
        });
    }

    fn generation(entry: &Entry) -> Option<(u64, bool)> {
        entry.pod.as_ref().map(|seen| (seen.view.generation, seen.view.deleting))
    }

    fn unnamed(inner: &Arc<Inner>) {
        for id in inner.unnamed(Kind::Pod) {
            inner.change(id, |state| state.pod_gone(id));
        }
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;

    fn seen(inner: &Arc<Inner>, object: &Self) {
        inner.node_seen(object.name_any().into(), NodeView::of(&inner.config, object));
    }

    fn gone(inner: &Arc<Inner>, object: &Self) {
        inner.node_gone(object.name_any().into());
    }

    fn generation(_entry: &Entry) -> Option<(u64, bool)> {
        None
    }

    fn unnamed(inner: &Arc<Inner>) {
        let names = inner.state.lock().unnamed_nodes();
        for name in names {
            inner.node_gone(name);
        }
    }
}
