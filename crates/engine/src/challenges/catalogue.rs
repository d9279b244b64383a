//! The catalogue: challenges written, changed and removed, and what the platform tells of them.

use std::sync::Arc;

use stackd_core::StackId;
use stackd_core::challenge::{
    Challenge, ChallengeNumber, ChallengeRef, Draft, Fault, Invalid, Source, Subject,
};
use stackd_store::{Change, Mark, StoreError};

use super::play::live_stack;
use super::{ChallengeError, DIALECT, Marked, warm, word};
use crate::book::SharedEngine;
use crate::command::Unavailable;
use crate::live::LiveStack;
use crate::shared::unavailable;
use crate::view::View;
use crate::{Engine, finish};
use crate::{create, remove};

/// The catalogue of challenges.
#[derive(Clone, Copy)]
pub struct Challenges<'a> {
    engine: &'a Engine,
}

impl<'a> Challenges<'a> {
    pub(crate) fn new(engine: &'a Engine) -> Self {
        Self { engine }
    }

    pub(super) fn view(&self) -> &'a Arc<View> {
        &self.engine.view
    }

    /// All challenges, by slug.
    pub fn list(&self) -> Vec<Arc<Challenge>> {
        self.view().board.all()
    }

    /// One challenge.
    pub fn get(&self, name: &ChallengeRef) -> Option<Arc<Challenge>> {
        self.view().board.find(name)
    }

    /// Writes a challenge, with this number or the next one.
    pub async fn create(
        &self,
        draft: Draft,
        number: Option<ChallengeNumber>,
    ) -> Result<Arc<Challenge>, ChallengeError> {
        let term = self.engine.term()?;
        let shared = Arc::clone(&term);
        finish(&term, async move { create(&shared, draft, number).await }).await
    }

    /// What [`Challenges::create`] would make, without making it.
    pub fn try_create(
        &self,
        draft: Draft,
        number: Option<ChallengeNumber>,
    ) -> Result<Challenge, ChallengeError> {
        new(&self.engine.term()?, draft, number)
    }

    /// What [`Challenges::edit`] would make, without making it.
    pub fn try_edit(
        &self,
        name: &ChallengeRef,
        edit: impl FnOnce(&Challenge, Draft) -> Result<Draft, Vec<Invalid>>,
    ) -> Result<Challenge, ChallengeError> {
        let term = self.engine.term()?;
        let before = find(&term, name)?;
        edited(&term, &before, edit)
    }

    /// Changes a challenge, for stacks that are made from now on. `edit` gets it as a draft.
    pub async fn edit(
        &self,
        name: ChallengeRef,
        edit: impl FnOnce(&Challenge, Draft) -> Result<Draft, Vec<Invalid>> + Send + 'static,
    ) -> Result<Arc<Challenge>, ChallengeError> {
        let term = self.engine.term()?;
        let shared = Arc::clone(&term);
        finish(&term, async move { change(&shared, &name, edit).await }).await
    }

    /// Removes a challenge. Its live stacks end in their own time, or now.
    pub async fn delete(&self, name: ChallengeRef, destroy: bool) -> Result<(), ChallengeError> {
        let term = self.engine.term()?;
        let shared = Arc::clone(&term);
        finish(&term, async move { delete(&shared, &name, destroy).await }).await
    }

    /// Who has solved a challenge, or finds it locked.
    pub fn marks(&self, name: &ChallengeRef, mark: Mark) -> Option<Vec<Marked>> {
        let challenge = self.get(name)?;
        Some(self.view().board.marks(mark, challenge.number))
    }

    /// Notes that these have solved a challenge, or find it locked; a solve ends their stacks of
    /// it where the challenge says so. True when that is news.
    pub async fn mark(
        &self,
        name: ChallengeRef,
        mark: Mark,
        subjects: Vec<Subject>,
    ) -> Result<bool, ChallengeError> {
        let term = self.engine.term()?;
        let shared = Arc::clone(&term);
        finish(&term, async move { put_mark(&shared, &name, mark, subjects).await }).await
    }

    /// Takes that back. False when it was not so.
    pub async fn unmark(
        &self,
        name: ChallengeRef,
        mark: Mark,
        subject: Subject,
    ) -> Result<bool, ChallengeError> {
        let term = self.engine.term()?;
        let shared = Arc::clone(&term);
        finish(&term, async move { remove_mark(&shared, &name, mark, &subject).await }).await
    }
}

fn find(shared: &SharedEngine, name: &ChallengeRef) -> Result<Arc<Challenge>, ChallengeError> {
    shared.view.board.find(name).ok_or(ChallengeError::NotFound)
}

async fn write(shared: &SharedEngine, changes: Vec<Change>) -> Result<(), ChallengeError> {
    shared.write(changes).await.map_err(|error| match error {
        StoreError::Duplicate(_) => ChallengeError::Exists,
        error => unavailable(error).into(),
    })
}

/// Makes the challenge of a draft, or says what is wrong with it. What stays as it was `before` is
/// not held against the settings of today.
fn check(
    shared: &SharedEngine,
    draft: Draft,
    number: ChallengeNumber,
    before: Option<&Challenge>,
) -> Result<Challenge, ChallengeError> {
    let config = &shared.config;
    let (policy, defaults) = (&config.challenges, config.limit_range.pod_defaults());
    let now = shared.clock.wall();
    let challenge = match before {
        Some(before) => draft.change(before, policy, &defaults, now),
        None => draft.check(number, policy, &defaults, now),
    };
    let challenge = challenge.map_err(ChallengeError::Invalid)?;
    let (min, max) = (config.min_ttl.as_secs(), config.max_ttl.as_secs());
    let ttl = challenge.definition.ttl_seconds;
    if before.is_none_or(|before| before.spec != challenge.spec)
        && let Err(why) = create::admissible(shared, &challenge.spec)
    {
        let field = match challenge.definition.source {
            Source::Image { .. } => "image",
            Source::Pod { .. } => "pod_spec",
        };
        let message = format!("{field}: {why}");
        return Err(ChallengeError::Invalid(vec![Invalid { field, fault: Fault::Value, message }]));
    }
    let is_new = before.is_none_or(|before| before.definition.ttl_seconds != ttl);
    if is_new && ttl.is_some_and(|ttl| ttl < min || ttl > max) {
        return Err(ChallengeError::Invalid(vec![Invalid {
            field: "ttl_seconds",
            fault: Fault::Value,
            message: format!("must be from {min} to {max}"),
        }]));
    }
    Ok(challenge)
}

/// A new challenge, not yet written.
fn new(
    shared: &SharedEngine,
    draft: Draft,
    number: Option<ChallengeNumber>,
) -> Result<Challenge, ChallengeError> {
    let next = number.or_else(|| shared.view.board.next_number()).ok_or(ChallengeError::Exists)?;
    let challenge = check(shared, draft, next, None)?;
    let taken = |name: ChallengeRef| shared.view.board.find(&name).is_some();
    if taken(ChallengeRef::Id(challenge.id().clone())) || taken(ChallengeRef::Number(next)) {
        return Err(ChallengeError::Exists);
    }
    // A number that is asked for may be that of a challenge which was removed by mistake, but no stack
    // of that one is to be taken for one of this.
    if stacks_of(shared, next).next().is_some() {
        return Err(ChallengeError::NumberUsed);
    }
    Ok(challenge)
}

/// A challenge as this edit makes it, not yet written.
fn edited(
    shared: &SharedEngine,
    before: &Challenge,
    edit: impl FnOnce(&Challenge, Draft) -> Result<Draft, Vec<Invalid>>,
) -> Result<Challenge, ChallengeError> {
    let draft = edit(before, Draft::of(before)).map_err(ChallengeError::Invalid)?;
    check(shared, draft, before.number, Some(before))
}

async fn create(
    shared: &SharedEngine,
    draft: Draft,
    number: Option<ChallengeNumber>,
) -> Result<Arc<Challenge>, ChallengeError> {
    let _writing = shared.view.board.writing.lock().await;
    let challenge = new(shared, draft, number)?;
    write(shared, vec![Change::InsertChallenge(Box::new(challenge.clone()))]).await?;
    let challenge = Arc::new(challenge);
    shared.view.board.put(Arc::clone(&challenge));
    shared.view.owners.wake_all();
    tracing::info!(challenge = %challenge.id(), number = %challenge.number, "challenge written");
    if shared.config.challenges.warm {
        warm::in_background(shared, &challenge);
    }
    Ok(challenge)
}

async fn change(
    shared: &SharedEngine,
    name: &ChallengeRef,
    edit: impl FnOnce(&Challenge, Draft) -> Result<Draft, Vec<Invalid>>,
) -> Result<Arc<Challenge>, ChallengeError> {
    let _writing = shared.view.board.writing.lock().await;
    let before = find(shared, name)?;
    let after = edited(shared, &before, edit)?;
    if after.definition == before.definition && after.spec == before.spec {
        return Ok(before);
    }
    write(shared, vec![Change::UpdateChallenge(Box::new(after.clone()))]).await?;
    let after = Arc::new(after);
    shared.view.board.put(Arc::clone(&after));
    shared.view.owners.wake_all();
    tracing::info!(challenge = %after.id(), "challenge changed");
    if shared.config.challenges.warm {
        warm::in_background(shared, &after);
    }
    Ok(after)
}

/// The stacks of a challenge, also those that have ended and are kept.
fn stacks_of(
    shared: &SharedEngine,
    number: ChallengeNumber,
) -> impl Iterator<Item = Arc<LiveStack>> + use<> {
    let slot = number.to_string();
    let live = shared.view.live.read();
    let ours = live.after(None).filter(|live| {
        let owner = &live.stack.owner;
        owner.dialect == DIALECT && owner.slot == slot
    });
    ours.cloned().collect::<Vec<_>>().into_iter()
}

async fn delete(
    shared: &SharedEngine,
    name: &ChallengeRef,
    destroy: bool,
) -> Result<(), ChallengeError> {
    let _writing = shared.view.board.writing.lock().await;
    let challenge = find(shared, name)?;
    // The stacks go first and the challenge last: after a crash in between, it can be asked again.
    let _gate = shared.view.board.gate.write().await;
    if destroy {
        let live = stacks_of(shared, challenge.number).filter(|live| live.stack.is_active());
        let live: Vec<_> = live.map(|live| live.stack.id).collect();
        end(shared, live).await?;
    }
    write(shared, vec![Change::RemoveChallenge(challenge.number)]).await?;
    shared.view.board.remove(&challenge);
    shared.view.owners.wake_all();
    tracing::info!(challenge = %challenge.id(), destroy, "challenge removed");
    Ok(())
}

/// Takes stacks away; one that is gone already is no fault.
pub(super) async fn end(
    shared: &SharedEngine,
    stacks: impl IntoIterator<Item = StackId>,
) -> Result<(), Unavailable> {
    for id in stacks {
        remove::end(shared, id, None).await?;
    }
    Ok(())
}

async fn put_mark(
    shared: &SharedEngine,
    name: &ChallengeRef,
    mark: Mark,
    subjects: Vec<Subject>,
) -> Result<bool, ChallengeError> {
    let board = &shared.view.board;
    let _writing = board.writing.lock().await;
    let challenge = find(shared, name)?;
    let (number, at) = (challenge.number, shared.clock.wall());
    let news = subjects.iter().any(|subject| !board.has(mark, number, subject));
    if news {
        let put = |subject: &Subject| Change::PutMark {
            mark,
            challenge: number,
            subject: subject.clone(),
            at,
        };
        // A user's solve is also the team's. What it is told by must be as durable as the solve: a
        // token may have told it a moment ago, and that is only on its way to the database.
        let member = |subject: &Subject| match subject {
            Subject::User(user) => {
                Some(Change::PutMember { user: user.clone(), team: board.team_of(user)? })
            }
            Subject::Team(_) => None,
        };
        let changes = subjects.iter().map(put).chain(subjects.iter().filter_map(member));
        write(shared, changes.collect()).await?;
        for subject in &subjects {
            board.mark(mark, number, subject.clone(), at);
            tracing::info!(challenge = %challenge.id(), %subject, mark = word(mark), "challenge marked");
        }
        shared.view.owners.wake_all();
    }
    if mark == Mark::Solved && challenge.definition.destroy_on_solve {
        for owner in board.solvers(&subjects) {
            // Whoever is making a stack now is done first; who comes later finds it solved.
            let _turn = board.turn(&owner).await;
            let live = live_stack(&shared.view, &owner, number);
            end(shared, live.map(|live| live.stack.id)).await?;
        }
    }
    Ok(news)
}

async fn remove_mark(
    shared: &SharedEngine,
    name: &ChallengeRef,
    mark: Mark,
    subject: &Subject,
) -> Result<bool, ChallengeError> {
    let _writing = shared.view.board.writing.lock().await;
    let challenge = find(shared, name)?;
    let number = challenge.number;
    if !shared.view.board.has(mark, number, subject) {
        return Ok(false);
    }
    let change = Change::RemoveMark { mark, challenge: number, subject: subject.clone() };
    write(shared, vec![change]).await?;
    shared.view.board.unmark(mark, number, subject);
    shared.view.owners.wake_all();
    tracing::info!(challenge = %challenge.id(), %subject, mark = word(mark), "challenge unmarked");
    Ok(true)
}
