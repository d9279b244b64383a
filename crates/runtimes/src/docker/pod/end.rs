//! The end of a stack: what has ended is noticed, the rest is ended, and it is told how it was.

use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use stackd_core::Timestamp;
use stackd_core::runtime::{Outcome, RuntimeState};
use stackd_core::stack::{Condition, reason};
use tokio::time::Instant;

use super::begin::started_at;
use super::{End, FIRST_AGAIN, LAST_AGAIN, Member, Pod, Stage};
use crate::docker::engine::{chain, is_absent};
use crate::docker::exec;
use crate::docker::inventory::Note;

/// How long after the end of a killed container the engine may still tell that it was for memory.
const LATE_WORD: Duration = Duration::from_millis(300);
/// 128 + SIGKILL.
const KILLED: i64 = 137;

/// What a container is like now.
pub(super) enum Seen {
    Running,
    /// With this code, where it is known.
    Ended(Option<i64>, bool),
    /// Somebody has ended and started it again.
    Again,
    /// It was made and has not been started.
    Created,
    Gone,
}

impl Pod {
    /// Looks at every container that should run.
    pub(super) async fn look(&mut self) {
        if self.stage == Stage::Ending {
            return self.end_all().await;
        }
        if !self.known
            && let Err(error) = self.take_up().await
        {
            return self.not_started(error).await;
        }
        if let Some(holder) = &self.sandbox {
            match self.see(holder).await {
                Ok(Seen::Running) => {}
                Ok(_) => {
                    let text = "what held the stack's network ended, was removed or started anew";
                    return self
                        .stop(Duration::ZERO, Some(Condition::new(reason::LOST, text)))
                        .await;
                }
                Err(error) => return self.away(&error),
            }
        }
        for index in 0..self.members.len() {
            let member = &self.members[index];
            if member.started.is_none() || member.ended {
                continue;
            }
            match self.see(member).await {
                Ok(Seen::Running) => {}
                Ok(Seen::Ended(code, oom)) => self.ended(index, code, oom).await,
                Ok(Seen::Created | Seen::Gone) => self.ended(index, None, false).await,
                Ok(Seen::Again) => {
                    exec::end_soon(&self.inner, &self.members[index].id, Duration::ZERO);
                    self.ended(index, None, false).await;
                }
                Err(error) => return self.away(&error),
            }
            if matches!(self.stage, Stage::Ending | Stage::Ended) {
                return;
            }
        }
        if self.keeper.is_none() {
            match self.keep_again().await {
                Ok(()) => {
                    tracing::warn!(stack = %self.id, "a stack was without its keeper; it has one");
                    self.refresh();
                }
                // Mostly the network has just ended, and the engine has yet to notice.
                Err(error) => {
                    tracing::debug!(stack = %self.id, error = error.operator, "no keeper yet");
                    return self.look_later();
                }
            }
        }
        match self.go_on().await {
            Ok(()) => self.again = FIRST_AGAIN,
            Err(error) => self.not_started(error).await,
        }
    }

    /// The engine does not answer: what is, stays, and it is asked again.
    pub(super) fn away(&mut self, error: &Error) {
        tracing::debug!(stack = %self.id, error = chain(error), "the engine cannot be asked");
        self.look_later();
    }

    pub(super) async fn see(&self, member: &Member) -> Result<Seen, Error> {
        let there = match self.inner.docker.inspect_container(&member.id, None).await {
            Ok(there) => there,
            Err(e) if is_absent(&e) => return Ok(Seen::Gone),
            Err(e) => return Err(e),
        };
        let started = started_at(&there);
        let state = there.state.unwrap_or_default();
        let another = member.started.is_some() && started != member.started;
        Ok(match state.running {
            Some(true) if another => Seen::Again,
            Some(true) => Seen::Running,
            _ if started.is_none() => Seen::Created,
            _ => Seen::Ended(state.exit_code, state.oom_killed == Some(true)),
        })
    }

    /// A container has ended.
    pub(super) async fn ended(&mut self, index: usize, code: Option<i64>, oom: bool) {
        let mut oom = oom || self.members[index].out_of_memory;
        if code == Some(KILLED) && !oom && self.stage != Stage::Ending {
            oom = self.late_word(index).await;
        }
        let ending = self.stage == Stage::Ending;
        if code == Some(0) && !ending {
            self.tell_ended(index).await;
        }
        let member = &mut self.members[index];
        member.ended = true;
        let code = code.map(|code| i32::try_from(code).unwrap_or(i32::MAX));
        let condition = how_it_ended(member, code, oom && code != Some(0));
        if code != Some(0) && self.end.is_none() {
            self.end = Some(End { condition, exit_code: code });
        }
        if ending {
            return;
        }
        match self.stage {
            Stage::Init(_) if code == Some(0) => self.after_init(index).await,
            _ if code != Some(0) => self.stop(self.request.spec.termination_grace(), None).await,
            _ if self.members.iter().all(|member| member.ended) => self.end_all().await,
            _ => {}
        }
    }

    /// Waits a moment for the engine to say that a container was killed for memory: it may say so
    /// just after its end.
    pub(super) async fn late_word(&mut self, index: usize) -> bool {
        let id = self.members[index].id.clone();
        let mut others = Vec::new();
        let word = async {
            while let Some(note) = self.notes.recv().await {
                match note {
                    Note::OutOfMemory(of) if of == id => return true,
                    note => {
                        let is_stop = matches!(note, Note::Stop(_));
                        others.push(note);
                        if is_stop {
                            return false;
                        }
                    }
                }
            }
            false
        };
        let said = tokio::time::timeout(LATE_WORD, word).await.unwrap_or(false);
        for note in others {
            let _ = self.sender.send(note);
        }
        said
    }

    /// Ends every container. A reason other than how they end is given where there is one.
    pub(super) async fn stop(&mut self, grace: Duration, why: Option<Condition>) {
        if let Some(condition) = why
            && self.end.is_none()
        {
            self.end = Some(End { condition, exit_code: None });
        }
        if self.stage == Stage::Ended {
            return;
        }
        self.stage = Stage::Ending;
        self.grace = grace;
        self.again = FIRST_AGAIN;
        // Boxed: what ends a container may end them all.
        Box::pin(self.end_all()).await;
    }

    /// Gives the ports back.
    pub(in crate::docker) async fn close(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.end().await;
        }
    }

    pub(super) async fn end_all(&mut self) {
        self.stage = Stage::Ending;
        self.close().await;
        if let Err(error) = self.stop_members().await {
            return self.away(&error);
        }
        for index in 0..self.members.len() {
            if !self.members[index].begun || self.members[index].ended {
                continue;
            }
            match self.see(&self.members[index]).await {
                // The engine never heard that it was to be started.
                Ok(Seen::Created) if self.members[index].started.is_none() => {}
                Ok(Seen::Ended(code, oom)) => Box::pin(self.ended(index, code, oom)).await,
                Ok(Seen::Created | Seen::Gone) => Box::pin(self.ended(index, None, false)).await,
                Ok(Seen::Running) => return self.look_later(),
                Ok(Seen::Again) => {
                    exec::end_soon(&self.inner, &self.members[index].id, Duration::ZERO);
                    Box::pin(self.ended(index, None, false)).await;
                }
                Err(error) => return self.away(&error),
            }
        }
        if let Some(holder) = &self.sandbox
            && self.inner.remove_container(&holder.id).await.is_err()
        {
            return self.look_later();
        }
        self.finish();
    }

    /// Asks all containers to end, and waits until they have.
    pub(super) async fn stop_members(&mut self) -> Result<(), Error> {
        let live = self.members.iter().filter(|m| m.begun && !m.ended);
        let live: Vec<String> = live.map(|member| member.id.clone()).collect();
        let (inner, grace) = (Arc::clone(&self.inner), self.grace);
        let stopping = live.iter().map(|id| exec::end_container(&inner, id, grace));
        let mut stopping = std::pin::pin!(futures_util::future::join_all(stopping));
        loop {
            tokio::select! {
                results = &mut stopping => return results.into_iter().collect(),
                note = self.notes.recv() => match note {
                    // Somebody has less patience.
                    Some(Note::Stop(shorter)) if shorter < self.grace => {
                        self.grace = shorter;
                        for id in &live {
                            exec::end_soon(&inner, id, shorter);
                        }
                    }
                    // Somebody starts again what ended before the rest.
                    Some(Note::Started(id)) if !live.contains(&id) => {
                        exec::end_soon(&inner, &id, Duration::ZERO);
                    }
                    _ => {}
                },
            }
        }
    }

    /// Everything has ended: tells how.
    pub(super) fn finish(&mut self) {
        self.stage = Stage::Ended;
        let (outcome, exit_code, condition) = match self.end.take() {
            Some(end) => (Outcome::Failed, end.exit_code, end.condition),
            None => {
                let text = "every container ended with code 0";
                (Outcome::Completed, Some(0), Condition::new(reason::COMPLETED, text))
            }
        };
        let state = RuntimeState::Ended { outcome, exit_code, condition, at: Timestamp::now() };
        self.inner.publish(self.id, state);
    }

    pub(super) fn look_later(&mut self) {
        let at = Instant::now() + self.again;
        self.next_look = Some(self.next_look.map_or(at, |sooner| sooner.min(at)));
        self.again = (self.again * 2).min(LAST_AGAIN);
    }
}

fn how_it_ended(member: &Member, code: Option<i32>, oom: bool) -> Condition {
    let kind = if member.init { "init container" } else { "container" };
    let name = &member.name;
    if oom {
        let mib = member.memory_bytes >> 20;
        let text = format!("{kind} {name:?} was killed at its memory limit of {mib} MiB");
        return Condition::new(reason::OOM_KILLED, text);
    }
    match code {
        // The engine has no other word for a signal.
        Some(code) if (129..=192).contains(&code) => {
            let text = format!("{kind} {name:?} was ended by signal {}", code - 128);
            Condition::new(reason::ERROR, text)
        }
        Some(code) => {
            Condition::new(reason::ERROR, format!("{kind} {name:?} ended with code {code}"))
        }
        None => {
            Condition::new(reason::LOST, format!("{kind} {name:?} was removed or started anew"))
        }
    }
}
