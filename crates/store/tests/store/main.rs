//! The contract on both databases, and what can go wrong with each.
#![expect(clippy::unwrap_used, reason = "these are tests")]

mod lost_commits;
mod postgres_faults;
mod replicas;
mod sqlite_faults;

use std::time::Duration;

use stackd_store::{Store, StoreConfig};
use stackd_testkit::postgres::Postgres;
use stackd_testkit::store_contract;

/// What "within a few seconds" is, with much room for a busy machine: it only tells an answer from
/// one that hangs.
const BOUND: Duration = Duration::from_secs(30);

/// One test for each function of the contract and each database.
macro_rules! contract {
    ($($name:ident,)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let directory = tempfile::tempdir().unwrap();
                super::store_contract::$name(super::in_directory(directory.path())).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::store_contract::$name(super::in_postgres(super::Postgres::shared())).await;
            })*
        }
    };
}

contract! {
    every_field_comes_back,
    an_owner_has_one_live_stack,
    a_node_port_is_held_once,
    a_use_case_is_whole,
    numbers_are_in_the_order_of_commits,
    times_of_events_never_go_back,
    an_older_observation_is_ignored,
    api_keys_are_unique_until_revoked,
    pruning_takes_only_the_old,
    a_nul_does_not_fail_a_write,
    a_caller_that_leaves_takes_nothing_back,
    challenges_come_back_with_their_marks,
    a_deadline_moves_only_while_a_stack_is_wanted,
}

fn in_directory(directory: &std::path::Path) -> StoreConfig {
    StoreConfig::Sqlite { path: directory.join("stackd.db"), ballast_bytes: 1 << 20 }
}

fn in_postgres(cluster: &Postgres) -> StoreConfig {
    StoreConfig::Postgres { url: cluster.database() }
}

async fn open(config: StoreConfig) -> Store {
    Store::open(config).await.unwrap()
}
