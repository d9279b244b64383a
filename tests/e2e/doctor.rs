//! `stackd doctor` on a cluster: what it finds, and that of what it starts nothing is left.

use std::process::Stdio;

use rustix::process::{Pid, Signal};
use serde_json::Value;
use stackd_probe::{Platform, cases};
use stackd_testkit::kubernetes::{Cluster, Namespace};
use stackd_testkit::{sample, within};
use tokio::process::Command;

use crate::on::On;
use crate::server::stackd;

const IMAGE: &str = "test.invalid/stackd:doctor";

/// A namespace to be looked at, and the node ports that nobody else takes.
struct Bed {
    cluster: &'static Cluster,
    namespace: Namespace<'static>,
    node_ports: (u16, u16),
    directory: tempfile::TempDir,
}

impl Bed {
    fn new() -> Option<Self> {
        let cluster = Cluster::shared()?;
        let directory = tempfile::tempdir().expect("a directory");
        let (namespace, node_ports) = (cluster.namespace(), On::Kubernetes.node_ports());
        Some(Self { cluster, namespace, node_ports, directory })
    }

    /// With the image that is tried from.
    fn with_image() -> Option<Self> {
        let bed = Self::new()?;
        let program = std::fs::read(stackd()).expect("the binary under test");
        bed.cluster.load(&sample::server_archive(&program, IMAGE));
        Some(bed)
    }

    fn doctor(&self, namespace: &str, options: &[&str]) -> Command {
        let mut command = Command::new(stackd());
        command
            .args(["doctor", "-o", "json", "--runtime", "kubernetes", "--listen", "127.0.0.1:0"])
            .args(["--namespace", namespace, "--internal-address-is-public"])
            .arg("--node-port-range")
            .arg(format!("{}-{}", self.node_ports.0, self.node_ports.1))
            .arg("--data-dir")
            .arg(self.directory.path())
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig())
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn asked(&self, options: &[&str]) -> (Option<i32>, Vec<Value>) {
        self.asked_of(&self.namespace.name, options).await
    }

    /// How it ended, and what it has found.
    async fn asked_of(&self, namespace: &str, options: &[&str]) -> (Option<i32>, Vec<Value>) {
        let output = tokio::time::timeout(4 * stackd_testkit::PATIENCE, async {
            self.doctor(namespace, options).output().await.expect("it runs")
        });
        let output = output.await.expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {} {errors}", output.status));
        let code = output.status.code();
        assert_eq!(report["ok"], (code == Some(0)), "{report:#}");
        (code, report["checks"].as_array().expect("a list").clone())
    }

    fn left(&self) -> String {
        let kinds = "pods,services,networkpolicies";
        let all = ["get", kinds, "--output=name", "--selector=app.kubernetes.io/managed-by=stackd"];
        self.cluster.kubectl(&[&["--namespace", self.namespace.name.as_str()], &all[..]].concat())
    }
}

/// The status of a check.
fn status<'a>(checks: &'a [Value], name: &str) -> &'a str {
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("{name} is not looked at: {checks:#?}"));
    check["status"].as_str().expect("a word")
}

#[tokio::test]
async fn it_says_what_a_cluster_has_and_starts_nothing() {
    let Some(bed) = Bed::new() else { return };
    let (code, checks) = bed.asked(&[]).await;
    assert_eq!(code, Some(0), "{checks:#?}");
    for name in ["cluster", "namespace", "permissions", "nodes", "node addresses", "capacity"] {
        assert_eq!(status(&checks, name), "ok", "{checks:#?}");
    }
    assert_eq!(status(&checks, "user namespaces"), "ok", "{checks:#?}");
    // It was not tried, and is what all depends on.
    assert_eq!(status(&checks, "network policy"), "warning", "{checks:#?}");
    // What no cluster gives.
    for name in ["processes", "number of files", "disk limit"] {
        assert_eq!(status(&checks, name), "warning", "{checks:#?}");
    }
    assert_eq!(bed.left(), "");

    // What the page of the runtime tells to make.
    assert_eq!(status(&checks, "default deny"), "warning", "{checks:#?}");
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kubernetes.md"));
    let page = page.expect("the page");
    let (_, manifest) = page.split_once("```yaml\n# stacks.yaml\n").expect("a manifest");
    let (manifest, _) = manifest.split_once("```").expect("its end");
    let namespace = &bed.namespace.name;
    let manifest = manifest.replace(" stacks\n", &format!(" {namespace}\n"));
    bed.cluster.apply(&manifest);
    let (code, checks) = bed.asked(&[]).await;
    assert_eq!((code, status(&checks, "default deny")), (Some(0), "ok"), "{checks:#?}");

    let (code, checks) = bed.asked_of("nowhere", &[]).await;
    assert_eq!((code, status(&checks, "namespace")), (Some(12), "failed"), "{checks:#?}");
    let (code, checks) = bed.asked(&["--probe"]).await;
    assert_eq!((code, status(&checks, "isolation")), (Some(12), "failed"), "{checks:#?}");
    assert_eq!(bed.left(), "");
}

#[tokio::test]
async fn it_proves_the_isolation_beside_services_of_others_and_leaves_nothing() {
    let Some(bed) = Bed::with_image() else { return };
    // Somebody else's, which the doctor cannot know of, at the end that is taken from first.
    let (first, last) = bed.node_ports;
    let ports: String = (first + (last - first) / 2..=last)
        .map(|port| format!("  - {{name: p{port}, port: {port}, nodePort: {port}}}\n"))
        .collect();
    bed.cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: theirs, namespace: {}}}\nspec:\n  \
         type: NodePort\n  ports:\n{ports}",
        bed.namespace.name
    ));
    let (code, checks) = bed.asked(&["--probe", "--probe-image", IMAGE]).await;
    assert_eq!(code, Some(0), "{checks:#?}");
    for case in cases(Platform::Cluster) {
        let found = status(&checks, &format!("isolation: {}", case.name));
        let expected = if case.fills.is_some() { "warning" } else { "ok" };
        assert_eq!(found, expected, "{}: {checks:#?}", case.name);
    }
    assert_eq!(bed.left(), "");
}

#[tokio::test]
async fn told_to_end_it_takes_away_what_it_has_started() {
    let Some(bed) = Bed::with_image() else { return };
    for signal in [Signal::INT, Signal::TERM] {
        let process = bed
            .doctor(&bed.namespace.name, &["--probe", "--probe-image", IMAGE])
            .spawn()
            .expect("it runs");
        let pid = process.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("its id");
        within("something is started", async {
            let mut pause = tokio::time::interval(std::time::Duration::from_millis(50));
            while bed.left().is_empty() {
                pause.tick().await;
            }
        })
        .await;
        rustix::process::kill_process(pid, signal).expect("the signal is sent");
        let output = within("it ends", process.wait_with_output()).await.expect("its output");
        assert_eq!(output.status.code(), Some(12), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("it was interrupted"), "{said}");
        assert_eq!(bed.left(), "", "after {signal:?}");
    }
}
