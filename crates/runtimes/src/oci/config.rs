//! Settings of the embedded runtime.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stackd_core::isolation::DEFAULT_PIDS_LIMIT;
use stackd_shim::protocol::IDS_PER_STACK;

/// How the embedded runtime uses this machine: the `[runtime.oci]` section of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OciConfig {
    /// The directory below which images and stacks are kept. It must be on a file system of this
    /// machine's own.
    #[serde(skip)]
    pub data_dir: PathBuf,
    /// The address that node ports are bound to.
    pub node_port_bind: IpAddr,
    /// The address at which node ports are reached from outside; that which they are bound to
    /// where this is absent and that is one.
    pub public_address: Option<String>,
    /// The name of this machine; the host's own where absent.
    pub node_name: Option<String>,
    /// How many empty stacks are kept ready, so that a start has less to do. 0 makes each when it
    /// is needed.
    pub ready_stacks: usize,
    /// How many starts may be under way at once; twice the number of CPUs where absent.
    pub concurrent_starts: Option<usize>,
    /// What writable layers are kept on.
    pub disk: DiskKind,
    /// The size in bytes of the disks that are made ahead of need: the engine's default.
    #[serde(skip)]
    pub default_disk_bytes: u64,
    /// The control group below which all stacks lie. It is relative to the mount point; on version 2
    /// to the part of the tree that was delegated to this server, unless it begins with `/`.
    pub cgroup_parent: String,
    /// The first of the user and group ids that stacks get. Each stack has 65536 of its own, which
    /// are no other's on this machine, also not another server's.
    pub first_id: u32,
    /// The most processes and threads of a stack, where the caller does not say: the engine's.
    #[serde(skip)]
    pub pids_limit: u32,
    /// The most bytes of a log file; two are kept of each container.
    pub log_file_bytes: u64,
    /// The most relayed TCP connections of a stack at once.
    pub max_connections: usize,
    /// The most relayed UDP flows of a stack at once.
    pub max_flows: usize,
    /// How long no datagram may come before a UDP flow is forgotten.
    #[serde(with = "stackd_core::duration")]
    pub flow_idle: Duration,
    /// The address that a stack's services have in its own network.
    pub pod_address: Ipv4Addr,
    /// The address that relayed connections come from in a stack's own network.
    pub gateway_address: Ipv4Addr,
}

/// What writable layers are kept on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// A file system of its own for each stack, in a sparse file: bytes and inodes are limited.
    #[default]
    Loop,
    /// Memory, charged to the stack's memory limit.
    Memory,
}

impl Default for OciConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/stackd"),
            node_port_bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            public_address: None,
            node_name: None,
            ready_stacks: 8,
            concurrent_starts: None,
            disk: DiskKind::Loop,
            default_disk_bytes: 1 << 30,
            cgroup_parent: "stackd".to_owned(),
            first_id: 1 << 28,
            pids_limit: DEFAULT_PIDS_LIMIT,
            log_file_bytes: 5 << 20,
            max_connections: 4096,
            max_flows: 1024,
            flow_idle: Duration::from_secs(60),
            pod_address: Ipv4Addr::new(10, 77, 0, 2),
            gateway_address: Ipv4Addr::new(10, 77, 0, 1),
        }
    }
}

/// Ids below this are given to users of the machine, and to their own containers.
const LOWEST_FIRST_ID: u32 = 1 << 20;

impl OciConfig {
    /// Settings with which no stack could start, or would not be isolated: the setting and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let highest = u32::MAX - IDS_PER_STACK;
        if !(LOWEST_FIRST_ID..=highest).contains(&self.first_id) {
            let why = format!(
                "{} is not between {LOWEST_FIRST_ID} and {highest}: users of this machine have the \
                 lower ids, and each stack needs {IDS_PER_STACK} of its own",
                self.first_id
            );
            return Err(("first_id", why));
        }
        let group = self.cgroup_parent.strip_prefix('/').unwrap_or(&self.cgroup_parent);
        let plain = |part| matches!(part, Component::Normal(_));
        if group.is_empty() || !Path::new(group).components().all(plain) {
            let why = format!("{:?} is not a path below the mount point", self.cgroup_parent);
            return Err(("cgroup_parent", why));
        }
        for (name, address) in
            [("pod_address", self.pod_address), ("gateway_address", self.gateway_address)]
        {
            let unusable = address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_broadcast();
            if unusable {
                return Err((name, format!("{address} is not one that a machine can have")));
            }
        }
        if self.pod_address == self.gateway_address {
            let why = format!("{} is the pod address, too", self.gateway_address);
            return Err(("gateway_address", why));
        }
        Ok(())
    }

    /// Whether this machine has the address that node ports are to be bound to.
    pub fn check_bind(&self) -> std::io::Result<()> {
        TcpListener::bind((self.node_port_bind, 0)).map(drop)
    }

    /// The address that callers are told for node ports, where there is one.
    pub fn public_ip(&self) -> Option<String> {
        let bound =
            || (!self.node_port_bind.is_unspecified()).then(|| self.node_port_bind.to_string());
        self.public_address.clone().or_else(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_told_an_address_only_where_there_is_one() {
        let mut config = OciConfig::default();
        assert_eq!(config.public_ip().as_deref(), Some("127.0.0.1"));
        config.node_port_bind = "0.0.0.0".parse().unwrap();
        assert_eq!(config.public_ip(), None);
        config.public_address = Some("203.0.113.5".to_owned());
        assert_eq!(config.public_ip().as_deref(), Some("203.0.113.5"));
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let refused = |change: fn(&mut OciConfig)| {
            let mut config = OciConfig::default();
            change(&mut config);
            config.check().map_err(|(name, _)| name)
        };
        assert_eq!(refused(|_| ()), Ok(()));
        assert_eq!(refused(|c| c.cgroup_parent = "a/b".to_owned()), Ok(()));
        assert_eq!(refused(|c| c.first_id = 0), Err("first_id"));
        assert_eq!(refused(|c| c.first_id = u32::MAX - 1), Err("first_id"));
        assert_eq!(refused(|c| c.cgroup_parent = "/a/b".to_owned()), Ok(()));
        for path in ["", "/", "//a", "/../a", "../a", "a/../..", "."] {
            let config = OciConfig { cgroup_parent: path.to_owned(), ..OciConfig::default() };
            assert_eq!(config.check().unwrap_err().0, "cgroup_parent", "{path}");
        }
        assert_eq!(refused(|c| c.gateway_address = c.pod_address), Err("gateway_address"));
        assert_eq!(refused(|c| c.pod_address = Ipv4Addr::LOCALHOST), Err("pod_address"));
        assert_eq!(refused(|c| c.gateway_address = Ipv4Addr::BROADCAST), Err("gateway_address"));
    }

    #[test]
    fn node_ports_are_bound_to_an_address_of_this_machine() {
        let mut config = OciConfig::default();
        assert!(config.check_bind().is_ok());
        config.node_port_bind = "192.0.2.77".parse().unwrap();
        assert!(config.check_bind().is_err());
    }
}
