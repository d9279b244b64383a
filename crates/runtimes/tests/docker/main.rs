//! The Docker runtime against a real engine that this program starts: one for all tests. Needs root
//! and `dockerd`. This program is its own keeper, which is why it has a `main` of its own.

#![expect(clippy::expect_used, reason = "a test, though without the standard harness")]

mod bed;
mod contract;
mod elsewhere;
mod faults;
mod gone;
mod life;
mod limits;
mod live;
mod lossy;
mod proxy;
mod registry;

use std::pin::Pin;
use std::time::Duration;

use bed::Bed;
use libtest_mimic::{Arguments, Failed, Trial};
use stackd_testkit::docker::{self, Engine};

/// The body of a test.
type Body = fn(Bed) -> Pin<Box<dyn Future<Output = ()>>>;

fn main() {
    stackd_shim::main_if_requested();
    if let Ok(filter) = std::env::var("STACKD_TEST_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let mut arguments = Arguments::from_args();
    // What is left behind can be told from what another test holds only when there is none.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    let mut add = |name: &str, body: Body| {
        trials.push(Trial::test(name, move || run(body)));
    };
    life::all(&mut add);
    limits::all(&mut add);
    faults::all(&mut add);
    gone::all(&mut add);
    live::all(&mut add);
    lossy::all(&mut add);
    registry::all(&mut add);
    elsewhere::all(&mut add);
    contract::all(&mut trials);
    libtest_mimic::run(&arguments, trials).exit();
}

/// Works with an engine of its own, to which anything may be done, and a bed on it.
async fn with_engine(options: &[&str], body: impl AsyncFnOnce(&mut Engine, Bed)) {
    let mut engine = Engine::with(options);
    let bed = Bed::new(engine.host());
    body(&mut engine, bed.clone()).await;
    assert_eq!(bed.left().await, Vec::<String>::new());
}

fn executor() -> Result<tokio::runtime::Runtime, Failed> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build().map_err(|e| e.to_string())?)
}

fn run<F: Future<Output = ()>>(body: impl FnOnce(Bed) -> F) -> Result<(), Failed> {
    let executor = executor()?;
    let bed = Bed::new(docker::shared().to_owned());
    let after = bed.clone();
    let work = std::panic::AssertUnwindSafe(|| {
        executor.block_on(async {
            let work = tokio::time::timeout(Duration::from_secs(120), body(bed));
            work.await.map_err(|_| "it took too long")
        })
    });
    let result = std::panic::catch_unwind(work);
    let left = executor.block_on(after.left());
    executor.block_on(after.clear());
    executor.shutdown_timeout(Duration::from_secs(5));
    match result {
        Ok(Ok(())) if left.is_empty() => Ok(()),
        Ok(Ok(())) => Err(format!("left behind: {left:?}").into()),
        Ok(Err(text)) => Err(text.into()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
