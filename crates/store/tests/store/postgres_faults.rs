//! What can go wrong with a server: it stops, it is killed in the middle of commits, it does not
//! answer any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use stackd_core::event::{EventKind, Seq};
use stackd_store::{Change, Store, StoreConfig, StoreError};
use stackd_testkit::postgres::{PASSWORD, Postgres};
use stackd_testkit::store_contract::samples::{event, stack};
use tokio::sync::watch;

use super::{BOUND, in_postgres, open};

fn created(number: u64) -> Vec<Change> {
    let stack = stack(number);
    let event = event(stack.id, EventKind::Created);
    vec![Change::InsertStack(Box::new(stack)), Change::Event(event)]
}

async fn refused_soon(store: &Store, number: u64) {
    let start = Instant::now();
    let result = store.write(created(number)).await;
    let Err(StoreError::Unavailable { reason, operator }) = &result else { panic!("{result:?}") };
    assert_eq!(reason, "the database cannot be reached");
    assert!(!format!("{reason} {operator} {result:?}").contains(PASSWORD));
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_and_comes_is_waited_for() {
    let cluster = Postgres::start();
    let store = open(in_postgres(&cluster)).await;
    store.write(created(1)).await.unwrap();
    store.ping().await.unwrap();

    cluster.stop();
    refused_soon(&store, 2).await;
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable { .. })));
    assert!(matches!(store.load().await, Err(StoreError::Unavailable { .. })));
    cluster.start_again();
    store.write(created(2)).await.unwrap();
    store.ping().await.unwrap();

    // It was away while nobody asked: nobody notices.
    cluster.stop();
    cluster.start_again();
    store.write(created(3)).await.unwrap();
    assert_eq!(store.load().await.unwrap().stacks.len(), 3);
    assert_eq!(store.event_range().await.unwrap(), (Seq(1), Seq(3)));

    cluster.freeze();
    refused_soon(&store, 4).await;
    let start = Instant::now();
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable { .. })));
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    cluster.thaw();
    store.write(created(4)).await.unwrap();
    assert_eq!(store.event_range().await.unwrap(), (Seq(1), Seq(4)));
}

/// The heart of it: whatever happens to the server in the middle of whatever, each write is there
/// exactly if it was said to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_or_frozen_server_never_makes_an_answer_wrong() {
    let cluster = Arc::new(Postgres::start());
    let store = open(in_postgres(&cluster)).await;
    let (acknowledged, mut seen) = watch::channel(0u64);
    let (refused, seen_refused) = watch::channel(0u64);
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..16u64 {
        let (store, stop) = (store.clone(), stop.clone());
        let (acknowledged, refused) = (acknowledged.clone(), refused.clone());
        callers.spawn(async move {
            let mut done = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let number = caller * 1_000_000 + n;
                match store.write(created(number)).await {
                    Ok(committed) => {
                        acknowledged.send_modify(|count| *count += 1);
                        done.push((number, committed.events[0].seq));
                    }
                    Err(StoreError::Unavailable { .. }) => {
                        refused.send_modify(|count| *count += 1);
                    }
                    // The same id is never written twice: a double apply would show as this.
                    Err(other) => panic!("{other:?}"),
                }
            }
            done
        });
    }
    for round in 0..6 {
        let goal = *seen.borrow() + 150;
        seen.wait_for(|count| *count >= goal).await.unwrap();
        let (cluster, mut seen_refused) = (cluster.clone(), seen_refused.clone());
        tokio::task::spawn_blocking(move || match round % 3 {
            0 => {
                cluster.kill();
                cluster.start_again();
            }
            1 => {
                cluster.stop();
                cluster.start_again();
            }
            _ => {
                // Until somebody was told, so that what was under way is given up and looked up.
                cluster.freeze();
                let before = *seen_refused.borrow();
                let told = seen_refused.wait_for(|count| *count > before);
                tokio::runtime::Handle::current().block_on(told).unwrap();
                cluster.thaw();
            }
        })
        .await
        .unwrap();
    }
    let goal = *seen.borrow() + 50;
    seen.wait_for(|count| *count >= goal).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let done: Vec<_> = callers.join_all().await.into_iter().flatten().collect();

    let snapshot = store.load().await.unwrap();
    let there: BTreeSet<u64> = snapshot.stacks.iter().map(|stack| stack.id.bits()).collect();
    let said: BTreeSet<u64> = done.iter().map(|(number, _)| *number).collect();
    let lost: Vec<_> = said.difference(&there).collect();
    let unsaid: Vec<_> = there.difference(&said).collect();
    assert!(lost.is_empty() && unsaid.is_empty(), "lost {lost:?}, not told {unsaid:?}");
    let events = store.events_after(Seq(0), u64::MAX).await.unwrap();
    assert_eq!(events.len(), there.len());
    assert_eq!(snapshot.last_event, Seq(events.len() as u64));
    for (number, seq) in done {
        let event = &events[usize::try_from(seq.0).unwrap() - 1];
        assert_eq!((event.seq, event.event.stack.bits()), (seq, number));
    }
}

#[tokio::test]
async fn a_password_shows_nowhere() {
    let cluster = Postgres::shared();
    let StoreConfig::Postgres { url } = in_postgres(cluster) else { unreachable!() };
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], stackd_testkit::ports::free()));
    let (before, _) = url.rsplit_once("127.0.0.1").unwrap();
    let cases = [
        (url.replace(PASSWORD, &format!("{PASSWORD}x")), "password authentication failed"),
        (url.replace("/test_", "/missing_"), "does not exist"),
        (url.replace("127.0.0.1", "127.0.0.1:x"), "cannot be read"),
        (url.replace("postgres://stackd:", "postgres://@stackd:"), ""),
        (url.replace("127.0.0.1", "no-such-host.invalid"), "no-such-host.invalid:"),
        (format!("{before}{nobody}/test"), "Connection refused"),
    ];
    for (url, why) in cases {
        let config = StoreConfig::Postgres { url };
        assert!(!format!("{config:?}").contains(PASSWORD));
        let start = Instant::now();
        let error = match Store::open(config).await {
            Ok(_) => panic!("it was opened"),
            Err(error) => error,
        };
        let text = format!("{error} {error:?}");
        assert!(!text.contains(PASSWORD), "{text}");
        assert!(text.contains(why), "{why:?} is not told: {text}");
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_start_together_make_one_schema() {
    let config = in_postgres(Postgres::shared());
    let (first, second) = tokio::join!(Store::open(config.clone()), Store::open(config));
    let (first, second) = (first.unwrap(), second.unwrap());
    let (a, b) = tokio::join!(first.write(created(1)), second.write(created(2)));
    let mut numbers = [a.unwrap().events[0].seq, b.unwrap().events[0].seq];
    numbers.sort();
    assert_eq!(numbers, [Seq(1), Seq(2)]);
}
