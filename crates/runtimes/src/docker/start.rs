//! Starting a stack: its objects are made and its keeper is started at the same time, then its
//! first container runs; the rest of its life is in `pod`.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::CreateContainerOptionsBuilder;
use stackd_core::runtime::{EnsureRequest, ErrorKind, PortsTaken, RuntimeState};
use stackd_core::stack::{Condition, reason};
use stackd_core::{RuntimeError, StackId};
use stackd_shim::protocol::{Keep, KeptContainer, Network, RelayLimits};

use super::engine::{answer, failed, fault, is_absent, refused_start};
use super::inventory::{Inner, Record};
use super::keeper::Keeper;
use super::objects;
use super::pause;
use super::plan::{Place, Plan};
use super::pod::Pod;

impl Inner {
    /// Makes a stack run, unless it does or did in this generation.
    pub(super) async fn ensure(
        self: &Arc<Self>,
        request: EnsureRequest,
    ) -> Result<(), RuntimeError> {
        let id = request.id;
        if let Some(text) = self.capabilities.cannot(&request.spec) {
            return Err(RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text));
        }
        if !self.capabilities.runtime_classes.contains(&request.runtime_class) {
            let text = format!("nothing here serves the runtime class {:?}", request.runtime_class);
            return Err(RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text));
        }
        let lock = self.lock_of(id);
        let _turn = lock.lock().await;
        let known = {
            let mut state = self.state.lock();
            if request.epoch < state.epoch {
                return Err(outdated("a newer engine is at work"));
            }
            state.epoch = request.epoch;
            match state.entries.get(&id).map(|entry| entry.observed.generation) {
                Some(there) if there > request.generation => {
                    return Err(outdated("a newer generation of the stack is here"));
                }
                Some(there) if there == request.generation => return Ok(()),
                known => known.is_some(),
            }
        };
        if known {
            // An older generation makes room.
            self.end(id, Duration::ZERO).await?;
            self.clear(id).await?;
        }
        let result = self.start(request).await;
        if result.is_err() {
            // Nothing of it may be left when the caller hears of the failure.
            if let Err(error) = self.clear(id).await {
                tracing::warn!(stack = %id, error = error.operator, "a failed start left something");
            }
            self.forget(id);
        }
        result
    }

    async fn start(self: &Arc<Self>, request: EnsureRequest) -> Result<(), RuntimeError> {
        let began = Instant::now();
        let id = request.id;
        let place = match &self.networks {
            Some(networks) => Some(networks.take(id).await?),
            None => None,
        };
        let plan = self.mold.plan(&request, place.as_ref(), pause::IMAGE)?;
        let directory = self.directory(id);
        std::fs::create_dir_all(&directory)
            .map_err(|e| failed(format!("{}: {e}", directory.display())))?;
        let creating = Condition::new(reason::CONTAINER_CREATING, "containers are being created");
        let state = RuntimeState::Starting { condition: Some(creating) };
        self.write(&Record {
            request: request.clone(),
            state: state.clone(),
            boot_id: self.boot_id.clone(),
            whole: false,
            started: Default::default(),
        });
        let entry = self.entry(request, state);
        let request = Arc::clone(&entry.request);
        self.state.lock().entries.insert(id, entry);
        let sockets = self.sockets(&request)?;
        let (keeper, made) =
            tokio::join!(self.keep(&request, sockets), self.make(&request, &plan, place.as_ref()));
        let keeper = keeper.map_err(|e| failed(format!("start the keeper of {id}: {e}")))?;
        let ids = match made {
            Ok(ids) => ids,
            Err(error) => {
                keeper.end().await;
                return Err(error);
            }
        };
        let made = began.elapsed();
        let mut pod = Pod::new(Arc::clone(self), request, keeper, ids, plan.sandbox.is_some());
        if let Err(error) = pod.begin().await {
            pod.close().await;
            return Err(error);
        }
        tracing::debug!(stack = %id, ?made, total = ?began.elapsed(), "started");
        pod.look_after();
        Ok(())
    }

    /// The sockets of a stack's node ports; none where the engine publishes them.
    pub(super) fn sockets(&self, request: &EnsureRequest) -> Result<Vec<OwnedFd>, RuntimeError> {
        if self.outside.is_some() {
            return Ok(Vec::new());
        }
        let bind = self.mold.config.machine.node_port_bind;
        let taken = |PortsTaken(ports): PortsTaken| {
            let text = format!("a node port of the stack is held by another process: {ports:?}");
            let condition =
                Condition::new(reason::START_ERROR, "a node port is in use by something else");
            RuntimeError::new(ErrorKind::Failed, condition, text)
        };
        self.state.lock().claims.take(bind, request.id, &request.ports).map_err(taken)
    }

    /// Starts a stack's keeper.
    pub(super) async fn keep(
        &self,
        request: &EnsureRequest,
        sockets: Vec<OwnedFd>,
    ) -> std::io::Result<Keeper> {
        let machine = &self.mold.config.machine;
        let containers = request.spec.containers.iter().map(|container| KeptContainer {
            name: container.name.clone(),
            readiness: container.readiness_probe.clone(),
            liveness: container.liveness_probe.clone(),
            startup: container.startup_probe.clone(),
        });
        let keep = Keep {
            id: request.id,
            containers: containers.collect(),
            ports: request.ports.clone(),
            network: Network { pod: machine.pod_address, gateway: machine.gateway_address },
            outside: self.outside,
            alone_ms: u64::try_from(self.mold.config.keeper_patience.as_millis())
                .unwrap_or(u64::MAX),
            relay: RelayLimits {
                connections: machine.max_connections,
                flows: machine.max_flows,
                flow_idle_ms: u64::try_from(machine.flow_idle.as_millis()).unwrap_or(u64::MAX),
            },
        };
        let log = machine.data_dir.join("shim.log");
        Keeper::start(&self.program, &log, &self.directory(request.id), keep, sockets).await
    }

    /// Makes a stack's objects; gives the engine's ids of its containers, the one that holds the
    /// network first where that is one of its own.
    async fn make(
        &self,
        request: &EnsureRequest,
        plan: &Plan,
        _place: Option<&Place>,
    ) -> Result<Vec<String>, RuntimeError> {
        for volume in &plan.volumes {
            let made = self.docker.create_volume(volume.clone()).await;
            let made = made.map_err(|e| fault("make a volume", &e))?;
            // The engine answers with one that is there already, whosoever it is.
            if !self.is_of(request.id, &made.labels) {
                let text = format!("the engine has a volume {:?} that is not ours", made.name);
                return Err(failed(text));
            }
            if self.mold.abilities.is_here && plan.on_disk.contains(&made.name) {
                open_to_all(&made.mountpoint)
                    .map_err(|e| failed(format!("{}: {e}", made.mountpoint)))?;
            }
        }
        let mut ids = Vec::new();
        if let Some(sandbox) = &plan.sandbox {
            pause::ensure(&self.docker).await?;
            let name = objects::sandbox(request.id);
            ids.push(self.make_container(request.id, &name, "", sandbox).await?);
        }
        let containers = plan.containers.iter().zip(request.spec.all_containers());
        let made = containers.map(|((name, body), container)| async move {
            match self.make_container(request.id, name, &container.name, body).await {
                Err(MakeError::NoImage) => {
                    // Somebody has removed it since it was prepared.
                    self.images.forget();
                    let policy = container.image_pull_policy;
                    self.images.prepare(&container.image, policy).await?;
                    Ok(self.make_container(request.id, name, &container.name, body).await?)
                }
                result => result.map_err(RuntimeError::from),
            }
        });
        for id in futures_util::future::join_all(made).await {
            ids.push(id?);
        }
        Ok(ids)
    }

    async fn make_container(
        &self,
        id: StackId,
        name: &str,
        container: &str,
        body: &ContainerCreateBody,
    ) -> Result<String, MakeError> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let create = || self.docker.create_container(Some(options.clone()), body.clone());
        let made = match create().await {
            Err(e) if matches!(answer(&e), Some((409, _))) => {
                // What a start that was cut off has left, if it is ours.
                let there = self.docker.inspect_container(name, None).await;
                let labels = there.ok().and_then(|there| there.config?.labels);
                if !labels.is_some_and(|labels| self.is_of(id, &labels)) {
                    let text = format!("the engine has a container {name:?} that is not ours: {e}");
                    return Err(failed(text).into());
                }
                self.remove_container(name).await?;
                create().await
            }
            made => made,
        };
        match made {
            Ok(made) => Ok(made.id),
            Err(e) if is_absent(&e) && e.to_string().contains("No such image") => {
                Err(MakeError::NoImage)
            }
            Err(e) => Err(refused_start(container, "make a container", &e).into()),
        }
    }

    /// Whether what has these labels is of a stack of this server.
    fn is_of(&self, id: StackId, labels: &HashMap<String, String>) -> bool {
        labels.get(objects::INSTANCE) == Some(&self.mold.instance)
            && objects::stack_of(labels) == Some(id)
    }

    /// Forgets what a start that failed has left here.
    fn forget(&self, id: StackId) {
        let mut state = self.state.lock();
        state.claims.ended(id);
        state.entries.remove(&id);
        drop(state);
        match std::fs::remove_dir_all(self.directory(id)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(stack = %id, error = %e, "a directory could not be removed");
            }
            _ => {}
        }
    }
}

/// Why a container could not be made.
enum MakeError {
    NoImage,
    Other(RuntimeError),
}

impl From<RuntimeError> for MakeError {
    fn from(error: RuntimeError) -> Self {
        Self::Other(error)
    }
}

impl From<MakeError> for RuntimeError {
    fn from(error: MakeError) -> Self {
        match error {
            MakeError::NoImage => {
                let text = "an image of the stack was removed while it was started";
                Self::open(ErrorKind::Retry, reason::IMAGE_PULL, text)
            }
            MakeError::Other(error) => error,
        }
    }
}

/// Lets every user write to a volume that was just made: nothing runs yet that could have put
/// something else in its place.
fn open_to_all(path: &str) -> std::io::Result<()> {
    use rustix::fs::{Mode, OFlags, fchmod, open};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = open(path, flags, Mode::empty())?;
    Ok(fchmod(&directory, Mode::from_raw_mode(0o777))?)
}

fn outdated(text: &str) -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text)
}
