//! How long a start takes: `STACKD_BENCH=<rounds> cargo test -p stackd-runtimes --test oci`; with
//! `STACKD_BENCH_BURST=<stacks>`, how long so many take that are asked for at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stackd_core::port::Protocol;
use stackd_core::runtime::Runtime;
use stackd_runtimes::oci::OciRuntime;

use crate::support::*;

pub(crate) fn measure(rounds: usize) {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("an executor");
    let mut bed = Bed::new();
    bed.config.ready_stacks = 4;
    let burst = std::env::var("STACKD_BENCH_BURST").ok().and_then(|n| n.parse().ok());
    runtime.block_on(async {
        let stacks = bed.open().await;
        if let Some(count) = burst {
            return at_once(&stacks, count).await;
        }
        let (mut started, mut ready, mut answered) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            stacks.ready().await;
            let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
            let began = Instant::now();
            stacks.claim_ports(request.id, &request.ports).expect("ports");
            stacks.ensure(request.clone()).await.expect("a start");
            started.push(began.elapsed());
            until_ready(&stacks, request.id).await;
            ready.push(began.elapsed());
            get(request.ports[0].node_port, "/").expect("an answer");
            answered.push(began.elapsed());
            stacks.remove(request.id, Duration::ZERO).await.expect("a removal");
        }
        for (name, times) in [("started", started), ("ready", ready), ("answered", answered)] {
            let mut times = times;
            times.sort();
            let at = |share: usize| times[(times.len() - 1) * share / 100];
            println!("{name}: median {:?}, p90 {:?}, p99 {:?}", at(50), at(90), at(99));
        }
    });
}

async fn at_once(stacks: &OciRuntime, count: usize) {
    stacks.ready().await;
    let slots = Arc::new(tokio::sync::Semaphore::new(stacks.capabilities().concurrent_starts));
    let began = Instant::now();
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (stacks, slots) = (stacks.clone(), Arc::clone(&slots));
        starts.spawn(async move {
            let _slot = slots.acquire().await.expect("a slot");
            let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
            run(&stacks, &request).await;
            request.id
        });
    }
    let ids = starts.join_all().await;
    println!("{count} at once: {:?}", began.elapsed());
    let began = Instant::now();
    let mut ends = tokio::task::JoinSet::new();
    for id in ids {
        let stacks = stacks.clone();
        ends.spawn(async move { stacks.remove(id, Duration::ZERO).await.expect("a removal") });
    }
    ends.join_all().await;
    println!("{count} removed at once: {:?}", began.elapsed());
}
