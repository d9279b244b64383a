//! What is known of challenges and players, in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use stackd_core::challenge::{
    Challenge, ChallengeId, ChallengeNumber, ChallengeRef, Player, Subject,
};
use stackd_core::{Owner, Timestamp};
use stackd_store::{Catalogue, Mark};

use super::rate::Rate;
use super::warm::Warming;

/// The challenges, the marks, who plays for whom, and the locks that keep order among writers.
pub(crate) struct Board {
    state: RwLock<State>,
    /// One writer of the catalogue at a time.
    pub(super) writing: tokio::sync::Mutex<()>,
    /// Held for reading while a player's stack is made, for writing while a challenge goes with
    /// its stacks: no stack is made of what is gone.
    pub(super) gate: tokio::sync::RwLock<()>,
    /// One create or solve at a time for each owner.
    turns: Mutex<HashMap<Subject, Arc<tokio::sync::Mutex<()>>>>,
    pub(super) rate: Rate,
    /// Images that were, and are being, made ready ahead of need.
    pub(super) warmed: Warming,
}

#[derive(Default)]
struct State {
    challenges: BTreeMap<ChallengeId, Arc<Challenge>>,
    ids: BTreeMap<ChallengeNumber, ChallengeId>,
    last_number: u64,
    /// The numbers of challenges that are gone: nobody's link to one may lead to another.
    removed: HashSet<ChallengeNumber>,
    marks: HashMap<(ChallengeNumber, Mark), BTreeMap<Subject, Timestamp>>,
    /// The teams of which a user has solved a challenge.
    solved_by_member: HashMap<ChallengeNumber, HashSet<String>>,
    members: HashMap<String, String>,
}

impl State {
    fn new(catalogue: Catalogue) -> Self {
        let mut state = Self { last_number: catalogue.last_number, ..Self::default() };
        for challenge in catalogue.challenges {
            state.put(Arc::new(challenge));
        }
        state.removed = catalogue.removed.into_iter().collect();
        state.members = catalogue.members.into_iter().collect();
        for record in catalogue.marks {
            let marks = state.marks.entry((record.challenge, record.mark)).or_default();
            marks.insert(record.subject, record.at);
        }
        let numbers: Vec<_> = state.ids.keys().copied().collect();
        for number in numbers {
            state.count_teams(number);
        }
        state
    }

    fn put(&mut self, challenge: Arc<Challenge>) {
        self.removed.remove(&challenge.number);
        self.last_number = self.last_number.max(challenge.number.get());
        self.ids.insert(challenge.number, challenge.id().clone());
        self.challenges.insert(challenge.id().clone(), challenge);
    }

    fn has(&self, mark: Mark, number: ChallengeNumber, subject: &Subject) -> bool {
        self.marks.get(&(number, mark)).is_some_and(|marks| marks.contains_key(subject))
    }

    /// Whether a user or a team finds a challenge marked so: by name, and a team's solve also by
    /// any of its members.
    fn is_marked(
        &self,
        mark: Mark,
        number: ChallengeNumber,
        user: Option<&String>,
        team: Option<&String>,
    ) -> bool {
        let of_team = |team: &String| {
            self.has(mark, number, &Subject::Team(team.clone()))
                || mark == Mark::Solved
                    && self.solved_by_member.get(&number).is_some_and(|teams| teams.contains(team))
        };
        user.is_some_and(|user| self.has(mark, number, &Subject::User(user.clone())))
            || team.is_some_and(of_team)
    }

    fn count_teams(&mut self, number: ChallengeNumber) {
        let marks = self.marks.get(&(number, Mark::Solved));
        let team = |subject: &Subject| match subject {
            Subject::User(user) => self.members.get(user).cloned(),
            Subject::Team(_) => None,
        };
        let teams = marks.into_iter().flat_map(BTreeMap::keys).filter_map(team).collect();
        self.solved_by_member.insert(number, teams);
    }
}

impl Board {
    pub(crate) fn new(catalogue: Catalogue) -> Self {
        Self {
            state: RwLock::new(State::new(catalogue)),
            writing: Default::default(),
            gate: Default::default(),
            turns: Default::default(),
            rate: Rate::default(),
            warmed: Warming::default(),
        }
    }

    /// Takes over what the database holds, in place of what was known.
    pub(crate) fn replace(&self, catalogue: Catalogue) {
        *self.state.write() = State::new(catalogue);
    }

    pub(crate) fn all(&self) -> Vec<Arc<Challenge>> {
        self.state.read().challenges.values().cloned().collect()
    }

    pub(super) fn find(&self, name: &ChallengeRef) -> Option<Arc<Challenge>> {
        let state = self.state.read();
        let id = match name {
            ChallengeRef::Id(id) => id,
            ChallengeRef::Number(number) => state.ids.get(number)?,
        };
        state.challenges.get(id).cloned()
    }

    /// The number after all that were ever given out; where that was the greatest, the first that never
    /// was.
    pub(super) fn next_number(&self) -> Option<ChallengeNumber> {
        let state = self.state.read();
        let next = ChallengeNumber::new(state.last_number + 1);
        let is_new = |number: &ChallengeNumber| {
            !state.ids.contains_key(number) && !state.removed.contains(number)
        };
        next.or_else(|| (1..).map_while(ChallengeNumber::new).find(is_new))
    }

    pub(super) fn put(&self, challenge: Arc<Challenge>) {
        self.state.write().put(challenge);
    }

    pub(super) fn remove(&self, challenge: &Challenge) {
        let mut state = self.state.write();
        state.challenges.remove(challenge.id());
        state.ids.remove(&challenge.number);
        state.removed.insert(challenge.number);
        state.solved_by_member.remove(&challenge.number);
        for mark in [Mark::Solved, Mark::Locked] {
            state.marks.remove(&(challenge.number, mark));
        }
    }

    /// Whether a player finds a challenge marked so, by name or by team.
    pub(super) fn is_marked(&self, mark: Mark, number: ChallengeNumber, player: &Player) -> bool {
        self.state.read().is_marked(mark, number, Some(&player.user), player.team.as_ref())
    }

    /// Whether the owner of a player's stack has solved its challenge, and that ends the stack.
    pub(crate) fn is_over(&self, owner: &Owner) -> bool {
        let Ok(number) = owner.slot.parse::<ChallengeNumber>() else { return false };
        let Some(challenge) = self.find(&ChallengeRef::Number(number)) else { return false };
        let subject = owner.tenant.split_once(':');
        let Some(subject) = subject.and_then(|(kind, name)| Subject::of(kind, name.to_owned()))
        else {
            return false;
        };
        let state = self.state.read();
        let (user, team) = match &subject {
            Subject::User(user) => (Some(user), state.members.get(user)),
            Subject::Team(team) => (None, Some(team)),
        };
        challenge.definition.destroy_on_solve && state.is_marked(Mark::Solved, number, user, team)
    }

    /// Everybody who finds a challenge solved when these have solved it: they themselves, their
    /// teams, and whoever plays for one of them.
    pub(super) fn solvers(&self, subjects: &[Subject]) -> BTreeSet<Subject> {
        let state = self.state.read();
        let team = |subject| match subject {
            Subject::User(user) => state.members.get(&user).cloned(),
            Subject::Team(team) => Some(team),
        };
        let teams: BTreeSet<String> = subjects.iter().cloned().filter_map(team).collect();
        let members = state.members.iter().filter(|(_, team)| teams.contains(*team));
        let members = members.map(|(user, _)| Subject::User(user.clone()));
        let all: BTreeSet<_> = members.chain(subjects.iter().cloned()).collect();
        all.into_iter().chain(teams.into_iter().map(Subject::Team)).collect()
    }

    pub(super) fn marks(&self, mark: Mark, number: ChallengeNumber) -> Vec<super::Marked> {
        let state = self.state.read();
        let marks = state.marks.get(&(number, mark));
        let marked = |(subject, at): (&Subject, &Timestamp)| super::Marked {
            subject: subject.clone(),
            at: *at,
        };
        marks.into_iter().flatten().map(marked).collect()
    }

    pub(super) fn has(&self, mark: Mark, number: ChallengeNumber, subject: &Subject) -> bool {
        self.state.read().has(mark, number, subject)
    }

    pub(super) fn mark(&self, mark: Mark, number: ChallengeNumber, who: Subject, at: Timestamp) {
        let mut state = self.state.write();
        state.marks.entry((number, mark)).or_default().entry(who).or_insert(at);
        state.count_teams(number);
    }

    pub(super) fn unmark(&self, mark: Mark, number: ChallengeNumber, who: &Subject) {
        let mut state = self.state.write();
        if let Some(marks) = state.marks.get_mut(&(number, mark)) {
            marks.remove(who);
        }
        state.count_teams(number);
    }

    pub(super) fn team_of(&self, user: &str) -> Option<String> {
        self.state.read().members.get(user).cloned()
    }

    /// Notes for which team a user plays. True when that is news.
    pub(super) fn joins(&self, user: &str, team: &str) -> bool {
        if self.state.read().members.get(user).is_some_and(|known| known == team) {
            return false;
        }
        let mut state = self.state.write();
        state.members.insert(user.to_owned(), team.to_owned());
        let subject = Subject::User(user.to_owned());
        let solved: Vec<_> = state.ids.keys().copied().collect();
        for number in solved {
            if state.has(Mark::Solved, number, &subject) {
                state.count_teams(number);
            }
        }
        true
    }

    /// Waits for an owner's turn: until the guard is dropped, nobody else has it.
    pub(super) async fn turn(&self, owner: &Subject) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock();
            // Nobody holds or waits for what only this map knows.
            if turns.len() > 4096 {
                turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            }
            Arc::clone(turns.entry(owner.clone()).or_default())
        };
        turn.lock_owned().await
    }
}
