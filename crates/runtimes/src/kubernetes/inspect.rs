//! Looks at a cluster for `stackd doctor`: what is there, what may be done, how much room there is.
//! Nothing is changed.

use std::collections::HashMap;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use stackd_core::quantity::Quantity;
use stackd_core::spec::Requested;

use super::access::{PERMISSIONS, Permission};
use super::config::{KubernetesConfig, UserNamespaces};
use super::make::NOT_KEPT;
use super::status::NodeView;
use super::{connect, error};

/// How something was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rating {
    /// As it should be.
    Good,
    /// It works, with less than there could be.
    Poor,
    /// Stacks will not work.
    Bad,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub rating: Rating,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty where there is nothing.
    pub fix: String,
}

fn good(name: &'static str, detail: impl Into<String>) -> Finding {
    Finding { name, rating: Rating::Good, detail: detail.into(), fix: String::new() }
}

fn poor(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { rating: Rating::Poor, fix: fix.into(), ..good(name, detail) }
}

fn bad(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { rating: Rating::Bad, ..poor(name, detail, fix) }
}

/// Looks at everything. `size` is a stack's, to tell how many there is room for.
pub async fn inspect(config: &KubernetesConfig, size: &Requested) -> Vec<Finding> {
    let name = "cluster";
    let (client, url) = match connect::client(config).await {
        Ok(connection) => connection,
        Err(failure) => {
            let fix = "name a kubeconfig with --kubeconfig, or run in a Pod of the cluster";
            return vec![bad(name, failure.to_string(), fix)];
        }
    };
    let version = tokio::time::timeout(config.api_timeout, client.apiserver_version()).await;
    let why = match version {
        Ok(Ok(version)) => {
            let found = good(name, format!("version {} at {url}", version.git_version));
            return [vec![found], inside(config, &client, size).await].concat();
        }
        Ok(Err(failure)) => error::chain(&failure),
        Err(_) => format!("no answer within {:?}", config.api_timeout),
    };
    let fix = "the API server must run, and be reached from here; --kube-context names another";
    vec![bad(name, format!("{url}: {why}"), fix)]
}

async fn inside(config: &KubernetesConfig, client: &Client, size: &Requested) -> Vec<Finding> {
    let mut findings = vec![namespace(config, client).await, permissions(config, client).await];
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), &config.namespace);
    let all = ListParams::default();
    match (nodes.list(&all).await, pods.list(&all).await) {
        (Ok(nodes), Ok(pods)) => {
            findings.extend(of_nodes(config, &nodes.items));
            findings.push(user_namespaces(config, client, &nodes.items).await);
            findings.push(capacity(&nodes.items, &pods.items, size));
        }
        (Err(failure), _) | (_, Err(failure)) => {
            let fix = "nodes and pods must be listed; see permissions";
            findings.push(bad("nodes", error::chain(&failure), fix));
        }
    }
    findings.extend(classes(config, client).await);
    findings.push(quota(config, client).await);
    findings
}

/// A policy is made as a trial only, which needs the namespace and leaves nothing in it.
async fn namespace(config: &KubernetesConfig, client: &Client) -> Finding {
    let name = "namespace";
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), &config.namespace);
    let trial = NetworkPolicy {
        metadata: ObjectMeta { name: Some("stackd-doctor".to_owned()), ..ObjectMeta::default() },
        spec: None,
    };
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match policies.create(&params, &trial).await {
        Ok(_) => good(name, &*config.namespace),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let fix = format!("kubectl create namespace {}", config.namespace);
            bad(name, format!("{} is not there", config.namespace), fix)
        }
        Err(failure) => {
            let fix = "stacks cannot be made there; see permissions";
            bad(name, error::chain(&failure), fix)
        }
    }
}

/// Asks for each verb whether it may be used.
async fn permissions(config: &KubernetesConfig, client: &Client) -> Finding {
    let name = "permissions";
    let (mut missing, mut wanted) = (Vec::new(), Vec::new());
    let mut count = 0;
    for permission in PERMISSIONS {
        for verb in permission.verbs {
            count += 1;
            let what = format!("{verb} {}", permission.resource);
            match allowed(config, client, permission, verb).await {
                Ok(true) => {}
                Ok(false) if permission.optional => {
                    wanted.push(format!("{what} ({})", permission.purpose));
                }
                Ok(false) => missing.push(format!("{what} ({})", permission.purpose)),
                Err(failure) => {
                    let fix = "the API server must answer SelfSubjectAccessReviews";
                    return bad(name, error::chain(&failure), fix);
                }
            }
        }
    }
    let fix = "bind the Role and the ClusterRole of the chart to this account";
    match (missing.is_empty(), wanted.is_empty()) {
        (true, true) => good(name, format!("all {count}")),
        (true, false) => poor(name, format!("without: {}", wanted.join(", ")), fix),
        (false, _) => bad(name, format!("missing: {}", missing.join(", ")), fix),
    }
}

async fn allowed(
    config: &KubernetesConfig,
    client: &Client,
    permission: &Permission,
    verb: &str,
) -> kube::Result<bool> {
    let (resource, subresource) = match permission.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (permission.resource, None),
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(permission.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(verb.to_owned()),
                namespace: (!permission.of_cluster).then(|| config.namespace.clone()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

fn of_nodes(config: &KubernetesConfig, nodes: &[Node]) -> Vec<Finding> {
    let views: Vec<_> = nodes.iter().map(|n| (n.name_any(), NodeView::of(config, n))).collect();
    let names = |keep: &dyn Fn(&NodeView) -> bool| -> Vec<&str> {
        views.iter().filter(|(_, view)| keep(view)).map(|(name, _)| name.as_str()).collect()
    };
    let ready = names(&|view| view.ready);
    let detail = format!("{} of {} are ready", ready.len(), views.len());
    let mut findings = vec![match (ready.is_empty(), ready.len() == views.len()) {
        (true, _) => bad("nodes", detail, "no stack can run: see `kubectl describe nodes`"),
        (false, true) => good("nodes", detail),
        (false, false) => poor("nodes", detail, "see `kubectl get nodes`"),
    }];
    let silent = names(&|view| view.ready && view.dial.is_none());
    findings.push(if silent.is_empty() {
        good("node addresses", "each ready node has the address that is dialled")
    } else {
        let detail = format!("none to dial at {}", silent.join(", "));
        bad("node addresses", detail, "stacks there never get ready: set --dial to the other kind")
    });
    let hidden = names(&|view| view.ready && view.public_ip.is_none());
    findings.push(if hidden.is_empty() {
        good("public addresses", "each ready node has one")
    } else {
        poor(
            "public addresses",
            format!("none of {}: node_public_ip is null there", hidden.join(", ")),
            "label the nodes and name the label with --public-address-key, or set \
             --internal-address-is-public where that one can be reached",
        )
    });
    findings
}

async fn user_namespaces(config: &KubernetesConfig, client: &Client, nodes: &[Node]) -> Finding {
    let name = "user namespaces";
    let rate: fn(&'static str, String, String) -> Finding = match config.user_namespaces {
        UserNamespaces::Never => {
            return poor(
                name,
                "turned off: root in a stack is root on its node, but for what else holds it",
                "set --user-namespaces to auto",
            );
        }
        UserNamespaces::Always => bad,
        UserNamespaces::Auto => poor,
    };
    match connect::keeps_user_namespaces(config, client).await {
        Ok(true) => {}
        Ok(false) => {
            let fix = "turn the gate on, or use a cluster from version 1.33 on, where it is";
            return rate(name, NOT_KEPT.to_owned(), fix.to_owned());
        }
        Err(failure) => {
            return bad(name, error::chain(&failure), "the API server must answer");
        }
    }
    let views = nodes.iter().map(|node| (node.name_any(), NodeView::of(config, node)));
    let without = views.filter(|(_, view)| view.ready && !view.user_namespaces);
    let without: Vec<_> = without.map(|(name, _)| name).collect();
    if without.is_empty() {
        return good(name, "every ready node makes them");
    }
    let detail = format!("{} cannot make them, so that stacks get none", without.join(", "));
    let fix = "they need containerd 2 and runc 1.2, or CRI-O, and a kernel from 6.3 on";
    rate(name, detail, fix.to_owned())
}

async fn classes(config: &KubernetesConfig, client: &Client) -> Vec<Finding> {
    let api: Api<RuntimeClass> = Api::all(client.clone());
    let mut findings = Vec::new();
    let name = "runtime classes";
    for (class, object) in config.runtime_classes.iter().filter(|(_, object)| !object.is_empty()) {
        findings.push(match api.get_opt(object).await {
            Ok(Some(found)) => {
                good(name, format!("{class} is {object} (handler {})", found.handler))
            }
            Ok(None) => bad(
                name,
                format!("{class} is mapped to {object}, which is not there"),
                "make the RuntimeClass, or take the class out of --kube-runtime-class",
            ),
            Err(failure) => bad(name, error::chain(&failure), "see permissions"),
        });
    }
    if findings.is_empty() {
        findings.push(good(name, "default only"));
    }
    findings
}

async fn quota(config: &KubernetesConfig, client: &Client) -> Finding {
    let name = "quota";
    let api: Api<ResourceQuota> = Api::namespaced(client.clone(), &config.namespace);
    let quotas = match api.list(&ListParams::default()).await {
        Ok(quotas) => quotas,
        Err(failure) => return poor(name, error::chain(&failure), "see permissions"),
    };
    let mut left = Vec::new();
    for quota in &quotas {
        let status = quota.status.as_ref();
        let used = status.and_then(|status| status.used.as_ref());
        for (what, hard) in status.iter().flat_map(|status| status.hard.iter().flatten()) {
            let used = used.and_then(|used| used.get(what)).map_or("0", |used| used.0.as_str());
            left.push(format!("{what} {used} of {}", hard.0));
        }
    }
    good(name, if left.is_empty() { "none".to_owned() } else { left.join(", ") })
}

fn amounts(
    amounts: Option<&std::collections::BTreeMap<String, Amount>>,
) -> impl Fn(&str) -> Option<Quantity> {
    move |name| amounts?.get(name)?.0.parse().ok()
}

/// How many stacks of a size fit on what the nodes can give, less what stacks hold already.
fn capacity(nodes: &[Node], pods: &[Pod], size: &Requested) -> Finding {
    let mut held: HashMap<&str, (Requested, u64)> = HashMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let Some(node) = spec.node_name.as_deref() else { continue };
        if matches!(phase, Some("Succeeded" | "Failed")) {
            continue;
        }
        let (sum, count) = held.entry(node).or_default();
        *count += 1;
        for container in &spec.containers {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let amount = amounts(requests);
            *sum = sum.plus(&Requested {
                cpu_milli: amount("cpu").map_or(0, Quantity::milli),
                memory_bytes: amount("memory").map_or(0, Quantity::units),
                disk_bytes: amount("ephemeral-storage").map_or(0, Quantity::units),
            });
        }
    }
    let mut fits = 0;
    for node in nodes.iter().filter(|node| takes_pods(node)) {
        let amount = amounts(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        let name = node.name_any();
        let (used, count) = held.get(name.as_str()).copied().unwrap_or_default();
        let free = Requested {
            cpu_milli: amount("cpu").map_or(0, Quantity::milli),
            memory_bytes: amount("memory").map_or(0, Quantity::units),
            disk_bytes: amount("ephemeral-storage").map_or(u64::MAX, Quantity::units),
        }
        .minus(&used);
        let pods = amount("pods").map_or(110, Quantity::units).saturating_sub(count);
        let times = |have: u64, each: u64| have.checked_div(each).unwrap_or(u64::MAX);
        fits += times(free.cpu_milli, size.cpu_milli)
            .min(times(free.memory_bytes, size.memory_bytes))
            .min(times(free.disk_bytes, size.disk_bytes))
            .min(pods);
    }
    let one = format!(
        "{}m CPU, {} of memory and {} of disk each",
        size.cpu_milli,
        Quantity::from_bytes(size.memory_bytes),
        Quantity::from_bytes(size.disk_bytes),
    );
    let detail = format!("about {fits} more stacks of {one}, less what other namespaces hold");
    match fits {
        0 => poor("capacity", detail, "add nodes, or remove stacks"),
        _ => good("capacity", detail),
    }
}

fn takes_pods(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let closed = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
    let taints = spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    !closed && taints.into_iter().all(|taint| taint.effect == "PreferNoSchedule")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_what_the_nodes_can_give_less_what_is_held() {
        let node = |name: &str, taint: Option<&str>| -> Node {
            let taints: Vec<_> = taint
                .iter()
                .map(|effect| serde_json::json!({"key": "k", "effect": effect}))
                .collect();
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name},
                "spec": {"taints": taints},
                "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "5"}},
            }))
            .unwrap()
        };
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p"},
            "spec": {"nodeName": "a", "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "1500m", "memory": "64Mi"}}}
            ]},
        }))
        .unwrap();
        let size = Requested { cpu_milli: 500, memory_bytes: 256 << 20, disk_bytes: 0 };
        let nodes = [node("a", None), node("b", None), node("c", Some("NoSchedule"))];
        let found = capacity(&nodes, std::slice::from_ref(&pod), &size);
        assert!(found.detail.starts_with("about 5 more stacks"), "{}", found.detail);
    }
}
