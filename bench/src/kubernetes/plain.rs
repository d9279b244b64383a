//! A client that makes the same calls as stackd and keeps nothing: what the cluster itself costs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

/// Longer than anything here takes when it works.
const PATIENCE: Duration = Duration::from_secs(180);

/// The three objects of a stack, as stackd has made them.
pub(super) struct Template {
    policy: NetworkPolicy,
    service: Service,
    pod: Pod,
}

impl Template {
    /// Takes those of a stack that is there.
    pub(super) async fn of(client: &Client, namespace: &str, id: &str) -> Result<Self> {
        let client = || client.clone();
        let mut service: Service =
            Api::namespaced(client(), namespace).get(&format!("svc-{id}")).await?;
        if let Some(spec) = &mut service.spec {
            (spec.cluster_ip, spec.cluster_ips) = (None, None);
        }
        let mut pod: Pod = Api::namespaced(client(), namespace).get(id).await?;
        pod.status = None;
        if let Some(spec) = &mut pod.spec {
            spec.node_name = None;
        }
        let policy = Api::namespaced(client(), namespace).get(id).await?;
        Ok(Self { policy, service, pod })
    }
}

/// How the pods and services of the namespace are, by name.
#[derive(Default)]
pub(super) struct Seen {
    scheduled: HashSet<String>,
    pub(super) running: HashSet<String>,
    services: HashSet<String>,
    policies: HashSet<String>,
    pods: HashSet<String>,
}

impl Seen {
    fn is_empty(&self) -> bool {
        self.services.is_empty() && self.policies.is_empty() && self.pods.is_empty()
    }
}

/// The client.
#[derive(Clone)]
pub(super) struct Plain {
    template: Arc<Template>,
    policies: Api<NetworkPolicy>,
    services: Api<Service>,
    pods: Api<Pod>,
    seen: Arc<watch::Sender<Seen>>,
}

impl Plain {
    /// Begins to watch a namespace.
    pub(super) fn new(client: &Client, namespace: &str, template: &Arc<Template>) -> Self {
        let plain = Self {
            template: Arc::clone(template),
            policies: Api::namespaced(client.clone(), namespace),
            services: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client.clone(), namespace),
            seen: Arc::new(watch::Sender::new(Seen::default())),
        };
        tokio::spawn(follow(
            plain.policies.clone(),
            Arc::clone(&plain.seen),
            |seen| seen.policies.clear(),
            |seen, object, there| {
                keep(&mut seen.policies, object.name_any(), there);
            },
        ));
        tokio::spawn(follow(
            plain.services.clone(),
            Arc::clone(&plain.seen),
            |seen| seen.services.clear(),
            |seen, object, there| {
                keep(&mut seen.services, object.name_any(), there);
            },
        ));
        tokio::spawn(follow(
            plain.pods.clone(),
            Arc::clone(&plain.seen),
            |seen| {
                for names in [&mut seen.scheduled, &mut seen.running, &mut seen.pods] {
                    names.clear();
                }
            },
            |seen, pod, there| {
                let name = pod.name_any();
                let placed = pod.spec.is_some_and(|spec| spec.node_name.is_some());
                let runs = pod.status.and_then(|status| status.phase).as_deref() == Some("Running");
                keep(&mut seen.scheduled, name.clone(), there && placed);
                keep(&mut seen.running, name.clone(), there && runs);
                keep(&mut seen.pods, name, there);
            },
        ));
        plain
    }

    /// The three calls of a stack.
    pub(super) async fn make(&self, number: usize, node_port: usize) -> Result<()> {
        let id = name(number);
        let params = PostParams::default();
        let policy = NetworkPolicy {
            metadata: renamed(&self.template.policy.metadata, &id, None),
            spec: self.template.policy.spec.clone(),
        };
        let policy = self.policies.create(&params, &policy).await?;
        let owner = policy.uid().context("its uid")?;
        let mut service = self.template.service.clone();
        service.metadata = renamed(&service.metadata, &format!("svc-{id}"), Some((&id, &owner)));
        service.status = None;
        let ports = service.spec.as_mut().and_then(|spec| spec.ports.as_mut());
        for port in ports.into_iter().flatten() {
            port.node_port = Some(i32::try_from(node_port)?);
        }
        let mut pod = self.template.pod.clone();
        pod.metadata = renamed(&pod.metadata, &id, Some((&id, &owner)));
        tokio::try_join!(self.services.create(&params, &service), self.pods.create(&params, &pod))?;
        Ok(())
    }

    /// The same, until the scheduler has placed it: when a caller of stackd gets the answer.
    pub(super) async fn make_and_place(&self, number: usize, node_port: usize) -> Result<()> {
        self.make(number, node_port).await?;
        self.until(|seen| seen.scheduled.contains(&name(number))).await
    }

    /// The one call that takes a stack away.
    pub(super) async fn delete(&self, number: usize) -> Result<()> {
        self.policies.delete(&name(number), &DeleteParams::foreground()).await?;
        Ok(())
    }

    /// Waits until nothing is there.
    pub(super) async fn until_empty(&self) -> Result<()> {
        self.until(Seen::is_empty).await
    }

    /// Waits until what is seen is so.
    pub(super) async fn until(&self, holds: impl FnMut(&Seen) -> bool) -> Result<()> {
        let mut seen = self.seen.subscribe();
        tokio::time::timeout(PATIENCE, seen.wait_for(holds)).await.context("in time")??;
        Ok(())
    }
}

fn name(number: usize) -> String {
    format!("stack-{number:016x}")
}

fn keep(names: &mut HashSet<String>, name: String, there: bool) {
    if there {
        names.insert(name);
    } else {
        names.remove(&name);
    }
}

/// The labels and annotations of a template, under another name.
fn renamed(of: &ObjectMeta, name: &str, owner: Option<(&str, &str)>) -> ObjectMeta {
    let owners = owner.and_then(|(name, uid)| {
        let mut owners = of.owner_references.clone()?;
        for owner in &mut owners {
            (owner.name, owner.uid) = (name.to_owned(), uid.to_owned());
        }
        Some(owners)
    });
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: of.labels.clone(),
        annotations: of.annotations.clone(),
        owner_references: owners,
        ..ObjectMeta::default()
    }
}

/// Keeps what is seen of a kind as it is. A watch ends by itself after some minutes, and the API server
/// ends one that lags; what went away between two of them is told by a list alone.
async fn follow<K>(
    api: Api<K>,
    seen: Arc<watch::Sender<Seen>>,
    forget: fn(&mut Seen),
    take: impl Fn(&mut Seen, K, bool) + Send + 'static,
) where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let params = WatchParams::default().timeout(290);
    loop {
        let Ok(listed) = api.list(&ListParams::default()).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let version = listed.metadata.resource_version.unwrap_or_default();
        seen.send_modify(|seen| {
            forget(seen);
            for object in listed.items {
                take(seen, object, true);
            }
        });
        let Ok(events) = api.watch(&params, &version).await else { continue };
        let mut events = events.boxed();
        while let Some(Ok(event)) = events.next().await {
            let (object, there) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, true),
                WatchEvent::Deleted(object) => (object, false),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(_) => break,
            };
            seen.send_modify(|seen| take(seen, object, there));
        }
    }
}
