//! Who is let in: every route, with every kind of key.

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::StreamExt;
use serde_json::{Value, json};
use stackd_core::Timestamp;
use stackd_server::{OwnerKind, PlayerConfig};

use crate::harness::{Answer, App, KEY, Setup};
use crate::tokens::{self, Signer};
use crate::{player, player_page};

/// Routes that anybody may call. Whoever adds one here says why.
const KEYLESS: [(&str, &str); 8] = [
    ("get", "/livez"),                  // asked by supervisors, says nothing
    ("get", "/readyz"),                 // asked by load balancers, says whether, not why
    ("get", "/openapi.json"),           // what everybody may know
    ("get", "/docs"),                   // the same, for people
    ("get", "/docs/{file}"),            // its parts
    ("get", "/schemas/challenge.json"), // what everybody may know, for editors
    ("get", "/play/{challenge}"), // the same for everybody; what it shows it asks with a token
    ("get", "/play/assets/play.js"), // its parts
];

/// Without a key on a loopback listener only; see the tests of connections.
const BY_LISTENER: [(&str, &str); 1] = [("get", "/metrics")];

async fn ask(app: &App, method: &str, path: &str, header: Option<&str>, query: &str) -> Answer {
    let path = path
        .replace("{stack_id}", "stack-0000000000000000")
        .replace("{challenge_id}", "no-such-challenge")
        .replace("{challenge}", "web100")
        .replace("{id}", "99")
        .replace("{job_id}", "job-0000000000000000")
        .replace("{file}", "start.js");
    let mut request = Request::builder()
        .method(method.to_uppercase().as_str())
        .uri(format!("{path}{query}"))
        // A stream would not end.
        .header("last-event-id", "nonsense");
    if let Some(key) = header {
        request = request.header("X-API-KEY", key);
    }
    app.raw(request.body(Body::empty()).unwrap()).await
}

/// Every route that the API describes.
fn routes() -> Vec<(String, String)> {
    let document = serde_json::to_value(stackd_server::openapi()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "patch", "delete"] {
            if item.get(method).is_some() {
                routes.push((method.to_owned(), path.clone()));
            }
        }
    }
    assert!(routes.len() >= 15, "{routes:?}");
    routes
}

#[tokio::test]
async fn every_route_asks_for_a_good_key() {
    let mut setup = Setup::default();
    setup.server.player.jwt_secret = Some(tokens::SECRET.into());
    let app = App::with(setup).await;
    app.post("/challenges", &crate::challenges::web100()).await.is(201);
    app.add_key("old", "revoked-key", &[], &[]).await;
    app.engine.keys().revoke("old", Timestamp::now()).await.unwrap();
    app.add_key("elsewhere", "other-dialect", &[], &["instancer", "player"]).await;
    app.add_key("stacks", "stacks-only", &[], &["provisioner"]).await;
    app.add_key("here", "this-dialect", &[], &["instancer", "provisioner"]).await;

    let keyless = |method: &str, path: &str| KEYLESS.contains(&(method, path));
    for (method, path) in routes() {
        if keyless(&method, &path) {
            continue;
        }
        if path.starts_with("/api/") {
            by_token(&app, &method, &path).await;
            continue;
        }
        if path.starts_with("/challenges") {
            catalogue(&app, &method, &path).await;
            continue;
        }
        let refused: [(Option<&str>, &str); 9] = [
            (None, ""),
            (Some(""), ""),
            (Some("   "), ""),
            (Some("wrong"), ""),
            (Some("RIGHT-KEY"), ""),
            (Some("revoked-key"), ""),
            (Some("other-dialect"), ""),
            (Some("wrong"), "?api_key=right-key"),
            (None, "?api_key=%20"),
        ];
        for (header, query) in refused {
            let answer = ask(&app, &method, &path, header, query).await;
            assert!(answer.header("x-request-id").is_some());
            answer.refuses(401, "invalid api key");
        }
        as_player(&app, &method, &path).await.refuses(401, "invalid api key");
        let accepted: [(Option<&str>, &str); 7] = [
            (Some(KEY), ""),
            (Some("  right-key "), ""),
            (Some("this-dialect"), ""),
            (Some(KEY), "?api_key=wrong"),
            (None, "?api_key=right-key"),
            (Some(""), "?api_key=right-key"),
            (Some(" "), "?x=1&api_key=+right-key%20"),
        ];
        for (header, query) in accepted {
            let answer = ask(&app, &method, &path, header, query).await;
            assert_ne!(answer.status, 401, "{method} {path} {header:?} {query}");
        }
    }
    for (method, path) in KEYLESS {
        let answer = ask(&app, method, path, None, "").await;
        assert_eq!(answer.status, 200, "{method} {path}");
    }
    for (method, path) in BY_LISTENER {
        assert!(routes().contains(&(method.to_owned(), path.to_owned())));
    }
}

/// A player's good token, where a key is asked for.
async fn as_player(app: &App, method: &str, path: &str) -> Answer {
    let token = Signer::shared().token(&json!({"uid": 7}));
    player::ask(app, method.to_uppercase().parse().unwrap(), path, &token).await
}

/// Players are let in by their tokens and by nothing else.
async fn by_token(app: &App, method: &str, path: &str) {
    let signer = Signer::shared();
    let with = |headers: &[(&str, String)]| {
        let path = path.replace("{id}", "99");
        let mut request = Request::builder().method(method.to_uppercase().as_str()).uri(path);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        app.raw(request.body(Body::empty()).unwrap())
    };
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let key = |key: &str| ("x-api-key", key.to_owned());
    for headers in [vec![], vec![key(KEY)], vec![key("other-dialect")], vec![key("stacks-only")]] {
        with(&headers).await.refuses(401, "missing authorization");
    }
    for value in ["", "Basic abc", "Bearer", "Bearer a b", KEY] {
        let answer = with(&[("authorization", value.to_owned()), key(KEY)]).await;
        answer.refuses(401, "invalid authorization");
    }
    let claims = tokens::claims(&json!({"uid": 7}));
    let mut expired = claims.clone();
    expired["exp"] = json!(tokens::now() - 1);
    let hs256 = json!({"alg": "HS256"});
    for token in [
        "bad".to_owned(),
        KEY.to_owned(),
        signer.raw(&hs256, &expired),
        signer.raw(&json!({"alg": "none"}), &claims),
        signer.raw(&json!({"alg": "HS512"}), &claims),
        signer.raw(&json!({"alg": "RS256"}), &claims),
        Signer::Hs256(b"another secret of somebody else".to_vec()).raw(&hs256, &claims),
        signer.token(&json!({"uid": 7, "typ": "refresh"})),
    ] {
        with(&[bearer(&token), key(KEY)]).await.refuses(401, "invalid token");
    }
    for claims in [json!({"uid": 7}), json!({"sub": "8", "team": "other"})] {
        let answer = with(&[bearer(&signer.token(&claims))]).await;
        assert!(!matches!(answer.status.as_u16(), 401 | 403), "{method} {path}: {}", answer.text);
    }
    let answer = with(&[("authorization", format!("bEARER {}", signer.token(&json!({"uid": 7}))))]);
    assert_ne!(answer.await.status, 401);
}

/// Every player's route, asked by somebody else for a challenge of which there is a live stack.
#[tokio::test]
async fn no_route_shows_or_touches_the_stack_of_another_owner() {
    let token = |claims| Signer::shared().token(&claims);
    let users = [json!({"uid": 7}), json!({"uid": 8, "team": "7"})];
    let teams = [json!({"uid": 7, "team": "red"}), json!({"uid": 8, "team": "blue"})];
    for (owner, [own, other]) in [(OwnerKind::User, users), (OwnerKind::Team, teams)] {
        let app = player::with(player::setup(PlayerConfig { owner, ..player::by_secret() })).await;
        let (own, other) = (token(own), token(other));
        let made = player::ask(&app, Method::POST, player::STACK, &own).await.is(201).json();
        let id = made["stack_id"].as_str().unwrap();
        app.get(&format!("/stacks/{id}?wait=running")).await.is(200);
        let stack = || async { player::ask(&app, Method::GET, player::STACK, &own).await.is(200) };
        let before = stack().await.json();
        let mut asked = 0;
        for (method, path) in routes().into_iter().filter(|(_, path)| path.starts_with("/api/")) {
            let path = path.replace("{id}", "12");
            let method: Method = method.to_uppercase().parse().unwrap();
            match (method, path.as_str()) {
                (Method::GET, "/api/stacks") => {
                    let listed = player::ask(&app, Method::GET, &path, &other).await.is(200);
                    assert_eq!(listed.json(), json!([]));
                }
                (Method::GET, "/api/challenges/12/stack/events") => {
                    let state = player_page::follow(&app, &other).await.next().await.unwrap();
                    assert_eq!((&state["stack"], &state["ended"]), (&Value::Null, &Value::Null));
                    assert!(!state.to_string().contains(id), "{state}");
                }
                (Method::POST, player::STACK) => {
                    let theirs = player::ask(&app, Method::POST, &path, &other).await.is(201);
                    assert_ne!(theirs.json()["stack_id"], id);
                    player::ask(&app, Method::DELETE, &path, &other).await.is(200);
                }
                (method, path) => {
                    let answer = player::ask(&app, method, path, &other).await;
                    answer.refuses(404, "stack not found");
                }
            }
            assert_eq!(stack().await.json(), before, "{owner:?}: {path}");
            asked += 1;
        }
        assert_eq!(asked, 6, "{owner:?}");
    }
}

/// The catalogue tells a missing key from a wrong one, and is shared by two dialects.
async fn catalogue(app: &App, method: &str, path: &str) {
    for (header, query) in [(None, ""), (Some(""), ""), (Some("  "), "?api_key=")] {
        let answer = ask(app, method, path, header, query).await;
        answer.details(401, "missing api key");
    }
    for (header, query) in [
        (Some("wrong"), ""),
        (Some("revoked-key"), ""),
        (Some("stacks-only"), ""),
        (None, "?api_key=wrong"),
    ] {
        let answer = ask(app, method, path, header, query).await;
        answer.details(403, "invalid api key");
    }
    let answer = as_player(app, method, path).await;
    answer.details(401, "missing api key");
    for (header, query) in [
        (Some(KEY), ""),
        (Some("other-dialect"), ""),
        (Some("this-dialect"), ""),
        (None, "?api_key=right-key"),
    ] {
        let answer = ask(app, method, path, header, query).await;
        assert!(!matches!(answer.status.as_u16(), 401 | 403), "{method} {path} {header:?}");
    }
}

#[tokio::test]
async fn the_documented_routes_are_all_there() {
    let routes = routes();
    for (method, path) in [
        ("get", "/healthz"),
        ("get", "/stats"),
        ("post", "/stacks"),
        ("get", "/stacks"),
        ("get", "/stacks/{stack_id}"),
        ("get", "/stacks/{stack_id}/status"),
        ("delete", "/stacks/{stack_id}"),
        ("post", "/stacks/batch-delete"),
        ("get", "/stacks/batch-delete/{job_id}"),
        ("post", "/challenges"),
        ("get", "/challenges"),
        ("get", "/challenges/{challenge_id}"),
        ("patch", "/challenges/{challenge_id}"),
        ("delete", "/challenges/{challenge_id}"),
        ("get", "/api/stacks"),
        ("post", "/api/challenges/{id}/stack"),
        ("get", "/api/challenges/{id}/stack"),
        ("delete", "/api/challenges/{id}/stack"),
    ] {
        assert!(routes.contains(&(method.to_owned(), path.to_owned())), "{method} {path}");
    }
}

#[tokio::test]
async fn a_revocation_holds_from_the_next_request() {
    let app = App::new().await;
    app.add_key("short", "short-lived", &[], &[]).await;
    assert_eq!(ask(&app, "get", "/stats", Some("short-lived"), "").await.status, 200);
    app.engine.keys().revoke("short", Timestamp::now()).await.unwrap();
    let answer = ask(&app, "get", "/stats", Some("short-lived"), "").await;
    answer.refuses(401, "invalid api key");
}

#[tokio::test]
async fn without_authentication_only_this_machine_is_answered() {
    let mut setup = Setup::default();
    setup.server.auth = false;
    let app = App::with(setup).await;
    let ask = |headers: &'static [(&str, &str)]| {
        let mut request = Request::builder().method(Method::GET).uri("/stacks");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        app.raw(request.body(Body::empty()).unwrap())
    };
    ask(&[]).await.is(200);
    ask(&[("host", "127.0.0.1:8080"), ("x-api-key", "anything")]).await.is(200);
    ask(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]).await.is(200);
    // A name that a stranger made resolve to loopback, and a stranger's page.
    ask(&[("host", "attacker.example:8080")]).await.is(403);
    ask(&[("host", "127.0.0.1:8080"), ("origin", "https://attacker.example")]).await.is(403);
    ask(&[("host", "127.0.0.1:8080"), ("origin", "null")]).await.is(403);

    let stack = app.create(json!({})).await;
    assert_eq!(stack["owner"], "anonymous");
}
