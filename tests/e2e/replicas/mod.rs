//! Several servers on one database: any of them answers, one of them decides, and whatever happens
//! to any of them or to the database, nothing is lost and nothing is done twice.

mod load;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use stackd_testkit::postgres::Postgres;
use stackd_testkit::within;
use tokio::sync::watch;

use crate::fleet::{Fleet, answer, create_body};

fn id_of(stack: &Value) -> String {
    stack["stack_id"].as_str().expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_has_acknowledged_all_of_them_show_at_once() {
    let fleet = Fleet::start(&Postgres::shared().database(), 3, &[]).await;
    let clients = fleet.clients();
    for round in 0..30 {
        let (status, stack) = clients.create(round % 3).await;
        assert_eq!(status, 201, "{stack}");
        let path = format!("/stacks/{}", id_of(&stack));
        for other in 0..3 {
            let (status, seen) = clients.json(other, Method::GET, &path).await.expect("an answer");
            assert_eq!((status, &seen["ports"]), (200, &stack["ports"]), "replica {other}: {seen}");
            assert!(clients.list(other).await.expect("a list").contains_key(&id_of(&stack)));
        }
        let remover = (round + 1) % 3;
        let (status, gone) = clients.json(remover, Method::DELETE, &path).await.expect("an answer");
        assert_eq!(status, 200, "{gone}");
        for other in 0..3 {
            let (status, _) = clients.json(other, Method::GET, &path).await.expect("an answer");
            assert_eq!(status, 404, "replica {other} still shows a stack that was deleted");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_wait_stream_and_look_into_stacks_like_the_leader() {
    let fleet = Fleet::start(&Postgres::shared().database(), 2, &[]).await;
    let clients = fleet.clients();
    let follower = 1 - fleet.leader().await;
    let stream = clients.request(follower, Method::GET, "/events").send().await;
    let mut stream = stream.expect("a stream");
    let (_, stack) = clients.create(follower).await;
    let id = id_of(&stack);
    let path = format!("/stacks/{id}?wait=running&timeout=30s");
    let (_, running) = clients.json(follower, Method::GET, &path).await.expect("an answer");
    assert_eq!(running["status"], "running", "{running}");
    let logs = clients.request(follower, Method::GET, &format!("/stacks/{id}/logs")).send().await;
    let logs = logs.expect("an answer").text().await.expect("lines");
    assert!(logs.contains("simulated: ready"), "{logs}");
    let (status, _) =
        clients.json(follower, Method::DELETE, &format!("/stacks/{id}")).await.expect("an answer");
    assert_eq!(status, 200);
    let mut told = String::new();
    within("the follower tells of the whole life", async {
        while !told.contains("event: removed") {
            let chunk = stream.chunk().await.expect("the stream goes on").expect("it does not end");
            told.push_str(&String::from_utf8_lossy(&chunk));
        }
    })
    .await;
    let numbers: Vec<u64> =
        told.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{told}");
    assert!(told.find("event: created") < told.find("event: deleted"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_wrong_everywhere_from_the_next_request() {
    let fleet = Fleet::start(&Postgres::shared().database(), 3, &[]).await;
    let clients = fleet.clients();
    for (round, operator) in [0usize, 1, 2].into_iter().enumerate() {
        let name = format!("guest-{round}");
        let file = std::path::Path::new(&fleet.data(operator)).join("guest");
        let at = file.display().to_string();
        fleet.operator(operator, &["key", "create", &name, "--file", &at]).await;
        let secret = std::fs::read_to_string(&file).expect("the key");
        std::fs::remove_file(&file).expect("it is there");
        let ask = async |index: usize| {
            let request = clients.request(index, Method::GET, "/stats");
            let mut request = request.build().expect("a request");
            let key = secret.trim().parse().expect("a header");
            request.headers_mut().insert("X-API-KEY", key);
            let answer = reqwest::Client::new().execute(request).await.expect("an answer");
            answer.status().as_u16()
        };
        for index in 0..3 {
            assert_eq!(ask(index).await, 200, "replica {index} knows the new key");
        }
        fleet.operator(operator, &["key", "revoke", &name]).await;
        for index in 0..3 {
            assert_eq!(ask(index).await, 401, "replica {index} still lets a revoked key in");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_know_each_other_by_their_certificates() {
    let fleet = Fleet::with_tls(&Postgres::shared().database(), 2).await;
    let clients = fleet.clients();
    let follower = 1 - fleet.leader().await;
    let (status, stack) = clients.create(follower).await;
    assert_eq!(status, 201, "{stack}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_refuses_nobody() {
    let mut fleet = Fleet::start(&Postgres::shared().database(), 3, &[]).await;
    let clients = fleet.clients();
    let stop = Arc::new(AtomicBool::new(false));
    // The one that is restarted is not asked: whoever balances load knows that.
    let away = Arc::new(AtomicUsize::new(usize::MAX));
    let (made, mut seen) = watch::channel(0usize);
    let asking = {
        let (clients, stop, away) = (clients.clone(), stop.clone(), away.clone());
        tokio::spawn(async move {
            for round in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let index = round % 3;
                if index == away.load(Ordering::Relaxed) {
                    continue;
                }
                let (status, stack) = clients.create(index).await;
                assert_eq!(status, 201, "replica {index}: {stack}");
                made.send_modify(|made| *made += 1);
            }
        })
    };
    for _ in 0..2 {
        let leader = fleet.leader().await;
        away.store(leader, Ordering::Relaxed);
        let goal = *seen.borrow() + 5;
        seen.wait_for(|made| *made >= goal).await.expect("callers go on");
        assert!(fleet.end(leader, Signal::TERM).await.success(), "{}", fleet.log(leader));
        let goal = *seen.borrow() + 20;
        within("callers go on", seen.wait_for(|made| *made >= goal)).await.expect("they ask");
        fleet.launch(leader);
        fleet.ready(leader).await;
        away.store(usize::MAX, Ordering::Relaxed);
    }
    stop.store(true, Ordering::Relaxed);
    asking.await.expect("nobody was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_and_jobs_go_on_with_the_next_leader() {
    let mut fleet = Fleet::start(&Postgres::shared().database(), 2, &[]).await;
    let clients = fleet.clients();
    let leader = fleet.leader().await;
    let other = 1 - leader;
    let mut body = create_body();
    body["ttl_seconds"] = json!(4);
    let request = clients.request(leader, Method::POST, "/stacks").json(&body);
    let (_, short) = answer(request).await.expect("an answer");
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(id_of(&clients.create(leader).await.1));
    }
    let request = clients.request(other, Method::POST, "/stacks/batch-delete");
    let (status, job) = answer(request.json(&json!({"stack_ids": ids}))).await.expect("an answer");
    assert_eq!(status, 202, "{job}");
    fleet.end(leader, Signal::KILL).await;
    let path = format!("/stacks/batch-delete/{}", job["job_id"].as_str().expect("an id"));
    let done = within("the job ends", async {
        loop {
            match clients.json(other, Method::GET, &path).await {
                Some((200, job)) if job["status"] == "completed" => return job,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    assert_eq!(
        (&done["total"], &done["deleted"], &done["not_found"]),
        (&json!(60), &json!(60), &json!(0))
    );
    let path = format!("/stacks/{}", id_of(&short));
    within("the stack goes when its time has come, and the runtime is empty", async {
        loop {
            let gone = clients.json(other, Method::GET, &path).await.is_some_and(|a| a.0 == 404);
            if gone && fleet.running().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_reads_go_on_and_the_rest_waits_and_is_refused() {
    let options = ["--replica-lease", "10m"];
    let mut fleet = Fleet::start(&Postgres::shared().database(), 2, &options).await;
    let clients = fleet.clients();
    let leader = fleet.leader().await;
    let follower = 1 - leader;
    let (_, stack) = clients.create(follower).await;
    fleet.end(leader, Signal::KILL).await;

    let path = format!("/stacks/{}", id_of(&stack));
    let (status, _) = clients.json(follower, Method::GET, &path).await.expect("an answer");
    assert_eq!(status, 200);
    let create = || clients.request(follower, Method::POST, "/stacks").json(&create_body());
    let refused = create().send().await.expect("an answer");
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    let text = "no replica leads at the moment; try again";
    assert_eq!(refused.json::<Value>().await.expect("JSON"), json!({"error": text}));
    let problem = create().header("Accept", "application/problem+json");
    let (_, problem) = answer(problem).await.expect("an answer");
    assert_eq!((&problem["status"], &problem["detail"]), (&json!(503), &json!(text)));

    // What was passed on once is not passed on again, and nobody is who shows no key.
    let passed = create().header("Stackd-Forwarded", "1").send().await.expect("an answer");
    assert_eq!(passed.status(), 503);
    assert!(passed.headers().contains_key("stackd-not-leader"));
    let mut stranger = create().build().expect("a request");
    stranger.headers_mut().remove("X-API-KEY");
    let refused = reqwest::Client::new().execute(stranger).await.expect("an answer");
    assert_eq!(refused.status(), 401);
    let long = "x".repeat((1 << 20) + 1);
    let too_long = clients.request(follower, Method::POST, "/stacks").body(long);
    let (status, body) = answer(too_long).await.expect("an answer");
    assert_eq!((status, body), (400, json!({"error": "invalid json body"})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_together_is_refused() {
    let database = Postgres::shared().database();
    let fleet = Fleet::start(&database, 1, &[]).await;
    let directory = tempfile::tempdir().expect("a directory");
    let refused = |args: &[&str]| {
        let mut command = std::process::Command::new(crate::server::stackd());
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(directory.path());
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
        let output = command.output().expect("it runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = refused(&["--replicas", "--database-url", &database]);
    assert!(text.contains("--replicas does not go with the oci runtime"), "{text}");
    let text = refused(&["--runtime", "simulated", "--database-url", &database]);
    let leader = fleet.url(0, "");
    assert!(text.contains("replicas use this database") && text.contains(&leader), "{text}");
}

/// A server by itself leaves no room for another, whatever that is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_server_by_itself_nobody_else_decides() {
    let database = Postgres::shared().database();
    let mut fleet = Fleet::by_itself(&database).await;
    let clients = fleet.clients();
    let (status, stack) = clients.create(0).await;
    assert_eq!(status, 201, "{stack}");

    // A second one is refused, and says why.
    let directory = tempfile::tempdir().expect("a directory");
    let mut second = std::process::Command::new(crate::server::stackd());
    second.args(["serve", "--listen", "127.0.0.1:0", "--runtime", "simulated", "--data-dir"]);
    second.arg(directory.path()).args(["--database-url", &database]);
    let output = second.stdin(Stdio::null()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(11), "{text}");
    let process =
        format!("another server uses this database: process {}", fleet.pid(0).as_raw_nonzero());
    assert!(text.contains(&process) && text.contains("hint: stop it first"), "{text}");

    // A replica shows what is committed and changes nothing, until the other has ended.
    let mut replicas = Fleet::beside(&fleet, &database).await;
    let replica = replicas.clients();
    let (_, health) = replica.json(0, Method::GET, "/readyz").await.expect("an answer");
    assert_eq!(health["replica"], "follower", "{health}");
    assert!(replica.list(0).await.expect("a list").contains_key(&id_of(&stack)));
    assert_eq!(replica.create(0).await.0, 503);
    assert!(fleet.end(0, Signal::TERM).await.success(), "{}", fleet.log(0));
    replicas.leader().await;
    assert_eq!(replica.create(0).await.0, 201);

    // Paused for longer than its lease it is a follower of nobody: it ends.
    replicas.end(0, Signal::TERM).await;
    fleet.launch(0);
    fleet.ready(0).await;
    fleet.signal(0, Signal::STOP);
    replicas.launch(0);
    replicas.ready(0).await;
    replicas.leader().await;
    fleet.signal(0, Signal::CONT);
    let status = fleet.ended(0).await;
    assert_eq!(status.code(), Some(11), "{}", fleet.log(0));
    assert!(fleet.log(0).contains("another server has taken this database over"));
    let listed: BTreeSet<_> = replica.list(0).await.expect("a list").into_keys().collect();
    let running: BTreeSet<_> = fleet.running().into_iter().collect();
    assert_eq!(listed, running, "nothing was taken for an orphan");
}
