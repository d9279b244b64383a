//! What goes beyond the documents: parameters of creating, listing, waiting, and their bounds.

use axum::http::Method;
use futures_util::future::join;
use serde_json::{Value, json};
use stackd_runtimes::simulated::SimulatedConfig;

use crate::harness::{App, Setup, body, id, soon};

async fn refused(app: &App, more: Value) -> String {
    let answer = app.post("/stacks", &body(more)).await.is(400);
    answer.json()["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn lifetime_class_labels_and_owner() {
    let app = App::new().await;
    let stack = app
        .create(json!({
            "ttl_seconds": 90,
            "runtime_class": "default",
            "labels": {"team": "red", "example.org/round": "2"},
            "owner": "Team Rød",
            "unknown": {"is": "ignored"},
        }))
        .await;
    let time =
        |name: &str| stack[name].as_str().unwrap().parse::<stackd_core::Timestamp>().unwrap();
    assert_eq!(time("ttl_expires_at").duration_since(time("created_at")).as_secs(), 90);
    assert_eq!(stack["labels"], json!({"team": "red", "example.org/round": "2"}));
    assert_eq!((&stack["owner"], &stack["runtime_class"]), (&json!("Team Rød"), &json!("default")));

    let plain = app
        .create(json!({"ttl_seconds": null, "labels": null, "owner": " ", "runtime_class": ""}))
        .await;
    assert_eq!((&plain["owner"], &plain["labels"]), (&json!("main"), &json!({})));
}

#[tokio::test]
async fn values_out_of_their_bounds() {
    let app = App::new().await;
    for ttl in [0, -1, i64::MIN, 604_801, i64::MAX] {
        let text = "invalid input: ttl_seconds must be between 1 and 604800";
        assert_eq!(refused(&app, json!({"ttl_seconds": ttl})).await, text, "{ttl}");
    }
    // More digits than any number has that is read as one.
    let body = body(json!({"ttl_seconds": 7777})).to_string().replace("7777", &"7".repeat(30));
    let request = axum::http::Request::post("/stacks").header("x-api-key", crate::harness::KEY);
    let refused_too = app.raw(request.body(body.into()).unwrap()).await;
    refused_too.refuses(400, "invalid input: ttl_seconds must be between 1 and 604800");
    let text = refused(&app, json!({"runtime_class": "kata"})).await;
    assert_eq!(text, "invalid input: runtime class \"kata\" is not served here");
    assert!(
        refused(&app, json!({"runtime_class": "x".repeat(64)}))
            .await
            .starts_with("invalid input: ")
    );
    assert!(
        refused(&app, json!({"owner": "x".repeat(129)})).await.starts_with("invalid input: owner")
    );
    assert!(refused(&app, json!({"owner": "a\nb"})).await.starts_with("invalid input: owner"));
    assert_eq!(
        refused(&app, json!({"labels": {"-a": "x"}})).await,
        "invalid input: labels: \"-a\" is not a label's key"
    );
    assert_eq!(
        refused(&app, json!({"labels": {"a": "x y"}})).await,
        "invalid input: labels: \"x y\" is not a label's value"
    );
    assert_eq!(app.engine.stats().total_stacks, 0);
}

#[tokio::test]
async fn one_idempotency_key_is_one_stack() {
    let app = App::new().await;
    let send = |key: &'static str, body: Value| {
        let app = &app;
        async move {
            app.send(Method::POST, "/stacks", &[("idempotency-key", key)], body.to_string()).await
        }
    };
    // Two at once are one, too.
    let (first, second) = join(send("k1", body(json!({}))), send("k1", body(json!({})))).await;
    let (first, second) = (first.is(201), second.is(201));
    assert_eq!(id(&first.json()), id(&second.json()));
    let replayed = [first, second].map(|a| a.header("idempotent-replayed").map(str::to_owned));
    assert!(
        replayed.contains(&None) && replayed.contains(&Some("true".to_owned())),
        "{replayed:?}"
    );
    assert_eq!(app.engine.stats().total_stacks, 1);

    let text = "the Idempotency-Key was used with another request body";
    send("k1", body(json!({"ttl_seconds": 60}))).await.refuses(422, text);
    // Another caller's key of the same name is another key.
    app.add_key("other", "other-key", &[], &[]).await;
    let headers = [("idempotency-key", "k1"), ("x-api-key", "other-key")];
    let mut request = axum::http::Request::post("/stacks");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(body(json!({})).to_string().into()).unwrap();
    assert_eq!(app.raw(request).await.is(201).header("idempotent-replayed"), None);
    // A refused create uses its key up for nothing.
    send("k2", body(json!({"ttl_seconds": 0}))).await.is(400);
    let made = send("k2", body(json!({}))).await.is(201).json();
    app.delete(&format!("/stacks/{}", id(&made))).await.is(200);
    let text = "the stack of this Idempotency-Key is gone; use a new key for a new stack";
    send("k2", body(json!({}))).await.refuses(409, text);

    let long = "x".repeat(256);
    for bad in ["", "two words", "ü", &long] {
        let answer = app
            .send(Method::POST, "/stacks", &[("idempotency-key", bad)], body(json!({})).to_string())
            .await;
        answer.refuses(
            400,
            "invalid input: Idempotency-Key must be 1 to 255 visible ASCII characters",
        );
    }
}

#[tokio::test]
async fn pages_filters_and_their_order() {
    let app = App::new().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let team = if n % 2 == 0 { "red" } else { "blue" };
        let stack = app.create(json!({"labels": {"team": team, "n": n.to_string()}})).await;
        ids.push(id(&stack));
    }
    for id in &ids {
        app.get(&format!("/stacks/{id}?wait=running")).await.is(200);
    }
    let list = |path: String| {
        let app = &app;
        async move {
            let answer = app.get(&path).await.is(200);
            let json = answer.json();
            let ids: Vec<_> = json["stacks"].as_array().unwrap().iter().map(id).collect();
            (ids, json, answer)
        }
    };
    let (all, json, answer) = list("/stacks".to_owned()).await;
    assert_eq!(all, ids, "oldest first");
    assert_eq!((json.get("next_cursor"), answer.header("link")), (None, None));

    // The key goes into no link.
    let (page, json, answer) =
        list("/stacks?limit=2&label=team%3Dred&api_key=right-key".to_owned()).await;
    assert_eq!(page, [ids[0].clone(), ids[2].clone()]);
    let link = answer.header("link").unwrap();
    assert!(!link.contains("right-key"), "{link}");
    let next = link.strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned();
    assert!(next.contains(json["next_cursor"].as_str().unwrap()));
    let (page, json, answer) = list(next).await;
    assert_eq!(page, [ids[4].clone()]);
    assert_eq!((json.get("next_cursor"), answer.header("link")), (Some(&Value::Null), None));

    app.runtime.end(ids[1].parse().unwrap(), stackd_runtimes::simulated::End::completed());
    app.get(&format!("/stacks/{}?wait=ended", ids[1])).await.is(200);
    assert_eq!(list("/stacks?status=stopped".to_owned()).await.0, [ids[1].clone()]);
    assert_eq!(list("/stacks?status=stopped,running&limit=1000".to_owned()).await.0, ids);
    assert_eq!(
        list("/stacks?status=failed&status=stopped&label=n".to_owned()).await.0,
        [ids[1].clone()]
    );
    assert_eq!(list("/stacks?label=team!=red,n!=1".to_owned()).await.0, [ids[3].clone()]);
    assert_eq!(list("/stacks?label=!team".to_owned()).await.0, Vec::<String>::new());

    for (query, text) in [
        ("limit=0", "limit must be a whole number from 1 to 1000"),
        ("limit=1001", "limit must be a whole number from 1 to 1000"),
        ("limit=x", "limit must be a whole number from 1 to 1000"),
        ("cursor=x", "cursor must be one that an earlier page gave"),
        ("status=up", "status must be creating, running, stopped, failed or node_deleted"),
        ("label=a%20b", "label: \"a b\" is not a condition such as key=value"),
    ] {
        app.get(&format!("/stacks?{query}")).await.refuses(400, &format!("invalid input: {text}"));
    }
}

#[tokio::test]
async fn a_list_that_has_not_changed_is_not_sent_again() {
    let app = App::new().await;
    let id = app.running().await;
    let ask = |path: &'static str, tag: String| {
        let app = &app;
        async move { app.send(Method::GET, path, &[("if-none-match", &tag)], "").await }
    };
    let first = app.get("/stacks").await.is(200);
    let tag = first.header("etag").unwrap().to_owned();
    assert!(tag.starts_with("W/\""), "{tag}");
    let again = ask("/stacks", format!("\"x\", {tag}")).await.is(304);
    assert_eq!((again.text.as_str(), again.header("etag")), ("", Some(tag.as_str())));
    ask("/stacks", tag.trim_start_matches("W/").to_owned()).await.is(304);
    ask("/stacks", "*".to_owned()).await.is(304);
    ask("/stacks?status=failed", tag.clone()).await.is(200);
    ask("/stacks?limit=1", tag.clone()).await.is(200);
    app.delete(&format!("/stacks/{id}")).await.is(200);
    ask("/stacks", tag).await.is(200);
}

#[tokio::test]
async fn waiting_ends_with_the_change_or_the_time() {
    let runtime = SimulatedConfig {
        ready_delay: std::time::Duration::from_secs(3600),
        ..SimulatedConfig::instant()
    };
    let app = App::with(Setup { runtime: Some(runtime), ..Setup::default() }).await;
    let id = id(&app.create(json!({})).await);
    let path = format!("/stacks/{id}");
    let still = soon(app.get(&format!("{path}?wait=running&timeout=10ms"))).await.is(200).json();
    assert_eq!(still["status"], "creating");
    for timeout in ["1", "1s", "0", "5m"] {
        let answer =
            soon(join(app.get(&format!("{path}?wait=running&timeout={timeout}")), async {
                app.runtime.set_ready(id.parse().unwrap(), true)
            }))
            .await
            .0;
        answer.is(200);
    }
    let waiting = format!("{path}?wait=ended&timeout=60");
    let (answer, gone) = soon(join(app.get(&waiting), app.delete(&path))).await;
    gone.is(200);
    answer.refuses(404, "stack not found");

    for (query, text) in [
        ("wait=forever", "wait must be running or ended"),
        (
            "wait=running&timeout=x",
            "timeout must be whole seconds or a length of time such as 30s, at most 5m",
        ),
        (
            "wait=running&timeout=301",
            "timeout must be whole seconds or a length of time such as 30s, at most 5m",
        ),
        (
            "wait=running&timeout=-1",
            "timeout must be whole seconds or a length of time such as 30s, at most 5m",
        ),
    ] {
        app.get(&format!("{path}?{query}")).await.refuses(400, &format!("invalid input: {text}"));
    }
}

#[tokio::test]
async fn a_wait_ends_when_the_server_stops() {
    let runtime = SimulatedConfig {
        ready_delay: std::time::Duration::from_secs(3600),
        ..SimulatedConfig::instant()
    };
    let app = App::with(Setup { runtime: Some(runtime), ..Setup::default() }).await;
    let id = id(&app.create(json!({})).await);
    let path = format!("/stacks/{id}?wait=running&timeout=5m");
    let (answer, ()) = soon(join(app.get(&path), async { app.stopping.cancel() })).await;
    assert_eq!(answer.is(200).json()["status"], "creating");
    app.get("/readyz").await.is(503);
}
