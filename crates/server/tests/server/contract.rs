//! Every line of the table of refusals, and the order in which they are looked for.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use stackd_core::Protocol;
use stackd_runtimes::simulated::SimulatedConfig;
use stackd_store::StoreConfig;
use stackd_testkit::sqlite;

use crate::harness::{App, KEY, POD, Setup, body, id, soon};

#[tokio::test]
async fn a_body_that_is_not_what_it_should_be() {
    let app = App::new().await;
    let bodies = [
        "",
        " ",
        "not json",
        "null",
        "[]",
        "1",
        "\"text\"",
        "{",
        "{} x",
        r#"{"target_port": "80", "pod_spec": "x"}"#,
        r#"{"target_port": 80.5, "pod_spec": "x"}"#,
        r#"{"target_port": true, "pod_spec": "x"}"#,
        r#"{"target_port": [80], "pod_spec": "x"}"#,
        r#"{"target_port": {"container_port": 80, "protocol": "TCP"}, "pod_spec": "x"}"#,
        r#"{"target_port": 80, "pod_spec": 1}"#,
        r#"{"target_port": 80, "pod_spec": "x", "ttl_seconds": "60"}"#,
        r#"{"target_port": 80, "pod_spec": "x", "labels": ["a"]}"#,
        r#"{"target_port": 80, "pod_spec": "x", "owner": 1}"#,
    ];
    for text in bodies {
        app.send(Method::POST, "/stacks", &[], text).await.refuses(400, "invalid json body");
    }
    for text in ["", "[]", r#"{"stack_ids": "x"}"#, r#"{"stack_ids": [1]}"#] {
        let answer = app.send(Method::POST, "/stacks/batch-delete", &[], text).await;
        answer.refuses(400, "invalid json body");
    }
}

#[tokio::test]
async fn a_body_over_the_limit() {
    let app = App::new().await;
    let pad = |bytes: usize| {
        let mut text = body(json!({})).to_string();
        text.push_str(&" ".repeat(bytes - text.len()));
        text
    };
    app.send(Method::POST, "/stacks", &[], pad(1 << 20)).await.is(201);
    let over = app.send(Method::POST, "/stacks", &[], pad((1 << 20) + 1)).await;
    over.refuses(400, "invalid json body");
}

#[tokio::test]
async fn the_ports_and_the_pod_in_their_order() {
    let app = App::new().await;
    let many: Vec<_> = (1..=25).map(|n| json!({"container_port": n, "protocol": "TCP"})).collect();
    let entry =
        |port: Value, protocol: Value| json!([{"container_port": port, "protocol": protocol}]);
    let required = "invalid input: target_port is required";
    let range = "invalid input: target_port is out of range";
    let protocol = "invalid input: protocol is required";
    let no_pod = "invalid pod spec: pod_spec is required";
    let two = "invalid input: protocol must be TCP or UDP";
    let bad = "not: [a pod";
    let cases = [
        // pod_spec is looked for before target_port, which is read before the Pod.
        (json!({"pod_spec": null, "target_port": null}), no_pod),
        (json!({"pod_spec": "", "target_port": []}), no_pod),
        (json!({"pod_spec": " \n\t"}), no_pod),
        (json!({"pod_spec": bad, "target_port": null}), required),
        (json!({"pod_spec": bad, "target_port": []}), required),
        (json!({"pod_spec": bad, "target_port": 0}), range),
        (json!({"target_port": 65536}), range),
        (json!({"target_port": -80}), range),
        (json!({"target_port": entry(json!(0), json!("TCP"))}), range),
        (json!({"target_port": entry(json!(65536), json!("TCP"))}), range),
        (
            json!({"pod_spec": bad, "target_port": many}),
            "invalid input: target_port exceeds limit (max 24)",
        ),
        (json!({"target_port": [{"container_port": 80}]}), protocol),
        (json!({"target_port": entry(json!(80), json!("  "))}), protocol),
        (json!({"target_port": entry(json!(80), json!("SCTP"))}), two),
        (
            json!({"target_port": [{"container_port": 80, "protocol": "TCP"}, {"container_port": 80, "protocol": " tcp "}]}),
            "invalid input: duplicate target_port entry",
        ),
        // The Pod before the additions and the admission.
        (
            json!({"pod_spec": "kind: Service", "ttl_seconds": -1}),
            "invalid pod spec: kind must be Pod",
        ),
        (json!({"target_port": 81}), "invalid pod spec: target_port must exist in container ports"),
    ];
    for (more, text) in cases {
        app.post("/stacks", &body(more)).await.refuses(400, text);
    }
    let answer = app.post("/stacks", &body(json!({"pod_spec": bad}))).await.is(400);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("invalid pod spec: yaml parse failed: "), "{error}");
    assert_eq!(app.engine.stats().total_stacks, 0);
}

#[tokio::test]
async fn a_key_is_asked_for_before_the_body_is_read() {
    let app = App::new().await;
    // This body never comes.
    let body =
        Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let request = Request::post("/stacks").body(body).unwrap();
    soon(app.raw(request)).await.refuses(401, "invalid api key");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let mut setup = Setup::default();
    setup.server.body_timeout = std::time::Duration::from_millis(50);
    let app = App::with(setup).await;
    let body =
        Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let request = Request::post("/stacks").header("x-api-key", KEY).body(body).unwrap();
    soon(app.raw(request)).await.refuses(400, "invalid json body");
}

#[tokio::test]
async fn protocols_in_any_case_ports_in_the_order_asked() {
    let app = App::new().await;
    let pod = POD.replace("          protocol: TCP", "        - {containerPort: 53, protocol: UDP}\n        - {containerPort: 53, protocol: TCP}");
    let ports = json!([
        {"container_port": 53, "protocol": " udp "},
        {"container_port": 80, "protocol": "tcp"},
        {"container_port": 53, "protocol": "Tcp"},
    ]);
    let stack = app.create(json!({"target_port": ports, "pod_spec": pod})).await;
    let shown: Vec<_> = stack["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["container_port"].as_u64().unwrap(), p["protocol"].as_str().unwrap()))
        .collect();
    assert_eq!(shown, [(53, "UDP"), (80, "TCP"), (53, "TCP")]);
    assert_eq!(stack["target_port"], 53);
    assert_eq!(stack["node_port"], stack["ports"][0]["node_port"]);
    // A bare number means the TCP port of that number where there is one.
    let stack = app.create(json!({"target_port": 53, "pod_spec": pod})).await;
    assert_eq!(stack["ports"][0]["protocol"], "TCP");
}

#[tokio::test]
async fn what_is_not_there() {
    let app = App::new().await;
    for id in ["stack-0000000000000000", "nonsense", "stack-1", "%FF", "%2F"] {
        app.get(&format!("/stacks/{id}")).await.refuses(404, "stack not found");
        app.get(&format!("/stacks/{id}?wait=running")).await.refuses(404, "stack not found");
        app.get(&format!("/stacks/{id}/status")).await.refuses(404, "stack not found");
        app.get(&format!("/stacks/{id}/logs")).await.refuses(404, "stack not found");
        app.get(&format!("/stacks/{id}/events")).await.refuses(404, "stack not found");
        app.delete(&format!("/stacks/{id}")).await.refuses(404, "stack not found");
    }
    for id in ["job-0000000000000000", "nonsense", "%FF"] {
        app.get(&format!("/stacks/batch-delete/{id}")).await.refuses(404, "job not found");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let app = App::new().await;
    for path in
        ["/nothing", "/stacks/", "/stats/", "/stacks/stack-0000000000000000/nothing", "/Stacks"]
    {
        app.get(path).await.refuses(404, "not found");
    }
    for (method, path) in [
        (Method::PUT, "/stacks"),
        (Method::PATCH, "/stacks/stack-0000000000000000"),
        (Method::POST, "/stats"),
        (Method::DELETE, "/healthz"),
        (Method::GET, "/stacks/batch-delete"),
    ] {
        let answer = app.send(method, path, &[], "").await;
        assert!(answer.header("allow").is_some(), "{path}");
        answer.refuses(405, "method not allowed");
    }
}

#[tokio::test]
async fn no_node_port() {
    let app =
        App::with(Setup { engine: Some(json!({"node_ports": "31001-31001"})), ..Setup::default() })
            .await;
    let stack = app.create(json!({})).await;
    assert_eq!(stack["node_port"], 31001);
    app.post("/stacks", &body(json!({}))).await.refuses(503, "no available nodeport");

    let id = id(&stack);
    let removed = app.next_event("removed");
    let (answer, ()) =
        soon(futures_util::future::join(app.delete(&format!("/stacks/{id}")), removed)).await;
    answer.is(200);
    app.runtime.hold_ports([(Protocol::Tcp, 31001)]);
    app.post("/stacks", &body(json!({}))).await.refuses(503, "no available nodeport");
}

#[tokio::test]
async fn no_room() {
    let machine = stackd_core::runtime::Machine {
        cpu_milli: 1000,
        memory_bytes: 64 << 20,
        disk_bytes: 1 << 40,
    };
    let runtime = SimulatedConfig { machine: Some(machine), ..SimulatedConfig::instant() };
    let app = App::with(Setup { runtime: Some(runtime), ..Setup::default() }).await;
    app.post("/stacks", &body(json!({}))).await.refuses(503, "cluster saturated");
}

#[tokio::test]
async fn a_full_start_queue_and_the_place_in_it() {
    let runtime = SimulatedConfig {
        concurrent_starts: 1,
        start_delay: std::time::Duration::from_secs(3600),
        ..SimulatedConfig::instant()
    };
    let app = App::with(Setup {
        engine: Some(json!({"max_waiting_starts": 2})),
        runtime: Some(runtime),
        ..Setup::default()
    })
    .await;
    app.create(json!({"owner": "a"})).await;
    let second = id(&app.create(json!({"owner": "a"})).await);
    let queued = |id: String| {
        let app = &app;
        async move {
            loop {
                let stack = app.get(&format!("/stacks/{id}")).await.is(200).json();
                if stack["reason"] == "Queued" {
                    return stack["message"].as_str().unwrap().to_owned();
                }
                tokio::task::yield_now().await;
            }
        }
    };
    assert_eq!(soon(queued(second.clone())).await, "waiting for a start slot: place 1 of 1");
    let third = id(&app.create(json!({"owner": "b"})).await);
    assert_eq!(soon(queued(third.clone())).await, "waiting for a start slot: place 2 of 2");
    let status = app.get(&format!("/stacks/{third}/status")).await.json();
    assert_eq!(status["message"], "waiting for a start slot: place 2 of 2");
    app.post("/stacks", &body(json!({}))).await.refuses(503, "cluster saturated");
    // The place moves although nothing of the stack itself changes.
    app.delete(&format!("/stacks/{second}")).await.is(200);
    let list = app.get("/stacks").await.json();
    assert_eq!(list["stacks"][1]["message"], "waiting for a start slot: place 1 of 1");
}

#[tokio::test]
async fn quota_and_limit_range() {
    let app = App::with(Setup {
        engine: Some(json!({
            "quota": {"stacks": 1},
            "limit_range": {"container": {"max": {"cpu": "2"}}},
        })),
        ..Setup::default()
    })
    .await;
    let big = POD.replace("100m", "3");
    let answer = app.post("/stacks", &body(json!({"pod_spec": big}))).await.is(400);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("invalid pod spec: maximum cpu usage per Container is 2"), "{error}");
    app.create(json!({})).await;
    let answer = app.post("/stacks", &body(json!({}))).await.is(503);
    assert!(answer.header("retry-after").is_some());
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("cluster saturated: exceeded quota: "), "{error}");
}

/// The job that this answer names, once it has ended.
async fn ended(app: &App, accepted: &Value) -> Value {
    let id = accepted["job_id"].as_str().unwrap();
    let job = soon(async {
        loop {
            let job = app.get(&format!("/stacks/batch-delete/{id}")).await.is(200).json();
            if job["status"] != "queued" && job["status"] != "running" {
                return job;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(job["job_id"], id);
    job
}

#[tokio::test]
async fn what_a_batch_cannot_delete_is_told_within_bounds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stackd.db");
    let database = StoreConfig::Sqlite { path: path.clone(), ballast_bytes: 0 };
    let app = App::with(Setup { database: Some(database), ..Setup::default() }).await;
    let mut bad = Vec::new();
    for _ in 0..101 {
        bad.push(id(&app.create(json!({"owner": "bad"})).await));
    }
    let good = app.running().await;
    let trigger = format!(
        "CREATE TRIGGER refuses BEFORE UPDATE OF desired ON stacks WHEN OLD.tenant = 'bad' \
         BEGIN SELECT RAISE(ABORT, '{}'); END",
        "ä".repeat(600)
    );
    sqlite::execute(&path, &trigger).await;

    // A single delete has no words for it.
    app.delete(&format!("/stacks/{}", bad[0])).await.refuses(500, "internal server error");
    app.get(&format!("/stacks/{}", bad[0])).await.is(200);

    // All of them fail: the job has failed. The first 100 errors are told, each cut short.
    let accepted = app.post("/stacks/batch-delete", &json!({"stack_ids": bad})).await.is(202);
    let job = ended(&app, &accepted.json()).await;
    let counts = ["total", "deleted", "not_found", "failed"].map(|name| job[name].clone());
    assert_eq!(counts, [101, 0, 0, 101].map(Value::from));
    assert_eq!(job["status"], "failed");
    let errors = job["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 100);
    for (error, id) in errors.iter().zip(&bad) {
        assert_eq!(error["stack_id"], *id);
        let text = error["error"].as_str().unwrap();
        assert_eq!(text.chars().count(), 512, "{text}");
        assert!(text.contains("refuses the change"), "{text}");
    }

    // One of them succeeds: it is completed, and has the document's form.
    let some = json!({"stack_ids": [good, bad[0]]});
    let accepted = app.post("/stacks/batch-delete", &some).await.is(202).json();
    let mut job = ended(&app, &accepted).await;
    let item: Value = example(include_str!("../../../../tests/fixtures/v2/job-error-item.json"));
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&job["errors"][0]), fields(&item));
    let mut shown = example(include_str!("../../../../tests/fixtures/v2/job-failed.json"));
    for field in ["job_id", "created_at", "updated_at"] {
        shown[field] = job[field].clone();
    }
    shown["errors"][0]["stack_id"] = bad[0].clone().into();
    shown["errors"][0]["error"] = job["errors"][0]["error"].take();
    job["errors"][0]["error"] = shown["errors"][0]["error"].clone();
    assert_eq!(job, shown);
    app.get(&format!("/stacks/{good}")).await.refuses(404, "stack not found");

    sqlite::execute(&path, "DROP TRIGGER refuses").await;
    app.delete(&format!("/stacks/{}", bad[0])).await.is(200);
}

fn example(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn batch_deletes() {
    let app = App::new().await;
    for (ids, text) in [
        (json!(null), "invalid input"),
        (json!([]), "invalid input"),
        (json!(["stack-1", " "]), "invalid stack_ids"),
        (json!([""]), "invalid stack_ids"),
    ] {
        app.post("/stacks/batch-delete", &json!({"stack_ids": ids})).await.refuses(400, text);
    }
    app.post("/stacks/batch-delete", &json!({})).await.refuses(400, "invalid input");

    let (one, two) = (app.running().await, app.running().await);
    let ids = json!([one, format!(" {one} "), "stack-unknown", two]);
    let accepted =
        app.post("/stacks/batch-delete", &json!({"stack_ids": ids})).await.is(202).json();
    assert_eq!(accepted.as_object().unwrap().len(), 1);
    let done = ended(&app, &accepted).await;
    assert_eq!(done["status"], "completed");
    let counts =
        ["total", "deleted", "not_found", "failed"].map(|name| done[name].as_u64().unwrap());
    assert_eq!(counts, [3, 2, 1, 0]);
    assert_eq!(done.get("errors"), None);
    assert!(done["created_at"].as_str() <= done["updated_at"].as_str());
    app.get(&format!("/stacks/{one}")).await.refuses(404, "stack not found");
    assert_eq!(app.get("/stacks").await.text, r#"{"stacks":[]}"#);
}

#[tokio::test]
async fn a_deleted_stack_is_gone_for_everybody() {
    let app = App::new().await;
    let id = app.running().await;
    let answer = app.delete(&format!("/stacks/{id}")).await.is(200);
    assert_eq!(answer.json(), json!({"deleted": true, "stack_id": id}));
    app.delete(&format!("/stacks/{id}")).await.refuses(404, "stack not found");
    app.get(&format!("/stacks/{id}/status")).await.refuses(404, "stack not found");
    assert_eq!(app.get("/stacks").await.json(), json!({"stacks": []}));
    let stats = app.get("/stats").await.json();
    assert_eq!((&stats["total_stacks"], &stats["used_node_ports"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn a_yaml_bomb_is_refused_quickly() {
    let app = App::new().await;
    let mut aliases = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (one, two) in ('a'..='y').zip('b'..='z') {
        let all = vec![format!("*{one}"); 9].join(",");
        aliases.push_str(&format!("{two}: &{two} [{all}]\n"));
    }
    let deep = format!("x: {}{}", "[".repeat(20_000), "]".repeat(20_000));
    let large = format!("{POD}\n# {}", "x".repeat(64 << 10));
    for bomb in [aliases, deep, large] {
        let answer = soon(app.post("/stacks", &body(json!({"pod_spec": bomb})))).await.is(400);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.starts_with("invalid pod spec: yaml parse failed: "), "{error}");
    }
}
