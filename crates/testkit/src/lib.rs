//! What tests share. A dev-dependency only: nothing here is ever part of the program.
//!
//! [`build`] makes specs and stacks, [`clock`] is a time that stands still, [`engine`] is an engine
//! over a simulated runtime with both in a test's hands, and [`mod@runtime_contract`] is the suite that
//! every driver passes. [`store_contract`] is the one of the database, on SQLite and on a
//! [`postgres`] of the test's own, and [`mod@sqlite`] a hand in the former; [`small_disk`] is a disk that can be filled; [`sample`] is the
//! image that stacks in tests are made of, [`registry`] one that it can be pulled from, and
//! [`mod@docker`] an engine that runs it.
//! [`kubernetes`] is a real cluster, and [`ports`] are those that no other test has.

#![expect(clippy::expect_used, reason = "a test that panics has failed")]

pub mod build;
pub mod certificates;
pub mod clock;
pub mod docker;
pub mod engine;
pub mod kubernetes;
pub mod ports;
pub mod postgres;
pub mod registry;
pub mod runtime_contract;
pub mod sample;
pub mod small_disk;
pub mod sqlite;
pub mod store_contract;

pub use clock::ManualClock;
pub use engine::TestEngine;

use std::future::Future;
use std::time::Duration;

/// How long anything that a test waits for may take before the test has failed: long, as a machine
/// may be busy, and it is only waited for when something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for something that must happen, and says what did not when it does not.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("this did not happen within {PATIENCE:?}: {what}"))
}
