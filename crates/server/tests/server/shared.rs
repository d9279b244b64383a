//! What holds for every answer: ids of requests, the other form of errors, other origins.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;

use crate::harness::{App, KEY, Setup, body, soon};

#[tokio::test]
async fn every_answer_carries_an_id() {
    let app = App::new().await;
    let id = |path: &'static str, given: &'static str| {
        let app = &app;
        async move {
            let answer = app.send(Method::GET, path, &[("x-request-id", given)], "").await;
            answer.header("x-request-id").unwrap().to_owned()
        }
    };
    for path in ["/stacks", "/livez", "/nothing", "/stacks/x"] {
        assert_eq!(id(path, "abc-123").await, "abc-123");
        assert_eq!(id(path, "not sane").await.len(), 32);
    }
    assert_ne!(id("/livez", "").await, id("/livez", "").await);
    let refused = app.raw(Request::get("/stacks").body(Body::empty()).unwrap()).await;
    assert!(refused.header("x-request-id").is_some());
}

#[tokio::test]
async fn errors_in_the_form_of_rfc_9457_for_who_asks() {
    let app = App::new().await;
    let accept = [("accept", "application/problem+json, application/json;q=0.5")];
    let path = "/stacks/stack-0000000000000000?api_key=right-key";
    let answer = app.send(Method::GET, path, &accept, "").await.is(404);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(
        answer.json(),
        json!({
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "stack not found",
            "instance": "/stacks/stack-0000000000000000",
        })
    );
    let refused = Request::get("/stacks").header("accept", "application/problem+json");
    let refused = app.raw(refused.body(Body::empty()).unwrap()).await.is(401);
    assert_eq!(refused.json()["detail"], "invalid api key");
    app.send(Method::GET, "/nothing", &accept, "").await.is(404);
    let wrong = app.send(Method::PUT, "/stacks", &accept, "").await.is(405);
    assert!(wrong.header("allow").is_some());
    // What a refusal has besides comes along.
    let body = r#"{"id": "web", "name": "Web", "runtime": "docker", "image": "web", "port": 0}"#;
    let invalid = app.send(Method::POST, "/challenges", &accept, body).await.is(422).json();
    assert_eq!(invalid["errors"][0]["loc"], json!(["body", "port"]), "{invalid}");
    assert_eq!(invalid["detail"], "port must be from 1 to 65535");
    // An answer that is none stays what it is.
    let list = app.send(Method::GET, "/stacks", &accept, "").await.is(200);
    assert_eq!(list.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn other_origins_are_answered_only_where_configured() {
    let ask = |app: App, origin: &'static str| async move {
        let request = Request::builder()
            .method(Method::OPTIONS)
            .uri("/stacks")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "x-api-key,content-type");
        let answer = app.raw(request.body(Body::empty()).unwrap()).await;
        let sent = app.send(Method::GET, "/stacks", &[("origin", origin)], "").await.is(200);
        let allowed = |answer: &crate::harness::Answer| {
            answer.header("access-control-allow-origin").map(str::to_owned)
        };
        (allowed(&answer), allowed(&sent))
    };
    assert_eq!(ask(App::new().await, "https://ctf.example.org").await, (None, None));
    let configured = || async {
        let mut setup = Setup::default();
        setup.server.cors_origins = vec!["https://ctf.example.org".to_owned()];
        App::with(setup).await
    };
    let good = Some("https://ctf.example.org".to_owned());
    assert_eq!(ask(configured().await, "https://ctf.example.org").await, (good.clone(), good));
    assert_eq!(ask(configured().await, "https://other.example.org").await, (None, None));
}

#[tokio::test]
async fn options_is_a_method_like_others_where_no_origin_is_named() {
    let app = App::new().await;
    app.send(Method::OPTIONS, "/nope", &[], "").await.refuses(404, "not found");
    app.send(Method::OPTIONS, "/stacks", &[], "").await.refuses(405, "method not allowed");
}

#[tokio::test]
async fn no_type_of_content_is_asked_for() {
    let app = App::new().await;
    for content_type in ["text/plain", "application/json", "application/x-www-form-urlencoded"] {
        let headers = [("content-type", content_type)];
        app.send(Method::POST, "/stacks", &headers, body(json!({})).to_string()).await.is(201);
    }
}

#[tokio::test]
async fn readiness_tells_which_part_is_not_well() {
    let app = App::new().await;
    app.running().await;
    let ready = app.get("/readyz").await.is(200).json();
    assert_eq!(ready, json!({"status": "ok", "store": "ok", "runtime": "ok"}));
    assert_eq!(app.get("/livez").await.is(200).json(), json!({"status": "ok"}));
}

#[tokio::test]
async fn metrics_take_a_bearer_token_for_the_key() {
    let app = App::new().await;
    let (good, lower) = (format!("Bearer {KEY}"), format!("bearer {KEY}"));
    let wrong = ("authorization", "Bearer wrong");
    for (headers, status) in [
        (vec![("authorization", good.as_str())], 200),
        (vec![("authorization", &lower)], 200),
        (vec![wrong], 401),
        (vec![("authorization", KEY)], 401),
        (vec![wrong, ("x-api-key", KEY)], 200),
        (vec![("authorization", &good), ("x-api-key", "wrong")], 401),
    ] {
        let mut request = Request::get("/metrics");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        app.raw(request.body(Body::empty()).unwrap()).await.is(status);
    }
    // Only there: the API itself keeps to its documents.
    let request = Request::get("/stacks").header("authorization", &good);
    app.raw(request.body(Body::empty()).unwrap()).await.is(401);
}

#[tokio::test]
async fn metrics_count_what_happened_and_hold_no_secret() {
    let app = App::new().await;
    let id = app.running().await;
    app.get(&format!("/stacks/{id}?api_key=secret-in-query")).await.is(200);
    app.get("/no/such/path?api_key=secret-in-query").await.is(404);
    // Events are counted when they come, which is a moment after the stack is seen running.
    let metrics = soon(async {
        loop {
            let request = Request::get("/metrics").header("x-api-key", KEY);
            let metrics = app.raw(request.body(Body::empty()).unwrap()).await.is(200);
            if metrics.text.contains("stackd_stack_start_duration_seconds_count 1\n") {
                return metrics;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    for line in [
        r#"http_requests_total{method="POST",route="/stacks",status="201"} 1"#,
        r#"http_requests_total{method="GET",route="/stacks/{stack_id}",status="200"} 2"#,
        r#"http_requests_total{method="GET",route="unmatched",status="404"} 1"#,
        r#"http_request_duration_seconds_count{method="POST",route="/stacks"} 1"#,
        r#"stackd_stacks{status="running"} 1"#,
        r#"stackd_stacks{status="creating"} 0"#,
        r#"stackd_stacks{status="node_deleted"} 0"#,
        "stackd_reserved_cpu_cores 0.1",
        "stackd_reserved_memory_bytes 134217728",
        "stackd_used_node_ports 1",
        "stackd_active_stacks 1",
        "stackd_waiting_starts 0",
        "stackd_store_up 1",
        "stackd_runtime_synced 1",
        r#"stackd_stack_events_total{kind="created"} 1"#,
        "# EOF",
    ] {
        assert!(metrics.text.lines().any(|l| l == line), "{line} in\n{}", metrics.text);
    }
    assert!(!metrics.text.contains("secret") && !metrics.text.contains(&id));
}
