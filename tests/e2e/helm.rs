//! The chart as its users use it: rendered, checked by a real API server, installed, upgraded and
//! removed again.

use std::path::Path;
use std::process::Command;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use stackd_testkit::kubernetes::Cluster;
use stackd_testkit::postgres::Postgres;
use stackd_testkit::{sample, within};
use tokio::net::TcpListener;

use crate::fleet::{Line, relay};
use crate::server::stackd;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/stackd");
const IMAGE: &str = "test.invalid/stackd:test";
const RUNTIME: &str = "kubernetes";

/// A kind that the Prometheus operator brings.
const SERVICE_MONITORS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: ServiceMonitor, plural: servicemonitors, singular: servicemonitor}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

/// Where the only volume is: on one node, as there is nobody here who makes them.
const VOLUME: &str = "
apiVersion: v1
kind: PersistentVolume
metadata: {name: NAME}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: NAME, name: stackd}
  local: {path: /var/lib/NAME}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node1]}]
";

fn helm(cluster: &Cluster, args: &[&str]) -> String {
    let output = Command::new("helm")
        .args(args)
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .output()
        .unwrap_or_else(|error| {
            panic!("helm: {error}; `ci/test.sh helm` builds it, into ~/.cache")
        });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "helm {args:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn what_the_chart_renders_is_valid_to_the_api_server() {
    let Some(cluster) = Cluster::shared() else { return };
    cluster.apply(SERVICE_MONITORS);
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]);
    let test = cluster.namespace();
    let directory = tempfile::tempdir().expect("a directory");
    let mut several = vec![Path::new(CHART).join("values.yaml")];
    let others = std::fs::read_dir(Path::new(CHART).join("ci")).expect("value files");
    several.extend(others.map(|entry| entry.expect("a value file").path()));
    assert!(several.len() > 3, "{several:?}");
    for values in several {
        let values = values.to_str().expect("text");
        let stacks = format!("stacks.namespace={}", test.name);
        let rendered = helm(
            cluster,
            &["template", "stackd", CHART, "-n", "default", "-f", values, "--set", &stacks]
                .iter()
                .chain(&["--kube-version", "1.33.0"])
                .copied()
                .collect::<Vec<_>>(),
        );
        let path = directory.path().join("rendered.yaml");
        std::fs::write(&path, rendered).expect("a file");
        let path = path.to_str().expect("text");
        let said = cluster.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", path]);
        assert!(said.contains("deployment.apps/stackd created"), "{values}: {said}");
    }
}

/// What of a server's Pod depends on its database, its runtime and its replicas.
#[test]
fn whoever_may_run_beside_another_server_is_a_replica() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = "database.existingSecret=stackd-database";
    let rendered = |set: &[&str]| {
        let set = set.join(",");
        let args = ["template", "stackd", CHART, "-n", "default", "--set", &set];
        let only = ["--kube-version", "1.33.0", "--show-only", "templates/deployment.yaml"];
        helm(cluster, &[&args[..], &only].concat())
    };
    let is_replica = |text: &str| {
        let settings = ["STACKD_REPLICAS", "STACKD_ADVERTISE"].map(|name| text.contains(name));
        assert_eq!(settings[0], settings[1], "{text}");
        // Only what takes part in a takeover may meet its successor.
        assert_eq!(settings[0], text.contains("type: RollingUpdate"), "{text}");
        assert_ne!(settings[0], text.contains("type: Recreate"), "{text}");
        settings[0]
    };
    assert!(!is_replica(&rendered(&["replicas=1"])), "SQLite is of one server");
    assert!(is_replica(&rendered(&["replicas=1", database])), "an upgrade begins with two");
    assert!(is_replica(&rendered(&["replicas=3", database])));
    assert!(!is_replica(&rendered(&["runtime=simulated", database])), "its stacks are its own");
}

/// A request of the API at this address.
async fn ask(at: &str, key: &str, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let mut request = Client::new().request(method, format!("{at}{path}")).header("X-API-KEY", key);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}

/// Waits until the API at this address is ready.
async fn answers(at: &str) {
    within("the service answers", async {
        while !Client::new()
            .get(format!("{at}/readyz"))
            .send()
            .await
            .is_ok_and(|a| a.status() == StatusCode::OK)
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A stack that runs, as the create has answered it.
async fn running(at: &str, key: &str) -> Value {
    let pod = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: app\n    \
               image: test.invalid/sample:1\n    imagePullPolicy: Never\n    \
               ports: [{containerPort: 80}]\n    \
               resources: {limits: {cpu: 50m, memory: 32Mi}}\n";
    let body = json!({"pod_spec": pod, "target_port": 80});
    let (status, made) = within("a create is answered", async {
        loop {
            // Until the next replica leads, callers are told to ask again.
            let answer = ask(at, key, Method::POST, "/stacks", Some(body.clone())).await;
            if answer.0 != 503 {
                return answer;
            }
        }
    })
    .await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/stacks/{}", made["stack_id"].as_str().expect("an id"));
    within("the stack runs", async {
        while ask(at, key, Method::GET, &path, None).await.1["status"] != "running" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    made
}

/// With a database an upgrade begins with two servers, also where one replica is asked for: one of
/// them leads, and stacks stay as they are.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_database_an_upgrade_is_a_takeover() {
    let Some(cluster) = Cluster::shared() else { return };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let program = std::fs::read(stackd()).expect("the binary under test");
    cluster.load(&sample::server_archive(&program, IMAGE));
    cluster.load(&sample::docker_archive(&["test.invalid/sample:1"]));
    let test = cluster.namespace();
    let (ns, stacks) = (test.name.as_str(), format!("{}-stacks", test.name));
    let in_test = |args: &[&str]| cluster.kubectl(&[&["--namespace", ns], args].concat());

    // The database listens on loopback only.
    let url = Postgres::shared().database();
    let there = url.split(['@', '/']).nth(3).expect("a host and port");
    let port = there.split_once(':').expect("a port").1.parse().expect("a port");
    let listener = TcpListener::bind((cluster.machine_address(), 0)).await.expect("a port");
    let here = listener.local_addr().expect("its address").to_string();
    let (_line, watched) = tokio::sync::watch::channel(Line::Open);
    tokio::spawn(relay(port, listener, watched));
    let url = format!("--from-literal=url={}", url.replace(there, &here));
    in_test(&["create", "secret", "generic", "stackd-database", &url]);

    let values = format!(
        "runtime={RUNTIME},image.repository=test.invalid/stackd,image.tag=test,image.pullPolicy=Never,\
         stacks.namespace={stacks},service.type=NodePort,database.existingSecret=stackd-database"
    );
    let with_helm = |args: &[&str]| helm(cluster, &[args, &["--namespace", ns]].concat());
    let changed = |verb: &str, more: &[&str]| {
        let common = [verb, "shared", CHART, "--set", &values, "--wait", "--timeout", "90s"];
        with_helm(&[&common, more].concat())
    };
    changed("install", &[]);
    let template = "{{index .data \"api-key\" | base64decode}}";
    let show = ["-o", "go-template", "--template", template];
    let secret = in_test(&[&["get", "secret", "shared-stackd-api-key"][..], &show].concat());
    let node_port = "jsonpath={.spec.ports[0].nodePort}";
    let port = in_test(&["get", "service", "shared-stackd", "-o", node_port]);
    let at = format!("http://{}:{port}", cluster.node_address(1));
    answers(&at).await;
    let made = running(&at, &secret).await;
    let id = made["stack_id"].as_str().expect("an id");
    let uids = || {
        let kinds = "networkpolicies,services,pods";
        let uid = "jsonpath={range .items[*]}{.metadata.uid} {end}";
        let stack = format!("app.kubernetes.io/instance={id}");
        cluster.kubectl(&["get", kinds, "--namespace", &stacks, "--selector", &stack, "-o", uid])
    };
    // What to look at when something is not as it should be.
    let logs =
        || in_test(&["logs", "--selector=app.kubernetes.io/name=stackd", "--prefix", "--tail=40"]);
    let before = uids();
    assert_eq!(before.split_whitespace().count(), 3, "{before}");

    let config = ["config=[engine]\nmax_ttl = \"9h\"", "config=[engine]\nmax_ttl = \"10h\""];
    for more in [["replicas=1", config[0]], ["replicas=2", config[0]], ["replicas=2", config[1]]] {
        changed("upgrade", &["--set", more[0], "--set", more[1]]);
        answers(&at).await;
        let (status, found) = ask(&at, &secret, Method::GET, &format!("/stacks/{id}"), None).await;
        assert_eq!((status, &found["status"]), (200, &json!("running")), "{more:?}: {found}");
        assert_eq!(uids(), before, "{more:?}: the stack is what it was");
        // Whoever leads by now makes and ends stacks like the one before.
        let next = running(&at, &secret).await;
        let path = format!("/stacks/{}", next["stack_id"].as_str().expect("an id"));
        let (status, gone) = ask(&at, &secret, Method::DELETE, &path, None).await;
        assert_eq!(status, 200, "{more:?}: {gone}\n{}", logs());
    }
    with_helm(&["uninstall", "shared", "--wait"]);
    cluster.kubectl(&["wait", "--for=delete", "--timeout=60s", &format!("namespace/{stacks}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_installed_upgraded_and_removed() {
    let Some(cluster) = Cluster::shared() else { return };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let program = std::fs::read(stackd()).expect("the binary under test");
    cluster.load(&sample::server_archive(&program, IMAGE));
    cluster.load(&sample::docker_archive(&["test.invalid/sample:1"]));
    let test = cluster.namespace();
    let (ns, stacks) = (test.name.as_str(), format!("{}-stacks", test.name));
    cluster.on_node(1, &["mkdir", "-p", &format!("/var/lib/{ns}")]);
    cluster.apply(&VOLUME.replace("NAME", ns));
    // This machine and the nodes, whose addresses node ports are reached from; no Pod is among them.
    let [first, second, ..] = cluster.machine_address().octets();
    let callers = format!("{first}.{second}.0.0/24");
    let values = format!(
        "runtime={RUNTIME},image.repository=test.invalid/stackd,image.tag=test,image.pullPolicy=Never,\
         stacks.namespace={stacks},persistence.storageClass=-,service.type=NodePort,\
         networkPolicy.enabled=true,networkPolicy.from[0].ipBlock.cidr={callers}"
    );
    let with_helm = |args: &[&str]| helm(cluster, &[args, &["--namespace", ns]].concat());
    let changed = |verb: &str, more: &[&str]| {
        let common = [verb, "stackd", CHART, "--set", &values, "--wait", "--timeout", "90s"];
        with_helm(&[&common, more].concat())
    };
    let mark = cluster.audit_mark();
    let notes = changed("install", &[]);
    assert!(notes.contains(&format!("http://stackd.{ns}.svc:8080")), "{notes}");

    // As the notes say.
    let in_test = |args: &[&str]| cluster.kubectl(&[&["--namespace", ns], args].concat());
    let key = || {
        let template = "{{index .data \"api-key\" | base64decode}}";
        in_test(&["get", "secret", "stackd-api-key", "-o", "go-template", "--template", template])
    };
    let secret = key();
    let port = in_test(&["get", "service", "stackd", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let at = format!("http://{}:{port}", cluster.node_address(1));
    answers(&at).await;
    with_helm(&["test", "stackd", "--timeout", "60s"]);
    // Local commands reach the server in its Pod too.
    let keys = in_test(&["exec", "deployment/stackd", "--", "/stackd", "key", "list"]);
    assert!(keys.contains("default"), "{keys}");

    // What the server says of itself, asked as Prometheus asks.
    let metrics = Client::new().get(format!("{at}/metrics"));
    let status = metrics.bearer_auth(&secret).send().await.expect("an answer").status();
    assert_eq!(status, StatusCode::OK);

    let made = running(&at, &secret).await;
    assert_eq!(made["namespace"], stacks.as_str());
    let path = format!("/stacks/{}", made["stack_id"].as_str().expect("an id"));

    // Other settings are another Pod; the key and the stacks are the same.
    let before =
        in_test(&["get", "pods", "-o", "name", "-l", "app.kubernetes.io/component=server"]);
    changed("upgrade", &["--set", "config=[engine]\nmax_ttl = \"9h\""]);
    let after = in_test(&["get", "pods", "-o", "name", "-l", "app.kubernetes.io/component=server"]);
    assert_ne!(before, after);
    assert_eq!(key(), secret);
    answers(&at).await;
    let (status, found) = ask(&at, &secret, Method::GET, &path, None).await;
    assert_eq!(status, 200, "{found}");
    let (status, _) = ask(&at, &secret, Method::DELETE, &path, None).await;
    assert_eq!(status, 200);

    // The rights that the chart gives are enough, and were those of its account.
    let account = format!("system:serviceaccount:{ns}:stackd");
    let mut calls = cluster.calls_since(mark);
    calls.retain(|call| call.user == account);
    let refused: Vec<_> = calls.iter().filter(|call| call.status == 403).collect();
    assert!(!calls.is_empty() && refused.is_empty(), "{refused:?}");

    // Removed, it leaves nothing but what was there before.
    with_helm(&["uninstall", "stackd", "--wait"]);
    cluster.kubectl(&["wait", "--for=delete", "--timeout=60s", &format!("namespace/{stacks}")]);
    let kinds = "deployment,pod,service,secret,configmap,pvc,networkpolicy,role,rolebinding,\
                 serviceaccount,clusterrole,clusterrolebinding,namespace,poddisruptionbudget";
    let ours = "app.kubernetes.io/instance=stackd";
    let left = cluster.kubectl(&["get", kinds, "-A", "-l", ours, "-o", "name"]);
    assert_eq!(left, "", "left behind");
    cluster.kubectl(&["delete", "pv", ns]);
}
