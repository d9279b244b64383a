//! Answers that take their time: logs, events, commands.

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use stackd_runtimes::simulated::End;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tower::ServiceExt;

use crate::harness::{App, KEY, soon};

#[tokio::test]
async fn logs_as_text_with_times_and_as_json() {
    let app = App::new().await;
    let id = app.running().await;
    let path = format!("/stacks/{id}/logs");
    let text = app.get(&path).await.is(200);
    assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(text.header("x-content-type-options"), Some("nosniff"));
    let lines: Vec<_> = text.text.lines().collect();
    assert_eq!(lines.len(), 3, "{}", text.text);
    assert!(text.text.ends_with("simulated: ready\n"));

    assert_eq!(app.get(&format!("{path}?tail=1&container=app")).await.text, "simulated: ready\n");
    assert_eq!(app.get(&format!("{path}?tail=0")).await.text, "");
    let timed = app.get(&format!("{path}?tail=1&timestamps")).await.text;
    let (time, line) = timed.split_once(' ').unwrap();
    assert!(time.parse::<stackd_core::Timestamp>().is_ok() && line == "simulated: ready\n");

    let accept = [("accept", "application/x-ndjson")];
    let json = app.send(Method::GET, &path, &accept, "").await.is(200);
    assert_eq!(json.header("content-type"), Some("application/x-ndjson"));
    let lines: Vec<Value> =
        json.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[1]["stream"], "stderr");
    assert_eq!(lines[2]["text"], "simulated: ready");

    for (query, text) in [
        ("container=db", "the stack has no container \"db\""),
        ("tail=x", "tail must be a whole number from 0 to 1000000"),
        ("tail=-1", "tail must be a whole number from 0 to 1000000"),
        ("follow=maybe", "follow must be true or false"),
        ("timestamps=2", "timestamps must be true or false"),
    ] {
        app.get(&format!("{path}?{query}")).await.refuses(400, &format!("invalid input: {text}"));
    }
    app.runtime.set_reachable(false);
    app.get(&path).await.is(503);
}

#[tokio::test]
async fn followed_logs_end_with_the_stack_or_the_server() {
    let app = App::new().await;
    let (one, two) = (app.running().await, app.running().await);
    let follow = |id: &str| {
        let request = Request::get(format!("/stacks/{id}/logs?follow=true&tail=0"));
        app.router.clone().oneshot(request.header("x-api-key", KEY).body(Body::empty()).unwrap())
    };
    let followed = follow(&one).await.unwrap();
    assert!(app.runtime.end(one.parse().unwrap(), End::completed()));
    let text = soon(followed.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(text, "simulated: ended with 0\n");

    let followed = follow(&two).await.unwrap();
    app.stopping.cancel();
    assert_eq!(soon(followed.into_body().collect()).await.unwrap().to_bytes(), "");
}

#[tokio::test]
async fn the_events_of_a_stack() {
    let app = App::new().await;
    let id = app.running().await;
    // What is seen running a moment before it is written down.
    let events = soon(async {
        loop {
            let events = app.get(&format!("/stacks/{id}/events")).await.is(200).json();
            let events = events["events"].as_array().unwrap().clone();
            if events.last().is_some_and(|event| event["status"] == "running") {
                return events;
            }
        }
    })
    .await;
    let first = &events[0];
    assert_eq!((&first["kind"], &first["status"]), (&json!("created"), &json!("creating")));
    assert_eq!(first["stack_id"], json!(id));
    let last = events.last().unwrap();
    assert_eq!((&last["kind"], &last["status"]), (&json!("changed"), &json!("running")));
    assert!(events.iter().map(|e| e["seq"].as_u64().unwrap()).is_sorted());
    assert!(last["time"].as_str().unwrap().parse::<stackd_core::Timestamp>().is_ok());
}

/// The stream of events, one by one.
struct Sse {
    body: Body,
    text: String,
}

impl Sse {
    async fn open(app: &App, query: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(format!("/events{query}")).header("x-api-key", KEY);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = app.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next event: its id, its name and its data; none at the end.
    async fn next(&mut self) -> Option<(u64, String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|value| value.trim_start_matches([':', ' ']).to_owned())
                };
                let parsed = field("id").map(|id| {
                    let data = serde_json::from_str(&field("data").unwrap()).unwrap();
                    (id.parse().unwrap(), field("event").unwrap(), data)
                });
                self.text = rest.to_owned();
                if parsed.is_some() {
                    return parsed;
                }
                continue;
            }
            let frame = soon(self.body.frame()).await?.unwrap();
            self.text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }
}

#[tokio::test]
async fn all_events_in_order_and_again_from_any_of_them() {
    let app = App::new().await;
    let mut live = Sse::open(&app, "", None).await;
    let (one, two) = (app.running().await, app.running().await);
    app.delete(&format!("/stacks/{one}")).await.is(200);
    let mut seen = Vec::new();
    loop {
        let (id, name, data) = live.next().await.unwrap();
        assert_eq!((json!(id), json!(name)), (data["seq"].clone(), data["kind"].clone()));
        let over = name == "removed";
        seen.push((id, name, data));
        if over {
            break;
        }
    }
    assert!(seen.iter().map(|(id, ..)| id).is_sorted());
    for wanted in ["created", "changed", "deleted", "removed"] {
        assert!(
            seen.iter().any(|(_, name, data)| name == wanted && data["stack_id"] == json!(one))
        );
    }

    // From the second on, by header or query; the header wins.
    let second = seen[1].0.to_string();
    let query = format!("?last_event_id={second}");
    for (query, header) in
        [("", Some(second.as_str())), (&query, None), ("?last_event_id=0", Some(&second))]
    {
        let mut again = Sse::open(&app, query, header).await;
        for expected in &seen[2..] {
            assert_eq!(again.next().await.as_ref(), Some(expected));
        }
    }
    // Only one stack's.
    let mut only = Sse::open(&app, &format!("?stack_id={two}&last_event_id=0"), None).await;
    let expected: Vec<_> =
        seen.iter().filter(|(.., data)| data["stack_id"] == json!(two)).collect();
    for expected in expected {
        assert_eq!(only.next().await.as_ref(), Some(expected));
    }
    app.stopping.cancel();
    assert_eq!(only.next().await, None, "it ends with the server");
    app.get("/events?last_event_id=x")
        .await
        .refuses(400, "invalid input: Last-Event-ID must be a whole number");
}

#[tokio::test]
async fn a_reader_from_before_what_is_kept_is_told_to_read_anew() {
    let app = App::new().await;
    let mut live = Sse::open(&app, "", None).await;
    let mut last = 0;
    for _ in 0..4 {
        app.running().await;
    }
    while last < 8 {
        last = live.next().await.unwrap().0;
    }
    app.store.prune(3, stackd_core::Timestamp::UNIX_EPOCH).await.unwrap();
    let mut late = Sse::open(&app, "", Some("1")).await;
    let (id, name, data) = late.next().await.unwrap();
    let oldest = data["oldest"].as_u64().unwrap();
    assert_eq!((name.as_str(), id), ("reset", oldest - 1), "{data}");
    assert!(oldest > 2, "{data}");
    // It goes on with what is kept, and so does a reader that broke off right after the reset.
    assert_eq!(late.next().await.unwrap().0, oldest);
    let mut again = Sse::open(&app, "", Some(&id.to_string())).await;
    assert_eq!(again.next().await.unwrap().0, oldest);
    // Numbers that were never given: another database, for one.
    let (_, name, _) = Sse::open(&app, "", Some("999999")).await.next().await.unwrap();
    assert_eq!(name, "reset");
}

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn open(
    address: std::net::SocketAddr,
    path: &str,
    key: &str,
) -> Result<Socket, (u16, Value)> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    request.headers_mut().insert("x-api-key", key.parse().unwrap());
    request.headers_mut().insert("sec-websocket-protocol", "v1.stackd.exec".parse().unwrap());
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, response)) => {
            assert_eq!(response.headers()["sec-websocket-protocol"], "v1.stackd.exec");
            assert!(response.headers().contains_key("x-request-id"));
            Ok(socket)
        }
        Err(Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            Err((response.status().as_u16(), serde_json::from_slice(body).unwrap()))
        }
        Err(other) => panic!("{other}"),
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    Message::binary([&[channel], data].concat())
}

async fn next(socket: &mut Socket) -> Option<Message> {
    loop {
        match soon(socket.next()).await? {
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(message) => return Some(message),
            Err(_) => return None,
        }
    }
}

#[tokio::test]
async fn a_command_in_a_stack() {
    let app = App::new().await;
    let address = app.listen().await;
    let id = app.running().await;
    let path = format!("/stacks/{id}/exec?command=echo&command=a%20b");
    let mut socket = open(address, &path, KEY).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(frame(1, b"echo a b\n")));
    assert_eq!(next(&mut socket).await, Some(frame(3, br#"{"code":0}"#)));
    assert!(
        matches!(next(&mut socket).await, Some(Message::Close(Some(close))) if close.code == 1000.into())
    );

    let path = format!("/stacks/{id}/exec?command=exit&command=7");
    let mut socket = open(address, &path, KEY).await.unwrap();
    next(&mut socket).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(frame(3, br#"{"code":7}"#)));

    // With input, until its end.
    let path = format!("/stacks/{id}/exec?command=cat&stdin=true&container=app");
    let mut socket = open(address, &path, KEY).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(frame(1, b"cat\n")));
    socket.send(frame(0, b"some input")).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(frame(1, b"some input")));
    socket.send(frame(0, b"")).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(frame(3, br#"{"code":0}"#)));

    // With a terminal, whose size may change.
    let path = format!("/stacks/{id}/exec?command=sh&tty&columns=120&rows=40");
    let mut socket = open(address, &path, KEY).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(frame(1, b"sh\r\n")));
    socket.send(frame(4, br#"{"columns":80,"rows":24}"#)).await.unwrap();
    socket.send(frame(0, b"x\x04")).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(frame(1, b"x")));
    assert_eq!(next(&mut socket).await, Some(frame(3, br#"{"code":0}"#)));

    // What breaks the rules is told so.
    for (message, code) in [
        (Message::text("text"), 1003),
        (frame(9, b"?"), 1002),
        (frame(4, b"?"), 1002),
        (Message::binary(Vec::new()), 1002),
    ] {
        let path = format!("/stacks/{id}/exec?command=cat&stdin");
        let mut socket = open(address, &path, KEY).await.unwrap();
        next(&mut socket).await.unwrap();
        socket.send(message).await.unwrap();
        assert!(
            matches!(next(&mut socket).await, Some(Message::Close(Some(close))) if close.code == code.into())
        );
    }

    // And it ends with the server.
    let path = format!("/stacks/{id}/exec?command=cat&stdin");
    let mut socket = open(address, &path, KEY).await.unwrap();
    next(&mut socket).await.unwrap();
    app.stopping.cancel();
    assert!(
        matches!(next(&mut socket).await, Some(Message::Close(Some(close))) if close.code == 1001.into())
    );
}

#[tokio::test]
async fn a_command_that_is_not_run() {
    let app = App::new().await;
    app.add_key("plain", "plain-key", &[], &[]).await;
    let address = app.listen().await;
    let id = app.running().await;
    let refused = |path: String, key: &'static str| async move {
        open(address, &path, key).await.map(drop).unwrap_err()
    };
    let error = |status: u16, text: &str| (status, json!({ "error": text }));
    let good = format!("/stacks/{id}/exec?command=id");
    assert_eq!(refused(good.clone(), "wrong").await, error(401, "invalid api key"));
    let text = "this api key may not run commands in stacks";
    assert_eq!(refused(good.clone(), "plain-key").await, error(403, text));
    let none = "/stacks/stack-0000000000000000/exec?command=id".to_owned();
    assert_eq!(refused(none.clone(), KEY).await, error(404, "stack not found"));
    for (query, text) in [
        ("", "command is required"),
        ("command=", "command is required"),
        ("command=a&command=%00", "command must not contain a zero byte"),
        ("command=id&container=db", "the stack has no container \"db\""),
        ("command=id&tty=x", "tty must be true or false"),
        ("command=id&columns=0", "columns must be a whole number from 1 to 1000"),
    ] {
        let path = format!("/stacks/{id}/exec?{query}");
        assert_eq!(refused(path, KEY).await, error(400, &format!("invalid input: {text}")));
    }
    app.get(&good).await.refuses(426, "this path speaks WebSocket only");
    app.get(&none).await.refuses(404, "stack not found");
    app.runtime.end(id.parse().unwrap(), End::completed());
    app.get(&format!("/stacks/{id}?wait=ended")).await.is(200);
    assert_eq!(refused(good, KEY).await, error(409, "the stack is stopped"));
}
