//! What stacks there are and how they are. What the server must know of a stack again after its
//! restart is written below the data directory; what the engine has is found by its labels.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveVolumeOptionsBuilder,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stackd_core::runtime::{
    Capabilities, EnsureRequest, Observation, ObservedStack, Outcome, Placement, RuntimeState,
};
use stackd_core::stack::{Condition, reason};
use stackd_core::{RuntimeError, StackId, Timestamp};
use tokio::sync::{mpsc, watch};

use super::engine::{fault, unless_absent};
use super::images::Images;
use super::networks::Networks;
use super::plan::Mold;
use super::{not_running, objects, unknown};
use crate::host::ports::Claims;

/// How long beyond its grace a stack may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// The name of what is written of a stack, inside its directory.
const RECORD_FILE: &str = "record.json";

/// The runtime behind its handles.
pub(super) struct Inner {
    pub(super) docker: Docker,
    pub(super) mold: Mold,
    pub(super) capabilities: Capabilities,
    pub(super) placement: Placement,
    pub(super) images: Arc<Images>,
    /// Of an engine elsewhere: its address.
    pub(super) outside: Option<IpAddr>,
    pub(super) networks: Option<Arc<Networks>>,
    pub(super) program: OwnedFd,
    pub(super) boot_id: String,
    pub(super) state: Mutex<State>,
    /// Closed when the last handle is dropped, so that what works in the background ends.
    pub(super) alive: watch::Receiver<()>,
}

/// What changes.
#[derive(Default)]
pub(super) struct State {
    pub(super) claims: Claims,
    pub(super) entries: HashMap<StackId, Entry>,
    pub(super) locks: HashMap<StackId, Arc<tokio::sync::Mutex<()>>>,
    pub(super) epoch: u64,
    observers: Vec<mpsc::UnboundedSender<Observation>>,
}

/// A stack that is here.
pub(super) struct Entry {
    pub(super) observed: ObservedStack,
    pub(super) request: Arc<EnsureRequest>,
    /// Who looks after it, until it has ended.
    pub(super) warden: Option<Warden>,
    /// Where it writes, on this machine.
    pub(super) paths: BTreeSet<PathBuf>,
    /// Those of its containers of which only the engine knows how much they have written.
    pub(super) unseen: BTreeSet<String>,
    /// When each of its containers was started, in the engine's words; the one that holds its network
    /// has no name.
    pub(super) started: BTreeMap<String, String>,
    /// What it had written when it was last looked at.
    pub(super) disk_bytes: u64,
}

/// Who looks after a stack.
#[derive(Clone)]
pub(super) struct Warden {
    pub(super) notes: mpsc::UnboundedSender<Note>,
    /// Becomes true once the stack has ended.
    pub(super) gone: watch::Receiver<bool>,
}

/// What those who look after stacks are told.
#[derive(Debug)]
pub(super) enum Note {
    /// Something may have changed.
    Look,
    /// This container was started, by us or by somebody else.
    Started(String),
    /// A process of this container was killed for memory.
    OutOfMemory(String),
    /// It is to be ended.
    Stop(Duration),
    /// It has written more than it may.
    DiskFull(String),
}

/// What is written of a stack.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) request: EnsureRequest,
    pub(super) state: RuntimeState,
    /// During which boot of this machine.
    pub(super) boot_id: String,
    /// Whether its start was answered: what was not is begun anew.
    pub(super) whole: bool,
    /// When each of its containers was started, in the engine's words: one that has another time
    /// now was started by somebody else.
    #[serde(default)]
    pub(super) started: BTreeMap<String, String>,
}

impl Entry {
    /// The name of the container that is meant, as callers name it.
    pub(super) fn container(&self, named: Option<&str>) -> Result<String, RuntimeError> {
        let spec = &self.request.spec;
        let Some(named) = named else {
            return spec.containers.first().map(|c| c.name.clone()).ok_or_else(unknown);
        };
        if spec.all_containers().any(|container| container.name == named) {
            return Ok(named.to_owned());
        }
        let names: Vec<_> = spec.all_containers().map(|c| c.name.as_str()).collect();
        let text = format!("there is no container {named:?}; there are: {}", names.join(", "));
        Err(RuntimeError::open(stackd_core::runtime::ErrorKind::Rejected, reason::ERROR, text))
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.observed.state, RuntimeState::Ended { .. })
    }
}

impl Inner {
    /// The directory of a stack.
    pub(super) fn directory(&self, id: StackId) -> PathBuf {
        self.stacks().join(id.to_string())
    }

    pub(super) fn stacks(&self) -> PathBuf {
        self.mold.config.machine.data_dir.join("docker/stacks")
    }

    /// One call at a time for each stack.
    pub(super) fn lock_of(&self, id: StackId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.state.lock().locks.entry(id).or_default())
    }

    /// Everything that is here, then every change.
    pub(super) fn observe(&self) -> mpsc::UnboundedReceiver<Observation> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state.lock();
        for entry in state.entries.values() {
            // The receiver is held here.
            let _ = sender.send(Observation::Stack(entry.observed.clone()));
        }
        let _ = sender.send(Observation::Synced);
        state.observers.push(sender);
        receiver
    }

    /// Takes over how a stack is now, writes it down, and tells observers.
    pub(super) fn publish(&self, id: StackId, now: RuntimeState) {
        let record = {
            let mut state = self.state.lock();
            if matches!(now, RuntimeState::Ended { .. }) {
                // Ports are free before anybody hears of the end.
                state.claims.ended(id);
            }
            let Some(entry) = state.entries.get(&id) else { return };
            if entry.observed.state == now {
                return;
            }
            Record {
                request: (*entry.request).clone(),
                state: now.clone(),
                boot_id: self.boot_id.clone(),
                whole: true,
                started: entry.started.clone(),
            }
        };
        // Nobody hears of what the next server would not know.
        self.write(&record);
        let mut state = self.state.lock();
        let Some(entry) = state.entries.get_mut(&id) else { return };
        entry.observed.state = now;
        let observed = entry.observed.clone();
        state.observers.retain(|o| o.send(Observation::Stack(observed.clone())).is_ok());
    }

    /// Writes a record whole or not at all.
    pub(super) fn write(&self, record: &Record) {
        let directory = self.directory(record.request.id);
        let write = || {
            let new = directory.join("record.new");
            std::fs::write(&new, serde_json::to_vec(record)?)?;
            std::fs::rename(new, directory.join(RECORD_FILE))
        };
        if let Err(error) = write() {
            tracing::warn!(stack = %record.request.id, %error, "a stack could not be written down");
        }
    }

    pub(super) fn read(&self, directory: &Path) -> io::Result<Record> {
        Ok(serde_json::from_slice(&std::fs::read(directory.join(RECORD_FILE))?)?)
    }

    /// Tells those who look after a stack.
    pub(super) fn note(&self, id: StackId, note: Note) {
        if let Some(warden) = self.state.lock().entries.get(&id).and_then(|e| e.warden.as_ref()) {
            // One that has just ended need not hear it.
            let _ = warden.notes.send(note);
        }
    }

    /// Tells all of them to look.
    pub(super) fn look_at_all(&self) {
        for entry in self.state.lock().entries.values() {
            if let Some(warden) = &entry.warden {
                let _ = warden.notes.send(Note::Look);
            }
        }
    }

    /// Whether a stack is here and has ended.
    pub(super) fn has_ended(&self, id: StackId) -> bool {
        self.state.lock().entries.get(&id).is_some_and(Entry::is_ended)
    }

    /// The engine's name for a container of a stack that runs.
    pub(super) fn running(
        &self,
        id: StackId,
        container: Option<&str>,
    ) -> Result<String, RuntimeError> {
        let state = self.state.lock();
        let entry = state.entries.get(&id).ok_or_else(unknown)?;
        let name = entry.container(container)?;
        match entry.is_ended() {
            true => Err(not_running()),
            false => Ok(objects::container(id, &name)),
        }
    }

    /// Ends a stack's containers; completes when they have ended.
    pub(super) async fn stop(&self, id: StackId, grace: Duration) -> Result<(), RuntimeError> {
        let lock = self.lock_of(id);
        let _turn = lock.lock().await;
        self.end(id, grace).await
    }

    pub(super) async fn end(&self, id: StackId, grace: Duration) -> Result<(), RuntimeError> {
        let warden = self.state.lock().entries.get(&id).and_then(|entry| entry.warden.clone());
        let Some(mut warden) = warden else { return Ok(()) };
        let _ = warden.notes.send(Note::Stop(grace));
        let ended = warden.gone.wait_for(|gone| *gone);
        match tokio::time::timeout(grace + PATIENCE, ended).await {
            Ok(_) => Ok(()),
            Err(_) => Err(super::engine::away(format!("the containers of {id} do not end"))),
        }
    }

    /// Ends and removes everything of a stack.
    pub(super) async fn remove(&self, id: StackId, grace: Duration) -> Result<(), RuntimeError> {
        let lock = self.lock_of(id);
        let _turn = lock.lock().await;
        self.end(id, grace).await?;
        self.clear(id).await?;
        let directory = self.directory(id);
        match std::fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(super::engine::failed(format!("{}: {e}", directory.display())));
            }
            _ => {}
        }
        let mut state = self.state.lock();
        state.claims.release(id);
        state.entries.remove(&id);
        state.locks.remove(&id);
        Ok(())
    }

    /// Removes what the engine has of a stack that is not known here, unless one is being made.
    pub(super) async fn remove_orphan(&self, id: StackId) -> Result<(), RuntimeError> {
        let lock = self.lock_of(id);
        let _turn = lock.lock().await;
        if self.state.lock().entries.contains_key(&id) {
            return Ok(());
        }
        tracing::info!(stack = %id, "the engine has something of a stack that is not known");
        let result = self.clear(id).await;
        let mut state = self.state.lock();
        // Unless somebody else waits for it: this one's and the list's are two.
        if Arc::strong_count(&lock) == 2 {
            state.locks.remove(&id);
        }
        result
    }

    /// Removes all that the engine has of a stack.
    pub(super) async fn clear(&self, id: StackId) -> Result<(), RuntimeError> {
        let filters = objects::of_stack(&self.mold.instance, id);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = self.docker.list_containers(Some(options)).await;
        let containers = containers.map_err(|e| fault("list containers", &e))?;
        // Those that share another's network go first.
        let (holders, others): (Vec<_>, Vec<_>) = containers.into_iter().partition(|container| {
            !container.labels.as_ref().is_some_and(|l| l.contains_key(objects::CONTAINER))
        });
        for group in [others, holders] {
            let names = group.into_iter().filter_map(|container| container.id);
            let gone = names.map(|name| async move { self.remove_container(&name).await });
            for result in futures_util::future::join_all(gone).await {
                result?;
            }
        }
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let volumes = self.docker.list_volumes(Some(options)).await;
        let volumes = volumes.map_err(|e| fault("list volumes", &e))?.volumes.unwrap_or_default();
        for volume in volumes {
            let options = RemoveVolumeOptionsBuilder::new().force(true).build();
            let removed = self.docker.remove_volume(&volume.name, Some(options)).await;
            unless_absent(removed).map_err(|e| fault("remove a volume", &e))?;
        }
        if let Some(networks) = &self.networks {
            networks.give_back(id).await?;
        }
        Ok(())
    }

    pub(super) async fn remove_container(&self, name: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let mut tries = 0;
        loop {
            let removed = self.docker.remove_container(name, Some(options.clone())).await;
            match unless_absent(removed) {
                Ok(()) => return Ok(()),
                // It is being removed already, or its file system is busy for a moment.
                Err(e) if tries < 50 && super::engine::answer(&e).is_some() => {
                    tries += 1;
                    if tries % 10 == 1 {
                        tracing::debug!(name, error = %e, "a container is not removed yet");
                    }
                    tokio::time::sleep(Duration::from_millis(20 * tries)).await;
                }
                Err(e) => return Err(fault("remove a container", &e)),
            }
        }
    }

    /// A stack's entry, as the runtime sees it.
    pub(super) fn entry(&self, request: EnsureRequest, state: RuntimeState) -> Entry {
        Entry {
            observed: ObservedStack {
                id: request.id,
                generation: request.generation,
                state,
                placement: Some(self.placement.clone()),
                restarts: 0,
            },
            request: Arc::new(request),
            warden: None,
            paths: BTreeSet::new(),
            unseen: BTreeSet::new(),
            started: BTreeMap::new(),
            disk_bytes: 0,
        }
    }
}

/// The end of a stack of which nothing is left that could tell how it ended.
pub(super) fn lost(text: &str) -> RuntimeState {
    RuntimeState::Ended {
        outcome: Outcome::Failed,
        exit_code: None,
        condition: Condition::new(reason::LOST, text),
        at: Timestamp::now(),
    }
}
