//! Starting a stack: everything of it is put together, a blank shim is taken, and it is told.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stackd_core::isolation;
use stackd_core::runtime::{EnsureRequest, ErrorKind, ObservedStack, PortsTaken, RuntimeState};
use stackd_core::stack::{Condition, reason};
use stackd_core::{RuntimeError, StackId};
use stackd_shim::protocol::{LOG_DIRECTORY, RelayLimits, Request, Start};
use tokio::sync::watch;

use super::client::{self, StartReply};
use super::inventory::{Entry, Held, Inner, Shim, relative_directory};
use super::plan::{self, failed};
use super::pool::Blank;

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
        {
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
                _ => {}
            }
        }
        let known = self.state.lock().entries.contains_key(&id);
        if known {
            // An older generation makes room, its logs stay.
            self.end(id, Duration::ZERO).await?;
        }
        let _starting = self.pool.starting();
        let result = self.start(&request).await;
        if result.is_err() && !known {
            self.forget(id);
        }
        result
    }

    async fn start(self: &Arc<Self>, request: &EnsureRequest) -> Result<(), RuntimeError> {
        let began = Instant::now();
        let id = request.id;
        let plan = plan::plan(
            request,
            &self.images,
            &self.templates,
            self.config.disk,
            &self.config.data_dir,
        )
        .await?;
        let planned = began.elapsed();
        let (sockets, listener) = self.outside(request)?;
        let outside = began.elapsed();
        let Blank { client, inbox, process, ids, disk } =
            self.pool.take().await.map_err(|e| failed(format!("make a shim: {e}")))?;
        let taken = began.elapsed();
        let spec = &request.spec;
        let _templates = plan.templates;
        let start = Start {
            id,
            generation: request.generation,
            epoch: request.epoch,
            boot_id: self.boot_id.clone(),
            shim: process,
            images: plan.images,
            directory: relative_directory(id),
            hostname: plan.hostname,
            disk: (plan.disk != disk).then_some(plan.disk),
            containers: plan.containers,
            volumes: plan.volumes,
            ports: request.ports.clone(),
            pids_limit: isolation::pids_limit(request.pids_limit, &spec.restrictions),
            profile: request.profile,
            restrictions: spec.restrictions.clone(),
            grace_ms: u64::try_from(spec.termination_grace().as_millis()).unwrap_or(u64::MAX),
            log_file_bytes: self.config.log_file_bytes,
            relay: RelayLimits {
                connections: self.config.max_connections,
                flows: self.config.max_flows,
                flow_idle_ms: u64::try_from(self.config.flow_idle.as_millis()).unwrap_or(u64::MAX),
            },
        };
        let containers = start.containers.iter().map(|c| c.name.clone()).collect();
        let client = Arc::new(client);
        let reply = client.start_reply();
        let (gone, receiver) = watch::channel(false);
        let creating = Condition::new(reason::CONTAINER_CREATING, "containers are being created");
        let entry = Entry {
            observed: ObservedStack {
                id,
                generation: request.generation,
                state: RuntimeState::Starting { condition: Some(creating) },
                placement: Some(self.placement.clone()),
                restarts: 0,
            },
            containers,
            init_containers: spec.init_containers.len(),
            shim: Some(Shim { client: Arc::clone(&client), process, gone: receiver.clone() }),
        };
        self.state.lock().entries.insert(id, entry);
        let held = Held { _ids: ids, _leases: plan.leases };
        self.follow(id, Arc::clone(&client), inbox, process, gone, held);
        let fds: Vec<_> =
            std::iter::once(&listener).chain(&sockets).map(|socket| socket.as_fd()).collect();
        let sent = client.send(&Request::Start(Box::new(start)), &fds).await;
        drop(fds);
        // The shim's copies are the only ones that are accepted from: when it closes them, they are
        // closed.
        drop((sockets, listener));
        let reply = match sent {
            Ok(()) => reply.await.ok(),
            Err(_) => None,
        };
        let error = match reply {
            Some(StartReply::Started(trace)) => {
                tracing::debug!(
                    stack = %id,
                    ?planned,
                    ?outside,
                    ?taken,
                    total = ?began.elapsed(),
                    ?trace,
                    "started"
                );
                return Ok(());
            }
            Some(StartReply::Refused(refusal)) => {
                RuntimeError::new(refusal.kind, refusal.condition, refusal.operator)
            }
            None => RuntimeError::new(
                ErrorKind::Retry,
                Condition::new(
                    reason::RETRYING,
                    "the stack could not be started; it is tried again",
                ),
                format!("the shim of {id} ended during the start"),
            ),
        };
        // It ends by itself; nothing of it may be left when the caller hears of the failure.
        let mut receiver = receiver;
        let _ = receiver.wait_for(|gone| *gone).await;
        Err(error)
    }

    /// What a stack has outside: ports, a directory, a socket to be found again by.
    fn outside(&self, request: &EnsureRequest) -> Result<(Vec<OwnedFd>, OwnedFd), RuntimeError> {
        let taken = |PortsTaken(ports): PortsTaken| {
            if ports.is_empty() {
                let text = "the machine has no socket left; it is tried again";
                let condition = Condition::new(reason::RETRYING, text);
                return RuntimeError::new(ErrorKind::Retry, condition, "bind node ports");
            }
            let text = format!("a node port of the stack is held by another process: {ports:?}");
            let condition =
                Condition::new(reason::START_ERROR, "a node port is in use by something else");
            RuntimeError::new(ErrorKind::Failed, condition, text)
        };
        let sockets = self
            .state
            .lock()
            .claims
            .take(self.config.node_port_bind, request.id, &request.ports)
            .map_err(taken)?;
        let directory = self.directory(request.id);
        let make = || {
            std::fs::create_dir_all(directory.join(LOG_DIRECTORY))?;
            client::listen(&directory)
        };
        let listener = make().map_err(|e| failed(format!("{}: {e}", directory.display())))?;
        Ok((sockets, listener))
    }

    /// Removes what a start that failed has left.
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

fn outdated(text: &str) -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text)
}
