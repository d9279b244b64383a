//! The embedded runtime against this machine: real shims, real containers. Needs root and a static
//! busybox. This program is its own shim, which is why it has a `main` of its own.

#![expect(clippy::expect_used, reason = "a test, though without the standard harness")]

mod bench;
mod commands;
mod contract;
mod hostile;
mod life;
mod recovery;
mod refusals;
mod support;

use libtest_mimic::{Arguments, Failed, Trial};
use stackd_testkit::PATIENCE;
use support::Bed;

type Body = fn(Bed) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

fn main() {
    stackd_shim::main_if_requested();
    if std::env::args().nth(1).as_deref() == Some("udp-echo") {
        return support::echo_datagrams();
    }
    let mut arguments = Arguments::from_args();
    // What is left behind can be told from what another test holds only when there is none.
    arguments.test_threads = Some(1);
    if let Some(rounds) = std::env::var("STACKD_BENCH").ok().and_then(|n| n.parse().ok()) {
        return bench::measure(rounds);
    }
    let mut trials = Vec::new();
    let mut add = |name: &str, body: Body| {
        trials.push(Trial::test(name, move || run(body)));
    };
    life::all(&mut add);
    commands::all(&mut add);
    recovery::all(&mut add);
    refusals::all(&mut add);
    hostile::all(&mut add);
    contract::all(&mut trials);
    libtest_mimic::run(&arguments, trials).exit();
}

fn run<F: Future<Output = ()>>(body: impl FnOnce(Bed) -> F) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let bed = Bed::new();
    let left = bed.leftovers();
    let work = std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let work = tokio::time::timeout(2 * PATIENCE, body(bed));
            work.await.map_err(|_| "it took too long")
        })
    });
    let result = std::panic::catch_unwind(work);
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    match result {
        Ok(Ok(())) => left.check(),
        Ok(Err(text)) => {
            left.end_all();
            Err(text.into())
        }
        Err(panic) => {
            left.end_all();
            std::panic::resume_unwind(panic)
        }
    }
}
