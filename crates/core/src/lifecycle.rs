//! The life of a stack as a pure machine: what is wanted, what was seen and the time go in, the
//! next step comes out. The engine carries steps out and asks again; nothing here waits or calls.

use jiff::Timestamp;

use crate::runtime::{ObservedStack, Outcome, RuntimeState};
use crate::stack::{Condition, Desired, Observed, Phase, reason};

/// What the runtime has said about a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing yet: its inventory is not complete.
    Unknown,
    /// It has never had it.
    Absent,
    /// It has it, or has accepted it a moment ago.
    Present,
    /// It has it, and its containers have ended.
    Ended,
    /// It had it, and has no longer.
    Lost,
}

/// What is being done for a stack right now. There is never more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Its images are prepared, it waits for a start slot, or the runtime starts it.
    Starting,
    /// The runtime ends its containers.
    Stopping,
    /// The runtime removes it.
    Removing,
}

/// Everything that the next step depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What is asked for.
    pub desired: Desired,
    /// How far it has come.
    pub phase: Phase,
    /// What the runtime has said.
    pub seen: Seen,
    /// Its deadline has passed.
    pub expired: bool,
    /// It should have been ready by now.
    pub start_overdue: bool,
    /// No machine was found for it in time, for this reason.
    pub unplaced: Option<Condition>,
    /// A start failed and may be tried again only later.
    pub backing_off: bool,
    /// A start failed for good.
    pub failure: Option<Condition>,
    /// What is being done.
    pub work: Option<Work>,
    /// The runtime has confirmed that nothing of it is left.
    pub removed: bool,
}

/// What to do next for a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing until something changes.
    Wait,
    /// Start it.
    Start,
    /// End what runs of it, then record that it failed for this reason.
    Fail(Condition),
    /// End what runs of it, though it has ended for us already.
    CleanUp,
    /// Its deadline has passed: record that it is no longer wanted, without grace.
    Expire,
    /// Remove it from the runtime, giving up a start under way.
    Remove,
}

/// The next step for a stack.
pub fn next(facts: &Facts) -> Step {
    let busy_ending = matches!(facts.work, Some(Work::Stopping | Work::Removing));
    if facts.desired == Desired::Gone {
        return if facts.removed || busy_ending { Step::Wait } else { Step::Remove };
    }
    if facts.expired {
        return Step::Expire;
    }
    if busy_ending {
        return Step::Wait;
    }
    if !facts.phase.is_active() {
        // A start may still be under way, or the runtime may not have let go yet.
        let runs = facts.seen == Seen::Present || facts.work == Some(Work::Starting);
        return if runs { Step::CleanUp } else { Step::Wait };
    }
    if let Some(failure) = &facts.failure {
        return Step::Fail(failure.clone());
    }
    if facts.seen == Seen::Lost {
        return Step::Fail(Condition::new(
            reason::LOST,
            "the stack has disappeared from the machine that ran it",
        ));
    }
    if let Some(condition) = &facts.unplaced {
        return Step::Fail(condition.clone());
    }
    if facts.start_overdue && facts.phase == Phase::Creating {
        return Step::Fail(Condition::new(
            reason::START_TIMEOUT,
            "the stack did not become ready for traffic in time",
        ));
    }
    let startable = facts.seen == Seen::Absent && facts.work.is_none() && !facts.backing_off;
    if startable { Step::Start } else { Step::Wait }
}

/// What is known of a stack after the runtime has reported it. An ended stack stays as it ended.
pub fn observe(before: &Observed, seen: &ObservedStack, now: Timestamp) -> Observed {
    let mut after = before.clone();
    if !before.phase.is_active() {
        return after;
    }
    if let Some(placement) = &seen.placement {
        after.node = Some(placement.node.clone());
        after.node_public_ip.clone_from(&placement.public_ip);
    }
    after.restarts = seen.restarts;
    match &seen.state {
        RuntimeState::Incomplete => {}
        RuntimeState::Starting { condition } => {
            after.condition.clone_from(condition);
        }
        RuntimeState::Running { ready, condition } => {
            after.condition.clone_from(condition);
            if *ready {
                after.phase = Phase::Running;
                after.ready_at = before.ready_at.or(Some(now));
            } else if after.condition.is_none() {
                after.condition = Some(Condition::new(
                    reason::NOT_READY,
                    "the containers run and are not ready for traffic",
                ));
            }
        }
        RuntimeState::Ended { outcome, exit_code, condition, at } => {
            after.phase = match outcome {
                Outcome::Completed => Phase::Stopped,
                Outcome::Failed => Phase::Failed,
                Outcome::NodeLost => Phase::NodeDeleted,
            };
            after.condition = Some(condition.clone());
            after.exit_code = *exit_code;
            after.ended_at = Some(*at);
        }
    }
    after
}

/// What is known of a stack that failed without the runtime's word for it. One that was not ready
/// in time says what kept it.
pub fn failed(before: &Observed, mut condition: Condition, now: Timestamp) -> Observed {
    if let (reason::START_TIMEOUT, Some(last)) = (condition.reason.as_str(), &before.condition) {
        condition.message = format!("{}: {}", condition.message, last.message);
    }
    Observed {
        phase: Phase::Failed,
        condition: Some(condition),
        ended_at: Some(now),
        ..before.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::StackId;

    #[test]
    fn a_stack_that_was_not_ready_in_time_says_what_kept_it() {
        let overdue = || Condition::new(reason::START_TIMEOUT, "not in time");
        let mut before = Observed::accepted();
        before.condition = Some(Condition::new("ErrImagePull", "the registry is away"));
        let after = failed(&before, overdue(), Timestamp::UNIX_EPOCH).condition.unwrap();
        assert_eq!(after.reason, reason::START_TIMEOUT);
        assert_eq!(after.message, "not in time: the registry is away");
        let lost = Condition::new(reason::LOST, "gone");
        assert_eq!(failed(&before, lost.clone(), Timestamp::UNIX_EPOCH).condition, Some(lost));
    }

    /// What may happen to a stack from outside, in any order.
    #[derive(Debug, Clone, Copy)]
    enum Happening {
        WorkEnds { well: bool },
        Synced,
        Reported(Report),
        Vanishes,
        RetryComes,
        StartOverdue,
        NoPlace,
        Expires,
        DeleteAsked,
    }

    #[derive(Debug, Clone, Copy)]
    enum Report {
        Starting,
        Running { ready: bool },
        Ended(Outcome),
    }

    /// A stack, what its runtime really has of it, and an engine that does as it is told.
    #[derive(Debug)]
    struct Model {
        facts: Facts,
        observed: Observed,
        failing: Option<Condition>,
        runs: bool,
    }

    impl Model {
        fn new(seen: Seen, runs: bool) -> Self {
            let facts = Facts {
                desired: Desired::Running,
                phase: Phase::Creating,
                seen,
                expired: false,
                start_overdue: false,
                unplaced: None,
                backing_off: false,
                failure: None,
                work: None,
                removed: false,
            };
            Self { facts, observed: Observed::accepted(), failing: None, runs }
        }

        fn take_over(&mut self, observed: Observed) {
            let was_active = self.observed.phase.is_active();
            assert!(was_active || observed == self.observed, "an ended stack has changed");
            self.facts.phase = observed.phase;
            self.observed = observed;
        }

        fn happen(&mut self, happening: Happening) {
            match happening {
                Happening::WorkEnds { well } => self.work_ends(well),
                Happening::Synced if self.facts.seen == Seen::Unknown => {
                    self.facts.seen = match (self.runs, self.facts.phase) {
                        (true, _) => Seen::Present,
                        (false, Phase::Creating) => Seen::Absent,
                        (false, _) => Seen::Lost,
                    };
                }
                Happening::Reported(report) if self.runs => self.report(report),
                Happening::Vanishes if self.runs => {
                    self.runs = false;
                    if self.facts.seen == Seen::Present {
                        self.facts.seen = Seen::Lost;
                    }
                }
                Happening::RetryComes => self.facts.backing_off = false,
                Happening::StartOverdue => self.facts.start_overdue = true,
                Happening::NoPlace if self.facts.phase == Phase::Creating => {
                    self.facts.unplaced = Some(Condition::new(reason::UNSCHEDULABLE, ""));
                }
                Happening::Expires => self.facts.expired = true,
                Happening::DeleteAsked => self.facts.desired = Desired::Gone,
                Happening::Synced
                | Happening::Reported(_)
                | Happening::Vanishes
                | Happening::NoPlace => {}
            }
        }

        fn report(&mut self, report: Report) {
            let state = match report {
                Report::Starting => RuntimeState::Starting { condition: None },
                Report::Running { ready } => RuntimeState::Running { ready, condition: None },
                Report::Ended(outcome) => RuntimeState::Ended {
                    outcome,
                    exit_code: None,
                    condition: Condition::new(reason::COMPLETED, ""),
                    at: Timestamp::UNIX_EPOCH,
                },
            };
            let ended = matches!(report, Report::Ended(_));
            self.facts.seen = if ended { Seen::Ended } else { Seen::Present };
            self.runs = !ended;
            let seen = ObservedStack {
                id: StackId::from_bits(1),
                generation: 1,
                state,
                placement: None,
                restarts: 0,
            };
            self.take_over(observe(&self.observed, &seen, Timestamp::UNIX_EPOCH));
        }

        fn work_ends(&mut self, well: bool) {
            match self.facts.work.take() {
                Some(Work::Starting) if well => {
                    self.runs = true;
                    if self.facts.seen == Seen::Absent {
                        self.facts.seen = Seen::Present;
                    }
                }
                Some(Work::Starting) => self.facts.backing_off = true,
                Some(Work::Stopping) => {
                    self.runs = false;
                    self.facts.seen = Seen::Ended;
                    if let Some(condition) = self.failing.take()
                        && self.observed.phase.is_active()
                    {
                        let now = Timestamp::UNIX_EPOCH;
                        self.take_over(failed(&self.observed, condition, now));
                    }
                }
                Some(Work::Removing) if well => {
                    self.runs = false;
                    self.facts.removed = true;
                }
                Some(Work::Removing) | None => {}
            }
        }

        /// Does what the machine says, and checks that it may be said.
        fn step(&mut self) -> Step {
            let facts = self.facts.clone();
            let step = next(&facts);
            if facts.work.is_some_and(|work| work != Work::Starting) && step != Step::Expire {
                assert_eq!(step, Step::Wait, "a second work at a time");
            }
            match &step {
                Step::Wait => {}
                Step::Start => {
                    assert_eq!((facts.desired, facts.seen), (Desired::Running, Seen::Absent));
                    assert!(facts.phase == Phase::Creating && facts.work.is_none());
                    assert!(!facts.expired && !facts.start_overdue && facts.failure.is_none());
                    self.facts.work = Some(Work::Starting);
                }
                Step::Fail(condition) => {
                    assert!(facts.phase.is_active());
                    self.failing = Some(condition.clone());
                    self.facts.work = Some(Work::Stopping);
                }
                Step::CleanUp => {
                    assert!(!facts.phase.is_active());
                    self.facts.work = Some(Work::Stopping);
                }
                Step::Expire => {
                    assert!(facts.expired && facts.desired == Desired::Running);
                    self.facts.desired = Desired::Gone;
                }
                Step::Remove => {
                    assert_eq!(facts.desired, Desired::Gone);
                    self.facts.work = Some(Work::Removing);
                }
            }
            step
        }

        /// Goes on while there is anything to do, with a runtime that does its part.
        fn settle(&mut self) {
            for _ in 0..50 {
                let waits = self.step() == Step::Wait;
                if waits && self.facts.work.is_none() {
                    if !self.facts.backing_off && self.facts.seen != Seen::Unknown {
                        return;
                    }
                    self.happen(Happening::RetryComes);
                    self.happen(Happening::Synced);
                }
                self.happen(Happening::WorkEnds { well: true });
            }
            panic!("no end: {self:?}");
        }
    }

    fn phase() -> impl Strategy<Value = Phase> {
        prop_oneof![Just(Phase::Creating), Just(Phase::Running), Just(Phase::Failed)]
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let outcome =
            prop_oneof![Just(Outcome::Completed), Just(Outcome::Failed), Just(Outcome::NodeLost)];
        let report = prop_oneof![
            Just(Report::Starting),
            any::<bool>().prop_map(|ready| Report::Running { ready }),
            outcome.prop_map(Report::Ended),
        ];
        prop_oneof![
            4 => any::<bool>().prop_map(|well| Happening::WorkEnds { well }),
            1 => Just(Happening::Synced),
            3 => report.prop_map(Happening::Reported),
            1 => Just(Happening::Vanishes),
            1 => Just(Happening::RetryComes),
            1 => Just(Happening::StartOverdue),
            1 => Just(Happening::NoPlace),
            1 => Just(Happening::Expires),
            1 => Just(Happening::DeleteAsked),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Whatever happens, the machine comes to rest, and then what is there is what is wanted.
        #[test]
        fn it_comes_to_rest_where_it_should(
            loaded in any::<bool>(),
            runs in any::<bool>(),
            phase in phase(),
            happenings in proptest::collection::vec(happening(), 0..40),
        ) {
            let mut model = if loaded {
                Model::new(Seen::Unknown, runs)
            } else {
                Model::new(Seen::Absent, false)
            };
            if loaded {
                // A crash may have come between a row's write and the runtime's part of it.
                model.observed.phase = phase;
                model.facts.phase = phase;
            }
            model.step();
            for happening in happenings {
                model.happen(happening);
                model.step();
            }
            model.settle();
            match model.facts.desired {
                Desired::Gone => prop_assert!(model.facts.removed && !model.runs, "{model:?}"),
                Desired::Running => {
                    let active = model.facts.phase.is_active();
                    prop_assert!(active == model.runs, "{model:?}");
                }
            }
        }
    }

    #[test]
    fn a_failed_start_ends_what_runs_before_it_is_told() {
        let mut model = Model::new(Seen::Absent, false);
        model.facts.failure = Some(Condition::new(reason::IMAGE_PULL, "no such image"));
        assert!(matches!(model.step(), Step::Fail(_)));
        assert_eq!(model.facts.phase, Phase::Creating);
        model.happen(Happening::WorkEnds { well: true });
        assert_eq!(model.facts.phase, Phase::Failed);
        assert_eq!(model.observed.condition.unwrap().reason, reason::IMAGE_PULL);
    }

    #[test]
    fn readiness_lost_later_is_a_reason_and_not_another_phase() {
        let mut model = Model::new(Seen::Absent, true);
        model.report(Report::Running { ready: true });
        let ready_at = model.observed.ready_at;
        model.report(Report::Running { ready: false });
        assert_eq!(model.facts.phase, Phase::Running);
        assert_eq!(model.observed.condition.unwrap().reason, reason::NOT_READY);
        assert!(ready_at.is_some() && model.observed.ready_at == ready_at);
    }
}
