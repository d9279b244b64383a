//! The server goes away, and the stacks do not.

use std::process::Stdio;

use reqwest::Method;
use serde_json::json;

use crate::IMAGE;
use crate::server::{Server, fetch};

async fn healthy(port: u16) -> bool {
    fetch(port, "/healthz").await.is_ok()
}

#[tokio::test]
async fn stacks_outlive_a_graceful_stop_and_a_crash() {
    let mut server = Server::start().await;
    let (id, port) = server.sample(&[], &[]).await;
    let before = server.running(&id).await;
    for crash in [false, true] {
        if crash {
            server.kill();
        } else {
            server.stop();
        }
        assert!(healthy(port).await, "it serves while there is no server (crash: {crash})");
        server.launch().await;
        let after = server.running(&id).await;
        assert_eq!(after["ports"], before["ports"]);
        assert_eq!(after["ttl_expires_at"], before["ttl_expires_at"]);
        assert_eq!(after["updated_at"], before["updated_at"], "nothing has changed");
        assert!(healthy(port).await);
    }
    let logs = server.stackd_ok(&["stack", "logs", &id]).await;
    let answers = logs.lines().filter(|line| line.contains("GET /healthz 200")).count();
    assert_eq!(answers, 4, "no line was lost:\n{logs}");
    server.delete(&format!("/stacks/{id}")).await;
    server.finish().await;
}

#[tokio::test]
async fn a_start_that_a_crash_interrupts_is_finished_or_undone() {
    let mut server = Server::start().await;
    for delay in 0..4 {
        // A key tells afterwards which stack was meant, whether or not an answer came.
        let key = format!("crash-{delay}");
        let body = json!({
            "target_port": 80,
            "pod_spec": format!(
                "kind: Pod\nspec:\n  containers:\n  - name: app\n    image: {IMAGE}\n    \
                 ports: [{{containerPort: 80}}]\n    \
                 resources: {{limits: {{cpu: 100m, memory: 64Mi}}}}\n"
            ),
        });
        let request = server.request(Method::POST, "/stacks").header("Idempotency-Key", &key);
        let request = request.json(&body).send();
        // Killed at once, and some milliseconds into the start.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(delay * 7), request).await;
        server.kill();
        server.launch().await;
        let request = server.request(Method::POST, "/stacks").header("Idempotency-Key", &key);
        let (status, stack) = server.send(request.json(&body)).await;
        assert!(status.is_success(), "{stack}");
        let id = stack["stack_id"].as_str().expect("an id").to_owned();
        let stack = server.running(&id).await;
        let port = stack["node_port"].as_u64().expect("a port");
        assert!(healthy(u16::try_from(port).expect("a port")).await);
        let (_, list) = server.get("/stacks").await;
        assert_eq!(list["stacks"].as_array().expect("a list").len(), 1, "one key is one stack");
        server.delete(&format!("/stacks/{id}")).await;
    }
    server.finish().await;
}

#[tokio::test]
async fn after_a_restart_of_the_machine_stacks_have_failed_and_nothing_is_held() {
    let mut server = Server::start().await;
    let (id, port) = server.sample(&[], &[]).await;
    server.lose_power();
    assert!(!healthy(port).await, "nothing serves");
    server.launch().await;
    let (_, stack) = server.get(&format!("/stacks/{id}?wait=ended&timeout=30s")).await;
    let fields = (&stack["status"], &stack["reason"]);
    assert_eq!(fields, (&"failed".into(), &"NodeRebooted".into()), "{stack:#}");
    let (_, stats) = server.get("/stats").await;
    let held = (&stats["used_node_ports"], &stats["reserved_memory_bytes"]);
    assert_eq!((&stats["total_stacks"], held), (&1.into(), (&0.into(), &0.into())), "{stats:#}");
    let (_, again) = server.sample(&[], &[]).await;
    assert!(healthy(again).await, "new ones start");
    server.finish().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_is_refused() {
    let server = Server::start().await;
    let data = server.data();
    let second = std::process::Command::new(crate::server::stackd())
        .args(["serve", "--data-dir", &data, "--listen", "127.0.0.1:0"])
        .stdout(Stdio::null())
        .output()
        .expect("it runs");
    assert_eq!(second.status.code(), Some(11));
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("in use") && text.contains("hint:"), "{text}");
    server.finish().await;
}
