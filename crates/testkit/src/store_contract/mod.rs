//! What every database must do. Each function is one test and wants an empty database.
#![expect(clippy::unwrap_used, reason = "these are tests")]

mod challenges;
pub mod samples;

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use stackd_core::event::{Event, EventKind, NewEvent, Seq};
use stackd_core::stack::{Condition, Desired, Observed, reason};
use stackd_core::{Phase, Protocol, Stack, StackId};
use stackd_store::{Change, Committed, Job, JobStatus, Snapshot, Store, StoreConfig, StoreError};
use tokio::task::JoinSet;

pub use challenges::*;
use samples::{api_key, at, event, idempotency, job, owner, port, stack};

/// Concurrent callers in the tests of races.
const CALLERS: u64 = 100;

async fn open(config: &StoreConfig) -> Store {
    Store::open(config.clone()).await.unwrap()
}

fn insert(stack: &Stack) -> Change {
    Change::InsertStack(Box::new(stack.clone()))
}

fn created(stack: &Stack) -> Vec<Change> {
    vec![insert(stack), Change::Event(event(stack.id, EventKind::Created))]
}

fn observe(stack: &Stack, phase: Phase, release_ports: bool) -> Change {
    Change::Observe {
        id: stack.id,
        generation: stack.generation,
        observed: Observed { phase, ..Observed::accepted() },
        release_ports,
        at: at(5),
    }
}

async fn write(store: &Store, changes: impl Into<Vec<Change>>) -> Committed {
    store.write(changes.into()).await.unwrap()
}

/// All of these at the same time; what each of them got.
async fn at_once(
    store: &Store,
    use_cases: impl IntoIterator<Item = Vec<Change>>,
) -> Vec<Result<Committed, StoreError>> {
    let mut callers = JoinSet::new();
    for (place, changes) in use_cases.into_iter().enumerate() {
        let store = store.clone();
        callers.spawn(async move { (place, store.write(changes).await) });
    }
    let mut results = callers.join_all().await;
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Asserts that of all these exactly one was committed and the others were refused so.
fn one_won(results: &[Result<Committed, StoreError>], refused: fn(&StoreError) -> bool) {
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(refused(error), "{error:?}");
    }
}

fn sorted<T: Clone, K: Ord>(records: &[T], key: impl Fn(&T) -> K) -> Vec<T> {
    let mut records = records.to_vec();
    records.sort_by_key(key);
    records
}

/// Every field of every record is read back as it was written, also by the next process.
pub async fn every_field_comes_back(config: StoreConfig) {
    const RECORDS: u16 = 48;
    let mut runner = TestRunner::default();
    let mut stacks = Vec::new();
    let mut jobs = Vec::new();
    let mut records = Vec::new();
    let mut keys = Vec::new();
    let mut events: Vec<NewEvent> = Vec::new();
    for n in 1..=RECORDS {
        stacks.push(samples::any_stack(n).new_tree(&mut runner).unwrap().current());
        jobs.push(samples::any_job(n.into()).new_tree(&mut runner).unwrap().current());
        records.push(samples::any_idempotency(n.into()).new_tree(&mut runner).unwrap().current());
        keys.push(samples::any_api_key(n.into()).new_tree(&mut runner).unwrap().current());
        events.push(samples::any_event().new_tree(&mut runner).unwrap().current());
    }
    // Their times never go back.
    events.sort_by_key(|event| event.at);
    let store = open(&config).await;
    for n in 0..usize::from(RECORDS) {
        let changes = [
            insert(&stacks[n]),
            Change::PutJob(Box::new(Job {
                stack_ids: Arc::clone(&jobs[n].stack_ids),
                ..job(n as u64 + 1, JobStatus::Queued, at(0))
            })),
            // Progress is not about what was asked for.
            Change::PutJob(Box::new(Job { stack_ids: Arc::new([]), ..jobs[n].clone() })),
            Change::InsertIdempotency(records[n].clone()),
            Change::InsertApiKey(keys[n].clone()),
            Change::Event(events[n].clone()),
        ];
        // The first job's row says when it was accepted; progress does not move that.
        jobs[n].created_at = at(0);
        let committed = write(&store, changes).await;
        assert_eq!(committed.events[0].event, events[n]);
    }
    // What is observed of some of them later is read back as well.
    for stack in stacks.iter_mut().step_by(2) {
        let observed = samples::any_observed().new_tree(&mut runner).unwrap().current();
        let change = Change::Observe {
            id: stack.id,
            generation: stack.generation,
            observed: observed.clone(),
            release_ports: false,
            at: at(9),
        };
        write(&store, [change]).await;
        stack.observed = observed;
        stack.updated_at = at(9);
    }
    let check = |snapshot: Snapshot| {
        assert_eq!(sorted(&snapshot.stacks, |s| s.id), sorted(&stacks, |s| s.id));
        assert_eq!(sorted(&snapshot.jobs, |j| j.id), sorted(&jobs, |j| j.id));
        assert_eq!(
            sorted(&snapshot.idempotency, |r| (r.scope.clone(), r.key.clone())),
            sorted(&records, |r| (r.scope.clone(), r.key.clone()))
        );
        assert_eq!(sorted(&snapshot.api_keys, |k| k.hash), sorted(&keys, |k| k.hash));
        assert_eq!(snapshot.last_event, Seq(RECORDS.into()));
        assert!(snapshot.stacks.is_sorted_by_key(|stack| stack.created_at));
    };
    check(store.load().await.unwrap());
    drop(store);
    let store = open(&config).await;
    check(store.load().await.unwrap());
    let read = store.events_after(Seq(0), u64::MAX).await.unwrap();
    assert_eq!(read.into_iter().map(|event| event.event).collect::<Vec<_>>(), events);
}

/// Of a hundred stacks of one owner one is live; when it has ended, or is not wanted, there may be
/// another.
pub async fn an_owner_has_one_live_stack(config: StoreConfig) {
    let store = open(&config).await;
    let mine = |n: u64| Stack { owner: owner("player", "team-1", "7"), ..stack(n) };
    let results = at_once(&store, (0..CALLERS).map(|n| created(&mine(n)))).await;
    one_won(&results, |error| matches!(error, StoreError::OwnerTaken));
    let snapshot = store.load().await.unwrap();
    assert_eq!((snapshot.stacks.len(), snapshot.last_event), (1, Seq(1)));
    let first = snapshot.stacks[0].clone();

    let others =
        [("player", "team-1", "8"), ("player", "team-2", "7"), ("instancer", "team-1", "7")];
    for (n, (dialect, tenant, slot)) in (1000..).zip(others) {
        write(&store, [insert(&Stack { owner: owner(dialect, tenant, slot), ..stack(n) })]).await;
    }

    write(&store, [observe(&first, Phase::Running, false)]).await;
    let refused = store.write(vec![insert(&mine(500))]).await;
    assert!(matches!(refused, Err(StoreError::OwnerTaken)), "{refused:?}");
    for (n, phase) in (501..).zip([Phase::Stopped, Phase::Failed, Phase::NodeDeleted]) {
        let live = store.load().await.unwrap().stacks;
        let live = live.iter().find(|s| s.owner == first.owner && s.is_active()).unwrap().clone();
        write(&store, [observe(&live, phase, true)]).await;
        write(&store, [insert(&mine(n))]).await;
    }
    let gone = Change::Desire {
        id: StackId::from_bits(503),
        desired: Desired::Gone,
        generation: 2,
        at: at(6),
    };
    write(&store, [gone, insert(&mine(504))]).await;
    let snapshot = store.load().await.unwrap();
    let of_owner: Vec<_> = snapshot.stacks.iter().filter(|s| s.owner == first.owner).collect();
    assert_eq!(of_owner.len(), 5);
    assert_eq!(of_owner.iter().filter(|s| s.is_active()).count(), 1);
    let not_wanted = of_owner.iter().find(|s| s.id == StackId::from_bits(503)).unwrap();
    assert_eq!((not_wanted.desired, not_wanted.generation), (Desired::Gone, 2));
    assert_eq!(not_wanted.updated_at, at(6));
}

/// A node port is held by one stack until it is released or its stack is removed, each protocol by
/// itself; the stack goes on telling which it had.
pub async fn a_node_port_is_held_once(config: StoreConfig) {
    let store = open(&config).await;
    let with = |n: u64, ports| Stack { ports, ..stack(n) };
    let tcp = port(Protocol::Tcp, 31001);
    // The second port of each is its own: a refused stack must not keep it.
    let own = |n: u64| port(Protocol::Udp, 32000 + n as u16);
    let results = at_once(&store, (0..CALLERS).map(|n| created(&with(n, vec![own(n), tcp])))).await;
    one_won(&results, |error| matches!(error, StoreError::PortTaken));
    let winner = store.load().await.unwrap().stacks[0].clone();
    assert_eq!(winner.ports[1], tcp);

    write(&store, [insert(&with(200, vec![port(Protocol::Udp, 31001)]))]).await;
    let left = (0..CALLERS).map(own).filter(|port| *port != winner.ports[0]);
    write(&store, [insert(&with(201, left.collect()))]).await;

    let holders = [
        observe(&winner, Phase::Failed, false),
        Change::Desire { id: winner.id, desired: Desired::Gone, generation: 2, at: at(6) },
    ];
    for change in holders {
        write(&store, [change]).await;
        let refused = store.write(vec![insert(&with(300, vec![tcp]))]).await;
        assert!(matches!(refused, Err(StoreError::PortTaken)), "{refused:?}");
    }
    let stale = Change::Observe {
        id: winner.id,
        generation: 1,
        observed: Observed::accepted(),
        release_ports: true,
        at: at(7),
    };
    write(&store, [stale]).await;
    let refused = store.write(vec![insert(&with(300, vec![tcp]))]).await;
    assert!(matches!(refused, Err(StoreError::PortTaken)), "{refused:?}");
    let winner = Stack { generation: 2, ..winner };
    write(&store, [observe(&winner, Phase::Failed, true)]).await;
    write(&store, [insert(&with(301, vec![tcp]))]).await;
    let snapshot = store.load().await.unwrap();
    let told = snapshot.stacks.iter().find(|s| s.id == winner.id).unwrap();
    assert_eq!(told.ports, winner.ports);

    write(&store, [Change::RemoveStack(StackId::from_bits(301))]).await;
    write(&store, [Change::RemoveStack(StackId::from_bits(301)), insert(&with(302, vec![tcp]))])
        .await;
    let twice = with(303, vec![port(Protocol::Tcp, 1), port(Protocol::Tcp, 1)]);
    let refused = store.write(vec![insert(&twice)]).await;
    assert!(matches!(refused, Err(StoreError::PortTaken)), "{refused:?}");
}

/// A use case that fails leaves nothing of itself and takes nobody with it, alone or among others.
pub async fn a_use_case_is_whole(config: StoreConfig) {
    let store = open(&config).await;
    write(&store, [Change::InsertIdempotency(idempotency("taken", stack(0).id, at(0)))]).await;
    let failing = |n: u64| {
        let mut changes =
            created(&Stack { ports: vec![port(Protocol::Tcp, n as u16)], ..stack(n) });
        changes.push(Change::PutJob(Box::new(job(n, JobStatus::Queued, at(0)))));
        changes.push(Change::InsertIdempotency(idempotency("taken", stack(n).id, at(0))));
        changes
    };
    let alone = store.write(failing(1)).await;
    assert!(matches!(alone, Err(StoreError::Duplicate(_))), "{alone:?}");
    assert_eq!(store.load().await.unwrap().last_event, Seq(0));

    let key = idempotency("again", stack(0).id, at(0));
    write(&store, [Change::InsertIdempotency(key.clone())]).await;
    let (scope, name) = (key.scope.clone(), key.key.clone());
    let forget = Change::ForgetIdempotency { scope, key: name };
    write(&store, [forget.clone(), Change::InsertIdempotency(key)]).await;
    write(&store, [forget]).await;

    let mixed = (1..=CALLERS).map(|n| if n % 3 == 0 { failing(n) } else { created(&stack(n)) });
    let results = at_once(&store, mixed).await;
    for (n, result) in (1..).zip(&results) {
        assert_eq!(result.is_err(), n % 3 == 0, "{n}: {result:?}");
    }
    let snapshot = store.load().await.unwrap();
    let there: BTreeSet<_> = snapshot.stacks.iter().map(|stack| stack.id).collect();
    let expected: BTreeSet<_> =
        (1..=CALLERS).filter(|n| n % 3 != 0).map(StackId::from_bits).collect();
    assert_eq!(there, expected);
    assert_eq!((snapshot.jobs.len(), snapshot.idempotency.len()), (0, 1));
    assert_eq!(snapshot.last_event, Seq(expected.len() as u64));
    // Their ports are free as well.
    let ports = (1..=CALLERS).map(|n| port(Protocol::Tcp, n as u16)).collect();
    write(&store, [insert(&Stack { ports, ..stack(500) })]).await;

    let same_id = store.write(created(&Stack { owner: owner("a", "b", "c"), ..stack(1) })).await;
    assert!(matches!(same_id, Err(StoreError::Duplicate(_))), "{same_id:?}");
    assert!(write(&store, []).await.events.is_empty());
}

/// Numbers have no gaps and are in the order of commits: who has read number n has read all before,
/// and subscribers, readers and writers see the same.
pub async fn numbers_are_in_the_order_of_commits(config: StoreConfig) {
    const EVENTS: u64 = CALLERS * 3;
    let store = open(&config).await;
    let mut subscribed = store.subscribe();
    let reader = tokio::spawn({
        let store = store.clone();
        async move {
            let mut seen: Vec<Event> = Vec::new();
            while seen.len() < EVENTS as usize {
                let after = Seq(seen.len() as u64);
                // An event that is committed later with a smaller number would be missed here.
                let more = store.events_after(after, 50).await.unwrap();
                for (number, event) in (after.0 + 1..).zip(&more) {
                    assert_eq!(event.seq, Seq(number));
                }
                seen.extend(more);
            }
            seen
        }
    });
    let three = |n: u64| {
        let kinds = [EventKind::Created, EventKind::Changed, EventKind::Deleted];
        kinds.map(|kind| Change::Event(event(StackId::from_bits(n), kind))).to_vec()
    };
    let results = at_once(&store, (0..CALLERS).map(three)).await;
    let read = reader.await.unwrap();
    let mut written: Vec<Arc<Event>> = Vec::new();
    for (n, result) in (0..).zip(results) {
        let events = result.unwrap().events;
        assert_eq!(events.len(), 3);
        assert!(events.iter().all(|event| event.event.stack == StackId::from_bits(n)));
        assert_eq!((events[1].seq.0, events[2].seq.0), (events[0].seq.0 + 1, events[0].seq.0 + 2));
        written.extend(events);
    }
    written.sort_by_key(|event| event.seq);
    assert!(written.iter().map(Arc::as_ref).eq(&read));
    for event in &read {
        assert_eq!(*subscribed.recv().await.unwrap(), *event);
    }
    assert!(subscribed.is_empty());
    assert_eq!(store.event_range().await.unwrap(), (Seq(1), Seq(EVENTS)));
    let of_one = store.events_of(StackId::from_bits(5), 2).await.unwrap();
    let kinds: Vec<_> = of_one.iter().map(|event| event.event.kind).collect();
    assert_eq!(kinds, [EventKind::Changed, EventKind::Deleted]);
}

/// Events that meet on their way, or a clock that is put right, do not make times go back; a clock
/// that was far ahead is not kept to.
pub async fn times_of_events_never_go_back(config: StoreConfig) {
    let first = event(stack(1).id, EventKind::Created);
    let at = first.at;
    let before = |seconds| {
        let earlier =
            NewEvent { at: at - std::time::Duration::from_secs(seconds), ..first.clone() };
        [Change::Event(earlier)]
    };
    let store = open(&config).await;
    write(&store, [Change::Event(first.clone())]).await;
    assert_eq!(write(&store, before(5)).await.events[0].event.at, at);
    drop(store);
    let store = open(&config).await;
    let committed = write(&store, before(5)).await;
    assert_eq!(committed.events[0].event.at, at, "also after a restart");
    let kept = store.events_after(Seq(0), 10).await.unwrap();
    assert!(kept.len() == 3 && kept.iter().all(|event| event.event.at == at), "{kept:?}");
    let hour = write(&store, before(3600)).await.events[0].event.at;
    assert!(hour < at, "an hour is a clock that was wrong: {hour}");
}

/// What was observed of an earlier generation, or of a stack that is gone, changes nothing.
pub async fn an_older_observation_is_ignored(config: StoreConfig) {
    let store = open(&config).await;
    let mut first = Stack { generation: 3, ..stack(1) };
    write(&store, [insert(&first)]).await;
    write(&store, [observe(&Stack { generation: 2, ..first.clone() }, Phase::Failed, true)]).await;
    let older = Change::Desire { id: first.id, desired: Desired::Gone, generation: 2, at: at(3) };
    write(&store, [older]).await;
    assert_eq!(store.load().await.unwrap().stacks, [first.clone()]);

    let condition = Condition::new(reason::NOT_READY, "port 80 does not answer yet");
    first.observed.condition = Some(condition);
    first.updated_at = at(4);
    let now = Change::Observe {
        id: first.id,
        generation: 3,
        observed: first.observed.clone(),
        release_ports: false,
        at: at(4),
    };
    write(&store, [now]).await;
    assert_eq!(store.load().await.unwrap().stacks, [first.clone()]);

    write(&store, [Change::RemoveStack(first.id)]).await;
    let later = Change::Desire { id: first.id, desired: Desired::Gone, generation: 9, at: at(3) };
    write(&store, [observe(&first, Phase::Running, true), later]).await;
    assert_eq!(store.load().await.unwrap().stacks, []);
}

/// A name is an API key's until it is revoked; a hash for ever.
pub async fn api_keys_are_unique_until_revoked(config: StoreConfig) {
    let store = open(&config).await;
    let duplicate = |result| matches!(result, Err(StoreError::Duplicate(_)));
    write(&store, [Change::InsertApiKey(api_key("first", 1))]).await;
    assert!(duplicate(store.write(vec![Change::InsertApiKey(api_key("first", 2))]).await));
    let revoke = |seconds| Change::RevokeApiKey { name: "first".to_owned(), at: at(seconds) };
    write(&store, [revoke(10)]).await;
    write(&store, [Change::InsertApiKey(api_key("first", 2))]).await;
    assert!(duplicate(store.write(vec![Change::InsertApiKey(api_key("other", 1))]).await));
    write(&store, [revoke(20), revoke(30)]).await;
    let keys = store.load().await.unwrap().api_keys;
    let revoked: Vec<_> = keys.iter().map(|key| (key.hash[0], key.revoked_at)).collect();
    assert_eq!(revoked, [(1, Some(at(10))), (2, Some(at(20)))]);
}

/// Pruning takes what is old and nothing else; the numbers go on where they were.
pub async fn pruning_takes_only_the_old(config: StoreConfig) {
    let store = open(&config).await;
    assert_eq!(store.event_range().await.unwrap(), (Seq(0), Seq(0)));
    let many = (0..11_000).map(|n| Change::Event(event(StackId::from_bits(n), EventKind::Changed)));
    write(&store, many.collect::<Vec<_>>()).await;
    let records = [
        insert(&stack(1)),
        Change::InsertIdempotency(idempotency("old", stack(1).id, at(9))),
        Change::InsertIdempotency(idempotency("new", stack(1).id, at(10))),
        Change::PutJob(Box::new(job(1, JobStatus::Completed, at(9)))),
        Change::PutJob(Box::new(job(2, JobStatus::Failed, at(9)))),
        Change::PutJob(Box::new(job(3, JobStatus::Running, at(9)))),
        Change::PutJob(Box::new(job(4, JobStatus::Queued, at(9)))),
        Change::PutJob(Box::new(job(5, JobStatus::Completed, at(10)))),
    ];
    write(&store, records).await;
    store.prune(11_000, at(0)).await.unwrap();
    assert_eq!(store.event_range().await.unwrap(), (Seq(1), Seq(11_000)));
    store.prune(100, at(10)).await.unwrap();
    assert_eq!(store.event_range().await.unwrap(), (Seq(10_901), Seq(11_000)));
    let snapshot = store.load().await.unwrap();
    let keys: Vec<_> = snapshot.idempotency.iter().map(|record| record.key.as_str()).collect();
    assert_eq!(keys, ["new"]);
    let jobs: Vec<_> = snapshot.jobs.iter().map(|job| job.id.bits()).collect();
    assert_eq!(jobs, [3, 4, 5]);
    assert_eq!(snapshot.stacks.len(), 1);

    store.prune(0, at(0)).await.unwrap();
    assert_eq!(store.event_range().await.unwrap(), (Seq(0), Seq(0)));
    assert_eq!(store.load().await.unwrap().last_event, Seq(11_000));
    let next = write(&store, [Change::Event(event(stack(1).id, EventKind::Changed))]).await;
    assert_eq!(next.events[0].seq, Seq(11_001));
}

/// A NUL, which one of the databases cannot keep, fails nothing.
pub async fn a_nul_does_not_fail_a_write(config: StoreConfig) {
    let store = open(&config).await;
    let nul = Stack { owner: owner("a\0b", "\0", ""), ..stack(1) };
    write(&store, [insert(&nul)]).await;
    let stacks = store.load().await.unwrap().stacks;
    assert_eq!(stacks[0].owner, owner("a\u{fffd}b", "\u{fffd}", ""));
}

/// The writer goes on although nobody waits for the answer.
pub async fn a_caller_that_leaves_takes_nothing_back(config: StoreConfig) {
    let store = open(&config).await;
    let mut subscribed = store.subscribe();
    for n in 1..=20 {
        let writing = store.write(created(&stack(n)));
        // Polled until it waits, and dropped.
        let _ = tokio::time::timeout(std::time::Duration::ZERO, writing).await;
    }
    for n in 1..=20 {
        assert_eq!(subscribed.recv().await.unwrap().seq, Seq(n));
    }
    assert_eq!(store.load().await.unwrap().stacks.len(), 20);
}
