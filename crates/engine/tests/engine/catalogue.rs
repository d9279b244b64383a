//! What becomes of a challenge's number, images and stacks when it is edited, switched off or removed.

use std::time::Duration;

use stackd_core::challenge::{Challenge, ChallengeNumber, Draft, Refusal};
use stackd_engine::challenges::{ChallengeError, Warmed};
use stackd_engine::{EngineConfig, ExtendError};
use stackd_store::StoreConfig;
use stackd_testkit::engine::Setup;
use stackd_testkit::{TestEngine, within};

use super::players::{challenge, draft, generous, named, refused, user, with};

#[tokio::test]
async fn a_number_is_never_given_out_twice() {
    let test = with(generous()).await;
    let number = |number| ChallengeNumber::new(number);
    challenge(&test, "web").await;
    let pwn = test.engine.challenges().create(draft("pwn"), number(7)).await.unwrap();
    let live = test.engine.players().start(user("7"), pwn.number).await.unwrap();
    test.engine.challenges().delete(named(&pwn), false).await.unwrap();
    let again = async |test: &TestEngine| {
        let answer = test.engine.challenges().create(draft("other"), number(7)).await;
        assert_eq!(answer.map(|_| ()), Err(ChallengeError::NumberUsed));
    };
    again(&test).await;
    let test = test.restart(true).await;
    again(&test).await;
    let left = test.engine.players().get(&user("7").owner, pwn.number);
    assert_eq!(left.map(|left| left.stack.id), Some(live.stack.id));
    // One that was never used may still be given, and the next one is new.
    let gap = test.engine.challenges().create(draft("gap"), number(5)).await.unwrap();
    assert_eq!(gap.number.get(), 5);
    assert_eq!(challenge(&test, "next").await.number.get(), 8);
    // When nothing is left of the removed one, its number may be asked for again.
    test.engine.players().stop(user("7").owner, pwn.number).await.unwrap();
    let back = test.engine.challenges().create(draft("back"), number(7)).await.unwrap();
    assert_eq!(back.number, pwn.number);
    // After the greatest number there are others.
    test.engine.challenges().create(draft("last"), number(ChallengeNumber::MAX)).await.unwrap();
    assert_eq!(challenge(&test, "more").await.number.get(), 2);
    let test = test.restart(true).await;
    assert_eq!(challenge(&test, "and-more").await.number.get(), 3);
    test.finish().await;
}

#[tokio::test]
async fn a_challenge_from_before_narrower_settings_can_be_switched_off() {
    let directory = tempfile::tempdir().unwrap();
    let database = StoreConfig::Sqlite { path: directory.path().join("db"), ballast_bytes: 0 };
    let setup = |engine| Setup { engine, database: Some(database.clone()), ..Setup::default() };
    let test = TestEngine::with(setup(EngineConfig::default())).await;
    let large = Draft { cpu_count: Some(4), ttl_seconds: Some(7000), ..draft("large") };
    let large = test.engine.challenges().create(large, None).await.unwrap();
    test.finish().await;
    let mut narrow = EngineConfig::default();
    narrow.challenges.cpu_counts = vec![1];
    narrow.max_ttl = Duration::from_secs(3600);
    narrow.default_ttl = Duration::from_secs(60);
    let test = TestEngine::with(setup(narrow)).await;
    let challenges = test.engine.challenges();
    let edit = |change: fn(&mut Draft)| {
        challenges.edit(named(&large), move |_, mut draft| {
            change(&mut draft);
            Ok(draft)
        })
    };
    let off = edit(|draft| draft.enabled = Some(false)).await.unwrap();
    assert!(!off.definition.enabled && off.spec == large.spec);
    for (change, field) in [
        ((|draft| draft.ttl_seconds = Some(7001)) as fn(&mut Draft), "ttl_seconds"),
        (|draft| draft.cpu_count = Some(2), "cpu_count"),
    ] {
        let Err(ChallengeError::Invalid(wrong)) = edit(change).await else { panic!("{field}") };
        assert_eq!(wrong.iter().map(|wrong| wrong.field).collect::<Vec<_>>(), [field]);
    }
    test.finish().await;
}

#[tokio::test]
async fn images_are_pulled_ahead_of_need_where_that_is_set() {
    let mut engine = generous();
    engine.challenges.warm = true;
    let test = with(engine).await;
    let warmed = async |test: &TestEngine, ready, failed| {
        within("the images are pulled", async {
            while test.engine.challenges().warmed() != (Warmed { ready, failed, pulling: 0 }) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    let web = challenge(&test, "web").await;
    warmed(&test, 1, 0).await;
    // The runtime is asked: where it cannot be reached, it shows.
    test.runtime.set_reachable(false);
    let edit = |_: &Challenge, draft| Ok(Draft { image: Some("app:2".to_owned()), ..draft });
    test.engine.challenges().edit(named(&web), edit).await.unwrap();
    warmed(&test, 1, 1).await;
    test.runtime.set_reachable(true);
    // All of them at the start.
    challenge(&test, "pwn").await;
    warmed(&test, 2, 1).await;
    let test = test.restart(true).await;
    warmed(&test, 2, 0).await;
    test.finish().await;

    let test = TestEngine::start().await;
    challenge(&test, "web").await;
    assert_eq!(test.engine.challenges().warmed(), Warmed::default());
    test.finish().await;
}

#[tokio::test]
async fn a_challenge_that_goes_takes_its_stacks_only_when_asked() {
    let test = with(generous()).await;
    let (web, pwn) = (challenge(&test, "web").await, challenge(&test, "pwn").await);
    let players = test.engine.players();
    let stays = players.start(user("7"), web.number).await.unwrap().stack.id;
    let goes = players.start(user("7"), pwn.number).await.unwrap().stack.id;
    test.engine.challenges().delete(named(&web), false).await.unwrap();
    test.engine.challenges().delete(named(&pwn), true).await.unwrap();
    assert!(test.engine.get(stays).is_some() && test.engine.get(goes).is_none());
    // It can still be looked at and ended, and not be extended.
    let owner = user("7").owner;
    assert!(players.get(&owner, web.number).is_some());
    let extended = players.extend(owner.clone(), web.number).await;
    assert_eq!(extended.map(|_| ()), Err(ExtendError::NotLater));
    assert_eq!(refused(players.start(user("8"), web.number).await), Refusal::NotFound);
    assert!(players.stop(owner, web.number).await.unwrap());
    test.finish().await;
}

#[tokio::test]
async fn a_challenge_that_is_off_starts_nothing() {
    let test = TestEngine::start().await;
    let none = ChallengeNumber::new(99).unwrap();
    assert_eq!(refused(test.engine.players().start(user("7"), none).await), Refusal::NotFound);
    let web = challenge(&test, "web").await;
    let live = test.engine.players().start(user("7"), web.number).await.unwrap();
    let off = |_: &Challenge, draft| Ok(Draft { enabled: Some(false), ..draft });
    test.engine.challenges().edit(named(&web), off).await.unwrap();
    assert!(test.engine.get(live.stack.id).is_some());
    assert_eq!(
        refused(test.engine.players().start(user("8"), web.number).await),
        Refusal::NotFound
    );
    test.finish().await;
}
