//! The Kubernetes runtime on a real cluster with two real nodes. Tests share one, each in a
//! namespace of its own; those that break something have a cluster to themselves.
#![expect(clippy::expect_used, reason = "a test that panics has failed")]

mod answers;
mod behind_our_back;
mod calls;
mod contract;
mod faults;
mod followers;
mod refusals;
mod rights;
mod support;

use std::future::Future;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use stackd_testkit::kubernetes::Cluster;

use support::Bed;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    contract::all(&mut trials);
    trials.extend([
        trial("calls::three_to_make_one_to_remove", calls::three_to_make_one_to_remove),
        trial("calls::what_is_half_made_is_finished", calls::what_is_half_made_is_finished),
        trial("calls::another_takes_over", calls::another_takes_over),
        trial("answers::too_old_to_watch", answers::too_old_to_watch),
        trial("answers::too_many_requests", answers::too_many_requests),
        trial("answers::lost", answers::lost),
        trial("answers::of_another_generation", answers::of_another_generation),
        trial("answers::removals", answers::removals),
        trial("answers::silence", answers::silence),
        trial("answers::no_user_namespaces", answers::no_user_namespaces),
        trial("behind_our_back::a_full_disk", behind_our_back::a_full_disk),
        trial("behind_our_back::pod", behind_our_back::pod),
        trial("behind_our_back::eviction", behind_our_back::eviction),
        trial("behind_our_back::service", behind_our_back::service),
        trial(
            "behind_our_back::service_while_nobody_looks",
            behind_our_back::service_while_nobody_looks,
        ),
        trial("behind_our_back::policy", behind_our_back::policy),
        trial("behind_our_back::policy_alone", behind_our_back::policy_alone),
        trial("followers::they_change_nothing", followers::they_change_nothing),
        trial("followers::one_that_was_deaf_leads", followers::one_that_was_deaf_leads),
        trial("rights::each_is_used_and_no_other", rights::each_is_used_and_no_other),
        trial("refusals::limits_and_quotas", refusals::limits_and_quotas),
        trial("refusals::node_ports", refusals::node_ports),
        trial("refusals::objects_of_others", refusals::objects_of_others),
        trial("refusals::no_room", refusals::no_room),
        trial("refusals::registries", refusals::registries),
        trial("refusals::no_command", refusals::no_command),
        trial("refusals::pod_security", refusals::pod_security),
        trial("refusals::runtime_classes", refusals::runtime_classes),
        Trial::test("faults::control_plane_and_nodes", || {
            run(faults::control_plane_and_nodes());
            Ok(())
        }),
    ]);
    // Listing starts nothing.
    if !arguments.list && Cluster::shared().is_none() {
        trials = trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect();
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test in a namespace of its own of the cluster that is shared.
fn trial<F>(name: &str, test: fn(Bed) -> F) -> Trial
where
    F: Future<Output = ()> + 'static,
{
    Trial::test(name, move || {
        run(test(Bed::shared()));
        Ok(())
    })
}

fn run(test: impl Future<Output = ()>) {
    let mut executor = tokio::runtime::Builder::new_multi_thread();
    let executor = executor.worker_threads(2).enable_all();
    executor.build().expect("an executor").block_on(test);
}
