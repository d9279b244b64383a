//! What is counted of challenges and their players.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;

use crate::challenges::web100;
use crate::harness::{App, KEY, Setup};
use crate::tokens::{SECRET, Signer, claims, now};

async fn play(app: &App, method: Method, path: &str, authorization: &str) {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", authorization);
    app.raw(request.body(Body::empty()).unwrap()).await;
}

#[tokio::test]
async fn players_challenges_and_images_are_counted() {
    let mut setup = Setup::default();
    setup.server.player.jwt_secret = Some(SECRET.into());
    setup.server.player.issuers = vec!["platform".to_owned()];
    let app = App::with(setup).await;
    for (id, more) in [
        ("web100", json!({})),
        ("closed", json!({"stack_enabled": false})),
        ("off", json!({"enabled": false})),
    ] {
        let mut body = web100();
        body["id"] = json!(id);
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        app.post("/challenges", &body).await.is(201);
    }
    app.post("/challenges/web100/warm", &json!({})).await.is(200);

    let signer = Signer::shared();
    let bearer = |user: u32| {
        let token = signer.token(&json!({"uid": user, "iss": "platform"}));
        format!("Bearer {token}")
    };
    let stack = |number: u32| format!("/api/challenges/{number}/stack");
    let (seven, eight) = (bearer(7), bearer(8));
    play(&app, Method::POST, &stack(1), &seven).await;
    play(&app, Method::POST, &stack(1), &eight).await;
    for (method, path) in [
        (Method::POST, stack(1)),
        (Method::POST, stack(2)),
        (Method::POST, stack(3)),
        (Method::POST, stack(1) + "/renew"),
        (Method::GET, stack(1)),
        (Method::GET, stack(9)),
        (Method::GET, stack(0)),
        (Method::GET, "/api/stacks".to_owned()),
        (Method::DELETE, stack(1)),
        (Method::POST, stack(1)),
    ] {
        play(&app, method, &path, &seven).await;
    }
    let raw = |claims| format!("Bearer {}", signer.raw(&json!({"alg": "HS256"}), &claims));
    let mut expired = claims(&json!({"uid": 7, "iss": "platform"}));
    expired["exp"] = json!(now() - 100);
    for authorization in [
        "Basic x".to_owned(),
        "Bearer x".to_owned(),
        raw(expired),
        raw(claims(&json!({"uid": 7, "iss": "another"}))),
        raw(claims(&json!({"iss": "platform"}))),
    ] {
        play(&app, Method::GET, &stack(1), &authorization).await;
    }

    let request = Request::get("/metrics").header("x-api-key", KEY);
    let metrics = app.raw(request.body(Body::empty()).unwrap()).await.is(200).text;
    for line in [
        r#"stackd_challenges{state="enabled"} 1"#,
        r#"stackd_challenges{state="no_stacks"} 1"#,
        r#"stackd_challenges{state="disabled"} 1"#,
        r#"stackd_challenge_active_stacks{challenge="web100"} 1"#,
        r#"stackd_challenge_active_stacks{challenge="off"} 0"#,
        r#"stackd_challenge_active_stacks{challenge="(others)"} 0"#,
        r#"stackd_player_requests_total{operation="create",outcome="ok"} 3"#,
        r#"stackd_player_requests_total{operation="create",outcome="rate_limited"} 1"#,
        r#"stackd_player_requests_total{operation="create",outcome="not_enabled"} 1"#,
        r#"stackd_player_requests_total{operation="create",outcome="challenge_not_found"} 1"#,
        r#"stackd_player_requests_total{operation="get",outcome="ok"} 1"#,
        r#"stackd_player_requests_total{operation="get",outcome="stack_not_found"} 1"#,
        r#"stackd_player_requests_total{operation="get",outcome="invalid_input"} 1"#,
        r#"stackd_player_requests_total{operation="list",outcome="ok"} 1"#,
        r#"stackd_player_requests_total{operation="delete",outcome="ok"} 1"#,
        r#"stackd_player_token_refusals_total{reason="malformed"} 1"#,
        r#"stackd_player_token_refusals_total{reason="unreadable"} 1"#,
        r#"stackd_player_token_refusals_total{reason="expired"} 1"#,
        r#"stackd_player_token_refusals_total{reason="issuer"} 1"#,
        r#"stackd_player_token_refusals_total{reason="user"} 1"#,
        r#"stackd_image_warmups_total{outcome="ready"} 1"#,
        r#"stackd_image_warmups_total{outcome="failed"} 0"#,
        "stackd_image_warmups_in_progress 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
    let renewed = r#"stackd_player_requests_total{operation="renew",outcome="#;
    assert_eq!(metrics.lines().filter(|line| line.starts_with(renewed)).count(), 1);
    // Who plays is nobody's business here.
    assert!(!metrics.contains("user:7") && !metrics.contains(&seven[7..]));
}

#[tokio::test]
async fn a_large_catalogue_has_a_bounded_number_of_series() {
    let app = App::new().await;
    for number in 0..105 {
        let mut body = web100();
        body["id"] = json!(format!("c{number}"));
        app.post("/challenges", &body).await.is(201);
    }
    let request = Request::get("/metrics").header("x-api-key", KEY);
    let metrics = app.raw(request.body(Body::empty()).unwrap()).await.is(200).text;
    let series = metrics.lines().filter(|l| l.starts_with("stackd_challenge_active_stacks{"));
    assert_eq!(series.count(), 101);
    assert!(metrics.contains("stackd_challenges{state=\"enabled\"} 105\n"));
}
