//! Players at several servers: whichever they ask answers in the words of the player's document.

use reqwest::{Client, Method, RequestBuilder};
use rustix::process::Signal;
use serde_json::json;
use stackd_testkit::postgres::Postgres;
use stackd_testkit::within;

use crate::fleet::{Fleet, Line, answer};
use crate::play::{SECRET, token};

const STACK: &str = "/api/challenges/12/stack";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn players_are_answered_in_their_documents_words_by_any_replica() {
    let options =
        ["--player-jwt-secret", SECRET, "--player-create-max", "100", "--replica-lease", "10m"];
    let mut fleet = Fleet::start(&Postgres::shared().database(), 2, &options).await;
    let clients = fleet.clients();
    let leader = fleet.leader().await;
    let follower = 1 - leader;
    let challenge = json!({
        "id": "web100", "number": 12, "name": "Web 100", "runtime": "docker", "image": "web:1",
        "port": 80,
    });
    let written = clients.request(follower, Method::POST, "/challenges").json(&challenge);
    let (status, made) = answer(written).await.expect("an answer");
    assert_eq!(status, 201, "{made}");

    let urls = [leader, follower].map(|index| fleet.url(index, ""));
    let http = Client::new();
    let ask = |replica: usize, method: Method, path: &str, user: u32| -> RequestBuilder {
        http.request(method, format!("{}{path}", urls[replica])).bearer_auth(token(user))
    };
    let (status, made) = answer(ask(1, Method::POST, STACK, 7)).await.expect("an answer");
    assert_eq!(status, 201, "{made}");
    for replica in [0, 1] {
        let (status, again) =
            answer(ask(replica, Method::POST, STACK, 7)).await.expect("an answer");
        assert_eq!((status, &again["stack_id"]), (201, &made["stack_id"]), "{again}");
        let (status, seen) = answer(ask(replica, Method::GET, STACK, 7)).await.expect("an answer");
        assert_eq!((status, &seen["stack_id"]), (200, &made["stack_id"]), "{seen}");
    }

    // Nobody leads any more, and nobody can for a while.
    fleet.end(leader, Signal::KILL).await;
    for (method, path) in
        [(Method::POST, STACK), (Method::DELETE, STACK), (Method::POST, &format!("{STACK}/renew"))]
    {
        let asked = ask(1, method.clone(), path, 8).send();
        let refused = within("the follower gives up", asked).await.expect("an answer");
        assert_eq!(refused.status(), 503, "{method} {path}");
        assert_eq!(refused.headers()["retry-after"], "1");
        let body: serde_json::Value = refused.json().await.expect("JSON");
        assert_eq!(body, json!({"error": "stack provisioner unavailable"}), "{method} {path}");
    }
    let (status, seen) = answer(ask(1, Method::GET, STACK, 7)).await.expect("an answer");
    assert_eq!((status, &seen["stack_id"]), (200, &made["stack_id"]), "{seen}");

    // Without the database it cannot know what is there.
    fleet.replicas[follower].line.send_replace(Line::Cut);
    for path in [STACK, "/api/stacks"] {
        let refused = within("the follower knows nothing", async {
            loop {
                let asked = ask(1, Method::GET, path, 7).send().await.expect("an answer");
                if asked.status() != 200 {
                    break asked;
                }
            }
        })
        .await;
        assert_eq!(refused.status(), 503, "{path}");
        let body: serde_json::Value = refused.json().await.expect("JSON");
        assert_eq!(body, json!({"error": "stack provisioner unavailable"}), "{path}");
    }
}
