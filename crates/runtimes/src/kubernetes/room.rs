//! How many more stacks there is room for, for `stackd doctor`: on the nodes, and in the quotas of the
//! namespace.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, Node, Pod, ResourceQuota};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use kube::ResourceExt as _;
use stackd_core::quantity::Quantity;
use stackd_core::spec::Requested;

use super::inspect::{Finding, good, poor};
use super::node::{is_ready, takes_pods};

type Amounts = BTreeMap<String, Amount>;

fn amounts(amounts: Option<&Amounts>) -> impl Fn(&str) -> Option<Quantity> {
    move |name| amounts?.get(name)?.0.parse().ok()
}

/// The limits of a quota: of what, how much is used, and how much there is.
fn limits(quota: &ResourceQuota) -> impl Iterator<Item = (&str, &str, &str)> {
    let status = quota.status.as_ref();
    let used = status.and_then(|status| status.used.as_ref());
    let hard = status.into_iter().flat_map(|status| status.hard.iter().flatten());
    hard.map(move |(what, hard)| {
        let used = used.and_then(|used| used.get(what)).map_or("0", |used| used.0.as_str());
        (what.as_str(), used, hard.0.as_str())
    })
}

/// What the quotas of the namespace leave.
pub(super) fn quota(quotas: &[ResourceQuota]) -> Finding {
    let all = || quotas.iter().flat_map(limits);
    let list: Vec<_> = all().map(|(what, used, hard)| format!("{what} {used} of {hard}")).collect();
    let is_full = |(_, used, hard): &(&str, &str, &str)| {
        let (Ok(used), Ok(hard)) = (used.parse::<Quantity>(), hard.parse::<Quantity>()) else {
            return false;
        };
        !hard.exceeds(used)
    };
    let full: Vec<_> = all().filter(is_full).map(|(what, ..)| what).collect();
    match (list.is_empty(), full.is_empty()) {
        (true, _) => good("quota", "none"),
        (false, true) => good("quota", list.join(", ")),
        (false, false) => poor(
            "quota",
            format!("{}; nothing is left of {}", list.join(", "), full.join(", ")),
            "raise the ResourceQuota, or remove what holds it",
        ),
    }
}

/// How many stacks of a size a quota leaves room for; any number where it does not limit stacks.
fn fits_quota(quota: &ResourceQuota, size: &Requested) -> u64 {
    let spec = quota.spec.as_ref();
    // Pods of stacks have requests, and no deadline while they run.
    let scopes = spec.iter().flat_map(|spec| spec.scopes.iter().flatten());
    let of_stacks = scopes.into_iter().all(|s| s == "NotTerminating" || s == "NotBestEffort");
    if !of_stacks || spec.is_some_and(|spec| spec.scope_selector.is_some()) {
        return u64::MAX;
    }
    let left = |what: &str, used: &str, hard: &str| {
        let (used, hard): (Quantity, Quantity) = (used.parse().ok()?, hard.parse().ok()?);
        // Requests and limits of a stack are the same.
        let name = what.strip_prefix("requests.").or(what.strip_prefix("limits."));
        Some(match name.unwrap_or(what) {
            "cpu" => times(hard.milli().saturating_sub(used.milli()), size.cpu_milli),
            "memory" => times(hard.units().saturating_sub(used.units()), size.memory_bytes),
            "ephemeral-storage" => {
                times(hard.units().saturating_sub(used.units()), size.disk_bytes)
            }
            "pods"
            | "count/pods"
            | "services"
            | "services.nodeports"
            | "count/services"
            | "count/networkpolicies.networking.k8s.io" => {
                hard.units().saturating_sub(used.units())
            }
            _ => return None,
        })
    };
    limits(quota).filter_map(|(what, used, hard)| left(what, used, hard)).min().unwrap_or(u64::MAX)
}

fn times(have: u64, each: u64) -> u64 {
    have.checked_div(each).unwrap_or(u64::MAX)
}

/// What the scheduler reserves for a pod: init containers run before the others, one at a time.
fn reserved(pod: &Pod) -> Requested {
    let request = |container: &Container| {
        let resources = container.resources.as_ref();
        let amount = amounts(resources.and_then(|resources| resources.requests.as_ref()));
        Requested {
            cpu_milli: amount("cpu").map_or(0, Quantity::milli),
            memory_bytes: amount("memory").map_or(0, Quantity::units),
            disk_bytes: amount("ephemeral-storage").map_or(0, Quantity::units),
        }
    };
    let spec = pod.spec.as_ref();
    let mains = spec.iter().flat_map(|spec| &spec.containers).map(request);
    let inits = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).map(request);
    let mains = mains.fold(Requested::default(), |sum, one| sum.plus(&one));
    inits.fold(mains, |most, one| Requested {
        cpu_milli: most.cpu_milli.max(one.cpu_milli),
        memory_bytes: most.memory_bytes.max(one.memory_bytes),
        disk_bytes: most.disk_bytes.max(one.disk_bytes),
    })
}

/// How many stacks of a size fit on what the nodes can give, less what stacks hold already, and in
/// what the quotas leave.
pub(super) fn capacity(
    nodes: &[Node],
    pods: &[Pod],
    quotas: &[ResourceQuota],
    size: &Requested,
) -> Finding {
    let mut held: HashMap<&str, (Requested, u64)> = HashMap::new();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else {
            continue;
        };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            continue;
        }
        let (sum, count) = held.entry(node).or_default();
        *count += 1;
        *sum = sum.plus(&reserved(pod));
    }
    let mut fits = 0_u64;
    for node in nodes.iter().filter(|node| is_ready(node) && takes_pods(node)) {
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
        fits += times(free.cpu_milli, size.cpu_milli)
            .min(times(free.memory_bytes, size.memory_bytes))
            .min(times(free.disk_bytes, size.disk_bytes))
            .min(pods);
    }
    let quota = quotas.iter().map(|quota| fits_quota(quota, size)).min().unwrap_or(u64::MAX);
    let one = format!(
        "{}m CPU, {} of memory and {} of disk each",
        size.cpu_milli,
        Quantity::from_bytes(size.memory_bytes),
        Quantity::from_bytes(size.disk_bytes),
    );
    let number = fits.min(quota);
    let by = if quota < fits { "as the quota allows" } else { "less what other namespaces hold" };
    let detail = format!("about {number} more stacks of {one}, {by}");
    match number {
        0 if quota < fits => poor("capacity", detail, "raise the ResourceQuota, or remove stacks"),
        0 => poor("capacity", detail, "add nodes, or remove stacks"),
        _ => good("capacity", detail),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::inspect::Rating;
    use super::*;

    const SIZE: Requested = Requested { cpu_milli: 500, memory_bytes: 256 << 20, disk_bytes: 0 };

    fn node(name: &str, ready: bool, taint: Option<&str>) -> Node {
        let taints: Vec<_> =
            taint.iter().map(|effect| json!({"key": "k", "effect": effect})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
            "spec": {"taints": taints},
            "status": {
                "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "5"},
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}],
            },
        }))
        .unwrap()
    }

    fn pod(init: &[Value]) -> Pod {
        let one =
            json!({"name": "c", "resources": {"requests": {"cpu": "600m", "memory": "64Mi"}}});
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"nodeName": "a", "containers": [one, one], "initContainers": init},
        }))
        .unwrap()
    }

    fn of_quota(spec: Value, hard: Value, used: Value) -> ResourceQuota {
        let status = json!({"hard": hard, "used": used});
        let quota = json!({"metadata": {"name": "q"}, "spec": spec, "status": status});
        serde_json::from_value(quota).unwrap()
    }

    #[test]
    fn what_fits_is_what_the_nodes_can_give_less_what_is_held() {
        let nodes = [
            node("a", true, None),
            node("b", true, None),
            node("c", true, Some("NoSchedule")),
            node("d", false, None),
        ];
        let about = |pods: &[Pod]| capacity(&nodes, pods, &[], &SIZE).detail;
        let text = about(&[pod(&[])]);
        assert!(text.starts_with("about 5 more stacks"), "{text}");
        // Not beside the others, but as much as it needs before them.
        let init = |cpu: &str| json!({"name": "i", "resources": {"requests": {"cpu": cpu}}});
        let text = about(&[pod(&[init("1"), init("1200m")])]);
        assert!(text.starts_with("about 5 more stacks"), "{text}");
        let text = about(&[pod(&[init("1"), init("1800m")])]);
        assert!(text.starts_with("about 4 more stacks"), "{text}");
    }

    #[test]
    fn no_more_fit_than_the_quotas_leave() {
        let nodes = [node("a", true, None)];
        let found = |quotas: &[ResourceQuota]| capacity(&nodes, &[], quotas, &SIZE);
        let fits = |hard: Value, used: Value| found(&[of_quota(json!({}), hard, used)]).detail;
        for (hard, used, number) in [
            (json!({"pods": "500"}), json!({"pods": "1"}), 4),
            (json!({"pods": "500", "services": "3"}), json!({"services": "1"}), 2),
            (json!({"requests.cpu": "2"}), json!({"requests.cpu": "500m"}), 3),
            (json!({"memory": "1Gi"}), json!({"memory": "700Mi"}), 1),
            (json!({"limits.memory": "1Gi"}), json!({"limits.memory": "512Mi"}), 2),
            (json!({"secrets": "1"}), json!({"secrets": "1"}), 4),
        ] {
            let text = fits(hard.clone(), used);
            assert!(text.starts_with(&format!("about {number} more stacks")), "{hard}: {text}");
        }
        let none = (json!({"pods": "1"}), json!({"pods": "1"}));
        let full = of_quota(json!({}), none.0.clone(), none.1.clone());
        assert_eq!(found(&[full]).rating, Rating::Poor);
        // Not one of stacks.
        let other = of_quota(json!({"scopes": ["Terminating"]}), none.0, none.1);
        assert!(found(&[other]).detail.starts_with("about 4 more stacks"));
    }

    #[test]
    fn a_quota_of_which_nothing_is_left_is_no_good() {
        let found = |used: &str| {
            let hard = json!({"pods": "2", "requests.memory": "1Gi"});
            quota(&[of_quota(json!({}), hard, json!({"pods": "1", "requests.memory": used}))])
        };
        let enough = found("1023Mi");
        assert_eq!(enough.rating, Rating::Good);
        assert_eq!(enough.detail, "pods 1 of 2, requests.memory 1023Mi of 1Gi");
        let full = found("1024Mi");
        assert_eq!(full.rating, Rating::Poor);
        assert!(full.detail.ends_with("nothing is left of requests.memory"), "{}", full.detail);
        assert_eq!((quota(&[]).rating, quota(&[]).detail.as_str()), (Rating::Good, "none"));
    }
}
