//! Every JSON example of both versions of the provisioner's document, asked of the real binary.
//!
//! `fixtures/` holds the examples as they stand there. Ids, times, addresses and node ports are
//! compared by their form; all else, the Pod byte for byte, by its value. An answer may have more
//! fields than its document, never fewer.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::on::On;
use crate::server::Server;

fn example(version: &str, name: &str) -> Value {
    let path = format!("{}/fixtures/{version}/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).expect("an example is JSON")
}

fn is_id(text: &str, prefix: &str) -> bool {
    let digits = text.strip_prefix(prefix).unwrap_or_default();
    digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// RFC 3339 in UTC, with at most nine digits of a second and no zeros at their end.
fn is_time(text: &str) -> bool {
    let Some(text) = text.strip_suffix('Z') else { return false };
    let fraction = text.split_once('.').map(|(_, fraction)| fraction);
    let short = fraction.is_none_or(|f| !f.is_empty() && f.len() <= 9 && !f.ends_with('0'));
    short && format!("{text}Z").parse::<stackd_core::Timestamp>().is_ok()
}

/// What `field` may be, where it differs from run to run.
fn form(field: &str, actual: &Value) -> Option<bool> {
    let text = actual.as_str().unwrap_or_default();
    Some(match field {
        "stack_id" | "pod_id" => is_id(text, "stack-"),
        "service_name" => is_id(text, "svc-stack-"),
        "job_id" => is_id(text, "job-"),
        "created_at" | "updated_at" | "ttl_expires_at" | "ttl" => is_time(text),
        "node_id" => !text.is_empty(),
        "node_public_ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "node_port" => actual.as_u64().is_some_and(|port| port > 0 && port < 65_536),
        // One node, whatever its name, holds the stacks.
        "node_distribution" => {
            actual.as_object().is_some_and(|nodes| nodes.values().all(Value::is_u64))
        }
        _ => return None,
    })
}

/// Panics unless `actual` is what the document shows.
fn assert_like(what: &str, expected: &Value, actual: &Value) {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(fields)) => {
            for (field, expected) in expected {
                let what = format!("{what}.{field}");
                let actual = fields.get(field).unwrap_or_else(|| panic!("{what} is not there"));
                match form(field, actual) {
                    Some(fits) => assert!(fits, "{what}: {actual}"),
                    None => assert_like(&what, expected, actual),
                }
            }
        }
        (Value::Array(expected), Value::Array(items)) => {
            assert_eq!(expected.len(), items.len(), "{what} has other entries: {actual}");
            for (n, (expected, item)) in expected.iter().zip(items).enumerate() {
                assert_like(&format!("{what}[{n}]"), expected, item);
            }
        }
        _ => assert_eq!(expected, actual, "{what}"),
    }
}

async fn replay(on: On, version: &str) {
    let server = Server::on(on).await;
    let (status, health) = server.get("/healthz").await;
    assert_eq!((status, &health), (StatusCode::OK, &example(version, "healthz")));
    let (status, health) = server.send(server.request(Method::GET, "/healthz")).await;
    assert_eq!((status, health), (StatusCode::OK, example(version, "healthz")));

    let (status, created) = server.post("/stacks", &example(version, "create.request")).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    assert_like("create", &example(version, "create"), &created);
    let id = created["stack_id"].as_str().expect("an id").to_owned();
    assert_eq!(created["pod_id"], created["stack_id"]);
    assert_eq!(created["service_name"], format!("svc-{id}"));
    server.running(&id).await;

    let (status, stack) = server.get(&format!("/stacks/{id}")).await;
    assert_eq!(status, StatusCode::OK);
    assert_like("get", &example(version, "get"), &stack);
    let (status, list) = server.get("/stacks").await;
    assert_eq!(status, StatusCode::OK);
    assert_like("list", &example(version, "list"), &list);
    let (status, short) = server.get(&format!("/stacks/{id}/status")).await;
    assert_eq!(status, StatusCode::OK);
    assert_like("status", &example(version, "status"), &short);

    // Both versions' fields stand side by side, and lead to the stack.
    let port = stack["node_port"].as_u64().expect("a plain number");
    assert_eq!(stack["ports"][0]["node_port"], port);
    assert_eq!((&stack["target_port"], &short["target_port"]), (&json!(80), &json!(80)));
    let page = server.fetch(u16::try_from(port).expect("a port"), "/healthz").await;
    assert_eq!(page.expect("it takes traffic"), "ok\n");

    let (status, stats) = server.get("/stats").await;
    assert_eq!(status, StatusCode::OK);
    let mut expected = example(version, "stats");
    // The document's seven stacks are one here, each of the same size.
    for (field, value) in [("total_stacks", 1), ("active_stacks", 1), ("used_node_ports", 1)] {
        expected[field] = json!(value);
    }
    expected["reserved_cpu_milli"] = json!(700 / 7);
    expected["reserved_memory_bytes"] = json!(939_524_096_u64 / 7);
    assert_like("stats", &expected, &stats);
    assert_eq!(stats["node_distribution"][stack["node_id"].as_str().expect("a node")], 1);

    let (status, deleted) = server.delete(&format!("/stacks/{id}")).await;
    assert_eq!(status, StatusCode::OK);
    assert_like("delete", &example(version, "delete"), &deleted);
    let (status, gone) = server.get(&format!("/stacks/{id}")).await;
    assert_eq!((status, gone), (StatusCode::NOT_FOUND, json!({"error": "stack not found"})));
    server.finish().await;
}

on_every_runtime! {
    version_1_is_answered_as_documented => |on| super::replay(on, "v1");
    version_2_is_answered_as_documented => |on| super::replay(on, "v2");
    a_batch_is_deleted_as_documented => super::a_batch;
    clients_of_both_versions_use_one_server => super::both_versions;
}

async fn a_batch(on: On) {
    let server = Server::on(on).await;
    let mut request = example("v2", "batch-delete.request");
    for slot in 0..2 {
        let (_, created) = server.post("/stacks", &example("v2", "create.request")).await;
        request["stack_ids"][slot] = created["stack_id"].clone();
    }
    let (status, accepted) = server.post("/stacks/batch-delete", &request).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{accepted}");
    assert_like("batch-delete", &example("v2", "batch-delete"), &accepted);
    let path = format!("/stacks/batch-delete/{}", accepted["job_id"].as_str().expect("an id"));
    let job = stackd_testkit::within("the job ends", async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(10));
        loop {
            pause.tick().await;
            let (status, job) = server.get(&path).await;
            assert_eq!(status, StatusCode::OK);
            let word = job["status"].as_str().expect("a word").to_owned();
            assert!(["queued", "running", "completed"].contains(&word.as_str()), "{job}");
            if word == "completed" {
                return job;
            }
        }
    })
    .await;
    let mut expected = example("v2", "job");
    // The field rule wins over the example: an empty list is left out.
    assert_eq!(expected.as_object_mut().expect("an object").remove("errors"), Some(json!([])));
    assert_like("job", &expected, &job);
    assert!(job.get("errors").is_none(), "{job}");
    // The example of a job with failures needs a database that refuses: `server/tests` replays it.
    server.finish().await;
}

async fn both_versions(on: On) {
    let server = Server::on(on).await;
    let mut ids = Vec::new();
    for version in ["v1", "v2"] {
        let (status, created) = server.post("/stacks", &example(version, "create.request")).await;
        assert_eq!(status, StatusCode::CREATED, "{created}");
        ids.push(created["stack_id"].as_str().expect("an id").to_owned());
    }
    for id in &ids {
        let stack = server.running(id).await;
        for version in ["v1", "v2"] {
            assert_like(version, &example(version, "get"), &stack);
            let (_, status) = server.get(&format!("/stacks/{id}/status")).await;
            assert_like(version, &example(version, "status"), &status);
        }
    }
    server.finish().await;
}
