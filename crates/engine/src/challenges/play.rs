//! What players do: start a stack of a challenge, look at it, extend it, end it.

use std::sync::Arc;
use std::time::Duration;

use stackd_core::challenge::{
    Challenge, ChallengeNumber, ChallengeRef, Player, Refusal, Situation, Subject, admit,
};
use stackd_core::{StackId, StackSpec};
use stackd_store::{Change, Mark};
use tokio::sync::futures::OwnedNotified;

use super::catalogue::end;
use super::{DIALECT, PlayError, flags};
use crate::book::SharedEngine;
use crate::command::{CreateError, CreateStack, ExtendError, Unavailable};
use crate::live::LiveStack;
use crate::view::View;
use crate::{Engine, create, extend, finish};

/// The label by which an operator finds the stacks of a challenge.
const CHALLENGE_LABEL: &str = "challenge";

/// What players do.
#[derive(Clone, Copy)]
pub struct Players<'a> {
    engine: &'a Engine,
}

impl<'a> Players<'a> {
    pub(crate) fn new(engine: &'a Engine) -> Self {
        Self { engine }
    }

    fn view(&self) -> &'a View {
        &self.engine.view
    }

    /// Notes for which team a user plays; a solve by the user is then the team's, and moves along
    /// when the user changes the team. Costs nothing when it is known; it is written down in the
    /// background, and by whatever relies on it.
    pub fn seen(&self, player: &Player) {
        let Some(team) = &player.team else { return };
        // Whoever leads notes it when the player asks for something there.
        let Ok(shared) = self.engine.term() else { return };
        if !shared.view.board.joins(&player.user, team) {
            return;
        }
        let change = Change::PutMember { user: player.user.clone(), team: team.clone() };
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            // It is noted again after the next start, when the player comes back.
            let _ = shared.write(vec![change]).await;
        });
    }

    /// The owner's live stack of a challenge, which need not exist any more.
    pub fn get(&self, owner: &Subject, number: ChallengeNumber) -> Option<Arc<LiveStack>> {
        live_stack(self.view(), owner, number)
    }

    /// The owner's newest stack of a challenge that has ended by itself, while it is kept.
    pub fn last_ended(&self, owner: &Subject, number: ChallengeNumber) -> Option<Arc<LiveStack>> {
        let slot = number.to_string();
        let live = self.view().live.read();
        let mut stacks = live.of_tenant(DIALECT, &owner.to_string()).rev();
        stacks.find(|live| live.stack.owner.slot == slot && !live.stack.is_active()).cloned()
    }

    /// The owner's live stacks, newest first, each with its challenge's number.
    pub fn list(&self, owner: &Subject) -> Vec<Arc<LiveStack>> {
        let live = self.view().live.read();
        let stacks = live.of_tenant(DIALECT, &owner.to_string()).rev();
        stacks.filter(|live| live.stack.is_active()).cloned().collect()
    }

    /// Whether a player would be refused for what the platform has told.
    pub fn is_marked(&self, mark: Mark, number: ChallengeNumber, player: &Player) -> bool {
        self.view().board.is_marked(mark, number, player)
    }

    /// Ends at the next change of the owner's stacks, or of challenges and marks, after this call.
    pub fn changed(&self, owner: &Subject) -> OwnedNotified {
        self.view().owners.changed(DIALECT, &owner.to_string())
    }

    /// A new stack for a player, or the live one there is.
    pub async fn start(
        &self,
        player: Player,
        number: ChallengeNumber,
    ) -> Result<Arc<LiveStack>, PlayError> {
        let term = self.engine.term()?;
        let shared = Arc::clone(&term);
        finish(&term, async move { start(&shared, player, number).await }).await
    }

    /// Ends the owner's live stack. False when there is none.
    pub async fn stop(&self, owner: Subject, number: ChallengeNumber) -> Result<bool, Unavailable> {
        let term = self.engine.term()?;
        let shared = Arc::clone(&term);
        let stop = async move {
            let Some(live) = live_stack(&shared.view, &owner, number) else { return Ok(false) };
            end(&shared, [live.stack.id]).await.map(|()| true)
        };
        finish(&term, stop).await
    }

    /// How long a stack of a challenge lives.
    pub fn lifetime(&self, challenge: &Challenge) -> Duration {
        lifetime(self.view(), challenge)
    }

    /// The most that a stack of a challenge can live when it is extended.
    pub fn longest(&self, challenge: &Challenge) -> Duration {
        self.view().config.players.longest(lifetime(self.view(), challenge))
    }

    /// Extends the owner's live stack to its challenge's lifetime, as it is now, from now.
    pub async fn extend(
        &self,
        owner: Subject,
        number: ChallengeNumber,
    ) -> Result<Arc<LiveStack>, ExtendError> {
        let term = self.engine.term()?;
        let shared = Arc::clone(&term);
        let case = async move {
            let live = live_stack(&shared.view, &owner, number).ok_or(ExtendError::NotFound)?;
            // Of what is gone nothing is prolonged.
            let challenge = shared.view.board.find(&ChallengeRef::Number(number));
            let challenge = challenge.ok_or(ExtendError::NotLater)?;
            let ttl = lifetime(&shared.view, &challenge);
            let longest = shared.config.players.longest(ttl);
            extend::extend(&shared, live.stack.id, ttl, longest).await
        };
        finish(&term, case).await
    }
}

fn lifetime(view: &View, challenge: &Challenge) -> Duration {
    challenge.definition.ttl_seconds.map_or(view.config.default_ttl, Duration::from_secs)
}

pub(super) fn live_stack(
    view: &View,
    owner: &Subject,
    number: ChallengeNumber,
) -> Option<Arc<LiveStack>> {
    let slot = number.to_string();
    let live = view.live.read();
    let mut stacks = live.of_tenant(DIALECT, &owner.to_string());
    stacks.find(|live| live.stack.owner.slot == slot && live.stack.is_active()).cloned()
}

/// What an owner has, of a challenge and in all.
struct Holdings {
    live: Option<Arc<LiveStack>>,
    /// Of this challenge, and not live any more.
    ended: Vec<StackId>,
    live_in_all: usize,
}

fn holdings(shared: &SharedEngine, tenant: &str, slot: &str) -> Holdings {
    let live = shared.view.live.read();
    let mut holdings = Holdings { live: None, ended: Vec::new(), live_in_all: 0 };
    for live in live.of_tenant(DIALECT, tenant) {
        let (here, active) = (live.stack.owner.slot == slot, live.stack.is_active());
        holdings.live_in_all += usize::from(active);
        match (here, active) {
            (true, true) => holdings.live = Some(Arc::clone(live)),
            (true, false) => holdings.ended.push(live.stack.id),
            (false, _) => {}
        }
    }
    holdings
}

async fn start(
    shared: &SharedEngine,
    player: Player,
    number: ChallengeNumber,
) -> Result<Arc<LiveStack>, PlayError> {
    let _gate = shared.view.board.gate.read().await;
    let _turn = shared.view.board.turn(&player.owner).await;
    let (tenant, slot) = (player.owner.to_string(), number.to_string());
    let challenge = shared.view.board.find(&ChallengeRef::Number(number));
    let has = holdings(shared, &tenant, &slot);
    let (limits, now) = (&shared.config.players, shared.clock.boot());
    let is_marked = |mark| shared.view.board.is_marked(mark, number, &player);
    let decided = admit(&Situation {
        challenge: challenge.as_deref(),
        solved: is_marked(Mark::Solved),
        locked: is_marked(Mark::Locked),
        has_live: has.live.is_some(),
        live_stacks: has.live_in_all,
        max_stacks: limits.max_stacks,
        rate_left: shared.view.board.rate.is_left(&player.user, limits, now),
    });
    let too_many = |left: Duration| PlayError::Rate {
        limit: limits.create_max,
        reset_seconds: left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX),
    };
    let challenge = match (decided, challenge) {
        (Err(Refusal::Rate), _) => {
            return Err(too_many(shared.view.board.rate.left(&player.user, limits, now)));
        }
        (Err(Refusal::Solved), Some(challenge)) => {
            if challenge.definition.destroy_on_solve {
                end(shared, has.live.map(|live| live.stack.id)).await?;
            }
            return Err(PlayError::Refused(Refusal::Solved));
        }
        (Err(refusal), _) => return Err(PlayError::Refused(refusal)),
        (Ok(_), None) => return Err(PlayError::Refused(Refusal::NotFound)),
        (Ok(true), Some(challenge)) => challenge,
        (Ok(false), Some(_)) => {
            return has.live.ok_or(PlayError::Refused(Refusal::NotFound));
        }
    };
    let secrets = flags::variables(&shared.view, &challenge, &player.owner)
        .map_err(|error| PlayError::Create(CreateError::Saturated(error.to_string())))?;
    // Of a stack that has ended nothing stays behind.
    end(shared, has.ended).await?;
    // Somebody of another team of the same user may have been quicker.
    shared.view.board.rate.take(&player.user, limits, now).map_err(too_many)?;
    let command = CreateStack {
        dialect: DIALECT,
        tenant,
        slot: Some(slot),
        spec: StackSpec { secrets, ..StackSpec::clone(&challenge.spec) },
        runtime_class: challenge.definition.class.runtime_class(),
        labels: [(CHALLENGE_LABEL.to_owned(), challenge.id().to_string())].into(),
        ttl: Some(lifetime(&shared.view, &challenge)),
        idempotency: None,
    };
    let created = create::create(Arc::clone(shared), command).await;
    if created.is_err() {
        shared.view.board.rate.give_back(&player.user);
    }
    match created {
        Ok(created) => Ok(created.stack),
        // Another server has made it.
        Err(CreateError::OwnerTaken(live)) => Ok(live),
        Err(error) => Err(PlayError::Create(error)),
    }
}
