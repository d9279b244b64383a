//! The beginning of a stack: what runs first is started, then the rest; or it is found out how far
//! an earlier server has come.

use std::path::PathBuf;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, MountPoint};
use stackd_core::RuntimeError;
use stackd_core::runtime::{ErrorKind, RuntimeState};
use stackd_core::spec::VolumeMedium;
use stackd_core::stack::{Condition, reason};
use stackd_shim::protocol::{Event, Kept, Request};

use super::{End, Pod, Stage};
use crate::docker::engine::{away, chain, failed, fault, is_absent, refused_start, unless_absent};
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
        let started = self.first_started("", &there);
        if let Some(holder) = &mut self.sandbox {
            holder.started = started;
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
        for index in 0..self.members.len() {
            if self.members[index].ended {
                self.tell_ended(index).await;
            }
        }
    }

    /// Has the keeper check a container no more, which has ended well.
    pub(super) async fn tell_ended(&self, index: usize) {
        let member = &self.members[index];
        if let Some(keeper) = self.keeper.as_ref().filter(|_| self.kept.hears_ends && !member.init)
        {
            let ended = Request::Ended { container: member.name.clone() };
            let _ = keeper.client.send(&ended, &[]).await;
        }
    }

    pub(super) async fn start_member(&mut self, index: usize) -> Result<(), RuntimeError> {
        let member = &mut self.members[index];
        let (id, name) = (member.id.clone(), member.name.clone());
        let docker = self.inner.docker.clone();
        let look = |e: Error| fault("look at a container", &e);
        // It may have been started though nobody heard of it, and have ended since.
        let before = match std::mem::replace(&mut member.begun, true) {
            true => Some(docker.inspect_container(&id, None).await.map_err(look)?),
            false => None,
        };
        let there = match before.filter(|there| started_at(there).is_some()) {
            Some(there) => there,
            None => {
                let started = docker.start_container(&id, None).await;
                started
                    .map_err(|e| refused_start(&name, &format!("start container {name}"), &e))?;
                docker.inspect_container(&id, None).await.map_err(look)?
            }
        };
        self.has_started(index, &there);
        if self.sandbox.is_none() {
            self.enter(&there).await?;
        }
        if there.state.as_ref().is_none_or(|state| state.running != Some(true)) {
            // Its end may have been told before anybody listened.
            let _ = self.sender.send(Note::Look);
        }
        Ok(())
    }

    /// When a container was started by us, as far as that is known: one that somebody else has
    /// started again says another time now.
    fn first_started(&self, name: &str, there: &ContainerInspectResponse) -> Option<String> {
        let now = started_at(there)?;
        let mut state = self.inner.state.lock();
        let Some(entry) = state.entries.get_mut(&self.id) else { return Some(now) };
        Some(entry.started.entry(name.to_owned()).or_insert(now).clone())
    }

    /// Takes over what the engine says of a container that was started.
    fn has_started(&mut self, index: usize, there: &ContainerInspectResponse) {
        let started = self.first_started(&self.members[index].name, there);
        let member = &mut self.members[index];
        member.begun |= started.is_some();
        member.started = started;
        let mut state = self.inner.state.lock();
        let Some(entry) = state.entries.get_mut(&self.id) else { return };
        let memory = self.inner.mold.kept(&self.request, VolumeMedium::Memory);
        entry.paths.extend(volumes_on_disk(there, &memory));
        if self.inner.mold.abilities.limits_disk {
            return;
        }
        match upper_layer(there) {
            Some(path) => entry.paths.insert(path),
            None => entry.unseen.insert(member.id.clone()),
        };
    }

    /// Starts what should run by now and does not: the engine was away when it was its turn.
    pub(super) async fn go_on(&mut self) -> Result<(), RuntimeError> {
        match self.stage {
            Stage::Init(index) if self.members[index].ended => self.start_next(index).await,
            Stage::Init(index) if self.members[index].started.is_none() => {
                self.start_init(index).await
            }
            Stage::Main if self.members.iter().any(|m| !m.init && m.started.is_none()) => {
                self.start_main().await
            }
            _ => Ok(()),
        }
    }

    /// Starts what comes after an init container.
    async fn start_next(&mut self, index: usize) -> Result<(), RuntimeError> {
        match (index + 1..self.members.len()).find(|i| self.members[*i].init) {
            Some(next) => self.start_init(next).await,
            None => self.start_main().await,
        }
    }

    pub(super) async fn after_init(&mut self, index: usize) {
        if let Err(error) = self.start_next(index).await {
            self.not_started(error).await;
        }
    }

    /// A container could not be started: it is tried again, or the stack is ended for it.
    pub(super) async fn not_started(&mut self, error: RuntimeError) {
        if error.kind == ErrorKind::Retry {
            return self.look_later();
        }
        tracing::warn!(stack = %self.id, error = error.operator, "a container did not start");
        self.stop(Duration::ZERO, Some(error.condition)).await;
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
        self.kept = Kept { hears_ends: true, ..Kept::default() };
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
        self.known = false;
        for member in &mut self.members {
            // For all that is known.
            member.begun = true;
        }
        // A keeper tells how it is before all else, so that nobody takes the stack for unready.
        if self.keeper.is_some() {
            let told = tokio::time::timeout(FIRST_WORD, super::next_event(&mut self.keeper));
            match told.await {
                Ok(Some(Event::Kept(kept))) if kept.entered || self.inner.outside.is_some() => {
                    self.was_ready |= kept.was_ready;
                    self.kept = kept.clone();
                    self.unheard = Some(Event::Kept(kept));
                }
                // It gets another when the stack is looked at.
                _ => self.keeper = None,
            }
        }
        self.take_up().await
    }

    /// Finds out how far the stack is, and goes on there.
    pub(super) async fn take_up(&mut self) -> Result<(), RuntimeError> {
        self.find_out().await.map_err(|e| away(format!("look at a container: {}", chain(&e))))?;
        match self.stage {
            // A keeper may not have been told to check, and how it stands is to be seen.
            Stage::Main => self.start_main().await,
            _ => self.go_on().await,
        }
    }

    /// Finds out what the engine has of the stack.
    async fn find_out(&mut self) -> Result<(), Error> {
        if let Some(holder) = &self.sandbox {
            let started = match self.inner.docker.inspect_container(&holder.id, None).await {
                Ok(there) => self.first_started("", &there),
                Err(e) => unless_absent(Err(e)).map(|()| None)?,
            };
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
                        let member = &mut self.members[index];
                        (member.begun, member.started) = (true, Some(String::new()));
                        continue;
                    }
                    Err(e) => return Err(e),
                };
            self.members[index].begun = false;
            self.has_started(index, &there);
            let member = &mut self.members[index];
            let state = there.state.unwrap_or_default();
            if member.init && state.running != Some(true) && state.exit_code == Some(0) {
                member.ended = member.started.is_some();
            }
        }
        let init = self.members.iter().position(|member| member.init && !member.ended);
        self.stage = init.map_or(Stage::Main, Stage::Init);
        self.known = true;
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

/// Where a container's own layer is written, as a path of the engine's machine; not every engine
/// says that.
fn upper_layer(there: &ContainerInspectResponse) -> Option<PathBuf> {
    there.graph_driver.as_ref()?.data.get("UpperDir").map(PathBuf::from)
}

/// Where a container's volumes are, but those in memory, as paths of the engine's machine.
fn volumes_on_disk(there: &ContainerInspectResponse, in_memory: &[String]) -> Vec<PathBuf> {
    let on_disk = |mount: &&MountPoint| {
        mount.typ.as_deref() == Some("volume")
            && !mount.name.as_ref().is_some_and(|name| in_memory.contains(name))
    };
    let volumes = there.mounts.iter().flatten().filter(on_disk);
    volumes.filter_map(|mount| mount.source.clone()).map(PathBuf::from).collect()
}
