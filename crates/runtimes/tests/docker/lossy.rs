//! An engine whose answers get lost on the way, and one that nothing is heard of any more.

use std::time::Duration;

use bollard::query_parameters::KillContainerOptions;
use stackd_core::Runtime;
use stackd_core::runtime::{Outcome, RuntimeState};
use stackd_testkit::within;

use crate::Body;
use crate::bed::{self, Bed};
use crate::faults::{answers, ending};
use crate::proxy::{Fate, Proxy};

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("lossy::an_end_is_noticed_though_the_events_are_silent", |bed| Box::pin(silence(bed)));
    add("lossy::an_end_is_noticed_though_a_look_at_it_failed", |bed| Box::pin(failed_look(bed)));
    add("lossy::a_start_that_was_lost_between_containers_is_made_up", |bed| {
        Box::pin(lost_start(bed, Fate::Lost))
    });
    add("lossy::a_start_of_which_nothing_was_heard_is_not_made_twice", |bed| {
        Box::pin(lost_start(bed, Fate::Unanswered))
    });
    add("lossy::what_nobody_knows_is_removed", |bed| Box::pin(orphans(bed)));
}

async fn kill(bed: &Bed, name: &str) {
    let docker = bed.docker().await;
    docker.kill_container(name, None::<KillContainerOptions>).await.expect("killed");
}

async fn silence(mut bed: Bed) {
    let proxy = Proxy::before(&mut bed);
    bed.config.renew_events = Duration::from_secs(1);
    let runtime = bed.open().await;
    let request = bed::request(bed::serving(Vec::new()));
    bed::run(&runtime, &request).await;
    proxy.silence();
    kill(&bed, &format!("{}.app", request.id)).await;
    let (outcome, code, _) = ending(bed::until_ended(&runtime, request.id).await);
    assert_eq!((outcome, code), (Outcome::Failed, Some(137)));
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn failed_look(mut bed: Bed) {
    let proxy = Proxy::before(&mut bed);
    let runtime = bed.open().await;
    // The keeper does not tell either: it is in the network of another container.
    let request = bed::request(bed::serving(vec![bed::script("side", "sleep 1000")]));
    bed::run(&runtime, &request).await;
    // What the first look at the container itself asks.
    let there = bed.docker().await.inspect_container(&format!("{}.side", request.id), None).await;
    let id = there.expect("it is there").id.expect("an id");
    proxy.fail("GET", &id, Fate::Lost);
    kill(&bed, &id).await;
    let (outcome, code, _) = ending(bed::until_ended(&runtime, request.id).await);
    assert_eq!((outcome, code), (Outcome::Failed, Some(137)));
    assert!(proxy.has_failed());
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn lost_start(mut bed: Bed, fate: Fate) {
    let proxy = Proxy::before(&mut bed);
    let runtime = bed.open().await;
    let mut spec = bed::serving(Vec::new());
    spec.init_containers = vec![bed::script("init", "until [ -e /tmp/go ]; do sleep 0.05; done")];
    let request = bed::request(spec);
    runtime.claim_ports(request.id, &request.ports).expect("ports");
    within("a start", runtime.ensure(request.clone())).await.expect("a start");
    let name = format!("{}.app", request.id);
    let there = bed.docker().await.inspect_container(&name, None).await.expect("it was made");
    let id = there.id.expect("an id");
    proxy.fail("POST", &format!("{id}/start"), fate);
    // It may be killed by the end of the container that it has just let go on.
    let (text, code) = bed::exec(&runtime, request.id, Some("init"), &["touch", "/tmp/go"]).await;
    assert!(matches!(code, 0 | 137), "{code}: {text}");
    bed::until_ready(&runtime, request.id).await;
    assert!(proxy.has_failed());
    answers(&request).await;
    // It is looked after as any other.
    kill(&bed, &name).await;
    let state = bed::until_ended(&runtime, request.id).await;
    assert!(matches!(state, RuntimeState::Ended { exit_code: Some(137), .. }), "{state:?}");
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn orphans(mut bed: Bed) {
    let proxy = Proxy::before(&mut bed);
    bed.config.renew_events = Duration::from_secs(1);
    let runtime = bed.open().await;
    let mut request = bed::request(bed::serving(Vec::new()));
    let spec = std::sync::Arc::make_mut(&mut request.spec);
    spec.containers[0].command = Some(vec!["/no/such/program".to_owned()]);
    // It cannot be started, and what was made of it cannot be taken back.
    proxy.fail("GET", &request.id.to_string(), Fate::Lost);
    runtime.claim_ports(request.id, &request.ports).expect("ports");
    runtime.ensure(request.clone()).await.expect_err("it has no program");
    runtime.unclaim_ports(request.id);
    assert_eq!(bed.left().await, Vec::<String>::new());
}
