//! The beginning of a stack: what runs first is started, then the rest; or it is found out how far
//! an earlier server has come.

use std::path::PathBuf;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, MountPoint};
use stackd_core::RuntimeError;
use stackd_core::runtime::{ErrorKind, RuntimeState};
use stackd_core::stack::{Condition, reason};
use stackd_shim::protocol::{Event, Request};

use super::{End, Pod, Stage};
use crate::docker::engine::{failed, fault, is_absent, refused_start};
use crate::docker::inventory::Note;
use crate::docker::keeper::Network;

/// How long a keeper may take to say how it is.
const FIRST_WORD: Duration = Duration::from_secs(2);

impl Pod {
    /// Starts what runs first.
    pub(in crate::docker) async fn begin(&mut self) -> Result<(), RuntimeError> {
        if self.sandbox.is_some() {
            self.start_holder().await?;
        }
        match self.members.iter().position(|member| member.init) {
            Some(first) => self.start_init(first).await,
            None => self.start_main().await,
        }
    }

    /// Starts the container that holds the network, and has the keeper enter it.
    pub(super) async fn start_holder(&mut self) -> Result<(), RuntimeError> {
        let Some(holder) = &self.sandbox else { return Ok(()) };
        let id = holder.id.clone();
        let started = self.inner.docker.start_container(&id, None).await;
        started.map_err(|e| fault("start the holder of a network", &e))?;
        let there = self.inner.docker.inspect_container(&id, None).await;
        let there = there.map_err(|e| fault("look at the holder of a network", &e))?;
        if let Some(holder) = &mut self.sandbox {
            holder.started = started_at(&there);
        }
        self.enter(&there).await
    }

    /// Has the keeper enter the network of this container.
    pub(super) async fn enter(
        &mut self,
        holder: &ContainerInspectResponse,
    ) -> Result<(), RuntimeError> {
        if self.inner.outside.is_some() {
            return Ok(());
        }
        let pid = holder.state.as_ref().and_then(|state| state.pid).unwrap_or(0);
        let id = holder.id.as_deref().unwrap_or_default();
        if pid == 0 {
            // It has ended already, which will be noticed.
            return Ok(());
        }
        match Network::open(pid, id) {
            Ok(network) => {
                let Some(keeper) = &self.keeper else { return Ok(()) };
                let entered = keeper.enter(&network).await;
                entered.map_err(|e| failed(format!("talk to a keeper: {e}")))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // The engine has yet to notice its end.
                self.look_later();
                Ok(())
            }
            Err(e) => Err(failed(format!("enter the network of {id}: {e}"))),
        }
    }

    pub(super) async fn start_init(&mut self, index: usize) -> Result<(), RuntimeError> {
        self.stage = Stage::Init(index);
        let name = self.members.get(index).map_or("", |member| member.name.as_str());
        let text = format!("init container {name:?} is running");
        let condition = Some(Condition::new(reason::INITIALIZING, text));
        self.inner.publish(self.id, RuntimeState::Starting { condition });
        self.start_member(index).await
    }

    pub(super) async fn start_main(&mut self) -> Result<(), RuntimeError> {
        self.stage = Stage::Main;
        for index in 0..self.members.len() {
            if !self.members[index].init && self.members[index].started.is_none() {
                self.start_member(index).await?;
            }
        }
        self.check().await;
        self.refresh();
        Ok(())
    }

    /// Has the keeper check the containers.
    pub(super) async fn check(&mut self) {
        if let Some(keeper) = &self.keeper {
            // One that has died is noticed by its silence.
            let _ = keeper.client.send(&Request::Check, &[]).await;
        }
    }

    pub(super) async fn start_member(&mut self, index: usize) -> Result<(), RuntimeError> {
        let member = &self.members[index];
        let (id, name) = (member.id.clone(), member.name.clone());
        let docker = self.inner.docker.clone();
        let started = docker.start_container(&id, None).await;
        started.map_err(|e| refused_start(&name, &format!("start container {name}"), &e))?;
        let there = docker.inspect_container(&id, None).await;
        let there = there.map_err(|e| fault("look at a container", &e))?;
        self.members[index].started = started_at(&there);
        let written = written_paths(&there);
        if let Some(entry) = self.inner.state.lock().entries.get_mut(&self.id) {
            entry.paths.extend(written);
        }
        if self.sandbox.is_none() {
            self.enter(&there).await?;
        }
        if there.state.as_ref().is_none_or(|state| state.running != Some(true)) {
            // Its end may have been told before anybody listened.
            let _ = self.sender.send(Note::Look);
        }
        Ok(())
    }

    pub(super) async fn after_init(&mut self, index: usize) {
        let next = (index + 1..self.members.len()).find(|i| self.members[*i].init);
        let started = match next {
            Some(next) => self.start_init(next).await,
            None => self.start_main().await,
        };
        if let Err(error) = started {
            if error.kind == ErrorKind::Retry {
                return self.look_later();
            }
            tracing::warn!(stack = %self.id, error = error.operator, "a container did not start");
            self.stop(Duration::ZERO, Some(error.condition)).await;
        }
    }

    /// Gives the stack a keeper, which it lacks.
    pub(in crate::docker) async fn keep_again(&mut self) -> Result<(), RuntimeError> {
        let network = match self.inner.outside {
            Some(_) => None,
            // Before all else: one without a network to enter would have nothing to keep, and once
            // it is there nobody would ask for another.
            None => Some(self.network_now().await?),
        };
        let sockets = self.inner.sockets(&self.request)?;
        let keeper = self.inner.keep(&self.request, sockets).await;
        let keeper = keeper.map_err(|e| failed(format!("start a keeper: {e}")))?;
        if let Some(network) = &network {
            let entered = keeper.enter(network).await;
            entered.map_err(|e| failed(format!("talk to a keeper: {e}")))?;
        }
        self.keeper = Some(keeper);
        if self.stage == Stage::Main {
            self.check().await;
        }
        Ok(())
    }

    /// The network of the stack as it is now.
    async fn network_now(&self) -> Result<Network, RuntimeError> {
        let holder = self.sandbox.as_ref().or(self.members.first());
        let holder = holder.map(|holder| holder.id.clone()).unwrap_or_default();
        let there = self.inner.docker.inspect_container(&holder, None).await;
        let there = there.map_err(|e| fault("look at a container", &e))?;
        let pid = there.state.as_ref().and_then(|state| state.pid).unwrap_or(0);
        let network = Network::open(pid, there.id.as_deref().unwrap_or_default());
        network.map_err(|e| failed(format!("enter the network of {holder}: {e}")))
    }

    /// Finds out how far a stack is that was started by an earlier server, and goes on there.
    pub(in crate::docker) async fn resume(&mut self, was_ready: bool) -> Result<(), RuntimeError> {
        self.was_ready = was_ready;
        // A keeper tells how it is before all else, so that nobody takes the stack for unready.
        if self.keeper.is_some() {
            let told = tokio::time::timeout(FIRST_WORD, super::next_event(&mut self.keeper));
            match told.await {
                Ok(Some(Event::Kept(kept))) if kept.entered || self.inner.outside.is_some() => {
                    self.was_ready |= kept.was_ready;
                    self.kept = kept;
                }
                // It gets another when the stack is looked at.
                _ => self.keeper = None,
            }
        }
        let unclear = |e: Error| fault("look at a container", &e);
        if let Some(holder) = &self.sandbox {
            let there = self.inner.docker.inspect_container(&holder.id, None).await;
            let started = there.ok().as_ref().and_then(started_at);
            if let Some(holder) = &mut self.sandbox {
                holder.started = started;
            }
        }
        for index in 0..self.members.len() {
            let there =
                match self.inner.docker.inspect_container(&self.members[index].id, None).await {
                    Ok(there) => there,
                    Err(e) if is_absent(&e) => {
                        // To be found missing when it is looked for.
                        self.members[index].started = Some(String::new());
                        continue;
                    }
                    Err(e) => return Err(unclear(e)),
                };
            let member = &mut self.members[index];
            member.started = started_at(&there);
            let state = there.state.clone().unwrap_or_default();
            if member.init && state.running != Some(true) && state.exit_code == Some(0) {
                member.ended = member.started.is_some();
            }
            let written = written_paths(&there);
            if let Some(entry) = self.inner.state.lock().entries.get_mut(&self.id) {
                entry.paths.extend(written);
            }
        }
        let init = self.members.iter().position(|member| member.init && !member.ended);
        match init {
            Some(index) => {
                self.stage = Stage::Init(index);
                if self.members[index].started.is_none() {
                    self.start_init(index).await?;
                }
            }
            None => self.start_main().await?,
        }
        Ok(())
    }

    /// The machine was restarted: whatever became of the containers, that is why.
    pub(in crate::docker) fn rebooted(&mut self, state: RuntimeState) {
        if let RuntimeState::Ended { condition, .. } = state {
            self.end = Some(End { condition, exit_code: None });
        }
    }
}

/// When a container was started, where it was.
pub(super) fn started_at(there: &ContainerInspectResponse) -> Option<String> {
    let started = there.state.as_ref()?.started_at.clone()?;
    // The engine's way of saying never.
    (!started.is_empty() && !started.starts_with("0001-")).then_some(started)
}

/// Where a container writes, as paths of the engine's machine.
fn written_paths(there: &ContainerInspectResponse) -> Vec<PathBuf> {
    let layers = there.graph_driver.as_ref().map(|driver| &driver.data);
    let upper = layers.and_then(|data| data.get("UpperDir")).map(PathBuf::from);
    let on_disk = |mount: &&MountPoint| mount.typ.as_deref() == Some("volume");
    let volumes = there.mounts.iter().flatten().filter(on_disk);
    upper.into_iter().chain(volumes.filter_map(|m| m.source.clone()).map(PathBuf::from)).collect()
}
