//! Flags: whose is right for whom, and that none is ever shown.

use axum::http::{Method, Request};
use serde_json::{Value, json};

use crate::challenges::{web100, wrong_subjects};
use crate::harness::{App, KEY, Setup};
use crate::tokens::{SECRET, Signer};

const FLAG_SECRET: &str = "a-secret-of-the-server-0123456789";
/// printf 'web100\nuser:7' | openssl dgst -sha256 -hmac a-secret-of-the-server-0123456789
const FLAG_OF_7: &str = "flag{225312c401066bd480a30449de6e8c1f}";
const CHECK: &str = "/challenges/web100/flag/check";

async fn app(secret: Option<&str>, flag: Value) -> App {
    let mut setup = Setup::default();
    setup.server.player.jwt_secret = Some(SECRET.into());
    setup.engine = Some(json!({"challenges": {"flag_secret": secret}}));
    let app = App::with(setup).await;
    let mut body = web100();
    body["extra_config"] = json!({"flag": flag}).to_string().into();
    app.post("/challenges", &body).await.is(201);
    app
}

async fn correct(app: &App, body: Value) -> bool {
    app.post(CHECK, &body).await.is(200).json()["correct"].as_bool().unwrap()
}

async fn start(app: &App, user: u32) -> Value {
    let token = Signer::shared().token(&json!({"uid": user}));
    let request = Request::builder().method(Method::POST).uri("/api/challenges/1/stack");
    let request = request.header("authorization", format!("Bearer {token}"));
    app.raw(request.body(axum::body::Body::empty()).unwrap()).await.is(201).json()
}

#[tokio::test]
async fn a_flag_is_right_for_its_owner_alone() {
    let app = app(Some(FLAG_SECRET), json!({})).await;
    let made = start(&app, 7).await;
    assert!(correct(&app, json!({"user": 7, "flag": FLAG_OF_7})).await);
    assert!(correct(&app, json!({"user": "7", "team": "red", "flag": FLAG_OF_7})).await);
    for wrong in [
        json!({"user": 8, "flag": FLAG_OF_7}),
        json!({"team": 7, "flag": FLAG_OF_7}),
        json!({"user": 7, "flag": FLAG_OF_7.to_uppercase()}),
        json!({"user": 7, "flag": format!("{FLAG_OF_7} ")}),
        json!({"user": 7, "flag": ""}),
    ] {
        assert!(!correct(&app, wrong.clone()).await, "{wrong}");
    }
    // A live stack's own flag stays right when the challenge's changes, for its owner.
    let template = json!({"flag": {"template": "ctf{<hmac>}"}}).to_string();
    app.patch("/challenges/1", &json!({"extra_config": template})).await.is(200);
    assert!(correct(&app, json!({"user": 7, "flag": FLAG_OF_7})).await);
    assert!(!correct(&app, json!({"user": 8, "flag": FLAG_OF_7})).await);
    let of_template = FLAG_OF_7.replace("flag{", "ctf{");
    assert!(correct(&app, json!({"user": 7, "flag": of_template})).await);

    // No reader sees it, in whichever dialect.
    let id = made["stack_id"].as_str().unwrap();
    app.get(&format!("/stacks/{id}?wait=running")).await.is(200);
    for path in ["/stacks", &format!("/stacks/{id}"), "/challenges", "/challenges/web100"] {
        let text = app.get(path).await.is(200).text;
        assert!(!text.contains("225312c4") && !text.contains(FLAG_SECRET), "{path}: {text}");
    }
}

#[tokio::test]
async fn a_flag_for_everybody_is_shown_as_a_fingerprint() {
    let app = app(None, json!({"value": "ctf{one for all}"})).await;
    for user in [7, 8] {
        assert!(correct(&app, json!({"user": user, "flag": "ctf{one for all}"})).await);
    }
    let shown = app.get("/challenges/web100").await.is(200).json();
    for path in ["/challenges", "/challenges/1", "/challenges/1/solves"] {
        assert!(!app.get(path).await.is(200).text.contains("one for all"), "{path}");
    }
    assert!(shown["extra_config"].as_str().unwrap().contains("sha256:"), "{shown}");
    // The whole object comes back, and changes nothing.
    let same = app.patch("/challenges/1", &shown).await.is(200).json();
    assert_eq!(same, shown);
    assert!(correct(&app, json!({"user": 7, "flag": "ctf{one for all}"})).await);
    // With another option beside it, it is still the same flag.
    let mut extra: Value = serde_json::from_str(shown["extra_config"].as_str().unwrap()).unwrap();
    extra["pids_limit"] = json!(5);
    let body = json!({"extra_config": extra.to_string()});
    let text = app.patch("/challenges/1", &body).await.is(200).text;
    assert!(!text.contains("one for all"));
    assert!(correct(&app, json!({"user": 7, "flag": "ctf{one for all}"})).await);
    // A fingerprint of another flag is none.
    extra["flag"]["value"] = json!("sha256:00");
    let body = json!({"extra_config": extra.to_string()});
    let refused = app.patch("/challenges/1", &body).await.is(422).json();
    let message = refused["detail"][0]["msg"].as_str().unwrap();
    assert!(message.contains("is the fingerprint that stands for a flag"), "{message}");
}

#[tokio::test]
async fn what_cannot_be_checked_says_so() {
    let app = app(None, json!({"value": "x"})).await;
    app.post("/challenges/none/flag/check", &json!({"user": 7, "flag": "x"}))
        .await
        .details(404, "challenge not found");
    let missing = app.post(CHECK, &json!({"user": 7})).await.is(422).json();
    let expected = json!([{"type": "missing", "loc": ["body", "flag"], "msg": "flag is required", "input": null}]);
    assert_eq!(missing["detail"], expected);
    for (mut body, problems) in wrong_subjects() {
        body["flag"] = json!("x");
        let answer = app.post(CHECK, &body).await.is(422).json();
        assert_eq!(answer, json!({ "detail": problems }), "{body}");
    }
    // All that is wrong, at once.
    let answer = app.post(CHECK, &json!({"flag": 7})).await.is(422).json();
    let expected = json!([
        {"type": "missing", "loc": ["body"], "msg": "user or team must say who it is", "input": null},
        {"type": "string_type", "loc": ["body", "flag"], "msg": "flag must be a text", "input": 7},
    ]);
    assert_eq!(answer["detail"], expected);
    let derived = json!({"extra_config": "{\"flag\":{}}"});
    let refused = app.patch("/challenges/1", &derived).await.is(422).json();
    let message = refused["detail"][0]["msg"].as_str().unwrap();
    assert!(message.contains("derived from the server's flag_secret, which is not set"));
    app.patch("/challenges/1", &json!({"extra_config": null})).await.is(200);
    app.post(CHECK, &json!({"user": 7, "flag": "x"})).await.details(409, "challenge has no flag");
    app.raw(
        Request::post(CHECK)
            .header("x-api-key", KEY)
            .body(axum::body::Body::from("x".repeat((1 << 20) + 1)))
            .unwrap(),
    )
    .await
    .details(413, "request body too large");
}
