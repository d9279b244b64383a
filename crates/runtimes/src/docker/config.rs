//! Settings of the Docker runtime.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which Docker engine is used, and how: the `[runtime.docker]` section of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DockerConfig {
    /// Where the engine is: `unix:///path` or `tcp://host:port`.
    pub host: String,
    /// The authority of the engine's certificate (PEM). With the two below the engine is spoken to by
    /// TLS; they go together.
    pub tls_ca: Option<PathBuf>,
    /// The certificate that the engine is shown (PEM).
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub tls_key: Option<PathBuf>,
    /// Runtime classes, and the engine's runtime for each, beside `default`.
    pub runtime_classes: BTreeMap<String, String>,
    /// The addresses that networks of stacks are cut from, on an engine elsewhere.
    pub subnets: String,
    /// How many networks are made ahead of need, on an engine elsewhere.
    pub ready_networks: usize,
    /// The time between two looks at how much disk stacks use, as far as the engine cannot limit it.
    #[serde(with = "stackd_core::duration")]
    pub disk_look: Duration,
    /// How long the keeper of a stack on an engine elsewhere waits for the next server: it cannot
    /// tell whether the stack is still there.
    #[serde(skip)]
    pub keeper_patience: Duration,
    /// How often the engine's events are asked for anew, and everything is looked at: nobody would
    /// notice otherwise that a connection is dead.
    #[serde(skip)]
    pub renew_events: Duration,
    /// What the embedded runtime is told of this machine holds here too.
    #[serde(skip)]
    pub machine: MachineConfig,
}

/// How this machine is used, by settings that are not this runtime's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineConfig {
    /// The directory below which it is kept what stacks there are.
    pub data_dir: PathBuf,
    /// The address that node ports are bound to.
    pub node_port_bind: IpAddr,
    /// The address at which node ports are reached, where it is set or follows.
    pub public_ip: Option<String>,
    /// The name of this machine; the engine's own where absent.
    pub node_name: Option<String>,
    /// How many starts may be under way at once; twice the number of CPUs where absent.
    pub concurrent_starts: Option<usize>,
    /// The most bytes of a log file; two are kept of each container.
    pub log_file_bytes: u64,
    /// The most relayed TCP connections of a stack at once.
    pub max_connections: usize,
    /// The most relayed UDP flows of a stack at once.
    pub max_flows: usize,
    /// How long no datagram may come before a UDP flow is forgotten.
    pub flow_idle: Duration,
    /// The address that a stack's services have in its own network.
    pub pod_address: Ipv4Addr,
    /// The address that relayed connections come from in a stack's own network.
    pub gateway_address: Ipv4Addr,
    /// A Docker `config.json` with credentials of registries.
    pub docker_config: Option<PathBuf>,
    /// Registries that images may be pulled from; empty means any.
    pub allowed_registries: Vec<String>,
}

impl Default for DockerConfig {
    fn default() -> Self {
        Self {
            host: "unix:///var/run/docker.sock".to_owned(),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            runtime_classes: BTreeMap::new(),
            subnets: "10.213.0.0/16".to_owned(),
            ready_networks: 4,
            disk_look: Duration::from_secs(10),
            keeper_patience: Duration::from_secs(600),
            renew_events: Duration::from_secs(60),
            machine: MachineConfig::default(),
        }
    }
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/stackd"),
            node_port_bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            public_ip: None,
            node_name: None,
            concurrent_starts: None,
            log_file_bytes: 5 << 20,
            max_connections: 4096,
            max_flows: 1024,
            flow_idle: Duration::from_secs(60),
            pod_address: Ipv4Addr::new(10, 77, 0, 2),
            gateway_address: Ipv4Addr::new(10, 77, 0, 1),
            docker_config: None,
            allowed_registries: Vec::new(),
        }
    }
}

/// The class that is served without being named.
pub(super) const DEFAULT_CLASS: &str = "default";

impl DockerConfig {
    /// Whether the engine runs on this machine, so that its containers' networks can be entered.
    pub fn is_here(&self) -> bool {
        self.socket().is_some()
    }

    /// Whether whoever is on the way to the engine reads what it is told, and can be root there.
    pub(super) fn is_in_clear(&self) -> bool {
        !self.is_here() && self.tls_ca.is_none()
    }

    /// The path of the engine's socket, where it has one.
    pub(super) fn socket(&self) -> Option<&str> {
        self.host.strip_prefix("unix://")
    }

    /// The classes that are served; the first is the default.
    pub(super) fn classes(&self) -> Vec<String> {
        let named = self.runtime_classes.keys().filter(|name| *name != DEFAULT_CLASS).cloned();
        std::iter::once(DEFAULT_CLASS.to_owned()).chain(named).collect()
    }

    /// The engine's name for the runtime of a class; none where it is its default one.
    pub(super) fn engine_runtime(&self, class: &str) -> Option<String> {
        self.runtime_classes.get(class).cloned()
    }
}
