//! The life of a stack: its containers are started one after another or together, watched, and
//! ended. One task for each stack; it is told that something may have changed and looks for itself,
//! so that a note too many, late or lost changes nothing.

mod begin;
mod end;

use std::sync::Arc;
use std::time::Duration;

use stackd_core::StackId;
use stackd_core::runtime::{EnsureRequest, RuntimeState};
use stackd_core::stack::{Condition, reason};
use stackd_shim::protocol::{Event, Kept, Request};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::exec;
use super::inventory::{Inner, Note, Warden};
use super::keeper::Keeper;
use end::Seen;

/// When something that could not be done is tried again, at first and at last.
const FIRST_AGAIN: Duration = Duration::from_millis(500);
const LAST_AGAIN: Duration = Duration::from_secs(10);

/// How far a stack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The init container of this place runs.
    Init(usize),
    /// The main containers run.
    Main,
    /// Everything is being ended.
    Ending,
    /// Everything has ended.
    Ended,
}

/// Why the stack ended, once that is certain.
#[derive(Debug, Clone)]
struct End {
    condition: Condition,
    exit_code: Option<i32>,
}

/// A container of the stack.
#[derive(Debug)]
struct Member {
    name: String,
    init: bool,
    memory_bytes: u64,
    /// The engine's id.
    id: String,
    /// The engine was asked to start it, whatever came of that.
    begun: bool,
    /// When it was started, in the engine's words; one that was started again by somebody else has
    /// another time.
    started: Option<String>,
    /// A process of it was killed for memory.
    out_of_memory: bool,
    /// It has ended.
    ended: bool,
}

/// A stack that is looked after.
pub(super) struct Pod {
    inner: Arc<Inner>,
    id: StackId,
    request: Arc<EnsureRequest>,
    keeper: Option<Keeper>,
    kept: Kept,
    /// What the keeper said first, where nothing has come of it yet.
    unheard: Option<Event>,
    was_ready: bool,
    /// How far it is was found out: always so for one that was started by this server.
    known: bool,
    /// The container that holds the network, where it is one of its own.
    sandbox: Option<Member>,
    members: Vec<Member>,
    stage: Stage,
    end: Option<End>,
    /// The grace of the end under way.
    grace: Duration,
    notes: mpsc::UnboundedReceiver<Note>,
    sender: mpsc::UnboundedSender<Note>,
    /// When something that could not be done is tried again, and how long after that.
    next_look: Option<Instant>,
    again: Duration,
}

impl Pod {
    /// A stack whose containers have these ids.
    pub(super) fn new(
        inner: Arc<Inner>,
        request: Arc<EnsureRequest>,
        keeper: Keeper,
        ids: Vec<String>,
        with_sandbox: bool,
    ) -> Self {
        let mut pod = Self::with(inner, request, Some(keeper), ids, with_sandbox);
        pod.kept.hears_ends = true;
        pod
    }

    pub(super) fn with(
        inner: Arc<Inner>,
        request: Arc<EnsureRequest>,
        keeper: Option<Keeper>,
        ids: Vec<String>,
        with_sandbox: bool,
    ) -> Self {
        let mut ids = ids.into_iter();
        let member = |name: &str, init, memory_bytes, id| Member {
            name: name.to_owned(),
            init,
            memory_bytes,
            id,
            begun: false,
            started: None,
            out_of_memory: false,
            ended: false,
        };
        let sandbox = with_sandbox.then(|| member("", false, 0, ids.next().unwrap_or_default()));
        let spec = &request.spec;
        let first_main = spec.init_containers.len();
        let members = (spec.all_containers().enumerate())
            .zip(ids)
            .map(|((n, c), id)| member(&c.name, n < first_main, c.resources.memory_bytes, id))
            .collect();
        let (sender, notes) = mpsc::unbounded_channel();
        Self {
            id: request.id,
            inner,
            request,
            keeper,
            kept: Kept::default(),
            unheard: None,
            was_ready: false,
            known: true,
            sandbox,
            members,
            stage: Stage::Main,
            end: None,
            grace: Duration::ZERO,
            notes,
            sender,
            next_look: None,
            again: FIRST_AGAIN,
        }
    }

    /// Goes on in a task of its own, until the stack has ended.
    pub(super) fn look_after(self) {
        let (gone, receiver) = watch::channel(false);
        let warden = Warden { notes: self.sender.clone(), gone: receiver };
        if let Some(entry) = self.inner.state.lock().entries.get_mut(&self.id) {
            entry.warden = Some(warden);
        }
        // What has happened until here was told to nobody.
        let _ = self.sender.send(Note::Look);
        tokio::spawn(async move {
            let mut pod = self;
            let mut alive = pod.inner.alive.clone();
            let ended = tokio::select! {
                () = pod.work() => true,
                _ = alive.changed() => false,
            };
            if ended {
                if let Some(entry) = pod.inner.state.lock().entries.get_mut(&pod.id) {
                    entry.warden = None;
                }
                // Those who wait for it may have gone.
                let _ = gone.send(true);
            }
        });
    }

    async fn work(&mut self) {
        if let Some(event) = self.unheard.take() {
            self.told(event).await;
        }
        while self.stage != Stage::Ended {
            tokio::select! {
                () = moment(self.next_look) => {
                    self.next_look = None;
                    self.look().await;
                }
                note = self.notes.recv() => match note {
                    Some(note) => self.noted(note).await,
                    None => return,
                },
                event = next_event(&mut self.keeper) => match event {
                    Some(event) => self.told(event).await,
                    None => self.keeper_lost().await,
                },
            }
        }
        // What somebody has started again while the last of it ended.
        while let Ok(note) = self.notes.try_recv() {
            if let Note::Started(id) = note {
                exec::end_soon(&self.inner, &id, Duration::ZERO);
            }
        }
    }

    async fn noted(&mut self, note: Note) {
        match note {
            Note::Look => self.look().await,
            Note::Started(id) => {
                if self.members.iter().any(|member| member.id == id && member.ended) {
                    exec::end_soon(&self.inner, &id, Duration::ZERO);
                }
                self.look().await;
            }
            Note::OutOfMemory(id) => {
                if let Some(member) = self.members.iter_mut().find(|member| member.id == id) {
                    member.out_of_memory = true;
                }
                self.refresh();
            }
            Note::Stop(grace) => self.stop(grace, None).await,
            Note::DiskFull(text) => {
                let condition = Condition::new(reason::DISK_FULL, text);
                self.stop(self.request.spec.termination_grace(), Some(condition)).await;
            }
        }
    }

    async fn told(&mut self, event: Event) {
        match event {
            Event::Kept(kept) => {
                self.kept = kept;
                self.was_ready |= self.kept.was_ready;
                if let Some(text) = self.kept.fault.take() {
                    tracing::error!(stack = %self.id, error = text, "a network cannot be entered");
                    let text = "the machine could not set up the stack's network";
                    let condition = Condition::new(reason::START_ERROR, text);
                    self.stop(Duration::ZERO, Some(condition)).await;
                } else if let Some(text) = self.kept.unhealthy.take() {
                    if self.ended_well(self.kept.unhealthy_container.clone()).await {
                        return self.refresh();
                    }
                    let condition = Condition::new(reason::UNHEALTHY, text);
                    self.stop(self.request.spec.termination_grace(), Some(condition)).await;
                } else {
                    self.refresh();
                }
            }
            Event::Probe { attempt, container, command, timeout_ms } => {
                let member = self.members.iter().find(|member| member.name == container);
                let (Some(member), Some(keeper)) = (member, &self.keeper) else { return };
                let (inner, id) = (Arc::clone(&self.inner), member.id.clone());
                let answers = Arc::clone(&keeper.client);
                tokio::spawn(async move {
                    let limit = Duration::from_millis(timeout_ms);
                    let (code, late) = match exec::probe(&inner, &id, command, limit).await {
                        exec::Probe::Ended(code) => (Some(code), false),
                        exec::Probe::Late => (None, true),
                        exec::Probe::Unknown => (None, false),
                    };
                    let _ = answers.send(&Request::Probed { attempt, code, late }, &[]).await;
                });
            }
            _ => {}
        }
    }

    /// Whether the container that a probe blames had ended with success when it was asked, of which
    /// its keeper had yet to hear.
    async fn ended_well(&mut self, name: Option<String>) -> bool {
        let member = |member: &Member| !member.init && Some(&member.name) == name.as_ref();
        let Some(index) = self.members.iter().position(member) else { return false };
        if !self.members[index].ended {
            match self.see(&self.members[index]).await {
                Ok(Seen::Ended(Some(0), _)) => self.ended(index, Some(0), false).await,
                _ => return false,
            }
        }
        true
    }

    /// The keeper is gone: with the network that it was in, or by an accident of its own.
    async fn keeper_lost(&mut self) {
        self.keeper = None;
        self.kept = Kept::default();
        self.look().await;
        self.refresh();
    }

    /// Works out the state again while the main containers run.
    fn refresh(&mut self) {
        if self.stage != Stage::Main {
            return;
        }
        let ready = self.kept.ready;
        self.was_ready |= ready;
        let condition = self.limit_condition();
        let state = if self.was_ready {
            let not_ready =
                || Condition::new(reason::NOT_READY, "a readiness probe does not succeed");
            let condition = if ready { condition } else { condition.or_else(|| Some(not_ready())) };
            RuntimeState::Running { ready, condition }
        } else {
            let waiting =
                || Condition::new(reason::NOT_READY, "containers run and are not ready yet");
            RuntimeState::Starting { condition: condition.or_else(|| Some(waiting())) }
        };
        self.inner.publish(self.id, state);
    }

    fn limit_condition(&self) -> Option<Condition> {
        let member = self.members.iter().find(|m| m.out_of_memory && !m.ended)?;
        let name = &member.name;
        let text = format!("a process of container {name:?} was killed at its memory limit");
        Some(Condition::new(reason::OOM_KILLED, text))
    }
}

async fn moment(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn next_event(keeper: &mut Option<Keeper>) -> Option<Event> {
    match keeper {
        Some(keeper) => keeper.client.next_event(&mut keeper.inbox).await.ok(),
        None => std::future::pending().await,
    }
}
