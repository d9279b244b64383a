//! What stacks there are and how they are: from shims while they live, from their last words when
//! they have ended, and from what they left behind when they died.

mod adopt;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use stackd_core::isolation::Enforcement;
use stackd_core::runtime::{
    Capabilities, Observation, ObservedStack, Outcome, Placement, RuntimeState,
};
use stackd_core::stack::{Condition, reason};
use stackd_core::{RuntimeError, StackId, Timestamp};
use stackd_shim::protocol::wire::Inbox;
use stackd_shim::protocol::{
    BLANK_PREFIX, CgroupLayout, Network, ProcessName, Request, STATE_FILE, Snapshot,
};
use tokio::sync::{mpsc, watch};

use super::client::{self, Client};
use super::config::OciConfig;
use super::disks::Templates;
use super::ids::{self, IdRange, Ids};
use super::images::{ImageLease, ImageStore};
use super::plan::{disk_of, failed};
use super::pool::{Mold, Pool};
use super::ports::Claims;
use super::{machine, not_running, unknown};

/// How long beyond its grace a stack may take to end before it is killed from outside.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a shim may take to start a stack that an earlier server has handed to it.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How soon a shim is called again that could not be reached for a reason that may pass.
const AGAIN: Duration = Duration::from_millis(50);

/// The runtime behind its handles.
pub(super) struct Inner {
    pub(super) config: OciConfig,
    pub(super) capabilities: Capabilities,
    pub(super) placement: Placement,
    pub(super) images: ImageStore,
    pub(super) templates: Arc<Templates>,
    pub(super) cgroups: CgroupLayout,
    pub(super) boot_id: String,
    pub(super) pool: Arc<Pool>,
    pub(super) state: Mutex<State>,
    /// Closed when this is dropped, so that what listens to shims ends.
    alive: watch::Sender<()>,
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
    /// The names of its containers; init containers come first.
    pub(super) containers: Vec<String>,
    /// How many of them are init containers.
    pub(super) init_containers: usize,
    pub(super) shim: Option<Shim>,
}

impl Entry {
    /// The container that is meant where none is named.
    pub(super) fn main_container(&self) -> Option<String> {
        self.containers.get(self.init_containers).or(self.containers.first()).cloned()
    }
}

/// A stack's living shim.
pub(super) struct Shim {
    pub(super) client: Arc<Client>,
    pub(super) process: ProcessName,
    /// Becomes true once the shim has ended and all of it is gone.
    pub(super) gone: watch::Receiver<bool>,
}

/// What is held while a shim lives.
pub(super) struct Held {
    /// Its ids are no other stack's meanwhile.
    pub(super) _ids: IdRange,
    /// Its images are not removed meanwhile.
    pub(super) _leases: Vec<ImageLease>,
}

impl Inner {
    pub(super) async fn open(config: OciConfig, images: ImageStore) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(config.data_dir.join("stacks"))?;
        restrict(&config.data_dir.join("stacks"))?;
        let cgroups = machine::cgroups(&config.cgroup_parent)?;
        let templates = Templates::open(&config.data_dir)?;
        let (disk, template) = disk_of(config.disk, config.default_disk_bytes, &templates)
            .await
            .map_err(|e| io::Error::other(e.operator))?;
        let ids =
            Ids::new(config.first_id, Path::new(ids::LOCKS), &config.data_dir).map_err(|e| {
                io::Error::new(e.kind(), format!("keep user ids in {}: {e}", ids::LOCKS))
            })?;
        let boot_id = machine::boot_id()?;
        let found = adopt::scan(&config.data_dir, &boot_id, &cgroups).await?;
        // Before the pool begins to give out ranges of ids.
        let found: Vec<_> = found
            .into_iter()
            .map(|(snapshot, socket)| {
                let range = socket.as_ref().map(|_| ids.adopt(snapshot.id_base));
                (snapshot, socket, range)
            })
            .collect();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mold = Mold {
            program: machine::own_program()?,
            data_dir: config.data_dir.clone(),
            network: Network { pod: config.pod_address, gateway: config.gateway_address },
            cgroups: cgroups.clone(),
            disk,
            _template: template,
            ids,
        };
        let inner = Arc::new(Self {
            capabilities: Capabilities {
                name: "oci".to_owned(),
                runtime_classes: vec!["default".to_owned()],
                concurrent_starts: config.concurrent_starts.unwrap_or(cpus * 2),
                machine: Some(machine::totals(&config.data_dir)),
                protocols_apart: true,
                // A shim has no TLS: it is small, and what it speaks with is hostile.
                https_probes: false,
                enforcement: Enforcement::default(),
            },
            placement: Placement {
                node: config.node_name.clone().unwrap_or_else(machine::host_name),
                public_ip: config.public_ip(),
            },
            images,
            templates,
            cgroups,
            boot_id,
            pool: Pool::new(mold, config.ready_stacks),
            state: Mutex::default(),
            alive: watch::channel(()).0,
            config,
        });
        for (snapshot, socket, range) in found {
            inner.adopted(snapshot, socket, range)?;
        }
        // Those that run have their leases again: what nobody uses may go.
        if let Err(error) = inner.images.collect_garbage() {
            tracing::warn!(error = error.operator(), "unused images could not be removed");
        }
        Ok(inner)
    }

    fn adopted(
        self: &Arc<Self>,
        snapshot: Snapshot,
        socket: Option<OwnedFd>,
        range: Option<IdRange>,
    ) -> io::Result<()> {
        let id = snapshot.id;
        let mut entry = Entry {
            observed: self.observed(&snapshot),
            containers: snapshot.containers.clone(),
            init_containers: snapshot.init_containers,
            shim: None,
        };
        let mut follow = None;
        if let (Some(socket), Some(ids)) = (socket, range) {
            let lease = |digest: &String| self.images.lease_by_digest(digest.parse().ok()?);
            let leases = snapshot.images.iter().filter_map(lease).collect();
            let client = Arc::new(Client::new(socket)?);
            let (gone, receiver) = watch::channel(false);
            let process = snapshot.shim;
            entry.shim = Some(Shim { client: Arc::clone(&client), process, gone: receiver });
            follow = Some((client, process, gone, Held { _ids: ids, _leases: leases }));
        }
        let mut state = self.state.lock();
        state.epoch = state.epoch.max(snapshot.epoch);
        state.entries.insert(id, entry);
        drop(state);
        if let Some((client, process, gone, held)) = follow {
            self.follow(id, client, Inbox::default(), process, gone, held);
        }
        Ok(())
    }

    fn observed(&self, snapshot: &Snapshot) -> ObservedStack {
        ObservedStack {
            id: snapshot.id,
            generation: snapshot.generation,
            state: snapshot.state.clone(),
            placement: Some(self.placement.clone()),
            restarts: 0,
        }
    }

    /// The directory of a stack.
    pub(super) fn directory(&self, id: StackId) -> PathBuf {
        self.config.data_dir.join(relative_directory(id))
    }

    /// One call at a time for each stack.
    pub(super) fn lock_of(&self, id: StackId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.state.lock().locks.entry(id).or_default())
    }

    /// The connection to a stack's shim.
    pub(super) fn client(&self, id: StackId) -> Result<Arc<Client>, RuntimeError> {
        let state = self.state.lock();
        let entry = state.entries.get(&id).ok_or_else(unknown)?;
        match (&entry.shim, &entry.observed.state) {
            (_, RuntimeState::Ended { .. }) | (None, _) => Err(not_running()),
            (Some(shim), _) => Ok(Arc::clone(&shim.client)),
        }
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

    /// Tells observers how a stack is now.
    pub(super) fn publish(&self, snapshot: &Snapshot) {
        let observed = self.observed(snapshot);
        let mut state = self.state.lock();
        if matches!(observed.state, RuntimeState::Ended { .. }) {
            // Ports are free before anybody hears of the end.
            state.claims.ended(snapshot.id);
        }
        if let Some(entry) = state.entries.get_mut(&snapshot.id) {
            if entry.observed == observed {
                return;
            }
            entry.observed = observed.clone();
            state.observers.retain(|o| o.send(Observation::Stack(observed.clone())).is_ok());
        }
    }

    /// Listens to a shim until it is gone, and then clears up after it.
    pub(super) fn follow(
        self: &Arc<Self>,
        id: StackId,
        client: Arc<Client>,
        mut inbox: Inbox,
        process: ProcessName,
        gone: watch::Sender<bool>,
        held: Held,
    ) {
        let weak: Weak<Self> = Arc::downgrade(self);
        let mut alive = self.alive.subscribe();
        let directory = self.directory(id);
        tokio::spawn(async move {
            let mut client = client;
            loop {
                let snapshot = tokio::select! {
                    snapshot = client.next(&mut inbox) => snapshot,
                    _ = alive.changed() => return,
                };
                if let Some(snapshot) = snapshot {
                    let Some(inner) = weak.upgrade() else { return };
                    inner.publish(&snapshot);
                    continue;
                }
                client.close();
                // It may only have lost patience with a slow reader.
                let again = tokio::select! {
                    again = reach(id, &directory) => again,
                    _ = alive.changed() => return,
                };
                let Some(socket) = again else { break };
                match Client::new(socket) {
                    Ok(again) => client = Arc::new(again),
                    Err(error) => {
                        tracing::warn!(stack = %id, %error, "its shim cannot be heard for now");
                        // The old connection says again that it has ended.
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                }
                inbox = Inbox::default();
                let Some(inner) = weak.upgrade() else { return };
                let mut state = inner.state.lock();
                if let Some(shim) = state.entries.get_mut(&id).and_then(|e| e.shim.as_mut()) {
                    shim.client = Arc::clone(&client);
                }
            }
            let Some(inner) = weak.upgrade() else { return };
            inner.clear_up(id, process).await;
            drop(held);
            // Those who wait for it may have gone.
            let _ = gone.send(true);
        });
    }

    /// After a shim's end: waits for its process, removes what a violent end has left, and tells
    /// of an end that nobody has told of.
    async fn clear_up(&self, id: StackId, process: ProcessName) {
        let (layout, directory) = (self.cgroups.clone(), self.directory(id));
        let last = tokio::task::spawn_blocking(move || {
            machine::collect(process);
            if let Err(error) = machine::remove_groups(&layout, &id.to_string()) {
                tracing::warn!(stack = %id, %error, "control groups could not be removed");
            }
            stackd_shim::read_state(&directory).ok()
        })
        .await
        .ok()
        .flatten();
        if let Some(last) = last {
            self.publish(&adopt::as_ended(last, &self.boot_id, &self.directory(id)));
        }
        let mut state = self.state.lock();
        state.claims.ended(id);
        if let Some(entry) = state.entries.get_mut(&id) {
            entry.shim = None;
        }
    }

    /// Ends a stack's containers; completes when its shim is gone.
    pub(super) async fn stop(&self, id: StackId, grace: Duration) -> Result<(), RuntimeError> {
        let lock = self.lock_of(id);
        let _turn = self.turn_to_end(&lock, id).await;
        self.end(id, grace).await
    }

    /// Waits for the turn to end a stack. A start under way is asked to give up: it may be one of
    /// many containers.
    async fn turn_to_end<'a>(
        &self,
        lock: &'a tokio::sync::Mutex<()>,
        id: StackId,
    ) -> tokio::sync::MutexGuard<'a, ()> {
        if let Ok(turn) = lock.try_lock() {
            return turn;
        }
        let starting = {
            let state = self.state.lock();
            let entry = state.entries.get(&id);
            let starts = |e: &&Entry| matches!(e.observed.state, RuntimeState::Starting { .. });
            let shim = entry.filter(starts).and_then(|entry| entry.shim.as_ref());
            shim.map(|shim| Arc::clone(&shim.client))
        };
        if let Some(client) = starting {
            // One that is on its way out does not hear it, and need not.
            let _ = client.send(&Request::Stop { grace_ms: 0 }, &[]).await;
        }
        lock.lock().await
    }

    pub(super) async fn end(&self, id: StackId, grace: Duration) -> Result<(), RuntimeError> {
        let shim = {
            let state = self.state.lock();
            let shim = state.entries.get(&id).and_then(|entry| entry.shim.as_ref());
            shim.map(|shim| (Arc::clone(&shim.client), shim.process, shim.gone.clone()))
        };
        let Some((client, process, mut gone)) = shim else { return Ok(()) };
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        // A shim that is on its way out does not hear it, and need not.
        let _ = client.send(&Request::Stop { grace_ms }, &[]).await;
        let ended = gone.wait_for(|gone| *gone);
        if tokio::time::timeout(grace + PATIENCE, ended).await.is_ok() {
            return Ok(());
        }
        tracing::warn!(stack = %id, "a shim did not end its stack in time and is killed");
        let _ = tokio::task::spawn_blocking(move || machine::kill(process)).await;
        match tokio::time::timeout(PATIENCE, gone.wait_for(|gone| *gone)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(failed(format!("the shim of {id} cannot be killed"))),
        }
    }

    /// Ends and removes everything of a stack.
    pub(super) async fn remove(&self, id: StackId, grace: Duration) -> Result<(), RuntimeError> {
        let lock = self.lock_of(id);
        let _turn = self.turn_to_end(&lock, id).await;
        self.end(id, grace).await?;
        let (layout, directory) = (self.cgroups.clone(), self.directory(id));
        tokio::task::spawn_blocking(move || {
            machine::remove_groups(&layout, &id.to_string())?;
            match std::fs::remove_dir_all(directory) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            }
        })
        .await
        .map_err(|e| failed(e.to_string()))?
        .map_err(|e| failed(format!("remove {id}: {e}")))?;
        let mut state = self.state.lock();
        state.claims.release(id);
        state.entries.remove(&id);
        state.locks.remove(&id);
        Ok(())
    }
}

/// Connects to the shim in a stack's directory; none once nobody listens there. What else is in the
/// way (no descriptor is left, too many wait to be heard) passes, and says nothing of the shim.
async fn reach(id: StackId, directory: &Path) -> Option<OwnedFd> {
    let mut told = false;
    loop {
        match client::connect(directory) {
            Ok(socket) => return Some(socket),
            Err(e) if is_dead(&e) => return None,
            Err(error) if !told => {
                tracing::warn!(stack = %id, %error, "its shim cannot be reached for now");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether a connection failed because nobody listens.
fn is_dead(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The directory of a stack, below the data directory.
pub(super) fn relative_directory(id: StackId) -> PathBuf {
    Path::new("stacks").join(id.to_string())
}

/// Lets nobody but root look into a directory.
pub(super) fn restrict(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}
