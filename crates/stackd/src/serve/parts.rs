//! The parts that a server is made of, from the settings.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use stackd_core::Runtime;
use stackd_engine::Engine;
use stackd_runtimes::docker::{DockerConfig, DockerRuntime, EngineError, MachineConfig};
use stackd_runtimes::kubernetes::{KubernetesConfig, KubernetesRuntime};
use stackd_runtimes::oci::{OciConfig, OciRuntime, requirements};
use stackd_runtimes::simulated::SimulatedRuntime;

use stackd_server::{ServeError, ServerState, Tls, router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Driver};
use crate::exit::{Exit, Failure};
use crate::local::data_dir::DataDir;
use crate::local::image::work::Home;

/// When an engine that does not answer is asked again, at first and at last.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// A runtime.
pub(crate) struct Parts {
    pub(crate) runtime: Arc<dyn Runtime>,
    /// What its stacks start from, where that is on this machine.
    pub(crate) images: Option<Home>,
}

/// What runs the stacks.
pub(crate) async fn runtime(config: &Config, data: &DataDir) -> anyhow::Result<Parts> {
    match config.runtime.driver {
        Driver::Simulated => {
            let mut simulated = config.runtime.simulated.clone();
            simulated.public_ip = simulated.public_ip.or_else(|| config.runtime.oci.public_ip());
            let runtime = SimulatedRuntime::open(simulated).map_err(|error| {
                Failure::new(Exit::Config, format!("--simulated-directory cannot be used: {error}"))
            })?;
            Ok(Parts { runtime: Arc::new(runtime), images: None })
        }
        Driver::Kubernetes => {
            let runtime = KubernetesRuntime::open(kubernetes(config)).await.map_err(|error| {
                Failure::new(Exit::Unfit, format!("the kubernetes runtime cannot start: {error}"))
                    .hint("`stackd doctor --runtime kubernetes` says what the cluster lacks")
            })?;
            Ok(Parts { runtime: Arc::new(runtime), images: None })
        }
        Driver::Docker => {
            let docker = docker_config(config, data.path());
            let runtime = open_docker(docker).await.map_err(|error| {
                let exit = match error {
                    EngineError::Unreachable { .. } => Exit::Unreachable,
                    EngineError::Settings(_) => Exit::Config,
                    _ => Exit::Unfit,
                };
                Failure::new(exit, format!("the docker runtime cannot start: {error}"))
                    .hint("`stackd doctor --runtime docker` says what is missing")
            })?;
            let images = Some(Home::Engine(runtime.images()));
            Ok(Parts { runtime: Arc::new(runtime), images })
        }
        Driver::Oci => {
            let oci = OciConfig {
                data_dir: data.path().to_owned(),
                default_disk_bytes: config.engine.container_disk_bytes(),
                pids_limit: config.engine.pids_limit,
                cgroup_parent: cgroup_parent(config, data.path()),
                ..config.runtime.oci.clone()
            };
            fit(&oci)?;
            let images = crate::local::image::open(config, data).await?;
            images.tend();
            let runtime = OciRuntime::open(oci, images.clone()).await.map_err(|error| {
                Failure::new(Exit::Unfit, format!("the oci runtime cannot start: {error}"))
                    .hint("`stackd doctor` says what this machine lacks")
            })?;
            Ok(Parts { runtime: Arc::new(runtime), images: Some(Home::Store(images)) })
        }
    }
}

/// Waits for an engine that does not answer: it may be started after this server, or be away for a
/// while, and the stacks go on without either.
async fn open_docker(docker: DockerConfig) -> Result<DockerRuntime, EngineError> {
    let mut retry = FIRST_RETRY;
    let mut told = false;
    loop {
        match DockerRuntime::open(docker.clone()).await {
            Err(error @ EngineError::Unreachable { .. }) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(
                        "{error}; it is waited for, and nothing is served before it answers \
                         (`stackd doctor --runtime docker` says more)"
                    );
                }
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
            Ok(runtime) => {
                if told {
                    tracing::info!("the Docker engine answers");
                }
                return Ok(runtime);
            }
            refused => return refused,
        }
    }
}

/// The settings of the Kubernetes runtime, with those that it shares with others.
pub(crate) fn kubernetes(config: &Config) -> KubernetesConfig {
    KubernetesConfig {
        namespace: config.api.namespace.clone(),
        allowed_registries: config.images.allowed_registries.clone(),
        default_disk_bytes: config.engine.container_disk_bytes(),
        delete_grace: config.engine.delete_grace,
        ..config.runtime.kubernetes.clone()
    }
}

/// What the docker runtime is told: of this machine, the same as the oci runtime.
pub(crate) fn docker_config(config: &Config, data: &Path) -> DockerConfig {
    let oci = &config.runtime.oci;
    DockerConfig {
        machine: MachineConfig {
            data_dir: data.to_owned(),
            node_port_bind: oci.node_port_bind,
            public_ip: oci.public_ip().filter(|_| {
                // An engine elsewhere has its ports at its own address, unless one is set.
                config.runtime.docker.is_here() || oci.public_address.is_some()
            }),
            node_name: oci.node_name.clone(),
            concurrent_starts: oci.concurrent_starts,
            log_file_bytes: oci.log_file_bytes,
            max_connections: oci.max_connections,
            max_flows: oci.max_flows,
            flow_idle: oci.flow_idle,
            pod_address: oci.pod_address,
            gateway_address: oci.gateway_address,
            docker_config: config.images.docker_config.clone(),
            allowed_registries: config.images.allowed_registries.clone(),
        },
        ..config.runtime.docker.clone()
    }
}

/// The control group of this server's stacks. At a start, what no stack of the data directory uses
/// is removed from below it with all its processes; so two servers on one machine must not share
/// one, and a data directory in another place than the usual one gets one of its own.
fn cgroup_parent(config: &Config, data: &Path) -> String {
    let usual = Config::default();
    let parent = &config.runtime.oci.cgroup_parent;
    if *parent != usual.runtime.oci.cgroup_parent || config.data_dir == usual.data_dir {
        return parent.clone();
    }
    let path = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    let hash = Sha256::digest(path.as_os_str().as_bytes());
    format!("{parent}-{}", hex::encode(&hash[..4]))
}

/// What a machine cannot enforce is refused now, not skipped later.
fn fit(config: &OciConfig) -> Result<(), Failure> {
    let missing: Vec<_> = requirements(config).into_iter().filter(|need| !need.met).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<_> =
        missing.iter().map(|need| format!("{} ({})", need.name, need.found)).collect();
    let text = format!("this machine lacks what the oci runtime needs: {}", list.join(", "));
    let failure = Failure::new(Exit::Unfit, text);
    let failure =
        missing.iter().fold(failure, |f, need| f.hint(format!("{}: {}", need.name, need.fix)));
    Err(failure.hint("`stackd doctor` shows everything that is looked at"))
}

/// The certificate that the listeners show, where one is set.
pub(crate) fn tls(config: &Config) -> Result<Option<Tls>, Failure> {
    let server = &config.server;
    let (Some(certificate), Some(key)) = (&server.tls_cert, &server.tls_key) else {
        return Ok(None);
    };
    Tls::load(certificate, key).map(Some).map_err(|error| refused(&error))
}

/// Answers on the listeners until the server stops.
pub(crate) async fn listen(
    config: &Config,
    engine: Engine,
    listeners: Vec<TcpListener>,
    tls: Option<Tls>,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let defaults = config.engine.limit_range.pod_defaults();
    let state = ServerState::new(engine, config.api.clone(), defaults, stopping.clone());
    let router = router(state).map_err(|error| refused(&error.into()))?;
    stackd_server::serve(router, listeners, tls, &config.api, stopping)
        .await
        .map_err(|error| refused(&error))?;
    Ok(())
}

/// Why the server cannot serve, with what caused it.
fn refused(error: &ServeError) -> Failure {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    Failure::new(Exit::Config, format!("{error}{}", cause.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registries_that_are_allowed_are_so_whoever_pulls() {
        let mut config = Config::default();
        config.images.allowed_registries = vec!["registry.example".to_owned()];
        let allowed = &config.images.allowed_registries;
        assert_eq!(&kubernetes(&config).allowed_registries, allowed);
        assert_eq!(&docker_config(&config, Path::new("/")).machine.allowed_registries, allowed);
    }

    #[test]
    fn servers_with_other_data_have_another_control_group() {
        let mut config = Config::default();
        let usual = config.data_dir.clone();
        assert_eq!(cgroup_parent(&config, &usual), "stackd");
        config.data_dir = "/srv/one".into();
        let one = cgroup_parent(&config, &config.data_dir);
        config.data_dir = "/srv/two".into();
        let two = cgroup_parent(&config, &config.data_dir);
        assert_ne!(one, two);
        for parent in [&one, &two] {
            assert!(parent.starts_with("stackd-") && parent.len() == 15, "{parent}");
        }
        config.runtime.oci.cgroup_parent = "mine/stacks".to_owned();
        assert_eq!(cgroup_parent(&config, &config.data_dir), "mine/stacks");
    }
}
