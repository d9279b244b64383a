//! Every refusal, by its literal text, and what is accepted right beside it.

use super::read;
use crate::pod::{PodDefaults, parse};
use crate::port::{Protocol, TargetPort, TargetPorts};

const RESOURCES: &str = "resources: {limits: {cpu: 100m, memory: 64Mi}}";
const PORTS: &str = "ports: [{containerPort: 80}]";

/// A Pod with `more` in its `spec`, beside one sound container.
fn pod(more: &str) -> String {
    format!(
        "kind: Pod\nspec:\n  containers: [{{name: a, image: b, {PORTS}, {RESOURCES}}}]\n  {more}\n"
    )
}

/// A Pod with one container that also has `more`.
fn container(more: &str) -> String {
    format!(
        "kind: Pod\nspec:\n  volumes: [{{name: v}}]\n  containers:\n  - {{name: a, image: b, \
         {PORTS}, {RESOURCES}, {more}}}\n"
    )
}

/// A Pod with exactly these containers.
fn containers(all: &str) -> String {
    format!("kind: Pod\nspec:\n  containers: [{all}]\n")
}

fn with_ports(ports: &str) -> String {
    containers(&format!("{{name: a, image: b, ports: [{ports}], {RESOURCES}}}"))
}

fn with_resources(resources: &str) -> String {
    containers(&format!("{{name: a, image: b, {PORTS}, resources: {resources}}}"))
}

fn with_image(image: &str) -> String {
    containers(&format!("{{name: a, image: {image}, {PORTS}, {RESOURCES}}}"))
}

fn probe(probe: &str) -> String {
    container(&format!("readinessProbe: {probe}"))
}

pub(super) fn refusal(yaml: &str) -> String {
    match read(yaml, &TargetPorts::Any(80)) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_refusal_of_the_contract_has_its_text() {
    let cases = [
        ("kind: Deployment".to_owned(), "kind must be Pod"),
        ("spec: {}".to_owned(), "kind must be Pod"),
        ("kind: [Pod]".to_owned(), "kind must be Pod"),
        (pod("hostNetwork: true"), "hostNetwork/hostPID/hostIPC are forbidden"),
        (pod("hostPID: true"), "hostNetwork/hostPID/hostIPC are forbidden"),
        (pod("hostIPC: true"), "hostNetwork/hostPID/hostIPC are forbidden"),
        (pod("securityContext: {}"), "pod securityContext is forbidden in input"),
        (pod("securityContext: 1"), "pod securityContext is forbidden in input"),
        (container("securityContext: {}"), "container securityContext is forbidden in input"),
        (
            pod("initContainers: [{securityContext: {privileged: false}}]"),
            "container securityContext is forbidden in input",
        ),
        (pod("serviceAccountName: default"), "serviceAccount is forbidden in input"),
        (pod("serviceAccount: default"), "serviceAccount is forbidden in input"),
        (pod("nodeName: node-1"), "nodeName/runtimeClassName are forbidden in input"),
        (pod("runtimeClassName: gvisor"), "nodeName/runtimeClassName are forbidden in input"),
        (pod("ephemeralContainers: [{name: x}]"), "ephemeralContainers are forbidden"),
        (pod("volumes: [{name: v, hostPath: {path: /}}]"), "hostPath volume is forbidden"),
        (
            pod("volumes: [{name: v, projected: {sources: [{serviceAccountToken: {}}]}}]"),
            "projected serviceAccountToken is forbidden",
        ),
        ("kind: Pod".to_owned(), "at least one container is required"),
        ("kind: Pod\nspec: {}".to_owned(), "at least one container is required"),
        (containers(""), "at least one container is required"),
        (containers("{image: b}"), "container name is required"),
        (containers("{name: '', image: b}"), "container name is required"),
        (
            containers(&format!("{{name: x, image: b, {RESOURCES}}}, {{name: x, image: b}}")),
            "duplicate container name \"x\"",
        ),
        (
            pod(&format!("initContainers: [{{name: a, image: b, {RESOURCES}}}]")),
            "duplicate container name \"a\"",
        ),
        (containers("{name: a}"), "container image is required"),
        (with_image("''"), "container image is required"),
        (with_image("Nginx"), "invalid image reference \"Nginx\""),
        (with_image("' nginx'"), "invalid image reference \" nginx\""),
        (
            pod("initContainers: [{name: i, image: b, ports: [{containerPort: 1}]}]"),
            "initContainer ports are forbidden",
        ),
        (containers(&format!("{{name: a, image: b, {PORTS}}}")), "request/limit must be set"),
        (with_resources("{limits: {cpu: 1}}"), "request/limit must be set"),
        (with_resources("{requests: {memory: 1Mi}}"), "request/limit must be set"),
        (with_resources("{limits: {cpu: 0, memory: 1Mi}}"), "request/limit must be set"),
        (with_resources("{limits: {cpu: 1, memory: 0Mi}}"), "request/limit must be set"),
        (with_ports("{}"), "invalid container port"),
        (with_ports("{containerPort: 0}"), "invalid container port"),
        (with_ports("{containerPort: -80}"), "invalid container port"),
        (with_ports("{containerPort: 65536}"), "invalid container port"),
        (with_ports("{containerPort: 80, hostPort: 80}"), "hostPort/hostIP are forbidden"),
        (with_ports("{containerPort: 80, hostIP: 1.2.3.4}"), "hostPort/hostIP are forbidden"),
        (with_ports("{containerPort: 80, protocol: SCTP}"), "protocol must be TCP or UDP"),
        (with_ports("{containerPort: 80, protocol: tcp}"), "protocol must be TCP or UDP"),
        (with_ports(""), "at least one exposed container port is required"),
        (with_ports("{containerPort: 81}"), "target_port must exist in container ports"),
    ];
    for (yaml, text) in cases {
        assert_eq!(refusal(&yaml), text, "{yaml}");
    }
    let udp = TargetPorts::List(vec![TargetPort { container_port: 80, protocol: Protocol::Udp }]);
    let error = read(&pod(""), &udp).map_err(|error| error.to_string());
    assert_eq!(error.err().as_deref(), Some("target_port must exist in container ports"));
}

#[test]
fn what_is_not_supported_is_named_by_its_path() {
    let cases = [
        ("kind: Pod\nfoo: 1".to_owned(), "foo"),
        ("kind: Pod\napiVersion: v2".to_owned(), "apiVersion: must be one of v1"),
        ("kind: Pod\nmetadata: {uid: x}".to_owned(), "metadata.uid"),
        (
            "kind: Pod\nmetadata: {labels: {-x: y}}".to_owned(),
            "metadata.labels.-x: must be a name of at most 63 letters, digits, -, _ and ., \
             optionally behind a DNS name and /",
        ),
        (
            "kind: Pod\nmetadata: {labels: {a.b/c: 'not ok'}}".to_owned(),
            "metadata.labels[\"a.b/c\"]: must be at most 63 letters, digits, -, _ and ., \
             with a letter or digit at both ends",
        ),
        (pod("shareProcessNamespace: true"), "spec.shareProcessNamespace"),
        (pod("tolerations: []"), "spec.tolerations"),
        (pod("containerz: null"), "spec.containerz"),
        (
            pod("hostname: a.b"),
            "spec.hostname: must be a DNS label: at most 63 of a-z, 0-9 and -, \
             not at either end -",
        ),
        (
            pod("terminationGracePeriodSeconds: 31"),
            "spec.terminationGracePeriodSeconds: must be from 0 to 30",
        ),
        (
            pod("terminationGracePeriodSeconds: -1"),
            "spec.terminationGracePeriodSeconds: must be from 0 to 30",
        ),
        (
            pod("restartPolicy: Sometimes"),
            "spec.restartPolicy: must be one of Always, OnFailure, Never",
        ),
        (
            pod("dnsPolicy: Mine"),
            "spec.dnsPolicy: must be one of ClusterFirst, ClusterFirstWithHostNet, Default, None",
        ),
        (pod("volumes: [{name: v, configMap: {name: c}}]"), "spec.volumes[0].configMap"),
        (pod("volumes: [{name: v, projected: {sources: []}}]"), "spec.volumes[0].projected"),
        (pod("volumes: [{}]"), "spec.volumes[0]: must have a name"),
        (pod("volumes: [{name: v}, {name: v}]"), "spec.volumes[1]: the name \"v\" is taken"),
        (
            pod("volumes: [{name: v, emptyDir: {medium: HugePages}}]"),
            "spec.volumes[0].emptyDir.medium: must be one of Memory",
        ),
        (
            containers("{name: A, image: b}"),
            "spec.containers[0].name: must be a DNS label: at most 63 of a-z, 0-9 and -, \
             not at either end -",
        ),
        (container("lifecycle: {}"), "spec.containers[0].lifecycle"),
        (container("envFrom: []"), "spec.containers[0].envFrom"),
        (
            container("env: [{name: A}, {name: B, valueFrom: {}}]"),
            "spec.containers[0].env[1].valueFrom",
        ),
        (container("env: [{value: x}]"), "spec.containers[0].env[0]: must have a name"),
        (
            container("env: [{name: A=B}]"),
            "spec.containers[0].env[0].name: must be printable ASCII without =",
        ),
        (
            container("env: [{name: A, value: \"a\\0b\"}]"),
            "spec.containers[0].env[0].value: must not contain a NUL character",
        ),
        (
            container("command: [\"a\\0b\"]"),
            "spec.containers[0].command[0]: must not contain a NUL character",
        ),
        (
            container("workingDir: srv"),
            "spec.containers[0].workingDir: must be an absolute path without ..",
        ),
        (
            container("imagePullPolicy: Often"),
            "spec.containers[0].imagePullPolicy: must be one of Always, IfNotPresent, Never",
        ),
        (with_resources("{claims: []}"), "spec.containers[0].resources.claims"),
        (
            with_resources("{limits: {nvidia.com/gpu: 1}}"),
            "spec.containers[0].resources.limits[\"nvidia.com/gpu\"]",
        ),
        (
            with_resources("{limits: {cpu: 2000000, memory: 1Gi}}"),
            "spec.containers[0].resources.limits.cpu: is more than any machine has",
        ),
        (
            container(&format!("volumeMounts: [{{name: v, mountPath: /{}}}]", "a/".repeat(2048))),
            "spec.containers[0].volumeMounts[0].mountPath: must be at most 4095 bytes",
        ),
        (
            pod(&format!("initContainers: [{}]", "{}, ".repeat(32))),
            "spec.containers: at most 32, init containers included",
        ),
        (pod(&format!("volumes: [{}]", "{}, ".repeat(33))), "spec.volumes: at most 32"),
        (
            with_ports("{containerPort: 80, name: Web}"),
            "spec.containers[0].ports[0].name: must be at most 15 of a-z, 0-9 and single -, \
             with at least one letter",
        ),
        (
            with_ports("{containerPort: 80, name: w}, {containerPort: 81, name: w}"),
            "spec.containers[0].ports[1]: the name is taken",
        ),
        (
            container("volumeMounts: [{name: w, mountPath: /w}]"),
            "spec.containers[0].volumeMounts[0]: there is no volume \"w\"",
        ),
        (
            container("volumeMounts: [{name: v}]"),
            "spec.containers[0].volumeMounts[0]: must have a mountPath",
        ),
        (
            container("volumeMounts: [{name: v, mountPath: /a/../../b}]"),
            "spec.containers[0].volumeMounts[0].mountPath: must be an absolute path without ..",
        ),
        (
            container("volumeMounts: [{name: v, mountPath: //./proc/x}]"),
            "spec.containers[0].volumeMounts[0].mountPath: \
             must not be / nor in /proc, /sys or /dev (save /dev/shm)",
        ),
        (
            container("volumeMounts: [{name: v, mountPath: /a, subPath: a/../..}]"),
            "spec.containers[0].volumeMounts[0].subPath: must be a relative path without ..",
        ),
        (
            container("volumeMounts: [{name: v, mountPath: /a}, {name: v, mountPath: /a}]"),
            "spec.containers[0].volumeMounts[1]: \"/a\" is taken",
        ),
        (
            container("volumeMounts: [{name: v, mountPath: /a, mountPropagation: Bidirectional}]"),
            "spec.containers[0].volumeMounts[0].mountPropagation",
        ),
        (
            probe("{}"),
            "spec.containers[0].readinessProbe: \
             must have exactly one of exec, httpGet and tcpSocket",
        ),
        (
            probe("{tcpSocket: {port: 80}, exec: {command: [x]}}"),
            "spec.containers[0].readinessProbe: \
             must have exactly one of exec, httpGet and tcpSocket",
        ),
        (probe("{grpc: {port: 80}}"), "spec.containers[0].readinessProbe.grpc"),
        (
            probe("{exec: {command: []}}"),
            "spec.containers[0].readinessProbe.exec: \
             must have a command",
        ),
        (
            probe("{tcpSocket: {}}"),
            "spec.containers[0].readinessProbe.tcpSocket: \
             must have a port",
        ),
        (
            probe("{tcpSocket: {port: 80, host: 10.0.0.1}}"),
            "spec.containers[0].readinessProbe.tcpSocket.host",
        ),
        (
            probe("{tcpSocket: {port: 0}}"),
            "spec.containers[0].readinessProbe.tcpSocket.port: must be from 1 to 65535",
        ),
        (
            probe("{tcpSocket: {port: '80'}}"),
            "spec.containers[0].readinessProbe.tcpSocket.port: \
             must be a number or the name of a port of the same container",
        ),
        (
            probe("{tcpSocket: {port: 80}, periodSeconds: -1}"),
            "spec.containers[0].readinessProbe.periodSeconds: must be from 0 to 2147483647",
        ),
        (
            probe("{httpGet: {port: 80, scheme: FTP}}"),
            "spec.containers[0].readinessProbe.httpGet.scheme: must be one of HTTP, HTTPS",
        ),
        (
            probe("{httpGet: {port: 80, path: \"/ HTTP/1.1\\r\\nX: y\"}}"),
            "spec.containers[0].readinessProbe.httpGet.path: must be a path without spaces",
        ),
        (
            probe("{httpGet: {port: 80, httpHeaders: [{name: A, value: \"x\\r\\nB: y\"}]}}"),
            "spec.containers[0].readinessProbe.httpGet.httpHeaders[0].value: \
             must be one line of text",
        ),
        (
            probe("{httpGet: {port: 80, httpHeaders: [{name: 'A:', value: x}]}}"),
            "spec.containers[0].readinessProbe.httpGet.httpHeaders[0].name: \
             must be the name of an HTTP header",
        ),
        (
            container("livenessProbe: {tcpSocket: {port: 80}, successThreshold: 2}"),
            "spec.containers[0].livenessProbe.successThreshold: must be 1 here",
        ),
        (
            pod(&format!(
                "initContainers: [{{name: i, image: b, {RESOURCES}, \
                 startupProbe: {{exec: {{command: [x]}}}}}}]"
            )),
            "spec.initContainers[0].startupProbe: init containers have no probes",
        ),
    ];
    for (yaml, text) in cases {
        assert_eq!(refusal(&yaml), format!("unknown or unsupported field {text}"), "{yaml}");
    }
}

#[test]
fn wrong_types_and_bad_quantities_say_where_and_why() {
    let cases = [
        (String::new(), "the document is empty"),
        ("~".to_owned(), "the document is empty"),
        ("just text".to_owned(), "the document must be a mapping"),
        ("kind: Pod\nspec: []".to_owned(), "spec must be a mapping, not a list"),
        (
            "kind: Pod\nmetadata: {name: 1}".to_owned(),
            "metadata.name must be a string, not an integer",
        ),
        (
            "kind: Pod\nmetadata: {labels: {a: true}}".to_owned(),
            "metadata.labels.a must be a string, not a boolean",
        ),
        (pod("hostNetwork: 'true'"), "spec.hostNetwork must be a boolean, not a string"),
        (pod("volumes: {}"), "spec.volumes must be a list, not a mapping"),
        (
            "kind: Pod\nspec: {containers: a}".to_owned(),
            "spec.containers must be a list, not a string",
        ),
        (containers("a"), "spec.containers[0] must be a mapping, not a string"),
        (with_image("y"), "spec.containers[0].image must be a string, not a boolean"),
        (
            container("env: [{name: A, value: 80}]"),
            "spec.containers[0].env[0].value must be a string, not an integer",
        ),
        (
            container("env: [{name: A, value: yes}]"),
            "spec.containers[0].env[0].value must be a string, not a boolean",
        ),
        (container("args: [1.5]"), "spec.containers[0].args[0] must be a string, not a number"),
        (container("args: [null]"), "spec.containers[0].args[0] must be a string, not null"),
        (container("tty: 1"), "spec.containers[0].tty must be a boolean, not an integer"),
        (
            with_ports("{containerPort: '80'}"),
            "spec.containers[0].ports[0].containerPort must be an integer, not a string",
        ),
        (
            with_ports("{containerPort: 80.5}"),
            "spec.containers[0].ports[0].containerPort must be an integer, not a number",
        ),
        (
            probe("{tcpSocket: {port: 80.5}}"),
            "spec.containers[0].readinessProbe.tcpSocket.port must be an integer or a string, not a number",
        ),
        (
            with_resources("{limits: {cpu: 1x}}"),
            "spec.containers[0].resources.limits.cpu: \"1x\" must be a quantity such as 100m, 0.5, 128Mi or 1e3",
        ),
        (
            with_resources("{limits: {cpu: -1}}"),
            "spec.containers[0].resources.limits.cpu: \"-1\" must not be negative",
        ),
        (
            with_resources("{requests: {memory: 1e30}}"),
            "spec.containers[0].resources.requests.memory: \"1000000000000000000000000000000\" is too large",
        ),
        (
            with_resources("{limits: {cpu: true}}"),
            "spec.containers[0].resources.limits.cpu must be a quantity, not a boolean",
        ),
        (
            pod("volumes: [{name: v, emptyDir: {sizeLimit: 1GB}}]"),
            "spec.volumes[0].emptyDir.sizeLimit: \"1GB\" must be a quantity such as 100m, 0.5, 128Mi or 1e3",
        ),
        (
            "kind: Pod\nkind: Pod".to_owned(),
            "duplicate mapping key `kind` is not allowed here at line 2, column 1",
        ),
        ("kind: [".to_owned(), "unclosed bracket '[' at line 1, column 7"),
        (
            "a: b: c".to_owned(),
            "mapping values are not allowed in this context at line 1, column 5",
        ),
    ];
    for (yaml, text) in cases {
        assert_eq!(refusal(&yaml), format!("yaml parse failed: {text}"), "{yaml}");
    }
    for yaml in ["kind: Pod\n---\nkind: Pod", "kind: !custom Pod", "x: .inf", "[a]: b", "x: *a"] {
        assert!(refusal(yaml).starts_with("yaml parse failed: "), "{yaml}: {}", refusal(yaml));
    }
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    let cases = [
        pod("hostNetwork: false"),
        pod("hostIPC: null\n  securityContext: null\n  nodeName: ''\n  ephemeralContainers: []"),
        pod("restartPolicy: OnFailure\n  dnsPolicy: None\n  enableServiceLinks: true"),
        container("securityContext: null"),
        container("volumeMounts: [{name: v, mountPath: /dev/shm}]"),
        container("env: [{name: 'with space', value: ''}, {name: A.b-c}]"),
        container("readinessProbe: {tcpSocket: {port: 80}, successThreshold: 3}"),
        container("livenessProbe: {tcpSocket: {port: 80}, successThreshold: 0}"),
        with_ports("{containerPort: 0x50}, {containerPort: 8080.0}"),
        with_ports("{containerPort: 80, protocol: ''}"),
        with_resources("{limits: {cpu: 1, memory: 1Mi, ephemeral-storage: 0}}"),
        with_resources("{limits: {memory: 1Mi}, requests: {cpu: 1n}}"),
        format!("{}status: {{phase: [anything]}}", pod("")),
    ];
    for yaml in cases {
        assert_eq!(refusal(&yaml), "accepted", "{yaml}");
    }
}

#[test]
fn the_first_fault_is_reported() {
    let everything_wrong = "kind: Pod\nfoo: 1\nspec: {hostNetwork: true, securityContext: {}, \
                            serviceAccount: x, containers: [{securityContext: {}}], bar: 1}";
    let in_order = [
        ("hostNetwork: true, ", "hostNetwork/hostPID/hostIPC are forbidden"),
        ("securityContext: {}, ", "pod securityContext is forbidden in input"),
        ("securityContext: {}", "container securityContext is forbidden in input"),
        ("serviceAccount: x, ", "serviceAccount is forbidden in input"),
        ("foo: 1\n", "unknown or unsupported field foo"),
        (", bar: 1", "unknown or unsupported field spec.bar"),
        ("", "container name is required"),
    ];
    let mut yaml = everything_wrong.to_owned();
    for (mended, text) in in_order {
        assert_eq!(refusal(&yaml), text, "{yaml}");
        yaml = yaml.replacen(mended, "", 1);
    }
}

#[test]
fn long_keys_are_cut_in_paths() {
    let yaml = format!("kind: Pod\n{}: 1", "k".repeat(500));
    assert_eq!(refusal(&yaml).len(), "unknown or unsupported field ".len() + 80);
}

#[test]
fn defaults_do_not_hide_a_zero() {
    let defaults = PodDefaults { cpu_milli: Some(100), memory_bytes: Some(1 << 20) };
    let parse = |yaml: &str| parse(yaml, &TargetPorts::Any(80), &defaults).map(|_| ());
    let zero = parse(&with_resources("{limits: {cpu: 0}}")).map_err(|error| error.to_string());
    assert_eq!(zero.err().as_deref(), Some("request/limit must be set"));
    assert_eq!(parse(&with_resources("{}")), Ok(()));
}
