//! Flags in real containers: who is told which, and where nobody reads one.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::IMAGE;
use crate::play::{SECRET, token};
use crate::server::{Server, fetch};

const FLAG_SECRET: &str = "a-secret-of-the-server-0123456789";
/// printf 'web100\nuser:7' | openssl dgst -sha256 -hmac a-secret-of-the-server-0123456789
const OF_7: &str = "ctf{$(HOME)_225312c401066bd480a30449de6e8c1f}";

/// The environment that a player's running container has.
async fn environment(server: &Server, challenge: u32, user: u32) -> Value {
    let path = format!("/api/challenges/{challenge}/stack");
    let request = reqwest::Client::new().post(server.url(&path)).bearer_auth(token(user));
    let (status, made) = server.send(request).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let stack = server.running(made["stack_id"].as_str().expect("an id")).await;
    let port = stack["node_port"].as_u64().expect("a port");
    let port = u16::try_from(port).expect("a port");
    let facts = fetch(port, "/json").await.expect("an answer");
    serde_json::from_str::<Value>(&facts).expect("JSON")["environment"].take()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_told_its_owners_flag_and_nobody_else_is() {
    let server = Server::with_options(&[
        "--player-jwt-secret",
        SECRET,
        "--flag-secret",
        FLAG_SECRET,
        "--log-level",
        "debug",
    ])
    .await;
    // As an organiser does it: files, applied.
    let own = format!(
        "id: web100\nname: Own\nimage: {IMAGE}\nport: 80\nextra_config:\n  env: {{COPY: \"a-$(FLAG)\"}}\n  \
         flag: {{template: \"ctf{{$(HOME)_<hmac>}}\"}}\n"
    );
    let shared = format!(
        "id: shared\nname: Shared\nimage: {IMAGE}\nport: 80\nextra_config:\n  \
         flag: {{value: \"ctf{{one-for-all}}\", env: [SECRET_WORD]}}\n"
    );
    let file = server.file("1-own.yaml", own.as_bytes());
    let other = server.file("2-shared.yaml", shared.as_bytes());
    server.stackd_ok(&["challenge", "apply", "-f", &file]).await;
    server.stackd_ok(&["challenge", "apply", "-f", &other]).await;
    let again = server.stackd_ok(&["challenge", "apply", "-f", &other]).await;
    assert_eq!(again, "0 created, 0 changed, 0 removed, 1 unchanged\n");
    let changed = shared.replace("one-for-all", "another-one");
    let other = server.file("2-shared.yaml", changed.as_bytes());
    let diff = server.stackd_ok(&["challenge", "apply", "-f", &other]).await;
    assert!(diff.contains("1 changed") && diff.contains("    extra_config.flag"), "{diff}");
    assert!(!diff.contains("another-one") && !diff.contains("one-for-all"), "{diff}");

    let (seven, eight) = (environment(&server, 1, 7).await, environment(&server, 1, 8).await);
    assert_eq!(seven["FLAG"], OF_7);
    assert_eq!(
        (&seven["ISOLATEX_FLAG"], &seven["COPY"]),
        (&json!(OF_7), &json!(format!("a-{OF_7}")))
    );
    let of_8 = eight["FLAG"].as_str().expect("a flag").to_owned();
    assert!(of_8.starts_with("ctf{$(HOME)_") && of_8.len() == OF_7.len() && of_8 != OF_7);
    let shared = environment(&server, 2, 9).await;
    assert_eq!(shared["SECRET_WORD"], "ctf{another-one}");
    assert_eq!(shared["FLAG"], Value::Null);
    for (body, expected) in [
        (json!({"user": 7, "flag": OF_7}), true),
        (json!({"user": 8, "flag": OF_7}), false),
        (json!({"user": 8, "flag": of_8}), true),
    ] {
        let (status, verdict) = server.post("/challenges/web100/flag/check", &body).await;
        assert_eq!((status, verdict), (StatusCode::OK, json!({"correct": expected})), "{body}");
    }

    let mut shown = vec![server.log()];
    for path in ["/stacks", "/challenges"] {
        let answer = server.request(Method::GET, path).send().await.expect("an answer");
        shown.push(answer.text().await.expect("a text"));
    }
    for args in [["challenge", "list", "-o", "yaml"], ["stack", "list", "-o", "yaml"]] {
        shown.push(server.stackd_ok(&args).await);
    }
    for text in shown {
        for secret in ["225312c4", &of_8[12..44], "another-one", "one-for-all", FLAG_SECRET] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    let (_, stacks) = server.get("/stacks").await;
    for stack in stacks["stacks"].as_array().expect("stacks") {
        let id = stack["stack_id"].as_str().expect("an id");
        server.delete(&format!("/stacks/{id}")).await;
    }
    server.finish().await;
}
