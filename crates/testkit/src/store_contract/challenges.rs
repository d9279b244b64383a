//! Challenges, marks, members and deadlines.

use stackd_core::challenge::{Challenge, ChallengeNumber, ChallengePolicy, Draft, Subject};
use stackd_core::pod::PodDefaults;
use stackd_store::{Change, Mark, StoreConfig, StoreError};

use super::samples::{at, stack};
use super::{Desired, insert, open, write};

fn challenge(id: &str, number: u64) -> Challenge {
    let draft = Draft {
        id: Some(id.to_owned()),
        name: Some("N\u{e4}me\u{1f680}".to_owned()),
        runtime: Some("kctf".to_owned()),
        image: Some("web:1".to_owned()),
        port: Some(80),
        extra_config: Some(r#"{"env":{"A":"b"},"cap_drop":["KILL"],"pids_limit":5}"#.to_owned()),
        ttl_seconds: Some(77),
        ..Draft::default()
    };
    let number = ChallengeNumber::new(number).unwrap();
    draft.check(number, &ChallengePolicy::default(), &PodDefaults::default(), at(1)).unwrap()
}

/// A challenge is read back as it was written; its slug and number are its own; its marks go with
/// it, and its number is not forgotten.
pub async fn challenges_come_back_with_their_marks(config: StoreConfig) {
    let store = open(&config).await;
    let (web, pwn) = (challenge("web", 4), challenge("pwn", 9));
    for one in [&web, &pwn] {
        write(&store, [Change::InsertChallenge(Box::new(one.clone()))]).await;
    }
    for (id, number) in [("web", 10), ("other", 9)] {
        let again = Change::InsertChallenge(Box::new(challenge(id, number)));
        assert!(matches!(store.write(vec![again]).await, Err(StoreError::Duplicate(_))));
    }
    let user = Subject::User("7".to_owned());
    let team = Subject::Team("7".to_owned());
    let mark = |mark, challenge: &Challenge, subject: &Subject| Change::PutMark {
        mark,
        challenge: challenge.number,
        subject: subject.clone(),
        at: at(2),
    };
    for one in [
        mark(Mark::Solved, &web, &user),
        mark(Mark::Solved, &web, &user),
        mark(Mark::Solved, &web, &team),
        mark(Mark::Locked, &pwn, &user),
        mark(Mark::Locked, &challenge("gone", 77), &user),
    ] {
        write(&store, [one]).await;
    }
    for team in ["red", "blue"] {
        write(&store, [Change::PutMember { user: "7".to_owned(), team: team.to_owned() }]).await;
    }
    let mut edited = pwn.clone();
    edited.definition.name = "Other".to_owned();
    edited.updated_at = at(3);
    write(&store, [Change::UpdateChallenge(Box::new(edited.clone()))]).await;
    drop(store);

    let store = open(&config).await;
    let kept = store.load().await.unwrap().catalogue;
    assert_eq!(kept.challenges, [web.clone(), edited]);
    assert_eq!(kept.last_number, 9);
    assert_eq!(kept.marks.len(), 3);
    assert!(kept.marks.iter().all(|mark| mark.at == at(2)));
    assert_eq!(kept.members, [("7".to_owned(), "blue".to_owned())]);

    assert_eq!(kept.removed, []);

    let unmark = Change::RemoveMark { mark: Mark::Solved, challenge: web.number, subject: team };
    write(&store, [unmark, Change::RemoveChallenge(pwn.number)]).await;
    // Once more, as a write that is tried again.
    write(&store, [Change::RemoveChallenge(pwn.number)]).await;
    let kept = store.load_catalogue().await.unwrap();
    assert_eq!(kept.challenges, [web]);
    assert_eq!((kept.last_number, kept.removed), (9, vec![pwn.number]));
    let left: Vec<_> = kept.marks.iter().map(|mark| (mark.mark, mark.subject.clone())).collect();
    assert_eq!(left, [(Mark::Solved, user)]);
}

/// What is not wanted any more is not prolonged; and of two deadlines the later one holds, in whichever
/// order they are written.
pub async fn a_deadline_moves_only_while_a_stack_is_wanted(config: StoreConfig) {
    let store = open(&config).await;
    let (kept, gone) = (stack(1), stack(2));
    write(&store, [insert(&kept), insert(&gone)]).await;
    let desired = Desired::Gone;
    write(&store, [Change::Desire { id: gone.id, desired, generation: 2, at: at(3) }]).await;
    let seconds = std::time::Duration::from_secs;
    let (later, earlier) = (kept.expires_at + seconds(500), kept.expires_at + seconds(400));
    for (one, generation, expires_at, at) in
        [(&kept, 1, later, at(4)), (&kept, 1, earlier, at(5)), (&gone, 2, later, at(4))]
    {
        write(&store, [Change::Extend { id: one.id, generation, expires_at, at }]).await;
    }
    let stacks = store.load().await.unwrap().stacks;
    let of = |id| stacks.iter().find(|stack| stack.id == id).unwrap();
    assert_eq!((of(kept.id).expires_at, of(kept.id).updated_at), (later, at(4)));
    assert_eq!(of(gone.id).expires_at, gone.expires_at);
}
