//! The real Kubernetes that other tests rely on does what a Kubernetes does, and leaves nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use stackd_testkit::kubernetes::{Cluster, Options};
use stackd_testkit::{PATIENCE, sample};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node1
  hostUsers: false
  automountServiceAccountToken: false
  containers:
  - name: app
    image: test.invalid/sample:1
    ports: [{containerPort: 80}]
    readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{port: 80}]}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: nobody}
";

/// What answers there; none as long as nothing does.
fn get(at: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "this did not happen: {what}");
        // Whoever makes it happen needs the processor too.
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_cluster_runs_pods_breaks_as_told_and_leaves_nothing() {
    let options = Options { nodes: 1, ..Options::default() };
    let Some(cluster) = Cluster::start(options) else { return };
    cluster.load(&sample::docker_archive(&["test.invalid/sample:1"]));
    let test = cluster.namespace();
    let in_test = |args: &[&str]| cluster.kubectl(&[&["--namespace", &test.name], args].concat());

    let mark = cluster.audit_mark();
    cluster.apply(&PODS.replace("metadata: {", &format!("metadata: {{namespace: {}, ", test.name)));
    in_test(&["wait", "--for=condition=Ready", "--timeout=30s", "pod/web"]);
    let port = in_test(&["get", "service/web", "--output=jsonpath={.spec.ports[0].nodePort}"]);
    let at = SocketAddr::from((cluster.node_address(1), port.parse().expect("a node port")));
    let answer = eventually("the node port answers", || get(at));
    assert!(answer.contains("200 OK"), "{answer}");
    let map = "cat /proc/$(pgrep --exact --newest sample)/uid_map";
    let map = cluster.on_node(1, &["sh", "-c", map]);
    assert_ne!(map.split_whitespace().nth(1), Some("0"), "root in it is root of the node: {map}");

    // The audit log knows who did what.
    let calls = cluster.calls_since(mark);
    let counts = Cluster::count(&calls);
    assert_eq!(counts.get("create pods"), Some(&1), "{counts:?}");
    assert!(calls.iter().any(|call| call.verb == "create"
        && call.resource == "pods"
        && call.namespace == test.name
        && call.user == "admin"
        && call.agent.starts_with("kubectl/")
        && call.status == 201));
    // An account without rights has none.
    let nobody = cluster.kubeconfig_of(&test.name, "nobody");
    let own = format!("--kubeconfig={}", nobody.display());
    let may = cluster.kubectl(&[&own, "auth", "can-i", "--list", "--namespace", &test.name]);
    assert!(!may.contains("pods "), "{may}");

    // Faults are real.
    cluster.signal("kube-apiserver", "KILL");
    cluster.start_again("kube-apiserver");
    cluster.kill_kubelet(1);
    assert!(get(at).is_some(), "containers outlive the kubelet");
    cluster.start_kubelet(1);
    cluster.crash_node(1);
    assert!(get(at).is_none(), "nothing outlives the node");
    cluster.start_node(1);
    eventually("the pod is back", || get(at));

    drop(test);
    assert_eq!(cluster.stop(), [""; 0]);
}
