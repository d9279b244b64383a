//! Whose token is good, by a secret, a public key, or keys that the platform publishes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use stackd_server::{ConfigError, PlayerConfig, ServerConfig};

use crate::harness::{Answer, App, soon};
use crate::player::*;
use crate::player_page::follow;
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
        change("exp", json!(now() as f64 + 10.5)),
        change("nbf", json!(now() + 10)),
        change("nbf", Value::Null),
        change("uid", json!("seven")),
        change("team", json!(3)),
        change("team", json!("")),
    ] {
        ask(&app, Method::GET, "/api/stacks", &rsa.token(&claims)).await.is(200);
    }
    for claims in [
        change("exp", json!(now() - 40)),
        change("exp", json!(now() - 30)),
        change("exp", json!("soon")),
        change("exp", json!(-1)),
        change("exp", Value::Null),
        change("nbf", json!(now() + 40)),
        change("nbf", json!("soon")),
        change("iss", json!("https://other.example")),
        change("iss", Value::Null),
        change("iss", json!(["x", "https://ctf.example"])),
        change("aud", json!("other")),
        change("aud", json!(["other", 7])),
        change("aud", json!([])),
        change("aud", json!({"stackd": 1})),
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
        // What would have to be understood.
        rsa.raw(&json!({"alg": "RS256", "crit": ["exp"]}), &claims),
        rsa.raw(&json!({"alg": "RS256", "crit": []}), &claims),
        rsa.raw(&json!({"alg": "RS256", "crit": null}), &claims),
        rsa.raw(&json!({"alg": "RS256", "kid": 1}), &claims),
        rsa.raw(&json!({"alg": ["RS256"]}), &claims),
        rsa.raw(&json!({"alg": {"RS256": null}}), &claims),
        rsa.raw(&json!(["RS256", null, null]), &claims),
        rsa.raw(&json!({"kid": "1"}), &claims),
        rsa.raw(&json!("RS256"), &claims),
        rsa.raw(&header, &json!([claims])),
        rsa.raw(&header, &json!("claims")),
        // The public key taken for a secret.
        Signer::Hs256(public).raw(&json!({"alg": "HS256"}), &claims),
        Signer::shared().raw(&json!({"alg": "HS256"}), &claims),
        Signer::shared().raw(&header, &claims),
        whole[..whole.len() - 4].to_owned(),
        whole.replace('.', ".."),
        format!("{whole}=="),
        format!("{whole}.{}", whole.rsplit('.').next().unwrap()),
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

/// A platform that publishes a set of keys, which the test changes; none is an error of its own.
struct Platform {
    base: String,
    keys: Arc<Mutex<Value>>,
    asked: Arc<AtomicUsize>,
}

impl Platform {
    async fn start(keys: Value) -> Self {
        let (keys, asked) = (Arc::new(Mutex::new(keys)), Arc::new(AtomicUsize::new(0)));
        let (served, count) = (keys.clone(), asked.clone());
        let publish = axum::routing::get(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let body = served.lock().clone();
            let status = if body.is_null() { 500 } else { 200 };
            async move { (StatusCode::from_u16(status).unwrap(), axum::Json(body)) }
        });
        let moved = axum::routing::get(|| async { axum::response::Redirect::temporary("/keys") });
        let router = axum::Router::new().route("/keys", publish).route("/moved", moved);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { base, keys, asked }
    }

    fn publish(&self, keys: &[Value]) {
        *self.keys.lock() = json!({ "keys": keys });
    }

    fn breaks(&self) {
        *self.keys.lock() = Value::Null;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// A server that takes this platform's keys.
    fn config(&self) -> PlayerConfig {
        PlayerConfig { jwks_url: Some(format!("{}/keys", self.base)), ..PlayerConfig::default() }
    }
}

/// A token that names its key.
fn named(signer: &Signer, id: &str) -> String {
    signer.raw(&json!({"alg": signer.algorithm(), "kid": id}), &claims(&json!({"uid": 1})))
}

async fn get(app: &App, token: &str) -> Answer {
    ask(app, Method::GET, "/api/stacks", token).await
}

/// Waits until a token is answered so: keys are fetched at most every few seconds.
async fn becomes(app: &App, token: &str, status: u16) {
    soon(async {
        while get(app, token).await.status != status {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn published_keys_are_rotated() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = Signer::new(directory.path(), "ec");
    let (second, _) = Signer::new(directory.path(), "rsa");
    let platform = Platform::start(Value::Null).await;
    let app = App::with(setup(platform.config())).await;
    get(&app, &named(&first, "1")).await.refuses(503, "stack feature disabled");
    // A secret in a published set is everybody's.
    let oct = Signer::shared();
    platform.publish(&[first.jwk("1"), oct.jwk("0")]);
    becomes(&app, &named(&first, "1"), 200).await;
    get(&app, &named(&oct, "0")).await.refuses(401, "invalid token");
    // A new key is found by the first token that names it, without asking for each.
    platform.publish(&[second.jwk("2")]);
    becomes(&app, &named(&second, "2"), 200).await;
    let before = platform.asked();
    let tokens: Vec<_> = (0..50).map(|n| named(&first, &n.to_string())).collect();
    let answers = tokens.iter().map(|token| get(&app, token));
    for answer in futures_util::future::join_all(answers).await {
        answer.refuses(401, "invalid token");
    }
    assert!(platform.asked() <= before + 2);
}

/// A token that was good may be remembered, and is good no longer than it says.
#[tokio::test]
async fn a_token_that_was_good_ends_with_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let (signer, pem) = Signer::new(directory.path(), "ec");
    let player = PlayerConfig { jwt_public_key: Some(pem), ..by_secret() };
    let app = App::with(setup(player)).await;
    let claims = json!({"uid": 1, "exp": now() + 4});
    let tokens = [signer, Signer::shared()].map(|signer| signer.token(&claims));
    for token in &tokens {
        get(&app, token).await.is(200);
    }
    for token in &tokens {
        becomes(&app, token, 401).await;
    }
}

/// What lasts as long as a token is over when the platform takes the token's key back.
#[tokio::test]
async fn a_stream_ends_with_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let [old, new] = ["ec", "rsa"].map(|kind| Signer::new(directory.path(), kind).0);
    let platform = Platform::start(json!({"keys": [old.jwk("1"), new.jwk("2")]})).await;
    let jwks_refresh = Duration::from_secs(1);
    let app = with(setup(PlayerConfig { jwks_refresh, ..platform.config() })).await;
    becomes(&app, &named(&old, "1"), 200).await;
    let streams = [follow(&app, &named(&old, "1")).await, follow(&app, &named(&new, "2")).await];
    let [mut ends, mut stays] = streams;
    for stream in [&mut ends, &mut stays] {
        soon(stream.next()).await.unwrap();
    }
    platform.publish(&[new.jwk("2")]);
    assert!(soon(ends.next()).await.is_none());
    ask(&app, Method::POST, STACK, &named(&new, "2")).await.is(201);
    soon(stays.next()).await.unwrap();
}

/// A platform that gives a new key the name of the old one, and one that takes its keys back.
#[tokio::test]
async fn published_keys_are_replaced_and_withdrawn() {
    let (directory, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, _) = Signer::new(directory.path(), "ec");
    let (second, _) = Signer::new(others.path(), "ec");
    let platform = Platform::start(json!({"keys": [first.jwk("1")]})).await;
    let app = App::with(setup(platform.config())).await;
    becomes(&app, &named(&first, "1"), 200).await;
    platform.publish(&[second.jwk("1")]);
    becomes(&app, &named(&second, "1"), 200).await;
    get(&app, &named(&first, "1")).await.refuses(401, "invalid token");
    platform.publish(&[]);
    becomes(&app, &named(&first, "1"), 503).await;
    get(&app, &named(&second, "1")).await.refuses(503, "stack feature disabled");
}

#[tokio::test]
async fn no_token_is_good_once_published_keys_are_too_old() {
    let directory = tempfile::tempdir().unwrap();
    let (signer, _) = Signer::new(directory.path(), "ed");
    let platform = Platform::start(json!({"keys": [signer.jwk("1")]})).await;
    let age = Duration::from_secs(1);
    let player = PlayerConfig { jwks_refresh: age, jwks_max_age: age, ..platform.config() };
    let app = App::with(setup(player)).await;
    becomes(&app, &named(&signer, "1"), 200).await;
    platform.breaks();
    becomes(&app, &named(&signer, "1"), 503).await;
    get(&app, &named(&signer, "1")).await.refuses(503, "stack feature disabled");
    platform.publish(&[signer.jwk("1")]);
    becomes(&app, &named(&signer, "1"), 200).await;
}

#[tokio::test]
async fn a_published_key_counts_beside_ones_own() {
    let (directory, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (own, pem) = Signer::new(directory.path(), "ec");
    let (published, _) = Signer::new(others.path(), "ec");
    let (stranger, _) = Signer::new(others.path(), "ec");
    let platform = Platform::start(json!({"keys": [published.jwk("1")]})).await;
    let player = PlayerConfig { jwt_public_key: Some(pem), ..platform.config() };
    let app = App::with(setup(player)).await;
    becomes(&app, &named(&published, "1"), 200).await;
    get(&app, &own.token(&json!({"uid": 1}))).await.is(200);
    get(&app, &named(&own, "own")).await.is(200);
    for token in [named(&stranger, "1"), stranger.token(&json!({"uid": 1}))] {
        get(&app, &token).await.refuses(401, "invalid token");
    }
    let expired = json!({"uid": 1, "exp": now() - 1});
    get(&app, &own.token(&expired)).await.refuses(401, "invalid token");
    get(&app, &published.token(&expired)).await.refuses(401, "invalid token");
    // A token of one's own key needs no platform.
    platform.breaks();
    let before = platform.asked();
    get(&app, &own.token(&json!({"uid": 1}))).await.is(200);
    assert_eq!(platform.asked(), before);
}

#[tokio::test]
async fn only_published_keys_that_sign_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let signers = ["rsa", "ec", "ed"].map(|kind| Signer::new(directory.path(), kind).0);
    let jwk = |signer: &Signer, more: &[(&str, &str)]| {
        let mut jwk = signer.jwk(signer.algorithm());
        for (name, value) in more {
            jwk[*name] = json!(value);
        }
        jwk
    };
    for (more, status) in [
        (&[][..], 200),
        (&[("use", "sig")], 200),
        (&[("use", "enc")], 401),
        (&[("alg", "ES384")], 401),
        (&[("alg", "RSA-OAEP")], 401),
    ] {
        // A key that is taken beside it: a set without any lets nobody in.
        let (other, _) = Signer::new(directory.path(), "ec");
        let mut keys = vec![other.jwk("other")];
        keys.extend(signers.iter().map(|signer| jwk(signer, more)));
        let platform = Platform::start(json!({ "keys": keys })).await;
        // So that who names an unknown key waits for no longer than that.
        let jwks_refresh = Duration::from_secs(1);
        let player = PlayerConfig { jwks_refresh, ..platform.config() };
        let app = App::with(setup(player)).await;
        becomes(&app, &named(&other, "other"), 200).await;
        for signer in &signers {
            let answer = get(&app, &named(signer, signer.algorithm())).await;
            assert_eq!(answer.status, status, "{} {more:?}", signer.algorithm());
        }
    }
}

#[tokio::test]
async fn keys_come_from_where_the_setting_says() {
    let directory = tempfile::tempdir().unwrap();
    let (signer, _) = Signer::new(directory.path(), "ec");
    let platform = Platform::start(json!({"keys": [signer.jwk("1")]})).await;
    let jwks_url = Some(format!("{}/moved", platform.base));
    let app = App::with(setup(PlayerConfig { jwks_url, ..PlayerConfig::default() })).await;
    get(&app, &named(&signer, "1")).await.refuses(503, "stack feature disabled");
    assert_eq!(platform.asked(), 0);
    let check = |url: &str| {
        let player = PlayerConfig { jwks_url: Some(url.to_owned()), ..PlayerConfig::default() };
        ServerConfig { player, ..ServerConfig::default() }.check()
    };
    for good in ["https://ctf.example/keys", "http://localhost:8000/keys", "http://[::1]/keys"] {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    for bad in [
        "http://ctf.example/keys",
        "http://192.0.2.1/keys",
        "http://127.0.0.1.ctf.example/keys",
        "file:///keys",
        "keys",
    ] {
        let Err(ConfigError::Player(why)) = check(bad) else { panic!("{bad}") };
        assert!(why.starts_with("jwks_url"), "{bad}: {why}");
    }
}
