//! What players may do, under races and across crashes.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::Duration;

use stackd_core::challenge::{Challenge, ChallengeRef, Draft, Player, Refusal, Subject};
use stackd_core::{Phase, Timestamp};
use stackd_engine::challenges::PlayError;
use stackd_engine::{EngineConfig, ExtendError, PlayerLimits, WaitFor};
use stackd_runtimes::simulated::SimulatedConfig;
use stackd_store::Mark;
use stackd_testkit::engine::Setup;
use stackd_testkit::{PATIENCE, TestEngine, within};
use tokio::task::JoinSet;

pub(crate) fn draft(id: &str) -> Draft {
    Draft {
        id: Some(id.to_owned()),
        name: Some(id.to_owned()),
        runtime: Some("docker".to_owned()),
        image: Some("app:1".to_owned()),
        port: Some(80),
        ..Draft::default()
    }
}

pub(crate) async fn challenge(test: &TestEngine, id: &str) -> Arc<Challenge> {
    test.engine.challenges().create(draft(id), None).await.unwrap()
}

pub(crate) fn named(challenge: &Challenge) -> ChallengeRef {
    ChallengeRef::Id(challenge.id().clone())
}

pub(crate) fn user(name: &str) -> Player {
    let owner = Subject::User(name.to_owned());
    Player { user: name.to_owned(), team: None, owner }
}

fn member(name: &str, team: &str) -> Player {
    let owner = Subject::Team(team.to_owned());
    Player { user: name.to_owned(), team: Some(team.to_owned()), owner }
}

/// Of a team, with stacks of their own.
fn solo(name: &str, team: &str) -> Player {
    Player { team: Some(team.to_owned()), ..user(name) }
}

pub(crate) fn generous() -> EngineConfig {
    let players = PlayerLimits { create_max: 1000, max_stacks: 3, ..PlayerLimits::default() };
    EngineConfig { players, ..EngineConfig::default() }
}

pub(crate) async fn with(engine: EngineConfig) -> TestEngine {
    TestEngine::with(Setup { engine, ..Setup::default() }).await
}

pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, PlayError>) -> Refusal {
    match result {
        Err(PlayError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_creates_at_once_are_one_stack() {
    let test = TestEngine::start().await;
    let number = challenge(&test, "web").await.number;
    let mut callers = JoinSet::new();
    for _ in 0..1000 {
        let engine = test.engine.clone();
        callers.spawn(async move { engine.players().start(user("7"), number).await });
    }
    let answers = callers.join_all().await;
    let ids: std::collections::HashSet<_> =
        answers.into_iter().map(|answer| answer.expect("a stack").stack.id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(test.engine.stats().total_stacks, 1);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_under_races() {
    let test = with(generous()).await;
    let mut numbers = Vec::new();
    for n in 0..20 {
        numbers.push(challenge(&test, &format!("c{n}")).await.number);
    }
    let mut callers = JoinSet::new();
    for number in &numbers {
        let (engine, number) = (test.engine.clone(), *number);
        callers.spawn(async move { engine.players().start(member("7", "red"), number).await });
        let engine = test.engine.clone();
        callers.spawn(async move { engine.players().start(member("8", "red"), number).await });
    }
    let answers = callers.join_all().await;
    let limited = answers.iter().filter(|a| matches!(a, Err(PlayError::Refused(Refusal::Limit))));
    assert_eq!(limited.count(), 34);
    assert_eq!(test.engine.players().list(&Subject::Team("red".to_owned())).len(), 3);

    // One create a window and user, whatever the owner.
    let strict = TestEngine::start().await;
    let first = challenge(&strict, "one").await.number;
    let second = challenge(&strict, "two").await.number;
    let mut callers = JoinSet::new();
    for n in 0..100 {
        let (engine, team) = (strict.engine.clone(), format!("team{n}"));
        let number = if n % 2 == 0 { first } else { second };
        callers.spawn(async move { engine.players().start(member("9", &team), number).await });
    }
    let answers = callers.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    for answer in answers.into_iter().filter_map(Result::err) {
        let PlayError::Rate { limit, reset_seconds } = answer else { panic!("{answer:?}") };
        assert_eq!((limit, reset_seconds), (1, 60));
    }
    test.finish().await;
    strict.finish().await;
}

#[tokio::test]
async fn the_rate_is_used_up_only_by_what_reaches_the_runtime() {
    let test = TestEngine::start().await;
    let web = challenge(&test, "web").await;
    let mut strong = draft("strong");
    strong.runtime = Some("kata-firecracker".to_owned());
    let strong = test.engine.challenges().create(strong, None).await.unwrap().number;
    for _ in 0..3 {
        let answer = test.engine.players().start(user("7"), strong).await;
        assert!(matches!(answer, Err(PlayError::Create(_))), "{answer:?}");
    }
    let live = test.engine.players().start(user("7"), web.number).await.unwrap();
    // What there is already touches no limit.
    for _ in 0..3 {
        let again = test.engine.players().start(user("7"), web.number).await.unwrap();
        assert_eq!(again.stack.id, live.stack.id);
    }
    assert!(test.engine.players().stop(user("7").owner, web.number).await.unwrap());
    assert!(!test.engine.players().stop(user("7").owner, web.number).await.unwrap());
    let answer = test.engine.players().start(user("7"), web.number).await;
    assert!(matches!(answer, Err(PlayError::Rate { limit: 1, reset_seconds: 60 })), "{answer:?}");
    test.clock.advance(Duration::from_secs(59));
    let answer = test.engine.players().start(user("7"), web.number).await;
    assert!(matches!(answer, Err(PlayError::Rate { limit: 1, reset_seconds: 1 })), "{answer:?}");
    test.clock.advance(Duration::from_secs(1));
    test.engine.players().start(user("7"), web.number).await.unwrap();
    test.finish().await;
}

#[tokio::test]
async fn a_stack_that_ended_leaves_room_and_nothing_behind() {
    let mut runtime = SimulatedConfig::instant();
    runtime.failure_rate = 1.0;
    let setup = Setup { engine: generous(), runtime: Some(runtime), ..Setup::default() };
    let test = TestEngine::with(setup).await;
    let number = challenge(&test, "web").await.number;
    let first = test.engine.players().start(user("7"), number).await.unwrap().stack.id;
    let ended = test.engine.wait(first, WaitFor::Ended, PATIENCE).await.unwrap();
    assert_eq!(ended.stack.observed.phase, Phase::Failed);
    assert!(test.engine.players().get(&user("7").owner, number).is_none());
    assert!(test.engine.players().list(&user("7").owner).is_empty());
    let second = test.engine.players().start(user("7"), number).await.unwrap().stack.id;
    assert_ne!(first, second);
    assert!(test.engine.get(first).is_none());
    test.finish().await;
}

#[tokio::test]
async fn a_solve_ends_the_stack_and_there_is_no_further_one() {
    let test = with(generous()).await;
    let web = challenge(&test, "web").await;
    let (engine, number) = (&test.engine, web.number);
    // Team mode: a member's solve is the team's, once the member was seen.
    let (ann, bob) = (member("ann", "red"), member("bob", "red"));
    let live = engine.players().start(bob.clone(), number).await.unwrap();
    engine.players().seen(&ann);
    let solver = vec![Subject::User("ann".to_owned())];
    assert!(engine.challenges().mark(named(&web), Mark::Solved, solver.clone()).await.unwrap());
    assert!(engine.get(live.stack.id).is_none());
    assert_eq!(refused(engine.players().start(bob.clone(), number).await), Refusal::Solved);
    // Another team is not concerned, and neither is the user with the team's name.
    engine.players().start(member("eve", "blue"), number).await.unwrap();
    engine.players().start(user("red"), number).await.unwrap();
    assert!(!engine.challenges().mark(named(&web), Mark::Solved, solver.clone()).await.unwrap());
    let taken = solver[0].clone();
    assert!(engine.challenges().unmark(named(&web), Mark::Solved, taken).await.unwrap());
    engine.players().start(bob, number).await.unwrap();
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stack_slips_past_a_solve() {
    let test = with(generous()).await;
    let web = challenge(&test, "web").await;
    for round in 0..50 {
        let player = user(&format!("u{round}"));
        let (engine, number, owner) = (test.engine.clone(), web.number, player.owner.clone());
        let start = tokio::spawn(async move { engine.players().start(player, number).await });
        let solved = vec![owner.clone()];
        test.engine.challenges().mark(named(&web), Mark::Solved, solved).await.unwrap();
        let _ = start.await.unwrap();
        assert!(test.engine.players().get(&owner, number).is_none(), "round {round}");
    }
    test.finish().await;
}

#[tokio::test]
async fn a_teams_solve_ends_the_stacks_of_its_members() {
    let test = with(generous()).await;
    let (web, pwn) = (challenge(&test, "web").await, challenge(&test, "pwn").await);
    let players = [solo("ann", "red"), solo("bob", "red"), solo("eve", "blue")];
    let mut stacks = Vec::new();
    for player in &players {
        test.engine.players().seen(player);
        for number in [web.number, pwn.number] {
            let live = test.engine.players().start(player.clone(), number).await.unwrap();
            stacks.push(live.stack.id);
        }
    }
    let left = || stacks.iter().map(|id| test.engine.get(*id).is_some()).collect::<Vec<_>>();
    // Told of the team, and told of one of them.
    let by_team = vec![Subject::Team("red".to_owned())];
    test.engine.challenges().mark(named(&web), Mark::Solved, by_team).await.unwrap();
    assert_eq!(left(), [false, true, false, true, true, true]);
    let by_member = vec![players[0].owner.clone()];
    test.engine.challenges().mark(named(&pwn), Mark::Solved, by_member).await.unwrap();
    assert_eq!(left(), [false, false, false, false, true, true]);
    for player in &players[..2] {
        for number in [web.number, pwn.number] {
            let again = test.engine.players().start(player.clone(), number).await;
            assert_eq!(refused(again), Refusal::Solved);
        }
    }
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stack_of_a_member_slips_past_a_teams_solve() {
    let test = with(generous()).await;
    let web = challenge(&test, "web").await;
    for round in 0..50 {
        let (team, number) = (format!("t{round}"), web.number);
        let player = solo(&format!("u{round}"), &team);
        let (engine, owner) = (test.engine.clone(), player.owner.clone());
        let start = tokio::spawn(async move {
            engine.players().seen(&player);
            engine.players().start(player, number).await
        });
        let solved = vec![Subject::Team(team)];
        test.engine.challenges().mark(named(&web), Mark::Solved, solved).await.unwrap();
        let _ = start.await.unwrap();
        assert!(test.engine.players().get(&owner, number).is_none(), "round {round}");
    }
    test.finish().await;
}

/// As a crash leaves it that came before a token's team was written, and after a solve was
/// acknowledged for that team.
#[tokio::test]
async fn a_solve_is_the_teams_after_a_crash_too() {
    let test = with(generous()).await;
    let web = challenge(&test, "web").await;
    test.engine.players().seen(&solo("ann", "red"));
    let ann = |team: &str| ("ann".to_owned(), team.to_owned());
    within("the team is written", async {
        while test.store.load_catalogue().await.unwrap().members != [ann("red")] {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (user, team) = ann("before");
    test.store.write(vec![stackd_store::Change::PutMember { user, team }]).await.unwrap();
    let ann = Subject::User("ann".to_owned());
    test.engine.challenges().mark(named(&web), Mark::Solved, vec![ann]).await.unwrap();
    let test = test.restart(true).await;
    for player in [solo("bob", "red"), member("bob", "red")] {
        let answer = test.engine.players().start(player, web.number).await;
        assert_eq!(refused(answer), Refusal::Solved);
    }
    // Who changes the team takes the solve along.
    test.engine.players().seen(&solo("ann", "blue"));
    let eve = test.engine.players().start(solo("eve", "blue"), web.number).await;
    assert_eq!(refused(eve), Refusal::Solved);
    test.engine.players().start(solo("bob", "red"), web.number).await.unwrap();
    test.finish().await;
}

#[tokio::test]
async fn what_is_told_outlives_a_restart() {
    let test = with(generous()).await;
    let web = challenge(&test, "web").await;
    let pwn = challenge(&test, "pwn").await;
    let (ann, bob) = (member("ann", "red"), member("bob", "red"));
    let kept = test.engine.players().start(bob.clone(), pwn.number).await.unwrap();
    test.engine.players().seen(&ann);
    let ann = vec![Subject::User("ann".to_owned())];
    test.engine.challenges().mark(named(&web), Mark::Solved, ann).await.unwrap();
    let locked = vec![Subject::Team("blue".to_owned())];
    test.engine.challenges().mark(named(&web), Mark::Locked, locked).await.unwrap();
    let test = test.restart(true).await;
    let engine = &test.engine;
    assert_eq!(engine.challenges().get(&named(&web)), Some(web.clone()));
    assert_eq!(refused(engine.players().start(bob.clone(), web.number).await), Refusal::Solved);
    let eve = member("eve", "blue");
    assert_eq!(refused(engine.players().start(eve, web.number).await), Refusal::Locked);
    let again = engine.players().start(bob, pwn.number).await.unwrap();
    assert_eq!(again.stack.id, kept.stack.id);
    let next = engine.challenges().create(draft("next"), None).await.unwrap();
    assert_eq!(next.number.get(), 3);
    test.finish().await;
}

/// As a crash between a solve's row and the end of the stacks leaves it.
#[tokio::test]
async fn the_stacks_of_a_solved_challenge_go_at_the_next_start() {
    let test = with(generous()).await;
    let web = challenge(&test, "web").await;
    let mut stacks = Vec::new();
    for player in [user("7"), solo("bob", "red"), solo("eve", "blue"), solo("ann", "green")] {
        stacks.push(test.engine.players().start(player, web.number).await.unwrap().stack.id);
    }
    let solved = |subject| stackd_store::Change::PutMark {
        mark: Mark::Solved,
        challenge: web.number,
        subject,
        at: Timestamp::UNIX_EPOCH,
    };
    let plays = |user: &str, team: &str| stackd_store::Change::PutMember {
        user: user.to_owned(),
        team: team.to_owned(),
    };
    let changes = vec![
        solved(user("7").owner),
        solved(Subject::Team("red".to_owned())),
        solved(user("zoe").owner),
        plays("bob", "red"),
        plays("eve", "blue"),
        plays("zoe", "blue"),
        plays("ann", "green"),
    ];
    test.store.write(changes).await.unwrap();
    let test = test.restart(true).await;
    for stack in &stacks[..3] {
        test.removed(*stack).await;
    }
    assert!(test.engine.get(stacks[3]).is_some());
    test.finish().await;
}

#[tokio::test]
async fn an_extension_moves_the_deadline_as_far_as_it_may() {
    let test = with(generous()).await;
    let mut short = draft("short");
    short.ttl_seconds = Some(100);
    let number = test.engine.challenges().create(short, None).await.unwrap().number;
    let players = test.engine.players();
    let owner = user("7").owner;
    let extend = || players.extend(owner.clone(), number);
    assert_eq!(extend().await.map(|_| ()), Err(ExtendError::NotFound));
    let live = players.start(user("7"), number).await.unwrap();
    let (id, made) = (live.stack.id, live.stack.created_at);
    test.engine.wait(id, WaitFor::Running, PATIENCE).await.unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(extend().await.map(|_| ()), Err(ExtendError::NotLater));
    test.clock.advance(seconds(60));
    assert_eq!(extend().await.unwrap().stack.expires_at, made + seconds(160));
    test.clock.advance(seconds(60));
    assert!(test.engine.get(id).is_some(), "it outlives its first deadline");
    // Durable before it was answered.
    let test = test.restart(true).await;
    let players = test.engine.players();
    let again = players.get(&owner, number).unwrap();
    assert_eq!(again.stack.expires_at, made + seconds(160));
    assert_eq!(
        players.extend(owner.clone(), number).await.unwrap().stack.expires_at,
        made + seconds(200)
    );
    let last = players.extend(owner.clone(), number).await;
    assert_eq!(last.map(|_| ()), Err(ExtendError::NotLater));
    test.clock.advance(seconds(80));
    within("it expires", async {
        while players.get(&owner, number).is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    test.removed(id).await;
    test.finish().await;
}

#[tokio::test]
async fn no_stack_is_extended_beyond_the_longest_life() {
    let max_lifetime = Some(Duration::from_secs(120));
    let players = PlayerLimits { max_lifetime, ..PlayerLimits::default() };
    let test = with(EngineConfig { players, ..EngineConfig::default() }).await;
    let mut short = draft("short");
    short.ttl_seconds = Some(100);
    let number = test.engine.challenges().create(short, None).await.unwrap().number;
    let (players, owner) = (test.engine.players(), user("7").owner);
    let made = players.start(user("7"), number).await.unwrap().stack.created_at;
    test.clock.advance(Duration::from_secs(60));
    let extended = players.extend(owner.clone(), number).await.unwrap();
    assert_eq!(extended.stack.expires_at, made + Duration::from_secs(120));
    let further = players.extend(owner, number).await;
    assert_eq!(further.map(|_| ()), Err(ExtendError::NotLater));
    test.finish().await;
}

#[tokio::test]
async fn an_owner_is_told_of_changes() {
    let test = TestEngine::start().await;
    let web = challenge(&test, "web").await;
    let challenges = test.engine.challenges();
    // In user mode a team is not what owns, and its marks count all the same.
    let player = solo("7", "red");
    let changed = || test.engine.players().changed(&player.owner);
    let told = changed();
    test.engine.players().start(player.clone(), web.number).await.unwrap();
    within("a start is told", told).await;
    for subject in [player.owner.clone(), Subject::Team("red".to_owned())] {
        for mark in [Mark::Locked, Mark::Solved] {
            let told = changed();
            assert!(challenges.mark(named(&web), mark, vec![subject.clone()]).await.unwrap());
            within("a mark is told", told).await;
            let told = changed();
            assert!(challenges.unmark(named(&web), mark, subject.clone()).await.unwrap());
            within("and that it is taken back", told).await;
        }
    }
    let told = changed();
    let off = |_: &Challenge, draft| Ok(Draft { stack_enabled: Some(false), ..draft });
    challenges.edit(named(&web), off).await.unwrap();
    within("an edit is told", told).await;
    let told = changed();
    challenges.delete(named(&web), false).await.unwrap();
    within("a removal is told", told).await;
    let told = changed();
    challenge(&test, "web").await;
    within("a new challenge is told", told).await;
    test.finish().await;
}
