//! How long a create takes to be durable, and how many a second there are when a hundred callers
//! write at once.
//!
//! `cargo run --release -p stackd-store --example write_latency [DIRECTORY | postgres://…]`
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a measurement may panic")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use stackd_core::event::EventKind;
use stackd_core::{Protocol, Stack};
use stackd_store::{Change, Store, StoreConfig};
use stackd_testkit::store_contract::samples;

const ALONE: u64 = 2_000;
const WRITERS: u64 = 100;
const WRITES_EACH: u64 = 50;

fn main() {
    let place = std::env::args().nth(1);
    let directory;
    let config = match place {
        Some(url) if url.starts_with("postgres") => StoreConfig::Postgres { url },
        place => {
            directory = place.map_or_else(std::env::temp_dir, PathBuf::from).join("write-latency");
            std::fs::create_dir_all(&directory).unwrap();
            StoreConfig::Sqlite { path: directory.join("stackd.db"), ballast_bytes: 0 }
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(config.clone()));
    drop(runtime);
    if let StoreConfig::Sqlite { path, .. } = config {
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}

async fn measure(config: StoreConfig) {
    let store = Store::open(config).await.unwrap();
    let first = store.load().await.unwrap().last_event.0;
    let mut times = Vec::new();
    for n in 0..ALONE {
        let changes = create(first + n);
        let start = Instant::now();
        store.write(changes).await.unwrap();
        times.push(start.elapsed());
    }
    report("one after another, stack + port + event", &mut times);

    let start = Instant::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                for n in 0..WRITES_EACH {
                    let changes = create(first + ALONE + writer * WRITES_EACH + n);
                    let start = Instant::now();
                    store.write(changes).await.unwrap();
                    times.push(start.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for writer in writers {
        times.extend(writer.await.unwrap());
    }
    let total = start.elapsed();
    report("a hundred at once", &mut times);
    let rate = times.len() as f64 / total.as_secs_f64();
    println!("{:<45} {rate:.0} writes/s", "");
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!(
        "{what:<45} median {:?}  p95 {:?}  p99 {:?}  max {:?}",
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0)
    );
}

fn create(n: u64) -> Vec<Change> {
    let stack = Stack {
        pod_spec: "a line of a Pod as it is shown\n".repeat(40).into(),
        // UDP is for those that no TCP port is left for.
        ports: vec![samples::port(
            if n < 60_000 { Protocol::Tcp } else { Protocol::Udp },
            u16::try_from(n % 60_000).expect("below 60000") + 1,
        )],
        ..samples::stack(n)
    };
    let event = samples::event(stack.id, EventKind::Created);
    vec![Change::InsertStack(Box::new(stack)), Change::Event(event)]
}
