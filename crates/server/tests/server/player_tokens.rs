//! Whose token is good, by a secret, a public key, or keys that the platform publishes.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use stackd_server::PlayerConfig;

use crate::harness::{App, soon};
use crate::player::*;
use crate::tokens::{Signer, claims, now};

#[tokio::test]
async fn without_a_key_the_dialect_is_off() {
    let app = with(setup(PlayerConfig::default())).await;
    let plain = |header: Option<&'static str>| {
        let mut request = Request::builder().uri("/api/stacks");
        if let Some(header) = header {
            request = request.header("authorization", header);
        }
        app.raw(request.body(Body::empty()).unwrap())
    };
    plain(None).await.refuses(401, "missing authorization");
    plain(Some("Basic abc")).await.refuses(401, "invalid authorization");
    plain(Some("Bearer")).await.refuses(401, "invalid authorization");
    plain(Some("Bearer anything")).await.refuses(503, "stack feature disabled");
}

#[tokio::test]
async fn only_good_tokens_are_let_in() {
    let directory = tempfile::tempdir().unwrap();
    let (rsa, pem) = Signer::new(directory.path(), "rsa");
    let player = PlayerConfig {
        issuers: vec!["https://ctf.example".to_owned()],
        audiences: vec!["stackd".to_owned()],
        roles: vec!["player".to_owned()],
        leeway: std::time::Duration::from_secs(30),
        jwt_public_key: Some(pem.clone()),
        ..PlayerConfig::default()
    };
    let app = with(setup(player)).await;
    let good =
        json!({"uid": 7, "iss": "https://ctf.example", "aud": ["x", "stackd"], "role": "player"});
    let change = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        claims
    };
    for claims in [
        good.clone(),
        change("typ", json!("access")),
        change("type", json!("access")),
        change("aud", json!("stackd")),
        change("exp", json!(now() - 10)),
        change("nbf", json!(now() + 10)),
        change("uid", json!("seven")),
        change("team", json!(3)),
    ] {
        ask(&app, Method::GET, "/api/stacks", &rsa.token(&claims)).await.is(200);
    }
    for claims in [
        change("exp", json!(now() - 40)),
        change("exp", json!("soon")),
        change("nbf", json!(now() + 40)),
        change("iss", json!("https://other.example")),
        change("iss", Value::Null),
        change("aud", json!("other")),
        change("aud", Value::Null),
        change("typ", json!("refresh")),
        change("type", json!("refresh")),
        change("type", json!(1)),
        change("role", json!("blocked")),
        change("role", Value::Null),
        change("uid", json!("")),
        change("uid", json!(1.5)),
        change("uid", Value::Null),
        change("team", json!({})),
    ] {
        ask(&app, Method::GET, "/api/stacks", &rsa.token(&claims))
            .await
            .refuses(401, "invalid token");
    }
    // No expiry, no signature, another key, or an algorithm that is not the key's.
    let claims = claims(&good);
    let mut forever = claims.clone();
    forever.as_object_mut().unwrap().remove("exp");
    let header = json!({"alg": "RS256"});
    let (other, _) = Signer::new(tempfile::tempdir().unwrap().path(), "rsa");
    let public = std::fs::read(&pem).unwrap();
    let none = rsa.raw(&json!({"alg": "none"}), &claims);
    let unsigned = none.rsplit_once('.').unwrap().0.to_owned();
    let whole = rsa.token(&good);
    for token in [
        rsa.raw(&header, &forever),
        other.raw(&header, &claims),
        none.clone(),
        format!("{unsigned}."),
        unsigned,
        rsa.raw(&json!({"alg": "None"}), &claims),
        rsa.raw(&json!({"alg": "RS512"}), &claims),
        // The public key taken for a secret.
        Signer::Hs256(public).raw(&json!({"alg": "HS256"}), &claims),
        Signer::shared().raw(&json!({"alg": "HS256"}), &claims),
        Signer::shared().raw(&header, &claims),
        whole[..whole.len() - 4].to_owned(),
        whole.replace('.', ".."),
        "x.y.z".to_owned(),
        "nonsense".to_owned(),
    ] {
        ask(&app, Method::GET, "/api/stacks", &token).await.refuses(401, "invalid token");
    }
}

#[tokio::test]
async fn every_kind_of_key_verifies_its_own_algorithm() {
    let directory = tempfile::tempdir().unwrap();
    let mut signers = Vec::new();
    for kind in ["rsa", "ec", "ed"] {
        let (signer, pem) = Signer::new(directory.path(), kind);
        let player = PlayerConfig { jwt_public_key: Some(pem), ..PlayerConfig::default() };
        signers.push((signer, App::with(setup(player)).await));
    }
    signers.push((Signer::shared(), App::with(setup(by_secret())).await));
    for (signer, _) in &signers {
        for (own, app) in &signers {
            let answer =
                ask(app, Method::GET, "/api/stacks", &signer.token(&json!({"uid": 1}))).await;
            let expected = if signer.algorithm() == own.algorithm() { 200 } else { 401 };
            assert_eq!(answer.status, expected, "{} by {}", signer.algorithm(), own.algorithm());
        }
    }
}

/// A platform that publishes a set of keys, which the test changes.
struct Platform {
    url: String,
    keys: std::sync::Arc<parking_lot::Mutex<Value>>,
    asked: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

async fn platform(keys: Value) -> Platform {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let keys = std::sync::Arc::new(parking_lot::Mutex::new(keys));
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let (served, count) = (keys.clone(), asked.clone());
    let router = axum::Router::new().route(
        "/keys",
        axum::routing::get(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let body = served.lock().clone();
            let status = if body.is_null() { 500 } else { 200 };
            async move { (axum::http::StatusCode::from_u16(status).unwrap(), axum::Json(body)) }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Platform { url, keys, asked }
}

#[tokio::test]
async fn published_keys_are_rotated_and_fail_closed() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = Signer::new(directory.path(), "ec");
    let (second, _) = Signer::new(directory.path(), "rsa");
    let token = |signer: &Signer, id: &str| {
        signer.raw(&json!({"alg": signer.algorithm(), "kid": id}), &claims(&json!({"uid": 1})))
    };
    let platform = platform(Value::Null).await;
    let player = PlayerConfig { jwks_url: Some(platform.url.clone()), ..PlayerConfig::default() };
    let app = App::with(setup(player)).await;
    let get = |token: String| {
        let app = &app;
        async move { ask(app, Method::GET, "/api/stacks", &token).await }
    };
    get(token(&first, "1")).await.refuses(503, "stack feature disabled");
    // A secret in a published set is everybody's.
    let oct = Signer::shared();
    *platform.keys.lock() = json!({"keys": [first.jwk("1"), oct.jwk("0")]});
    soon(async {
        while get(token(&first, "1")).await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    })
    .await;
    get(token(&oct, "0")).await.refuses(401, "invalid token");
    get(token(&first, "2")).await.refuses(401, "invalid token");
    // A new key is found by the first token that names it, without asking for each.
    *platform.keys.lock() = json!({"keys": [second.jwk("2")]});
    soon(async {
        while get(token(&second, "2")).await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    })
    .await;
    get(token(&first, "1")).await.refuses(401, "invalid token");
    let before = platform.asked.load(std::sync::atomic::Ordering::Relaxed);
    for n in 0..50 {
        get(token(&first, &n.to_string())).await.refuses(401, "invalid token");
    }
    assert!(platform.asked.load(std::sync::atomic::Ordering::Relaxed) <= before + 1);
}
