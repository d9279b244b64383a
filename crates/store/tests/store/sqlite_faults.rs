//! What can go wrong with a file: a killed process, a full disk, another process' lock, damage, a
//! later version's schema.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use stackd_core::event::{EventKind, Seq};
use stackd_core::stack::Desired;
use stackd_core::{Phase, Protocol, Stack, StackId};
use stackd_store::{Change, JobStatus, Store, StoreConfig, StoreError};
use stackd_testkit::small_disk::SmallDisk;
use stackd_testkit::sqlite;
use stackd_testkit::store_contract::samples::{api_key, at, event, job, port, stack};

use super::{BOUND, in_directory, open};

const DATABASE: &str = "STACKD_TEST_DATABASE";

/// Larger than a page, so that a disk fills in not too many steps.
fn large(number: u64) -> Stack {
    let ports = vec![port(Protocol::Tcp, u16::try_from(number).unwrap())];
    Stack { pod_spec: "x".repeat(20_000).into(), ports, ..stack(number) }
}

fn created(stack: Stack) -> Vec<Change> {
    let event = event(stack.id, EventKind::Created);
    vec![Change::InsertStack(Box::new(stack)), Change::Event(event)]
}

fn reason(result: Result<stackd_store::Committed, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

/// Not a test: what `what_was_acknowledged_survives_a_kill` starts and kills.
#[test]
#[ignore = "a part of another test"]
fn child_that_writes() {
    let Some(path) = std::env::var_os(DATABASE) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(StoreConfig::Sqlite { path: path.into(), ballast_bytes: 0 }).await;
        for writer in 0..8u64 {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    let number = writer * 1_000_000 + n;
                    let committed = store.write(created(stack(number))).await.unwrap();
                    println!("wrote {number} {}", committed.events[0].seq.0);
                }
            });
        }
        std::future::pending::<()>().await;
    });
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let config = in_directory(directory.path());
    let StoreConfig::Sqlite { path, .. } = &config else { unreachable!() };
    for round in 1..=3 {
        // Each round begins with a store that it has not made.
        let before = open(config.clone()).await;
        for stack in before.load().await.unwrap().stacks {
            before.write(vec![Change::RemoveStack(stack.id)]).await.unwrap();
        }
        let Seq(first) = before.load().await.unwrap().last_event;
        drop(before);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite_faults::child_that_writes", "--ignored", "--nocapture"])
            .env(DATABASE, path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        while text.lines().count() < 100 * round {
            assert!(output.read_line(&mut text).unwrap() > 0, "the child ended: {text}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        output.read_to_string(&mut text).unwrap();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let acknowledged: Vec<(u64, u64)> = whole
            .lines()
            .filter_map(|line| line.split_once("wrote ")?.1.split_once(' '))
            .map(|(number, seq)| (number.parse().unwrap(), seq.parse().unwrap()))
            .collect();
        assert!(acknowledged.len() >= 90 * round, "{text}");

        let store = open(config.clone()).await;
        let snapshot = store.load().await.unwrap();
        let events = store.events_after(Seq(first), u64::MAX).await.unwrap();
        for (number, seq) in acknowledged {
            let id = StackId::from_bits(number);
            assert!(snapshot.stacks.iter().any(|stack| stack.id == id), "{id} is lost");
            assert!(events.iter().any(|e| e.seq == Seq(seq) && e.event.stack == id), "{seq}");
        }
        // Whole, those that were not acknowledged as well.
        assert_eq!(snapshot.stacks.len(), events.len());
        assert_eq!(snapshot.last_event.0, first + events.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_takes_no_new_stacks_and_lets_old_ones_go() {
    let disk = SmallDisk::new(48 << 20);
    let path = disk.path().join("stackd.db");
    let ballast = disk.path().join("stackd.db.ballast");
    let config = StoreConfig::Sqlite { path, ballast_bytes: 8 << 20 };
    let store = open(config.clone()).await;
    assert_eq!(ballast.metadata().unwrap().len(), 8 << 20);
    for n in 1..=50 {
        store.write(created(large(n))).await.unwrap();
    }
    let filler = disk.fill();
    let mut written = 50;
    let refused = loop {
        match store.write(created(large(written + 1))).await {
            Ok(_) => written += 1,
            Err(error) => break Err(error),
        }
    };
    assert_eq!(reason(refused), "the disk is full");
    assert!(!ballast.exists());

    // Nothing new, though there would be room now.
    assert_eq!(reason(store.write(created(stack(5_000))).await), "the disk is full");
    let key = Change::InsertApiKey(api_key("late", 1));
    assert_eq!(reason(store.write(vec![key]).await), "the disk is full");
    assert_eq!(store.load().await.unwrap().stacks.len() as u64, written);
    store.ping().await.unwrap();

    // Stacks go, all of them, and new ones among them are refused alone.
    for n in 1..=written {
        let id = StackId::from_bits(n);
        let gone = Change::Desire { id, desired: Desired::Gone, generation: 2, at: at(1) };
        let deleted = Change::Event(event(id, EventKind::Deleted));
        let job = Change::PutJob(Box::new(job(n, JobStatus::Queued, at(1))));
        let mut observed = stackd_core::stack::Observed::accepted();
        observed.phase = Phase::Failed;
        let ended = Change::Observe { id, generation: 2, observed, release_ports: true, at: at(2) };
        let (removed, refused) = tokio::join!(
            async {
                store.write(vec![gone, deleted, job]).await?;
                store.write(vec![ended]).await?;
                store.write(vec![Change::RemoveStack(id)]).await
            },
            store.write(created(stack(6_000 + n))),
        );
        removed.unwrap();
        assert_eq!(reason(refused), "the disk is full");
    }
    assert_eq!(store.load().await.unwrap().stacks, []);

    std::fs::remove_file(filler).unwrap();
    store.write(created(large(7_000))).await.unwrap();
    assert_eq!(ballast.metadata().unwrap().len(), 8 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_a_store_opens_with_the_room_of_its_reserve() {
    let disk = SmallDisk::new(32 << 20);
    let path = disk.path().join("stackd.db");
    let log = disk.path().join("stackd.db-wal");
    let config = StoreConfig::Sqlite { path, ballast_bytes: 8 << 20 };
    let store = open(config.clone()).await;
    store.write(created(stack(1))).await.unwrap();
    drop(store);
    // The last connection takes the log with it; then nothing is left to write in.
    while log.exists() {
        tokio::task::yield_now().await;
    }
    disk.fill();
    let store = open(config).await;
    store.write(vec![Change::RemoveStack(StackId::from_bits(1))]).await.unwrap();
    assert_eq!(reason(store.write(created(stack(2))).await), "the disk is full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_batch_that_meets_the_full_disk_removals_are_committed() {
    let disk = SmallDisk::new(48 << 20);
    let path = disk.path().join("stackd.db");
    let store = open(StoreConfig::Sqlite { path, ballast_bytes: 8 << 20 }).await;
    for n in 1..=50 {
        store.write(created(large(n))).await.unwrap();
    }
    let filler = disk.fill();
    let mut callers = tokio::task::JoinSet::new();
    for n in 1..=50 {
        let remover = store.clone();
        callers.spawn(async move {
            remover.write(vec![Change::RemoveStack(StackId::from_bits(n))]).await.unwrap();
        });
        let creator = store.clone();
        callers.spawn(async move {
            let huge = Stack { pod_spec: "x".repeat(500_000).into(), ..stack(n + 1_000) };
            match creator.write(created(huge)).await {
                Ok(_) => {}
                refused => assert_eq!(reason(refused), "the disk is full"),
            }
        });
    }
    callers.join_all().await;
    let left = store.load().await.unwrap();
    assert!(left.stacks.iter().all(|stack| stack.id.bits() > 1_000));
    assert!(left.stacks.len() < 50);
    std::fs::remove_file(filler).unwrap();
    store.write(created(stack(2_000))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_of_another_process_is_waited_for_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(in_directory(directory.path())).await;
    let mut other = lock(&directory.path().join("stackd.db")).await;
    let start = Instant::now();
    let refused = store.write(created(stack(1))).await;
    assert_eq!(reason(refused), "the database is locked by another process");
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    store.load().await.unwrap();
    other.rollback().await;
    store.write(created(stack(1))).await.unwrap();
}

/// Holds SQLite's write lock, as a stray `sqlite3` would.
async fn lock(path: &std::path::Path) -> Lock {
    use sea_orm::{ConnectionTrait, SqliteTransactionMode, TransactionOptions, TransactionTrait};
    let url = format!("sqlite://{}", path.display());
    let db = sea_orm::Database::connect(url).await.unwrap();
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let transaction = db.begin_with_options(options).await.unwrap();
    transaction.execute_unprepared("UPDATE head SET id = id").await.unwrap();
    Lock(Some(transaction))
}

struct Lock(Option<sea_orm::DatabaseTransaction>);

impl Lock {
    async fn rollback(&mut self) {
        self.0.take().unwrap().rollback().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let config = in_directory(directory.path());
    std::fs::write(directory.path().join("stackd.db"), "not a database ".repeat(1000)).unwrap();
    let Err(StoreError::Unusable(text)) = Store::open(config).await else { panic!() };
    assert!(text.contains("damaged or not a database"), "{text}");
    assert!(text.contains("restore it from a backup"), "{text}");

    let nowhere = in_directory(&directory.path().join("missing"));
    let Err(StoreError::Unusable(text)) = Store::open(nowhere).await else { panic!() };
    assert!(text.contains("cannot be opened") && text.contains("missing"), "{text}");
}

#[tokio::test]
async fn the_schema_of_a_later_version_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let config = in_directory(directory.path());
    let path = directory.path().join("stackd.db");
    open(config.clone()).await.write(created(stack(1))).await.unwrap();
    let later = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m0999_later', 0)";
    sqlite::execute(&path, later).await;
    let Err(StoreError::Unusable(text)) = Store::open(config.clone()).await else { panic!() };
    assert!(text.contains("newer version of stackd") && text.contains("m0999_later"), "{text}");
    assert!(text.contains("backup"), "{text}");

    sqlite::execute(&path, "DELETE FROM seaql_migrations WHERE applied_at = 0").await;
    assert_eq!(open(config).await.load().await.unwrap().stacks.len(), 1);
}

#[tokio::test]
async fn a_value_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(in_directory(directory.path())).await;
    store.write(created(stack(1))).await.unwrap();
    let path = directory.path().join("stackd.db");
    sqlite::execute(&path, "UPDATE stacks SET phase = 'sleeping'").await;
    let Err(StoreError::Corrupt(text)) = store.load().await else { panic!() };
    assert_eq!(text, "stack-0000000000000001: phase is \"sleeping\"");
}

#[tokio::test]
async fn the_files_are_for_their_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(in_directory(directory.path())).await;
    store.write(created(stack(1))).await.unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
        files += 1;
    }
    // The database, its log and shared memory, the ballast.
    assert_eq!(files, 4);
}
