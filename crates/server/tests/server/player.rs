//! The player's endpoints: every answer and error of their document, and who is let in.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use stackd_runtimes::simulated::SimulatedConfig;
use stackd_server::{OwnerKind, PlayerConfig};

use crate::challenges::web100;
use crate::harness::{Answer, App, Setup};
use crate::tokens::{SECRET, Signer};

pub(crate) const STACK: &str = "/api/challenges/12/stack";

pub(crate) fn setup(player: PlayerConfig) -> Setup {
    let mut setup = Setup { runtime: Some(placed()), ..Setup::default() };
    setup.server.player = player;
    setup
}

/// As the document's example has it.
pub(crate) fn placed() -> SimulatedConfig {
    SimulatedConfig { public_ip: Some("12.34.56.78".to_owned()), ..SimulatedConfig::instant() }
}

pub(crate) fn by_secret() -> PlayerConfig {
    PlayerConfig { jwt_secret: Some(SECRET.into()), ..PlayerConfig::default() }
}

/// A server with the challenge 12 of the documents.
pub(crate) async fn app() -> App {
    with(setup(by_secret())).await
}

pub(crate) async fn with(setup: Setup) -> App {
    let app = App::with(setup).await;
    let mut body = web100();
    body["number"] = json!(12);
    body["ttl_seconds"] = json!(7200);
    app.post("/challenges", &body).await.is(201);
    app
}

pub(crate) async fn ask(app: &App, method: Method, path: &str, token: &str) -> Answer {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", format!("Bearer {token}"));
    app.raw(request.body(Body::empty()).unwrap()).await
}

pub(crate) fn user(name: impl Into<Value>) -> String {
    Signer::shared().token(&json!({"uid": name.into()}))
}

#[tokio::test]
async fn the_examples_of_the_document() {
    let app = app().await;
    let token = user(7);
    let made = ask(&app, Method::POST, STACK, &token).await.is(201).json();
    let id = made["stack_id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("stack-") && id.len() == 22);
    assert_eq!((&made["challenge_id"], &made["status"]), (&json!(12), &json!("creating")));
    app.get(&format!("/stacks/{id}?wait=running")).await.is(200);
    let stack = ask(&app, Method::GET, STACK, &token).await.is(200).json();
    let mut expected = json!({
        "stack_id": id,
        "challenge_id": 12,
        "status": "running",
        "node_public_ip": "12.34.56.78",
        "target_port": 80,
    });
    let port = stack["node_port"].as_u64().unwrap();
    assert!((31001..=32767).contains(&port));
    expected["node_port"] = json!(port);
    for time in ["ttl_expires_at", "created_at", "updated_at"] {
        let text = stack[time].as_str().unwrap();
        assert_eq!((text.len(), text.ends_with('Z')), (20, true), "{time}: {text}");
        expected[time] = stack[time].clone();
    }
    assert_eq!(stack, expected);
    let at = |time: &str| stack[time].as_str().unwrap().parse::<stackd_core::Timestamp>().unwrap();
    assert_eq!(at("ttl_expires_at").as_second() - at("created_at").as_second(), 7200);
    assert_eq!(ask(&app, Method::GET, "/api/stacks", &token).await.is(200).json(), json!([stack]));

    // Again is the same stack, and touches no limit.
    let again = ask(&app, Method::POST, STACK, &token).await.is(201).json();
    assert_eq!(again["stack_id"], id);
    let gone = ask(&app, Method::DELETE, STACK, &token).await.is(200).json();
    assert_eq!(gone, json!({"status": "ok"}));
    ask(&app, Method::DELETE, STACK, &token).await.refuses(404, "stack not found");
    ask(&app, Method::GET, STACK, &token).await.refuses(404, "stack not found");
    assert_eq!(ask(&app, Method::GET, "/api/stacks", &token).await.is(200).json(), json!([]));
}

#[tokio::test]
async fn the_errors_of_the_document() {
    let app = app().await;
    let token = user("7");
    for id in ["0", "-1", "web100", "1.0", "99999999999999999999"] {
        for (method, more) in [
            (Method::POST, ""),
            (Method::GET, ""),
            (Method::DELETE, ""),
            (Method::POST, "/renew"),
            (Method::GET, "/events"),
        ] {
            let path = format!("/api/challenges/{id}/stack{more}");
            let answer = ask(&app, method, &path, &token).await.is(400);
            assert_eq!(
                answer.json(),
                json!({"error": "invalid input", "details": [{"field": "id", "reason": "invalid"}]})
            );
        }
    }
    ask(&app, Method::POST, "/api/challenges/99/stack", &token)
        .await
        .refuses(404, "challenge not found");
    ask(&app, Method::GET, "/api/challenges/99/stack", &token)
        .await
        .refuses(404, "stack not found");
    app.patch("/challenges/12", &json!({"stack_enabled": false})).await.is(200);
    ask(&app, Method::POST, STACK, &token).await.refuses(400, "stack not enabled for challenge");
    app.patch("/challenges/12", &json!({"stack_enabled": true, "enabled": false})).await.is(200);
    ask(&app, Method::POST, STACK, &token).await.refuses(404, "challenge not found");
    app.patch("/challenges/12", &json!({"enabled": true, "runtime": "kctf"})).await.is(200);
    ask(&app, Method::POST, STACK, &token).await.refuses(503, "stack provisioner unavailable");
    app.patch("/challenges/12", &json!({"runtime": "docker"})).await.is(200);
    app.post("/challenges/12/locks", &json!({"user": 7})).await.is(201);
    ask(&app, Method::POST, STACK, &token).await.refuses(403, "challenge locked");
    app.delete("/challenges/12/locks?user=7").await.is(204);
    ask(&app, Method::POST, STACK, &token).await.is(201);
    app.post("/challenges/12/solves", &json!({"user": 7})).await.is(201);
    ask(&app, Method::GET, STACK, &token).await.refuses(404, "stack not found");
    ask(&app, Method::POST, STACK, &token).await.refuses(409, "challenge already solved");
    app.delete("/challenges/12/solves?user=7").await.is(204);

    let limited = ask(&app, Method::POST, STACK, &token).await.is(429);
    let reset: u64 = limited.header("x-ratelimit-reset").unwrap().parse().unwrap();
    assert!((1..=60).contains(&reset));
    assert_eq!(limited.header("x-ratelimit-limit"), Some("1"));
    assert_eq!(limited.header("x-ratelimit-remaining"), Some("0"));
    assert_eq!(limited.header("retry-after"), limited.header("x-ratelimit-reset"));
    let expected = json!({"error": "too many submissions", "rate_limit": {"limit": 1, "remaining": 0, "reset_seconds": reset}});
    assert_eq!(limited.json(), expected);
}

#[tokio::test]
async fn an_owner_has_so_many_stacks_newest_first() {
    let mut setup = setup(by_secret());
    setup.engine = Some(json!({"players": {"create_max": 100}}));
    let app = with(setup).await;
    let token = user("7");
    let mut ids = Vec::new();
    for number in [12, 13, 14, 15] {
        let mut body = web100();
        body["id"] = json!(format!("web{number}"));
        body["number"] = json!(number);
        if number > 12 {
            app.post("/challenges", &body).await.is(201);
        }
        let answer =
            ask(&app, Method::POST, &format!("/api/challenges/{number}/stack"), &token).await;
        if number == 15 {
            answer.refuses(409, "stack limit reached");
        } else {
            ids.insert(0, answer.is(201).json()["stack_id"].clone());
        }
    }
    let listed = ask(&app, Method::GET, "/api/stacks", &token).await.is(200).json();
    let listed: Vec<_> = listed.as_array().unwrap().iter().map(|s| s["stack_id"].clone()).collect();
    assert_eq!(listed, ids);
}

#[tokio::test]
async fn no_room_is_told_as_such_and_costs_nothing() {
    let mut setup = setup(by_secret());
    setup.engine = Some(json!({"quota": {"memory": "1Mi"}}));
    let app = with(setup).await;
    for _ in 0..2 {
        let answer = ask(&app, Method::POST, STACK, &user("7")).await;
        assert!(answer.header("retry-after").is_some());
        answer.refuses(503, "stack provisioner unavailable");
    }
}

#[tokio::test]
async fn a_player_never_meets_anothers_stack() {
    let app = app().await;
    let mine = ask(&app, Method::POST, STACK, &user("7")).await.is(201).json();
    for (method, path) in [
        (Method::GET, STACK),
        (Method::DELETE, STACK),
        (Method::POST, "/api/challenges/12/stack/renew"),
    ] {
        ask(&app, method, path, &user("8")).await.refuses(404, "stack not found");
    }
    assert_eq!(ask(&app, Method::GET, "/api/stacks", &user("8")).await.json(), json!([]));
    let theirs = ask(&app, Method::POST, STACK, &user("8")).await.is(201).json();
    assert_ne!(mine["stack_id"], theirs["stack_id"]);
    // A number and its text are one user; `uid` comes before `sub`.
    let by_number = Signer::shared().token(&json!({"uid": 7, "sub": "8"}));
    let stack = ask(&app, Method::GET, STACK, &by_number).await.is(200).json();
    assert_eq!(stack["stack_id"], mine["stack_id"]);
    let by_subject = Signer::shared().token(&json!({"sub": "8"}));
    let stack = ask(&app, Method::GET, STACK, &by_subject).await.is(200).json();
    assert_eq!(stack["stack_id"], theirs["stack_id"]);
}

#[tokio::test]
async fn a_team_shares_its_stacks() {
    let player = PlayerConfig { owner: OwnerKind::Team, ..by_secret() };
    let app = with(setup(player)).await;
    let of = |user: u32, team: &str| Signer::shared().token(&json!({"uid": user, "team": team}));
    let made = ask(&app, Method::POST, STACK, &of(1, "red")).await.is(201).json();
    let same = ask(&app, Method::GET, STACK, &of(2, "red")).await.is(200).json();
    assert_eq!(made["stack_id"], same["stack_id"]);
    ask(&app, Method::GET, STACK, &of(3, "blue")).await.refuses(404, "stack not found");
    ask(&app, Method::GET, STACK, &user("1")).await.refuses(401, "invalid token");
    // A solve of one of them is the team's.
    app.post("/challenges/12/solves", &json!({"user": 2})).await.is(201);
    ask(&app, Method::GET, STACK, &of(1, "red")).await.refuses(404, "stack not found");
    ask(&app, Method::POST, STACK, &of(1, "red")).await.refuses(409, "challenge already solved");
    ask(&app, Method::POST, STACK, &of(3, "blue")).await.is(201);
    // Names that differ in a blank are two.
    let apart = ask(&app, Method::POST, STACK, &of(4, "blue ")).await.is(201).json();
    app.post("/challenges/12/solves", &json!({"team": "blue "})).await.is(201);
    ask(&app, Method::GET, STACK, &of(4, "blue ")).await.refuses(404, "stack not found");
    let theirs = ask(&app, Method::GET, STACK, &of(3, "blue")).await.is(200).json();
    assert_ne!(apart["stack_id"], theirs["stack_id"]);
}

/// The platform may call its claims what it likes.
#[tokio::test]
async fn claims_are_those_of_the_settings() {
    let player = PlayerConfig {
        owner: OwnerKind::Team,
        user_claims: vec!["player".to_owned(), "login".to_owned()],
        team_claim: "squad".to_owned(),
        purpose_claims: vec!["use".to_owned()],
        purpose: "game".to_owned(),
        role_claim: "rank".to_owned(),
        roles: vec!["member".to_owned(), "captain".to_owned()],
        ..by_secret()
    };
    let app = with(setup(player)).await;
    let good = json!({"player": 7, "squad": "red", "use": "game", "rank": "captain"});
    let with = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        Signer::shared().token(&claims)
    };
    let made = ask(&app, Method::POST, STACK, &with("typ", json!("x"))).await.is(201).json();
    for token in [
        with("uid", json!(8)),
        with("use", Value::Null),
        with("rank", json!("member")),
        with("team", json!("blue")),
    ] {
        let stack = ask(&app, Method::GET, STACK, &token).await.is(200).json();
        assert_eq!(stack["stack_id"], made["stack_id"]);
    }
    let second = Signer::shared()
        .token(&json!({"login": "ann", "squad": "red", "use": "game", "rank": "member"}));
    ask(&app, Method::GET, STACK, &second).await.is(200);
    for token in [
        with("player", Value::Null),
        with("squad", Value::Null),
        with("use", json!("access")),
        with("rank", json!("guest")),
        with("rank", Value::Null),
    ] {
        ask(&app, Method::GET, STACK, &token).await.refuses(401, "invalid token");
    }
}

/// A stack has an address only when a machine for it is known.
#[tokio::test]
async fn an_address_is_left_out_until_it_is_known() {
    let mut setup = setup(by_secret());
    setup.runtime = Some(SimulatedConfig {
        late_placement: true,
        concurrent_starts: 1,
        start_delay: std::time::Duration::from_secs(3600),
        ..placed()
    });
    let app = with(setup).await;
    ask(&app, Method::POST, STACK, &user("7")).await.is(201);
    // It waits behind that one.
    let made = ask(&app, Method::POST, STACK, &user("8")).await.is(201).json();
    assert_eq!(made["status"], "creating");
    for absent in ["node_public_ip", "node_port"] {
        assert_eq!(made.get(absent), None, "{made}");
    }
    assert_eq!(made["target_port"], 80);
}

#[tokio::test]
async fn where_nobody_may_create_a_window_is_told_all_the_same() {
    let mut setup = setup(by_secret());
    setup.engine = Some(json!({"players": {"create_max": 0}}));
    let app = with(setup).await;
    let refused = ask(&app, Method::POST, STACK, &user("7")).await.is(429);
    assert_eq!(refused.header("retry-after"), Some("60"));
    let limit = json!({"limit": 0, "remaining": 0, "reset_seconds": 60});
    assert_eq!(refused.json()["rate_limit"], limit);
}

#[tokio::test]
async fn a_stack_is_extended_once_there_is_something_to_add() {
    let app = app().await;
    let token = user("7");
    let renew = "/api/challenges/12/stack/renew";
    ask(&app, Method::POST, renew, &token).await.refuses(404, "stack not found");
    ask(&app, Method::POST, STACK, &token).await.is(201);
    let first = ask(&app, Method::POST, renew, &token).await.is(200).json();
    assert_eq!(first["challenge_id"], 12);
    app.patch("/challenges/12", &json!({"ttl_seconds": 60})).await.is(200);
    ask(&app, Method::POST, renew, &token).await.refuses(409, "stack cannot be extended");
}

#[tokio::test]
async fn origins_of_the_platform_may_call() {
    let mut setup = setup(by_secret());
    setup.server.cors_origins = vec!["https://ctf.example".to_owned()];
    let app = with(setup).await;
    let preflight = |origin: &'static str| {
        let request =
            Request::builder().method(Method::OPTIONS).uri(STACK).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        let request = request.header("access-control-request-headers", "authorization");
        app.raw(request.body(Body::empty()).unwrap())
    };
    let allowed = preflight("https://ctf.example").await;
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://ctf.example"));
    assert!(allowed.header("access-control-allow-headers").unwrap().contains("authorization"));
    assert_eq!(preflight("https://evil.example").await.header("access-control-allow-origin"), None);
}
