//! Pods as a whole: the provisioner's document literally, and what is made of a Pod that uses
//! every field. The files under `data` that show YAML were written by the Kubernetes Go libraries
//! (`k8s.io/api` 0.37, `sigs.k8s.io/yaml` 1.6) from the same input.

mod bombs;
mod properties;
mod refusals;

use super::emit::{self, Node};
use super::*;
use crate::port::{Protocol, TargetPort, TargetPorts};
use crate::spec::{StackSpec, VolumeMedium};

/// The Pod of the document's `POST /stacks`.
const DOCUMENT: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: challenge\nspec:\n  containers:\n    - name: app\n      image: nginx:stable\n      ports:\n        - containerPort: 80\n          protocol: TCP\n      resources:\n        requests:\n          cpu: \"100m\"\n          memory: \"128Mi\"\n        limits:\n          cpu: \"100m\"\n          memory: \"128Mi\"";

/// The `pod_spec` of the document's answer.
const ANSWER: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: challenge\nspec:\n  automountServiceAccountToken: false\n  containers:\n  - image: nginx:stable\n    name: app\n    ports:\n    - containerPort: 80\n      protocol: TCP\n    resources:\n      limits:\n        cpu: 100m\n        memory: 128Mi\n      requests:\n        cpu: 100m\n        memory: 128Mi\n    securityContext:\n      allowPrivilegeEscalation: false\n      privileged: false\n      seccompProfile:\n        type: RuntimeDefault\n  enableServiceLinks: false\n  restartPolicy: Never\n  securityContext:\n    seccompProfile:\n      type: RuntimeDefault\nstatus: {}\n";

const EVERYTHING: &str = include_str!("data/everything.yaml");
const EVERYTHING_SHOWN: &str = include_str!("data/everything-shown.yaml");

fn read(yaml: &str, ports: &TargetPorts) -> Result<StackSpec, PodError> {
    parse(yaml, ports, &PodDefaults::default())
}

fn port(container_port: u16, protocol: Protocol) -> TargetPort {
    TargetPort { container_port, protocol }
}

#[test]
fn the_documents_pod_is_shown_as_in_the_document() {
    let ports = TargetPorts::List(vec![port(80, Protocol::Tcp)]);
    let spec = read(DOCUMENT, &ports).expect("the document's Pod");
    assert_eq!(&*render(&spec), ANSWER);
    let requested = spec.requested(0);
    assert_eq!((requested.cpu_milli, requested.memory_bytes), (100, 134_217_728));
}

#[test]
fn every_field_is_read_and_shown() {
    let ports = TargetPorts::List(vec![port(53, Protocol::Udp), port(8080, Protocol::Tcp)]);
    let spec = read(EVERYTHING, &ports).expect("a Pod with every field");
    assert_eq!(&*render(&spec), EVERYTHING_SHOWN);

    assert_eq!(spec.target_ports, [port(53, Protocol::Udp), port(8080, Protocol::Tcp)]);
    assert_eq!(spec.termination_grace_seconds, Some(0));
    assert_eq!(spec.volumes[0].medium, VolumeMedium::Disk);
    assert_eq!(spec.volumes[1].medium, VolumeMedium::Memory);
    assert_eq!(spec.volumes[1].size_limit_bytes, Some(1_610_612_736));
    let app = &spec.containers[0];
    assert_eq!(app.resources.cpu_milli, 1500);
    assert_eq!(app.resources.memory_bytes, 1_610_612_736);
    assert_eq!(app.resources.ephemeral_storage_bytes, Some(1_000_000_000));
    assert_eq!(app.volume_mounts[0].sub_path.as_deref(), Some("a/b"));
    let probe = app.readiness_probe.as_ref().expect("a readiness probe");
    assert_eq!((probe.period_seconds, probe.initial_delay_seconds), (Some(2), None));
    let requested = spec.requested(7);
    assert_eq!(requested.cpu_milli, 1600);
    assert_eq!(requested.disk_bytes, 1_000_000_007);
}

#[test]
fn a_spec_survives_the_database() {
    let spec = read(EVERYTHING, &TargetPorts::Any(53)).expect("a Pod with every field");
    let json = serde_json::to_string(&spec).expect("JSON");
    let again: StackSpec = serde_json::from_str(&json).expect("its own JSON");
    assert_eq!(again, spec);
    assert_eq!(render(&again), render(&spec));
}

#[test]
fn a_bare_number_means_tcp_and_else_udp() {
    let pod = |ports: &str| {
        format!(
            "kind: Pod\nspec: {{containers: [{{name: a, image: b, ports: [{ports}], \
             resources: {{limits: {{cpu: 1, memory: 1Mi}}}}}}]}}"
        )
    };
    let both = pod("{containerPort: 53, protocol: UDP}, {containerPort: 53}");
    let udp = pod("{containerPort: 53, protocol: UDP}");
    let published = |pod: &str| read(pod, &TargetPorts::Any(53)).map(|spec| spec.target_ports);
    assert_eq!(published(&both), Ok(vec![port(53, Protocol::Tcp)]));
    assert_eq!(published(&udp), Ok(vec![port(53, Protocol::Udp)]));
}

#[test]
fn defaults_fill_what_is_not_named() {
    let yaml = "kind: Pod\nspec: {containers: [{name: a, image: b, ports: [{containerPort: 1}], \
                resources: {limits: {memory: 64Mi}}}]}";
    let defaults = PodDefaults { cpu_milli: Some(250), memory_bytes: Some(1 << 30) };
    let spec = parse(yaml, &TargetPorts::Any(1), &defaults).expect("a Pod");
    assert_eq!(spec.requested(0).cpu_milli, 250);
    assert_eq!(spec.requested(0).memory_bytes, 64 << 20);
    assert!(render(&spec).contains("      limits:\n        cpu: 250m\n        memory: 64Mi\n"));
}

#[test]
fn request_and_limit_both_become_the_greater() {
    let shown = |resources: &str| {
        let yaml = format!(
            "kind: Pod\nspec: {{containers: [{{name: a, image: b, ports: [{{containerPort: 1}}], \
             resources: {resources}}}]}}"
        );
        let spec = read(&yaml, &TargetPorts::Any(1)).expect(&yaml);
        let shown = render(&spec);
        let (_, rest) = shown.split_once("      limits:\n").expect("limits");
        let (limits, rest) = rest.split_once("      requests:\n").expect("requests");
        let (requests, _) = rest.split_once("    securityContext:\n").expect("an end");
        assert_eq!(limits, requests, "{yaml}");
        limits.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let cases = [
        (
            "{limits: {cpu: 2, memory: 2Mi}, requests: {cpu: 1, memory: 1Mi}}",
            "cpu: \"2\" memory: 2Mi",
        ),
        (
            "{limits: {cpu: 1, memory: 1M}, requests: {cpu: 1.5, memory: 1Mi}}",
            "cpu: 1500m memory: 1Mi",
        ),
        (
            "{limits: {cpu: 1, memory: 1Ki}, requests: {cpu: 1000m, memory: 1024}}",
            "cpu: \"1\" memory: 1Ki",
        ),
        ("{limits: {cpu: 1e3, memory: 1024}, requests: {memory: 1Ki}}", "cpu: 1k memory: \"1024\""),
        (
            "{limits: {cpu: 1m}, requests: {memory: 1, ephemeral-storage: 1500Mi}}",
            "cpu: 1m ephemeral-storage: 1500Mi memory: \"1\"",
        ),
    ];
    for (resources, expected) in cases {
        assert_eq!(shown(resources), expected, "{resources}");
    }
}

#[test]
fn an_unnamed_pod_has_empty_metadata() {
    let yaml = "kind: Pod\nspec: {containers: [{name: a, image: b, ports: [{containerPort: 1}], \
                resources: {limits: {cpu: 1, memory: 64Mi}}}]}";
    let spec = read(yaml, &TargetPorts::Any(1)).expect("a Pod");
    assert!(render(&spec).starts_with("apiVersion: v1\nkind: Pod\nmetadata: {}\nspec:\n"));
}

#[test]
fn scalars_are_written_as_by_the_go_libraries() {
    let table = include_str!("data/scalars.json");
    let table: Vec<(String, String)> = serde_json::from_str(table).expect("pairs");
    assert!(table.len() > 200);
    for (text, written) in table {
        let list = Node::List(vec![Node::from(&text)]);
        assert_eq!(emit::document(vec![("a".to_owned(), list)]), written, "{text:?}");
    }
}

#[test]
fn keys_are_in_natural_order() {
    let keys = [
        "A",
        "B",
        "a",
        "a-1",
        "a.1",
        "a/1",
        "a_1",
        "a1",
        "a2",
        "a9",
        "a10",
        "a12",
        "a100b",
        "aB",
        "ab",
        "app.kubernetes.io/name",
        "app/x",
        "b",
        "b3",
        "b20",
        "b100",
        "c1",
        "c01",
        "c001",
        "c2",
        "v1.9",
        "v1.10",
        "x9y10",
        "x10y2",
        "x10y10",
        "z",
    ];
    let entries = keys.iter().rev().map(|key| ((*key).to_owned(), Node::from(true))).collect();
    let expected: String = keys.iter().map(|key| format!("{key}: true\n")).collect();
    assert_eq!(emit::document(entries), expected);
}

#[test]
fn a_long_key_is_written_in_the_explicit_form() {
    let key = format!("{}/name", "x".repeat(124));
    let entries = |value: Node| vec![("a".to_owned(), Node::Map(vec![(key.clone(), value)]))];
    let written = emit::document(entries(Node::from("it's: 1")));
    assert_eq!(written, format!("a:\n  ? {key}\n  : 'it''s: 1'\n"));
}
