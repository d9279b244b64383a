//! The player's page: what it says to whom, and the stream that it follows.

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use stackd_runtimes::simulated::SimulatedConfig;
use tower::ServiceExt;

use crate::harness::{Answer, App, soon};
use crate::player::{STACK, app, ask, by_secret, setup, user, with};
use crate::tokens::{Signer, now};

const EVENTS: &str = "/api/challenges/12/stack/events";

async fn page(app: &App, path: &str) -> Answer {
    app.raw(Request::get(path).body(Body::empty()).unwrap()).await
}

/// The states of the documents' challenge that a token's page is sent.
pub(crate) async fn follow(app: &App, token: &str) -> BoxStream<'static, Value> {
    let request = Request::get(EVENTS).header("authorization", format!("Bearer {token}"));
    let answer = app.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let parts = answer.into_body().into_data_stream();
    let states = parts.filter_map(|part| async move {
        let text = String::from_utf8(part.unwrap().to_vec()).unwrap();
        let data = text.strip_prefix("event: state\ndata: ")?.trim_end().to_owned();
        Some(serde_json::from_str::<Value>(&data).unwrap())
    });
    states.boxed()
}

/// Reads until a state is as wanted.
async fn reach(states: &mut (impl Stream<Item = Value> + Unpin), wanted: impl Fn(&Value) -> bool) {
    soon(async { while !wanted(&states.next().await.unwrap()) {} }).await;
}

#[tokio::test]
async fn a_page_follows_its_stack() {
    let app = app().await;
    let token = user("7");
    ask(&app, Method::GET, "/api/challenges/99/stack/events", &token)
        .await
        .refuses(404, "challenge not found");
    let mut states = follow(&app, &token).await;
    let first = soon(states.next()).await.unwrap();
    assert_eq!((&first["stack"], &first["challenge"]["name"]), (&Value::Null, &json!("Web 100")));
    assert_eq!(first["challenge"]["ttl_seconds"], 7200);
    assert_eq!(first["queue"], Value::Null);
    ask(&app, Method::POST, STACK, &token).await.is(201);
    reach(&mut states, |state| state["stack"]["status"] == "running").await;
    app.post("/challenges/12/solves", &json!({"user": 7})).await.is(201);
    reach(&mut states, |state| state["solved"] == true && state["stack"].is_null()).await;
    // It ends with the token.
    let short = Signer::shared().token(&json!({"uid": 7, "exp": now() + 1}));
    soon(follow(&app, &short).await.count()).await;
}

#[tokio::test]
async fn a_page_shows_the_place_in_the_queue() {
    let mut setup = setup(by_secret());
    setup.runtime = Some(SimulatedConfig {
        concurrent_starts: 1,
        start_delay: std::time::Duration::from_secs(3600),
        ..SimulatedConfig::instant()
    });
    let app = with(setup).await;
    let queue = |place, length| json!({"place": place, "length": length});
    ask(&app, Method::POST, STACK, &user(8)).await.is(201);
    let (mut ahead, mut mine) = (follow(&app, &user(9)).await, follow(&app, &user(7)).await);
    ask(&app, Method::POST, STACK, &user(9)).await.is(201);
    reach(&mut ahead, |state| state["queue"] == queue(1, 1)).await;
    ask(&app, Method::POST, STACK, &user(7)).await.is(201);
    reach(&mut mine, |state| state["queue"] == queue(2, 2)).await;
    // It moves although nothing of one's own changes.
    ask(&app, Method::DELETE, STACK, &user(9)).await.is(200);
    reach(&mut mine, |state| state["queue"] == queue(1, 1)).await;
    ask(&app, Method::DELETE, STACK, &user(8)).await.is(200);
    reach(&mut mine, |state| state["queue"].is_null() && !state["stack"].is_null()).await;
}

#[tokio::test]
async fn the_page_runs_only_its_own_script() {
    let mut setup = setup(by_secret());
    setup.server.player.page_origins = vec!["https://ctf.example".to_owned()];
    let app = with(setup).await;
    for path in ["/play/web100", "/play/12"] {
        let page = page(&app, path).await.is(200);
        let policy = page.header("content-security-policy").unwrap();
        assert!(
            policy.contains("default-src 'none'; script-src 'self'; style-src 'self'"),
            "{policy}"
        );
        assert!(
            policy.ends_with("frame-ancestors https://ctf.example") && !policy.contains("unsafe")
        );
        assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
        assert!(page.text.contains("data-challenge=\"12\""));
        for inline in ["onclick", "style=", "javascript:", "<style", "Web 100"] {
            assert!(!page.text.contains(inline), "{inline}");
        }
        let scripts: Vec<_> = page.text.match_indices("<script").collect();
        assert_eq!(scripts.len(), 1);
        assert!(page.text.contains("<script src=\"/play/assets/play.js\" defer></script>"));
    }
    for asset in ["/play/assets/play.js", "/play/assets/play.css"] {
        page(&app, asset).await.is(200);
    }
    page(&app, "/play/assets/none.js").await.is(404);
    let missing = page(&app, "/play/%3Cscript%3E").await.is(404);
    assert!(
        missing.text.contains("There is no such challenge") && !missing.text.contains("<script")
    );
    let plain = page(&self::app().await, "/play/web100").await;
    assert!(plain.header("content-security-policy").unwrap().ends_with("frame-ancestors 'none'"));
}

#[tokio::test]
async fn the_page_tells_a_stranger_nothing_and_a_player_of_what_is_closed() {
    let app = app().await;
    // By their numbers, what is there looks like what is not.
    let there = page(&app, "/play/12").await.is(200);
    let not_there = page(&app, "/play/99").await.is(200);
    assert_eq!(there.text.replace("12", "99"), not_there.text);
    page(&app, "/play/web101").await.is(404);
    page(&app, "/play/0").await.is(404);

    let token = user(7);
    ask(&app, Method::POST, STACK, &token).await.is(201);
    app.patch("/challenges/12", &json!({"enabled": false})).await.is(200);
    for path in ["/play/web100", "/play/12"] {
        page(&app, path).await.is(200);
    }
    let mut states = follow(&app, &token).await;
    reach(&mut states, |state| state["challenge"].is_null() && !state["stack"].is_null()).await;
    app.delete("/challenges/12").await.is(204);
    page(&app, "/play/12").await.is(200);
    ask(&app, Method::DELETE, STACK, &token).await.is(200);
    ask(&app, Method::GET, EVENTS, &token).await.refuses(404, "challenge not found");
}
