//! A stack's life by the command line.

use serde_json::Value;

use crate::on::On;
use crate::server::Server;

on_every_runtime! {
    a_stack_lives_and_dies_by_the_command_line => super::a_life;
    a_stack_that_ends_says_how => super::an_end;
    a_terminal_is_one => super::a_terminal;
}

async fn a_life(on: On) {
    let server = Server::on(on).await;
    let (id, port) = server.sample(&["--env", "GREETING=hello", "--label", "team=red"], &[]).await;
    assert!(
        server.fetch(port, "/json").await.expect("it serves").contains(r#""GREETING":"hello""#)
    );

    let list = server.stackd_ok(&["stack", "list", "--label", "team=red", "-o", "name"]).await;
    assert_eq!(list.trim(), id);
    let list = server.stackd_ok(&["stack", "list", "--label", "team=blue", "-o", "name"]).await;
    assert_eq!(list.trim(), "");
    let json = server.stackd_ok(&["stack", "get", &id, "-o", "json"]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let stack = json.get(0).unwrap_or(&json);
    assert_eq!((&stack["stack_id"], &stack["status"]), (&id.as_str().into(), &"running".into()));
    let ports = server.stackd_ok(&["stack", "port", &id]).await;
    assert!(ports.contains("80/tcp") && ports.contains(&port.to_string()), "{ports}");

    let logs = server.stackd_ok(&["stack", "logs", &id]).await;
    assert!(logs.contains("listening on") && logs.contains("GET /json 200"), "{logs}");
    let said = server.stackd_ok(&["stack", "exec", &id, "--", "/sample", "print", "2"]).await;
    assert_eq!(said, "line 1\nline 2\n");
    let ended = server.stackd(&["stack", "exec", &id, "--", "/sample", "exit", "7"]).await;
    assert_eq!(ended.status.code(), Some(7));

    server.stackd_ok(&["stack", "delete", &id]).await;
    let gone = server.stackd(&["stack", "get", &id]).await;
    assert_eq!(gone.status.code(), Some(6), "there is no such stack");
    server.refuses(port).await;
    server.finish().await;
}

async fn an_end(on: On) {
    let server = Server::on(on).await;
    let words = ["stack", "create", crate::IMAGE, "--port", "80", "-o", "name", "--wait"];
    let ended = server.stackd(&[&words[..], &["--", "exit", "3"]].concat()).await;
    assert_eq!(ended.status.code(), Some(10), "it ended where it should run");
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(text.contains('3'), "its code is told: {text}");
    let list = server.stackd_ok(&["stack", "list", "--status", "failed", "-o", "name"]).await;
    assert_eq!(list.lines().count(), 1);
    server.finish().await;
}

#[tokio::test]
async fn without_a_good_key_nothing_is_told() {
    let server = Server::start().await;
    let bad = server.stackd(&["stack", "list", "--api-key", "not-the-key-of-this-server"]).await;
    assert_eq!(bad.status.code(), Some(5));
    let http = reqwest::Client::new();
    for path in ["/healthz", "/stacks", "/stats"] {
        let answer = http.get(server.url(path)).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 401);
        let text = answer.text().await.expect("a body");
        assert_eq!(text.trim_end(), r#"{"error":"invalid api key"}"#);
    }
    server.finish().await;
}

async fn a_terminal(on: On) {
    let server = Server::on(on).await;
    let (id, _) = server.sample(&[], &[]).await;
    let mut terminal = server.terminal(&["stack", "exec", "-it", &id, "--", "/sample", "terminal"]);
    terminal.until("17 91").await;
    terminal.resize(120, 33);
    terminal.until("33 120").await;
    terminal.type_in("q\n");
    assert_eq!(terminal.ended().await, 5);
    server.finish().await;
}
