//! What runs a server's stacks. Whatever it is, the same requests get the same answers, but for
//! addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Once;
use std::sync::atomic::{AtomicU16, Ordering};

use stackd_testkit::kubernetes::Cluster;
use stackd_testkit::{docker, ports, sample, within};

use crate::IMAGE;

/// Makes a test of each on every runtime.
macro_rules! on_every_runtime {
    ($($name:ident => $body:expr;)*) => {
        on_every_runtime! { @ oci Oci $($name => $body;)* }
        on_every_runtime! { @ docker Docker $($name => $body;)* }
        on_every_runtime! { @ kubernetes Kubernetes $($name => $body;)* }
    };
    (@ $module:ident $on:ident $($name:ident => $body:expr;)*) => {
        mod $module {
            $(#[tokio::test]
            async fn $name() {
                let on = crate::on::On::$on;
                if on.is_here() {
                    ($body)(on).await;
                }
            })*
        }
    };
}

/// Node ports of one server.
const NODE_PORTS: u16 = 20;
/// The namespace that the documents show.
pub(crate) const NAMESPACE: &str = "stacks";

/// What runs a server's stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// The embedded runtime.
    Oci,
    /// A Docker engine, which all tests share.
    Docker,
    /// A cluster, which all tests share.
    Kubernetes,
}

/// The cluster, with the sample image and the documents' namespace.
fn cluster() -> Option<&'static Cluster> {
    static FURNISHED: Once = Once::new();
    let cluster = Cluster::shared()?;
    FURNISHED.call_once(|| {
        cluster.load(&sample::docker_archive(&[IMAGE]));
        cluster.kubectl(&["create", "namespace", NAMESPACE]);
    });
    Some(cluster)
}

/// A server's mark on what it makes in the cluster.
fn installation(node_ports: (u16, u16)) -> String {
    format!("e2e-{}", node_ports.0)
}

impl On {
    /// Whether there is one, or whoever runs the tests has said that there is none.
    pub(crate) fn is_here(self) -> bool {
        self != Self::Kubernetes || cluster().is_some()
    }

    /// The cluster of one on Kubernetes.
    pub(crate) fn cluster(self) -> &'static Cluster {
        assert_eq!(self, Self::Kubernetes);
        cluster().expect("it is here")
    }

    /// What no other server of these tests uses.
    pub(crate) fn node_ports(self) -> (u16, u16) {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        match self {
            // A cluster's own range, below what the chart takes; the cluster is this process's.
            Self::Kubernetes => {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let first = 30_000 + number % 50 * NODE_PORTS;
                (first, first + NODE_PORTS - 1)
            }
            _ => ports::range(NODE_PORTS).into_inner(),
        }
    }

    /// What `serve` is told.
    pub(crate) fn options(self, node_ports: (u16, u16)) -> Vec<String> {
        let kubeconfig = || self.cluster().kubeconfig().display().to_string();
        let options: &[&str] = match self {
            Self::Oci => &[],
            Self::Docker => {
                &["--runtime=docker", "--docker-host", docker::shared(), "--docker-disk-look=1"]
            }
            Self::Kubernetes => &[
                "--runtime=kubernetes",
                "--kubeconfig",
                &kubeconfig(),
                "--namespace",
                NAMESPACE,
                "--installation",
                &installation(node_ports),
                "--internal-address-is-public",
            ],
        };
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    /// Where node ports are reached.
    pub(crate) fn address(self) -> IpAddr {
        match self {
            Self::Kubernetes => self.cluster().node_address(1).into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// Whether the stacks of a server are seen on this machine, in its control groups and files.
    pub(crate) fn is_this_machine(self) -> bool {
        self != Self::Kubernetes
    }

    /// What the cluster has of a kind that is a server's: the objects' names.
    pub(crate) fn objects(self, kind: &str, node_ports: (u16, u16)) -> Vec<String> {
        self.ask(kind, "{range .items[*]}{.metadata.name} {end}", node_ports)
    }

    /// The node ports that the cluster holds for a server.
    pub(crate) fn held_ports(self, node_ports: (u16, u16)) -> BTreeSet<String> {
        let each = "{range .items[*]}{range .spec.ports[*]}{.nodePort} {end}{end}";
        self.ask("services", each, node_ports).into_iter().collect()
    }

    fn ask(self, kind: &str, path: &str, node_ports: (u16, u16)) -> Vec<String> {
        let label = format!("app.kubernetes.io/part-of={}", installation(node_ports));
        let output = format!("--output=jsonpath={path}");
        let args = ["get", kind, "--namespace", NAMESPACE, "--selector", &label, &output];
        self.cluster().kubectl(&args).split_whitespace().map(str::to_owned).collect()
    }

    /// Waits until the cluster has nothing of a server any more.
    pub(crate) async fn cleared(self, node_ports: (u16, u16)) {
        if self != Self::Kubernetes {
            return;
        }
        let label = format!("app.kubernetes.io/part-of={}", installation(node_ports));
        let kinds = "networkpolicies,services,pods";
        let args = ["get", kinds, "--all-namespaces", "--selector", &label, "--output=name"];
        within("the cluster is cleared", async {
            let mut pause = tokio::time::interval(std::time::Duration::from_millis(100));
            while !self.cluster().kubectl(&args).is_empty() {
                pause.tick().await;
            }
        })
        .await;
    }
}
