//! A database that cannot be written: calls that change something say so, the rest goes on, and
//! nothing has to be done when it is over.

use std::time::Duration;

use axum::http::Method;
use serde_json::json;
use stackd_store::StoreConfig;
use stackd_testkit::postgres::Postgres;
use stackd_testkit::small_disk::SmallDisk;

use crate::challenges::web100;
use crate::harness::{App, Setup, body, id, soon};
use crate::player::{self, STACK, ask, user};

/// A create is refused with 503 and a reason, and does not hang. (The store's own tests bound it.)
async fn is_refused(app: &App) {
    let asked = body(json!({}));
    let create = app.post("/stacks", &asked);
    let refused = soon(create).await.is(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let text = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(text.starts_with("storage unavailable: "), "{text}");
}

/// What is read from memory is answered all the same.
async fn is_read(app: &App, stack: &str) {
    for path in ["/stacks", "/stats", "/healthz", &format!("/stacks/{stack}/status")] {
        app.get(path).await.is(200);
    }
    assert_eq!(app.get(&format!("/stacks/{stack}")).await.json()["status"], "running");
}

/// Readiness says which part is not well. It tells of the last write, and of two writes one may
/// find room where the other did not, so that a refused one comes before each look. Gives the
/// stacks that found room.
async fn is_not_ready(app: &App) -> Vec<String> {
    let mut stacks = Vec::new();
    soon(async {
        loop {
            let answer = app.post("/stacks", &body(json!({}))).await;
            let ready = app.get("/readyz").await;
            match (answer.status.as_u16(), ready.status.as_u16()) {
                (201, _) => stacks.push(id(&answer.json())),
                (503, 200) => {}
                (503, 503) => {
                    let ready = ready.json();
                    assert_eq!(ready["store"], "unavailable", "{ready}");
                    return assert_eq!(ready["runtime"], "ok", "{ready}");
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    stacks
}

/// Creates work again, and nothing of what was refused is left.
async fn recovers(app: &App, before: u64) {
    soon(async {
        while app.post("/stacks", &body(json!({}))).await.status != 201 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(app.get("/stats").await.json()["total_stacks"], before + 1);
    app.get("/readyz").await.is(200);
}

#[tokio::test]
async fn a_full_disk() {
    let disk = SmallDisk::new(16 << 20);
    let path = disk.path().join("stackd.db");
    let database = Some(StoreConfig::Sqlite { path, ballast_bytes: 1 << 20 });
    let app = App::with(Setup { database, ..Setup::default() }).await;
    let mut stacks = vec![app.running().await, app.running().await];
    let full = disk.fill();
    // The reserve makes room for some more; then it is over.
    soon(async {
        loop {
            // Larger than a page, so that this takes not too many steps.
            let pod = format!("{}\n#{}", crate::harness::POD, "x".repeat(60_000));
            let answer = app.post("/stacks", &body(json!({ "pod_spec": pod }))).await;
            match answer.status.as_u16() {
                201 => stacks.push(id(&answer.json())),
                _ => return answer.is(503),
            }
        }
    })
    .await;
    stacks.extend(is_not_ready(&app).await);
    is_refused(&app).await;
    is_read(&app, &stacks[0]).await;
    std::fs::remove_file(full).unwrap();
    recovers(&app, stacks.len() as u64).await;
    app.delete(&format!("/stacks/{}", stacks[1])).await.is(200);
}

/// What players ask for is refused in the one text that their document has for it.
async fn is_refused_to_players(app: &App, known: &str) {
    for (method, path, token) in [
        (Method::POST, STACK, user("8")),
        (Method::DELETE, STACK, known.to_owned()),
        (Method::POST, "/api/challenges/12/stack/renew", known.to_owned()),
    ] {
        let refused = soon(ask(app, method, path, &token)).await;
        assert_eq!(refused.header("retry-after"), Some("1"), "{path}");
        refused.refuses(503, "stack provisioner unavailable");
    }
}

/// The catalogue says why it cannot be written, in its own form.
async fn is_refused_to_organisers(app: &App) {
    let mut other = web100();
    other["id"] = json!("other");
    let who = json!({"user": 9});
    for (method, path, body) in [
        (Method::POST, "/challenges", other),
        (Method::PATCH, "/challenges/12", json!({"enabled": false})),
        (Method::DELETE, "/challenges/12", json!({})),
        (Method::POST, "/challenges/12/solves", who.clone()),
        (Method::POST, "/challenges/12/locks", who),
        (Method::DELETE, "/challenges/12/locks?user=6", json!({})),
    ] {
        let refused = soon(app.send(method.clone(), path, &[], body.to_string())).await.is(503);
        assert_eq!(refused.header("retry-after"), Some("1"), "{method} {path}");
        let body = refused.json();
        let text = body["detail"].as_str().unwrap();
        assert!(text.starts_with("storage unavailable: "), "{method} {path}: {text}");
        assert_eq!(body, json!({ "detail": text }));
    }
}

#[tokio::test]
async fn a_database_that_is_away() {
    let postgres = Postgres::start();
    let database = Some(StoreConfig::Postgres { url: postgres.database() });
    let app = player::with(Setup { database, ..player::setup(player::by_secret()) }).await;
    let (one, two) = (app.running().await, app.running().await);
    let known = user("7");
    let played = ask(&app, Method::POST, STACK, &known).await.is(201).json();
    app.get(&format!("/stacks/{}?wait=running", id(&played))).await.is(200);
    app.post("/challenges/12/locks", &json!({"user": 6})).await.is(201);
    let (challenge, locks) =
        (app.get("/challenges/12").await.json(), app.get("/challenges/12/locks").await.json());
    postgres.stop();
    // Each takes as long as the store tries, so all at once.
    tokio::join!(
        is_refused(&app),
        is_refused_to_players(&app, &known),
        is_refused_to_organisers(&app)
    );
    let path = format!("/stacks/{two}");
    let delete = app.delete(&path);
    soon(delete).await.is(503);
    assert_eq!(is_not_ready(&app).await, Vec::<String>::new());
    is_read(&app, &one).await;
    // Its own way: the delete was refused, so the stack is still there.
    app.get(&format!("/stacks/{two}")).await.is(200);
    let still = ask(&app, Method::GET, STACK, &known).await.is(200).json();
    assert_eq!((&still["stack_id"], &still["status"]), (&played["stack_id"], &json!("running")));
    assert_eq!(app.get("/challenges").await.json(), json!([challenge]));
    assert_eq!(app.get("/challenges/12/locks").await.json(), locks);
    assert_eq!(app.get("/challenges/12/solves").await.json(), json!([]));
    postgres.start_again();
    recovers(&app, 3).await;
    // A refused create has used up nothing.
    ask(&app, Method::POST, STACK, &user("8")).await.is(201);
    ask(&app, Method::DELETE, STACK, &known).await.is(200);
    app.delete(&format!("/stacks/{two}")).await.is(200);
}
