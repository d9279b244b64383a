//! How the simulated runtime is set.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stackd_core::runtime::{Machine, Placement};

/// Settings of `--runtime simulated`. Times are whole seconds (`2`) or Go's form
/// (`250ms`, `1m30s`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatedConfig {
    /// How long an image takes to be made ready.
    #[serde(with = "stackd_core::duration")]
    pub prepare_delay: Duration,
    /// How long the containers of a stack take to start.
    #[serde(with = "stackd_core::duration")]
    pub start_delay: Duration,
    /// How long it then takes until they are ready for traffic.
    #[serde(with = "stackd_core::duration")]
    pub ready_delay: Duration,
    /// How long a removal takes.
    #[serde(with = "stackd_core::duration")]
    pub remove_delay: Duration,
    /// The share of starts whose container ends with code 1 instead of becoming ready: 0 to 1.
    pub failure_rate: f64,
    /// The share of start requests that are answered with "try again": 0 to 1.
    pub retry_rate: f64,
    /// Decides which starts fail. The same seed and stack ids give the same failures.
    pub seed: u64,
    /// The name of the machine that stacks seem to run on.
    pub node: String,
    /// The address at which their node ports seem to be.
    pub public_ip: Option<String>,
    /// The runtime classes that are served; the first is the default.
    pub runtime_classes: Vec<String>,
    /// How many starts may be under way at once.
    pub concurrent_starts: usize,
    /// Whether the machine of a stack is known only once it was started, as in a cluster.
    pub late_placement: bool,
    /// What the machine seems to have; without it there is always room.
    pub machine: Option<Machine>,
    /// Keep stacks in this directory, which several servers on this machine may share. Without it
    /// they are in the server's memory, and end with it.
    pub directory: Option<PathBuf>,
}

impl Default for SimulatedConfig {
    fn default() -> Self {
        Self {
            prepare_delay: Duration::ZERO,
            start_delay: Duration::from_millis(10),
            ready_delay: Duration::from_millis(5),
            remove_delay: Duration::ZERO,
            failure_rate: 0.0,
            retry_rate: 0.0,
            seed: 0,
            node: "simulated".to_owned(),
            public_ip: None,
            runtime_classes: vec!["default".to_owned()],
            concurrent_starts: 256,
            late_placement: false,
            machine: None,
            directory: None,
        }
    }
}

impl SimulatedConfig {
    /// Everything happens at once: what most tests want.
    pub fn instant() -> Self {
        Self { start_delay: Duration::ZERO, ready_delay: Duration::ZERO, ..Self::default() }
    }

    pub(crate) fn placement(&self) -> Placement {
        Placement { node: self.node.clone(), public_ip: self.public_ip.clone() }
    }
}
