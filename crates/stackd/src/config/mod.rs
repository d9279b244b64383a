//! What the operator has set: flags before environment before the TOML file before the defaults.
//!
//! It is read once, at the start, and handed on by value; nothing else reads the environment. A
//! mistake is answered with the setting's name, where it was set, and what would be right.

mod args;
mod load;
pub(crate) mod settings;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stackd_engine::EngineConfig;
use stackd_runtimes::docker::DockerConfig;
use stackd_runtimes::kubernetes::KubernetesConfig;
use stackd_runtimes::oci::OciConfig;
use stackd_runtimes::oci::images::ImageConfig;
use stackd_runtimes::simulated::SimulatedConfig;
use stackd_server::ServerConfig;

pub(crate) use args::{AllSettings, Given, ImageSettings, LocalSettings};
pub(crate) use load::{DEFAULT_FILE, Environment, load};
pub(crate) use settings::by_key;

/// All settings. No `Debug`: the database URL holds a password.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The directory that holds everything.
    pub(crate) data_dir: PathBuf,
    /// The listeners and who may call them.
    pub(crate) server: ServerSection,
    /// The API as such.
    pub(crate) api: ServerConfig,
    /// What runs the stacks.
    pub(crate) runtime: RuntimeSection,
    /// How stacks live.
    pub(crate) engine: EngineConfig,
    /// Where images come from.
    pub(crate) images: ImageConfig,
    /// Where the database is.
    pub(crate) store: StoreSection,
    /// Whether other servers use the same database.
    pub(crate) replicas: ReplicasSection,
    /// What is logged.
    pub(crate) log: LogSection,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/stackd".into(),
            server: ServerSection::default(),
            api: ServerConfig::default(),
            runtime: RuntimeSection::default(),
            engine: EngineConfig::default(),
            images: ImageConfig::default(),
            store: StoreSection::default(),
            replicas: ReplicasSection::default(),
            log: LogSection::default(),
        }
    }
}

/// The value that the setting of this TOML key has where nobody set it; none where that is nothing.
pub(crate) fn default_of(key: &str) -> Option<Value> {
    static DEFAULTS: LazyLock<Value> =
        LazyLock::new(|| serde_json::to_value(Config::default()).unwrap_or_default());
    let value = key.split('.').try_fold(&*DEFAULTS, |value, part| value.get(part))?;
    let empty = match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(table) => table.is_empty(),
        value => value.is_null(),
    };
    (!empty).then(|| value.clone())
}

/// The `[server]` table.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServerSection {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) insecure_http: bool,
}

impl Default for ServerSection {
    fn default() -> Self {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            listen: vec![loopback(8080), loopback(8081)],
            tls_cert: None,
            tls_key: None,
            insecure_http: false,
        }
    }
}

/// The `[runtime]` table.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RuntimeSection {
    pub(crate) driver: Driver,
    pub(crate) oci: OciConfig,
    pub(crate) kubernetes: KubernetesConfig,
    pub(crate) docker: DockerConfig,
    pub(crate) simulated: SimulatedConfig,
}

/// What runs the stacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    /// Containers on this machine.
    #[default]
    Oci,
    /// Pods of a cluster.
    Kubernetes,
    /// Containers of a Docker engine.
    Docker,
    /// Nothing is started.
    Simulated,
}

/// The `[store]` table.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StoreSection {
    pub(crate) database_url: Option<String>,
    pub(crate) ballast_bytes: u64,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { database_url: None, ballast_bytes: 8 << 20 }
    }
}

/// The `[replicas]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ReplicasSection {
    pub(crate) enabled: bool,
    pub(crate) advertise: Option<String>,
    #[serde(with = "stackd_core::duration")]
    pub(crate) lease: Duration,
    #[serde(with = "stackd_core::duration")]
    pub(crate) renew: Duration,
}

impl Default for ReplicasSection {
    fn default() -> Self {
        Self {
            enabled: false,
            advertise: None,
            lease: Duration::from_secs(3),
            renew: Duration::from_secs(1),
        }
    }
}

/// The `[log]` table.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogSection {
    pub(crate) format: LogFormat,
    pub(crate) level: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info,sea_orm_migration=warn".to_owned() }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
