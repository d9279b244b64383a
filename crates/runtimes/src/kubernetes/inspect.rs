//! Looks at a cluster for `stackd doctor`: what is there, what may be done, how much room there is.
//! Nothing is changed.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use stackd_core::spec::Requested;

use super::access::{PERMISSIONS, Permission};
use super::config::{KubernetesConfig, UserNamespaces};
use super::connect::in_time;
use super::make::NOT_KEPT;
use super::node::no_user_namespaces;
use super::status::NodeView;
use super::{connect, error, room};

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

pub(super) fn good(name: &'static str, detail: impl Into<String>) -> Finding {
    Finding { name, rating: Rating::Good, detail: detail.into(), fix: String::new() }
}

pub(super) fn poor(
    name: &'static str,
    detail: impl Into<String>,
    fix: impl Into<String>,
) -> Finding {
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
    match in_time(config, client.apiserver_version()).await {
        Ok(version) => {
            let found = good(name, format!("version {} at {url}", version.git_version));
            [vec![found], inside(config, &client, size).await].concat()
        }
        Err(failure) => {
            let fix =
                "the API server must run, and be reached from here; --kube-context names another";
            vec![bad(name, format!("{url}: {}", error::chain(&failure)), fix)]
        }
    }
}

async fn inside(config: &KubernetesConfig, client: &Client, size: &Requested) -> Vec<Finding> {
    let mut findings = vec![
        namespace(config, client).await,
        default_deny(config, client).await,
        permissions(config, client).await,
    ];
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), &config.namespace);
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), &config.namespace);
    let all = ListParams::default();
    let (nodes, pods, quotas) = (
        in_time(config, nodes.list(&all)).await,
        in_time(config, pods.list(&all)).await,
        in_time(config, quotas.list(&all)).await,
    );
    let (of_classes, handlers) = classes(config, client).await;
    match (nodes, pods) {
        (Ok(nodes), Ok(pods)) => {
            findings.extend(of_nodes(config, &nodes.items));
            findings.push(user_namespaces(config, client, &nodes.items, &handlers).await);
            let quotas = quotas.as_ref().map_or(&[][..], |quotas| &quotas.items);
            findings.push(room::capacity(&nodes.items, &pods.items, quotas, size));
        }
        (Err(failure), _) | (_, Err(failure)) => {
            let fix = "nodes and pods must be listed; see permissions";
            findings.push(bad("nodes", error::chain(&failure), fix));
        }
    }
    findings.extend(of_classes);
    findings.push(match quotas {
        Ok(quotas) => room::quota(&quotas.items),
        Err(failure) => poor("quota", error::chain(&failure), "see permissions"),
    });
    findings.extend(lacks());
    findings
}

/// What a stack has limits of, and a cluster keeps late or not at all. None of it can be asked for.
fn lacks() -> [Finding; 3] {
    [
        poor(
            "processes",
            "a Pod cannot limit them: neither pids_limit nor a challenge's own limit holds",
            "set podPidsLimit in the configuration of each node's kubelet, if it is not yet",
        ),
        poor(
            "number of files",
            "not limited: a stack can use up the inodes of its node, which then evicts stacks",
            "give nodes file systems with many inodes, or without a fixed number (xfs, btrfs)",
        ),
        poor(
            "disk limit",
            "kept by eviction, some seconds late: a stack can write more than its limit meanwhile",
            "leave room on the disk of nodes beyond what stacks may use",
        ),
    ]
}

/// The policies of stacks are their own. What has none, or has lost it, is closed off by one of the
/// namespace's alone.
async fn default_deny(config: &KubernetesConfig, client: &Client) -> Finding {
    let name = "default deny";
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), &config.namespace);
    match in_time(config, policies.list(&ListParams::default())).await {
        Ok(policies) => match policies.iter().find(|policy| denies_all(policy)) {
            Some(policy) => good(name, format!("by the policy {}", policy.name_any())),
            None => poor(
                name,
                format!("no policy of {} denies all traffic of all its Pods", config.namespace),
                "apply the one of docs/kubernetes.md",
            ),
        },
        Err(failure) => poor(name, error::chain(&failure), "see permissions"),
    }
}

/// Whether a policy is for all Pods, in both directions, and lets nothing through.
fn denies_all(policy: &NetworkPolicy) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let of_all = spec.pod_selector.as_ref().is_none_or(|selector| {
        selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
            && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
    });
    let types = spec.policy_types.as_deref().unwrap_or_default();
    let both = ["Ingress", "Egress"].iter().all(|wanted| types.iter().any(|kind| kind == wanted));
    let nothing = spec.ingress.as_ref().is_none_or(Vec::is_empty)
        && spec.egress.as_ref().is_none_or(Vec::is_empty);
    of_all && both && nothing
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
    match in_time(config, policies.create(&params, &trial)).await {
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
    let answer = in_time(config, reviews.create(&PostParams::default(), &review)).await?;
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

async fn user_namespaces(
    config: &KubernetesConfig,
    client: &Client,
    nodes: &[Node],
    handlers: &HashMap<String, String>,
) -> Finding {
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
    match in_time(config, connect::keeps_user_namespaces(config, client)).await {
        Ok(true) => {}
        Ok(false) => {
            let fix = "turn the gate on, or use a cluster from version 1.33 on, where it is";
            return rate(name, NOT_KEPT.to_owned(), fix.to_owned());
        }
        Err(failure) => {
            return bad(name, error::chain(&failure), "the API server must answer");
        }
    }
    // As the server decides it.
    let lacking = config.classes().into_iter().filter_map(|class| {
        let handler = handlers.get(&class).map_or("", String::as_str);
        no_user_namespaces(nodes, handler).map(|why| format!("{class}: {why}"))
    });
    let lacking: Vec<_> = lacking.collect();
    if lacking.is_empty() {
        return good(name, "every node that stacks can go to makes them");
    }
    let detail = format!("stacks of these classes get none: {}", lacking.join("; "));
    let fix = "nodes need containerd 2 and runc 1.2, or CRI-O, and a kernel from 6.3 on";
    rate(name, detail, fix.to_owned())
}

/// The RuntimeClasses that are named, and the handlers of the classes.
async fn classes(
    config: &KubernetesConfig,
    client: &Client,
) -> (Vec<Finding>, HashMap<String, String>) {
    let api: Api<RuntimeClass> = Api::all(client.clone());
    let (mut findings, mut handlers) = (Vec::new(), HashMap::new());
    let name = "runtime classes";
    for (class, object) in config.runtime_classes.iter().filter(|(_, object)| !object.is_empty()) {
        findings.push(match in_time(config, api.get_opt(object)).await {
            Ok(Some(found)) => {
                let detail = format!("{class} is {object} (handler {})", found.handler);
                handlers.insert(class.clone(), found.handler);
                good(name, detail)
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
    (findings, handlers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_policy_for_all_pods_and_both_directions_denies_all() {
        let denies = |spec: serde_json::Value| {
            let policy = json!({"metadata": {"name": "p"}, "spec": spec});
            denies_all(&serde_json::from_value(policy).unwrap())
        };
        let both = json!(["Ingress", "Egress"]);
        assert!(denies(json!({"podSelector": {}, "policyTypes": both})));
        for spec in [
            json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
            json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": both}),
            json!({
                "podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
                "policyTypes": both,
            }),
            json!({"podSelector": {}, "policyTypes": both, "egress": [{}]}),
            json!({"podSelector": {}, "policyTypes": both, "ingress": [{"ports": [{"port": 80}]}]}),
        ] {
            assert!(!denies(spec.clone()), "{spec}");
        }
    }
}
