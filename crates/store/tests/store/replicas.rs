//! Several servers on one database: who may write, and what the others are told.

use std::time::Duration;

use stackd_core::Timestamp;
use stackd_core::event::{EventKind, Seq};
use stackd_store::{ApiKey, Candidate, Change, Store, StoreError, Touched};
use stackd_testkit::postgres::Postgres;
use stackd_testkit::store_contract::samples::{event, stack};
use stackd_testkit::within;

use super::{in_postgres, open};

const LONG: Duration = Duration::from_secs(60);

fn candidate(name: &str) -> Candidate {
    Candidate {
        id: name.to_owned(),
        address: format!("http://{name}:1"),
        certificate: String::new(),
    }
}

fn created(number: u64) -> Vec<Change> {
    let stack = stack(number);
    let event = event(stack.id, EventKind::Created);
    vec![Change::InsertStack(Box::new(stack)), Change::Event(event)]
}

fn key(name: &str) -> Vec<Change> {
    vec![Change::InsertApiKey(ApiKey {
        name: name.to_owned(),
        hash: [u8::try_from(name.len()).unwrap(); 32],
        permissions: Vec::new(),
        dialects: Vec::new(),
        created_at: Timestamp::UNIX_EPOCH,
        revoked_at: None,
    })]
}

async fn two() -> (Store, Store) {
    let config = in_postgres(Postgres::shared());
    (open(config.clone()).await, open(config).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_holds_the_lease_writes() {
    let (a, b) = two().await;
    assert_eq!(a.acquire_lease(&candidate("a"), LONG).await.unwrap(), Some(1));
    assert_eq!(b.acquire_lease(&candidate("b"), LONG).await.unwrap(), None);
    a.at_epoch(1).write(created(1)).await.unwrap();
    let leader = b.changes_after(0).await.unwrap().leader.unwrap();
    assert_eq!((leader.epoch, leader.candidate), (1, candidate("a")));

    a.release_lease(1).await.unwrap();
    assert_eq!(b.changes_after(0).await.unwrap().leader, None);
    assert_eq!(b.acquire_lease(&candidate("b"), LONG).await.unwrap(), Some(2));
    b.at_epoch(2).write(created(2)).await.unwrap();

    // The first goes on as if nothing had happened.
    assert!(!a.renew_lease(1, 0, LONG).await.unwrap());
    let former = a.at_epoch(1);
    assert!(matches!(former.write(created(3)).await, Err(StoreError::Superseded)));
    assert!(matches!(former.prune(0, Timestamp::now()).await, Err(StoreError::Superseded)));
    // What it asks for takes nothing with it that anybody may write.
    let (refused, written) = tokio::join!(former.write(created(4)), a.write(key("guest")));
    assert!(matches!(refused, Err(StoreError::Superseded)));
    written.unwrap();
    let snapshot = b.load().await.unwrap();
    assert_eq!(snapshot.stacks.len(), 2);
    assert_eq!((snapshot.last_event, snapshot.api_keys.len()), (Seq(2), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_not_renewed_runs_out() {
    let (a, b) = two().await;
    let short = Duration::from_millis(300);
    assert_eq!(a.acquire_lease(&candidate("a"), short).await.unwrap(), Some(1));
    assert!(a.renew_lease(1, 0, short).await.unwrap());
    let epoch = within("the lease runs out", async {
        loop {
            if let Some(epoch) = b.acquire_lease(&candidate("b"), LONG).await.unwrap() {
                return epoch;
            }
        }
    })
    .await;
    assert_eq!(epoch, 2);
    assert!(!a.renew_lease(1, 0, LONG).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_is_told_what_to_read_again() {
    let (a, b) = two().await;
    let mut news = b.commits().await.unwrap();
    let mut events = b.subscribe();
    a.acquire_lease(&candidate("a"), LONG).await.unwrap();
    within("the lease is news", news.next()).await.unwrap();
    let leader = a.at_epoch(1);
    let before = b.changes_after(0).await.unwrap().commit;

    leader.write(created(1)).await.unwrap();
    within("a commit is news", news.next()).await.unwrap();
    let commit = a.write(key("guest")).await.unwrap().commit;
    let changes = b.changes_after(before).await.unwrap();
    let id = stack(1).id;
    assert_eq!(changes.touched.as_deref(), Some(&[Touched::Stack(id), Touched::Keys][..]));
    assert_eq!((changes.commit, changes.last_event, changes.more), (commit, Seq(1), false));
    assert_eq!(b.stacks(&[id, stack(9).id]).await.unwrap(), [stack(1)]);
    assert_eq!(b.api_keys().await.unwrap().len(), 1);

    b.announce(changes.last_event).await.unwrap();
    assert_eq!(events.recv().await.unwrap().seq, Seq(1));
    b.announce(changes.last_event).await.unwrap();
    assert!(events.try_recv().is_err(), "told twice");

    // Nothing new, and a database that was put back from an older copy.
    assert_eq!(b.changes_after(commit).await.unwrap().touched, Some(Vec::new()));
    assert_eq!(b.changes_after(commit + 5).await.unwrap().touched, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_missed_a_little_reads_in_pages_and_who_missed_what_is_not_told_reads_everything() {
    let (a, b) = two().await;
    // From before there were replicas: nobody wrote down what was touched.
    a.write(created(1)).await.unwrap();
    a.acquire_lease(&candidate("a"), LONG).await.unwrap();
    assert_eq!(b.changes_after(0).await.unwrap().touched, None);
    let from = b.load().await.unwrap().commit;
    let leader = a.at_epoch(1);
    for number in 2..=1300 {
        leader.write(vec![Change::RemoveStack(stack(number).id)]).await.unwrap();
    }
    let (mut commit, mut touched) = (from, 0);
    loop {
        let changes = b.changes_after(commit).await.unwrap();
        touched += changes.touched.unwrap().len();
        commit = changes.commit;
        if !changes.more {
            break;
        }
    }
    assert_eq!((touched, commit), (1299, from + 1299));
}
