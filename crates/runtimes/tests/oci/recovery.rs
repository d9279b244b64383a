//! What is found again after an end that nobody asked for, and what is older than that.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use stackd_core::port::Protocol;
use stackd_core::runtime::{ErrorKind, Observation, Outcome, Runtime, RuntimeState};
use stackd_core::stack::reason;

use crate::Body;
use crate::support::*;

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("stacks_are_found_again", |bed| Box::pin(adopted(bed)));
    add("when_a_shim_dies_its_containers_die", |bed| Box::pin(shim_killed(bed)));
    add("a_reboot_ends_what_ran_and_leaves_nothing", |bed| Box::pin(rebooted(bed)));
    add("a_blank_whose_way_out_is_gone_leaves_nothing", |bed| Box::pin(no_way_out(bed)));
    add("a_blank_that_cannot_be_made_leaves_nothing", |bed| Box::pin(no_blank(bed)));
    add("older_generations_and_epochs_are_refused", |bed| Box::pin(outdated(bed)));
    add("a_start_that_was_under_way_is_found_again", |bed| Box::pin(under_way(bed)));
    add("a_start_that_nobody_will_ask_for_ends", |bed| Box::pin(given_up(bed)));
    add("a_port_that_cannot_be_bound_for_now_is_not_taken", |bed| Box::pin(no_descriptor(bed)));
}

fn shim_pid(bed: &Bed, id: stackd_core::StackId) -> i32 {
    let directory = bed.path().join("stacks").join(id.to_string());
    let state = stackd_shim::read_state(&directory).expect("a state");
    state.shim.pid.try_into().expect("a process id")
}

async fn adopted(bed: Bed) {
    let runtime = bed.open().await;
    let (here, dead, ended) = (
        request(spec(vec![web()], &[(8080, Protocol::Tcp)])),
        request(spec(vec![web()], &[(8080, Protocol::Tcp)])),
        request(spec(vec![script("main", "exit 4")], &[(80, Protocol::Tcp)])),
    );
    run(&runtime, &here).await;
    run(&runtime, &dead).await;
    runtime.claim_ports(ended.id, &ended.ports).expect("ports");
    runtime.ensure(ended.clone()).await.expect("a start");
    until_ended(&runtime, ended.id).await;
    drop(runtime);
    let port = here.ports[0].node_port;
    assert!(get(port, "/").expect("it goes on").ends_with("hello\n"));
    // SAFETY: numbers only; the process is this test's shim.
    assert_eq!(unsafe { libc::kill(shim_pid(&bed, dead.id), libc::SIGKILL) }, 0);
    // What a start that was broken off has left.
    let broken = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    let half = bed.path().join("stacks").join(broken.id.to_string());
    std::fs::create_dir_all(half.join("logs")).expect("a directory");
    let deadline = Instant::now() + PATIENCE;
    while get(dead.ports[0].node_port, "/").is_ok() {
        assert!(Instant::now() < deadline, "a dead stack answers");
    }

    let runtime = bed.open().await;
    let mut seen = Vec::new();
    let mut changes = runtime.observe();
    while let Some(Observation::Stack(stack)) = changes.next().await {
        seen.push((stack.id, stack.state));
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    for (id, state) in seen {
        match state {
            RuntimeState::Running { ready: true, .. } => assert_eq!(id, here.id),
            RuntimeState::Ended { condition, .. } if condition.reason == reason::LOST => {
                assert_eq!(id, dead.id);
            }
            RuntimeState::Ended { exit_code, .. } => {
                assert_eq!((id, exit_code), (ended.id, Some(4)));
            }
            other => panic!("{id}: {other:?}"),
        }
    }
    assert!(!half.exists(), "what was never started is gone");
    assert!(get(port, "/").expect("an answer").ends_with("hello\n"));
    assert_eq!(exec(&runtime, here.id, &["true"]).await.1, 0);
    runtime.ensure(here.clone()).await.expect("it is there already");
    for id in [here.id, dead.id, ended.id] {
        runtime.remove(id, Duration::ZERO).await.expect("a removal");
    }
    assert!(get(port, "/").is_err());
}

async fn shim_killed(bed: Bed) {
    let runtime = bed.open().await;
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    run(&runtime, &request).await;
    let pid = shim_pid(&bed, request.id);
    // SAFETY: numbers only; the process is this test's shim.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    let state = until_ended(&runtime, request.id).await;
    let RuntimeState::Ended { outcome, condition, .. } = state else { unreachable!() };
    assert_eq!((outcome, condition.reason.as_str()), (Outcome::Failed, reason::LOST));
    assert!(get(request.ports[0].node_port, "/").is_err());
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

/// After a reboot there are the files of before, of another boot, and no process of any shim.
async fn rebooted(bed: Bed) {
    let runtime = bed.open().await;
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    run(&runtime, &request).await;
    let id = request.id;
    let pid = shim_pid(&bed, id);
    drop(runtime);
    // SAFETY: numbers only; the process is this test's shim, and its child.
    unsafe {
        assert_eq!(libc::kill(pid, libc::SIGKILL), 0);
        assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), 0), pid);
    }
    let path = bed.path().join("stacks").join(id.to_string()).join("state.json");
    let text = std::fs::read(&path).expect("a state");
    let mut state: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    state["boot_id"] = "00000000-0000-4000-8000-000000000000".into();
    std::fs::write(&path, state.to_string()).expect("written");

    let runtime = bed.open().await;
    let state = until_ended(&runtime, id).await;
    let RuntimeState::Ended { outcome, condition, .. } = state else { unreachable!() };
    assert_eq!((outcome, condition.reason.as_str()), (Outcome::Failed, reason::NODE_REBOOTED));
    let other = crate::support::request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    runtime.claim_ports(other.id, &request.ports).expect("its ports are free");
    runtime.unclaim_ports(other.id);
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
}

/// Whoever cleans up removes the group of all shims when nobody is in it, as also the end of every
/// test here does.
async fn no_way_out(bed: Bed) {
    let runtime = bed.open().await;
    runtime.ready().await;
    let groups = std::fs::read_dir("/sys/fs/cgroup").expect("control groups").flatten();
    let groups = groups.map(|entry| entry.path().join(&bed.config.cgroup_parent).join("shims"));
    for shims in groups.filter(|path| path.is_dir()) {
        std::fs::remove_dir(shims).expect("nobody is in it");
    }
    drop(runtime);
}

/// What a disk is copied from is missing, so that blanks fail when they have their control groups.
async fn no_blank(bed: Bed) {
    let runtime = bed.open().await;
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    std::fs::remove_dir_all(bed.path().join("disk-templates")).expect("removed");
    // It takes the blank that is ready, or fails as the next one does.
    runtime.claim_ports(request.id, &request.ports).expect("ports");
    let _ = runtime.ensure(request.clone()).await;
    within("a blank has failed", async {
        let log = bed.path().join("shim.log");
        while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains("open the disk template"))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

async fn outdated(bed: Bed) {
    let runtime = bed.open().await;
    let mut request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    request.generation = 2;
    request.epoch = 5;
    run(&runtime, &request).await;
    for (generation, epoch) in [(1, 5), (2, 4)] {
        let older = stackd_core::runtime::EnsureRequest { generation, epoch, ..request.clone() };
        let error = runtime.ensure(older).await.expect_err("it is older");
        assert_eq!(error.kind, ErrorKind::Rejected);
    }
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

/// A server that ends during a start leaves a shim that has not written down anything yet.
async fn under_way(bed: Bed) {
    let runtime = bed.open().await;
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    run(&runtime, &request).await;
    let id = request.id;
    drop(runtime);
    let state = bed.path().join("stacks").join(id.to_string()).join("state.json");
    std::fs::remove_file(&state).expect("it has one");

    let runtime = bed.open().await;
    until_ready(&runtime, id).await;
    assert!(get(request.ports[0].node_port, "/").expect("an answer").ends_with("hello\n"));
    assert_eq!(exec(&runtime, id, &["true"]).await.1, 0);
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
    assert!(get(request.ports[0].node_port, "/").is_err());
}

/// A server that has given up waiting for a start has removed its directory.
async fn given_up(bed: Bed) {
    let runtime = bed.open().await;
    let many = (0..32).map(|n| container(&format!("c{n}"), &["sleep", "1000"])).collect();
    let request = request(spec(many, &[(80, Protocol::Tcp)]));
    let id = request.id;
    runtime.claim_ports(id, &request.ports).expect("ports");
    let start = {
        let (runtime, request) = (runtime.clone(), request.clone());
        tokio::spawn(async move { runtime.ensure(request).await })
    };
    let directory = bed.path().join("stacks").join(id.to_string());
    let deadline = Instant::now() + PATIENCE;
    while !directory.join("shim.sock").exists() {
        assert!(Instant::now() < deadline, "it has no directory");
        tokio::task::yield_now().await;
    }
    while directory.exists() {
        // The shim may just be making a file in it.
        let _ = std::fs::remove_dir_all(&directory);
    }
    start.await.expect("no panic").expect("it was started");
    let state = until_ended(&runtime, id).await;
    let RuntimeState::Ended { condition, .. } = state else { unreachable!() };
    assert_eq!(condition.reason, reason::LOST, "{condition:?}");
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
}

async fn no_descriptor(bed: Bed) {
    let runtime = bed.open().await;
    runtime.ready().await;
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    let set = |current| {
        // SAFETY: a plain structure of numbers is read and written.
        unsafe {
            let mut limit = std::mem::zeroed::<libc::rlimit>();
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
            let before = std::mem::replace(&mut limit.rlim_cur, current);
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
            before
        }
    };
    let before = set(0);
    let claimed = runtime.claim_ports(request.id, &request.ports);
    set(before);
    assert_eq!(claimed, Err(stackd_core::runtime::PortsTaken(Vec::new())));
    run(&runtime, &request).await;
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}
