//! The chart as its users use it: rendered, checked by a real API server, installed, upgraded and
//! removed again.

use std::path::Path;
use std::process::Command;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use stackd_testkit::kubernetes::Cluster;
use stackd_testkit::{sample, within};

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
    let values = format!(
        "runtime={RUNTIME},image.repository=test.invalid/stackd,image.tag=test,image.pullPolicy=Never,\
         stacks.namespace={stacks},persistence.storageClass=-,service.type=NodePort"
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
    with_helm(&["test", "stackd", "--timeout", "60s"]);
    // Local commands reach the server in its Pod too.
    let keys = in_test(&["exec", "deployment/stackd", "--", "/stackd", "key", "list"]);
    assert!(keys.contains("default"), "{keys}");

    // What the server says of itself, asked as Prometheus asks.
    let metrics = Client::new().get(format!("{at}/metrics"));
    let status = metrics.bearer_auth(&secret).send().await.expect("an answer").status();
    assert_eq!(status, StatusCode::OK);

    let pod = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: app\n    \
               image: test.invalid/sample:1\n    imagePullPolicy: Never\n    \
               ports: [{containerPort: 80}]\n    \
               resources: {limits: {cpu: 50m, memory: 32Mi}}\n";
    let body = json!({"pod_spec": pod, "target_port": 80});
    let (status, made) = ask(&at, &secret, Method::POST, "/stacks", Some(body)).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["namespace"], stacks.as_str());
    let path = format!("/stacks/{}", made["stack_id"].as_str().expect("an id"));
    within("the stack runs", async {
        while ask(&at, &secret, Method::GET, &path, None).await.1["status"] != "running" {
            tokio::task::yield_now().await;
        }
    })
    .await;

    // Other settings are another Pod; the key and the stacks are the same.
    let before =
        in_test(&["get", "pods", "-o", "name", "-l", "app.kubernetes.io/component=server"]);
    changed("upgrade", &["--set", "config=[engine]\nmax_ttl = \"9h\""]);
    let after = in_test(&["get", "pods", "-o", "name", "-l", "app.kubernetes.io/component=server"]);
    assert_ne!(before, after);
    assert_eq!(key(), secret);
    let (status, found) = within("the service answers again", async {
        loop {
            if Client::new()
                .get(format!("{at}/readyz"))
                .send()
                .await
                .is_ok_and(|a| a.status() == StatusCode::OK)
            {
                return ask(&at, &secret, Method::GET, &path, None).await;
            }
        }
    })
    .await;
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
