//! PostgreSQL instead of the file.

use reqwest::Method;
use serde_json::json;
use stackd_testkit::postgres::{PASSWORD, Postgres};
use stackd_testkit::within;

use crate::IMAGE;
use crate::server::{Server, fetch};

#[tokio::test]
async fn a_server_on_postgresql_survives_its_restart_and_an_absent_database() {
    let cluster = Postgres::start();
    let url = cluster.database();
    let mut server = Server::without_images(&["--database-url", &url]).await;
    server.load_sample().await;
    let (id, port) = server.sample(&[], &[]).await;
    let listed = |list: &serde_json::Value| {
        let stacks = list["stacks"].as_array().expect("a list");
        stacks.iter().map(|stack| stack["stack_id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&server.get("/stacks").await.1), [id.as_str()]);

    server.kill();
    server.launch().await;
    server.running(&id).await;
    assert!(fetch(port, "/healthz").await.is_ok(), "it was adopted");

    cluster.stop();
    let body = json!({
        "target_port": 80,
        "pod_spec": format!(
            "kind: Pod\nspec:\n  containers:\n  - name: app\n    image: {IMAGE}\n    \
             ports: [{{containerPort: 80}}]\n    \
             resources: {{limits: {{cpu: 100m, memory: 64Mi}}}}\n"
        ),
    });
    let (status, refused) = server.post("/stacks", &body).await;
    assert_eq!(status.as_u16(), 503, "{refused}");
    let text = refused["error"].as_str().expect("a text");
    assert!(text.contains("the database cannot be reached"), "{text}");
    let (status, refused) = server.delete(&format!("/stacks/{id}")).await;
    assert_eq!(status.as_u16(), 503, "{refused}");
    assert_eq!(listed(&server.get("/stacks").await.1), [id.as_str()], "reads go on");
    assert!(fetch(port, "/healthz").await.is_ok(), "stacks go on");

    cluster.start_again();
    within("it recovers by itself", async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(50));
        loop {
            pause.tick().await;
            let (status, stack) =
                server.send(server.request(Method::POST, "/stacks").json(&body)).await;
            if status.as_u16() == 201 {
                break server.running(stack["stack_id"].as_str().expect("an id")).await;
            }
            assert_eq!(status.as_u16(), 503, "{stack}");
        }
    })
    .await;
    assert!(!server.log().contains(PASSWORD), "a secret is in the log");

    // It says what is wrong when it cannot start, and where.
    server.stop();
    cluster.stop();
    let (data, output) = (server.data(), |args: &[&str]| {
        std::process::Command::new(crate::server::stackd()).args(args).output().expect("it runs")
    });
    let words = ["serve", "--data-dir", &data, "--listen", "127.0.0.1:0", "--database-url", &url];
    let refused = output(&words);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(8), "{text}");
    assert!(text.contains("Connection refused") && text.contains("127.0.0.1:"), "{text}");
    assert!(text.contains("hint:") && !text.contains(PASSWORD), "{text}");
    cluster.start_again();
    server.finish().await;
}
