//! Opening the runtime: the engine is asked what it can do, and the stacks of this data directory
//! are found again, in what was written of them and in what the engine has.

use std::collections::HashMap;
use std::sync::Arc;

use bollard::models::SystemInfo;
use bollard::query_parameters::ListContainersOptionsBuilder;
use parking_lot::Mutex;
use stackd_core::isolation::Enforcement;
use stackd_core::runtime::{Capabilities, Machine, Outcome, Placement, RuntimeState};
use stackd_core::stack::{Condition, reason};
use stackd_core::{StackId, Timestamp};
use tokio::sync::watch;

use super::config::DockerConfig;
use super::engine::{self, EngineError};
use super::images::Images;
use super::inventory::{Inner, Record, State, lost};
use super::keeper::Keeper;
use super::networks::Networks;
use super::plan::Mold;
use super::pod::Pod;
use super::{objects, pause, survey};
use crate::host::machine;

impl Inner {
    pub(super) async fn open(
        config: DockerConfig,
        alive: watch::Receiver<()>,
    ) -> Result<Arc<Self>, EngineError> {
        let data_dir = config.machine.data_dir.clone();
        let stacks = data_dir.join("docker/stacks");
        std::fs::create_dir_all(&stacks)?;
        restrict(&data_dir.join("docker"))?;
        let instance = instance(&data_dir.join("docker/instance"))?;
        let docker = engine::connect(&config).await?;
        let info = docker.info().await.map_err(|e| EngineError::Unreachable {
            host: config.host.clone(),
            cause: engine::chain(&e),
        })?;
        survey::check(&docker, &config, &info)?;
        if config.is_in_clear() {
            tracing::warn!(
                "the engine at {} is spoken to in clear text: whoever reads it is root there; \
                 --docker-tls-ca, --docker-tls-cert and --docker-tls-key turn TLS on",
                config.host
            );
        }
        let outside = engine::address(&config).await?;
        pause::ensure(&docker)
            .await
            .map_err(|e| EngineError::of(&config.host, "does not take the pause image", &e))?;
        let abilities = survey::abilities(&docker, &config, &info).await;
        let networks = match outside {
            Some(_) => Some(Arc::new(Networks::open(docker.clone(), &instance, &config).await?)),
            None => None,
        };
        let machine = of_engine(&config, &info);
        let cpus = machine.cpu_milli / 1000;
        let classes = config.classes();
        let public_ip = config.machine.public_ip.clone();
        let inner = Arc::new(Self {
            capabilities: Capabilities {
                name: "docker".to_owned(),
                runtime_classes: classes,
                concurrent_starts: config
                    .machine
                    .concurrent_starts
                    .unwrap_or(usize::try_from(cpus).unwrap_or(1).max(1) * 2),
                machine: Some(machine),
                protocols_apart: true,
                https_probes: false,
                enforcement: Enforcement {
                    user_namespace: survey::is_remapped(&info),
                    ..Enforcement::default()
                },
            },
            placement: Placement {
                node: config
                    .machine
                    .node_name
                    .clone()
                    .or(info.name.filter(|name| !name.is_empty()))
                    .unwrap_or_else(machine::host_name),
                public_ip: match outside {
                    Some(address) => public_ip.or(Some(address.to_string())),
                    None => public_ip,
                },
            },
            images: Images::new(docker.clone(), config.machine.clone()),
            outside,
            networks,
            program: machine::own_program()?,
            boot_id: machine::boot_id()?,
            state: Mutex::new(State::default()),
            alive,
            mold: Mold {
                instance,
                abilities,
                seccomp: stackd_shim::seccomp_profile().to_string(),
                open_files: stackd_shim::open_files(),
                config,
            },
            docker,
        });
        inner.adopt().await?;
        tokio::spawn(super::watch::listen(Arc::clone(&inner)));
        // Elsewhere only what the engine may limit can be measured.
        if inner.mold.abilities.is_here || !inner.mold.abilities.limits_disk {
            tokio::spawn(super::watch::watch_disks(Arc::clone(&inner)));
        }
        Ok(inner)
    }

    /// Takes over every stack that is written down; what the engine has besides is removed.
    async fn adopt(self: &Arc<Self>) -> Result<(), EngineError> {
        let unreachable =
            |cause: String| EngineError::Unreachable { host: self.mold.config.host.clone(), cause };
        let filters = objects::of_instance(&self.mold.instance);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = self.docker.list_containers(Some(options)).await;
        let containers = containers.map_err(|e| unreachable(engine::chain(&e)))?;
        let mut there: HashMap<StackId, HashMap<String, String>> = HashMap::new();
        for container in containers {
            let (Some(id), Some(labels)) = (container.id, container.labels) else { continue };
            if let Some(stack) = objects::stack_of(&labels) {
                let name = labels.get(objects::CONTAINER).cloned().unwrap_or_default();
                there.entry(stack).or_default().insert(name, id);
            }
        }
        for entry in std::fs::read_dir(self.stacks())? {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let record = self.read(&entry.path()).ok();
            let record = record.filter(|record| record.request.id == id);
            match record {
                Some(record) if record.whole => {
                    let containers = there.remove(&id).unwrap_or_default();
                    self.adopted(record, containers).await;
                }
                // A start that was cut off; it will be asked for again.
                _ => {
                    there.remove(&id);
                    self.clear(id).await.map_err(|e| unreachable(e.operator))?;
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
        }
        for id in there.into_keys() {
            tracing::info!(stack = %id, "the engine has something of a stack that is not known");
            self.clear(id).await.map_err(|e| unreachable(e.operator))?;
        }
        Ok(())
    }

    async fn adopted(self: &Arc<Self>, record: Record, mut containers: HashMap<String, String>) {
        let id = record.request.id;
        let ended = matches!(record.state, RuntimeState::Ended { .. });
        let was_ready = matches!(record.state, RuntimeState::Running { .. });
        let epoch = record.request.epoch;
        // What becomes of this machine does not matter to what is on another.
        let rebooted_since = self.outside.is_none() && record.boot_id != self.boot_id;
        let mut entry = self.entry(record.request, record.state);
        entry.started = record.started;
        let request = Arc::clone(&entry.request);
        {
            let mut state = self.state.lock();
            state.epoch = state.epoch.max(epoch);
            state.entries.insert(id, entry);
        }
        if ended {
            return;
        }
        if containers.is_empty() {
            let state = match rebooted_since {
                false => lost("the stack's containers were removed"),
                true => rebooted(),
            };
            self.end_keeper(id).await;
            return self.publish(id, state);
        }
        // One that is missing is found to be when it is looked for by its name.
        let with_sandbox = self.mold.has_sandbox(&request.spec);
        let sandbox =
            with_sandbox.then(|| containers.remove("").unwrap_or_else(|| objects::sandbox(id)));
        let ids = request.spec.all_containers().map(|container| {
            containers
                .get(&container.name)
                .cloned()
                .unwrap_or_else(|| objects::container(id, &container.name))
        });
        let ids: Vec<_> = sandbox.into_iter().chain(ids).collect();
        let keeper = Keeper::find(&self.directory(id)).ok();
        let had_keeper = keeper.is_some();
        let mut pod = Pod::with(Arc::clone(self), request, keeper, ids, with_sandbox);
        if rebooted_since {
            pod.rebooted(rebooted());
        }
        let resumed = pod.resume(was_ready).await;
        if let Err(error) = &resumed {
            tracing::warn!(stack = %id, error = error.operator, "a stack is not as it was");
        }
        tracing::debug!(stack = %id, had_keeper, "adopted");
        pod.look_after();
    }

    /// Ends a keeper that keeps nothing.
    async fn end_keeper(&self, id: StackId) {
        if let Ok(keeper) = Keeper::find(&self.directory(id)) {
            keeper.end().await;
        }
    }
}

/// What the engine's machine has.
pub(super) fn of_engine(config: &DockerConfig, info: &SystemInfo) -> Machine {
    let amount = |number: Option<i64>| u64::try_from(number.unwrap_or(0)).unwrap_or(0);
    let data_dir = &config.machine.data_dir;
    let disk_bytes = match config.is_here() {
        // Containers write where the engine keeps them.
        true => {
            let root = info.docker_root_dir.as_ref().map(std::path::Path::new);
            let there = root.filter(|path| path.is_dir()).unwrap_or(data_dir);
            machine::totals(there).disk_bytes
        }
        // The engine does not say how much there is.
        false => u64::MAX >> 8,
    };
    Machine {
        cpu_milli: amount(info.ncpu) * 1000,
        memory_bytes: amount(info.mem_total),
        disk_bytes,
    }
}

/// The end of a stack that its machine did not outlive.
fn rebooted() -> RuntimeState {
    RuntimeState::Ended {
        outcome: Outcome::Failed,
        exit_code: None,
        condition: Condition::new(reason::NODE_REBOOTED, "the machine was restarted"),
        at: Timestamp::now(),
    }
}

/// The name by which a data directory's objects are known in engines, made once.
fn instance(path: &std::path::Path) -> std::io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().len() == 12 => return Ok(text.trim().to_owned()),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
    let name = hex::encode(bytes);
    let new = path.with_extension("new");
    std::fs::write(&new, &name)?;
    std::fs::rename(new, path)?;
    Ok(name)
}

/// Lets nobody but root look into a directory.
fn restrict(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}
