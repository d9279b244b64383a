//! The player's page in a real browser, with a real container behind it.

use std::io::{Read, Write};
use std::net::TcpListener;

use reqwest::StatusCode;
use serde_json::json;

use crate::IMAGE;
use crate::browser::Browser;
use crate::server::Server;

pub(crate) const SECRET: &str = "a-secret-of-the-platform-0123456789abcdef";
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

/// A token that the platform gives to a user, good for an hour.
pub(crate) fn token(user: u32) -> String {
    use base64::Engine as _;
    let part = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let claims = json!({"uid": user, "exp": stackd_core::Timestamp::now().as_second() + 3600});
    let head = format!("{}.{}", part(br#"{"alg":"HS256"}"#), part(claims.to_string().as_bytes()));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{head}.{}", part(ring::hmac::sign(&key, head.as_bytes()).as_ref()))
}

/// A page of a platform that shows the player's page in a frame and hands it a token.
fn platform(stacks: &str, path: &str, token: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let origin = format!("http://127.0.0.1:{}", listener.local_addr().expect("an address").port());
    let page = format!(
        "<!doctype html><title>Platform</title><iframe src=\"{stacks}{path}\" width=600 height=600></iframe>\
         <script>addEventListener('message', (event) => {{\
         if (event.origin === '{stacks}' && event.data.type === 'stackd:token-needed')\
         event.source.postMessage({{type: 'stackd:token', token: '{token}'}}, '{stacks}'); }});</script>"
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4096]);
            let length = page.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{page}"
            );
        }
    });
    origin
}

async fn server(options: &[&str]) -> Server {
    let mut all = vec!["--player-jwt-secret", SECRET, "--player-create-max", "100"];
    all.extend(options);
    let server = Server::with_options(&all).await;
    let challenge = json!({
        "id": "web100", "number": 12, "name": "Web <b>100</b>", "runtime": "docker",
        "image": IMAGE, "port": 80, "ttl_seconds": 3600,
        "extra_config": json!({"ports": [{"port": 7, "protocol": "udp"}]}).to_string(),
    });
    let (status, made) = server.post("/challenges", &challenge).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    server
}

fn status_is(words: &str) -> String {
    format!("document.getElementById('status').textContent === '{words}'")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_player_starts_reaches_extends_and_stops_a_stack() {
    let server = server(&[]).await;
    let browser = Browser::open(1000, 800).await;
    browser.go(&server.url("/play/web100")).await;
    browser.until(&status_is("Not signed in")).await;
    browser.picture("signed-out").await;

    browser.go("about:blank").await;
    browser.go(&format!("{}#token={}", server.url("/play/web100"), token(7))).await;
    browser.until(&status_is("Not started")).await;
    // The token is nowhere but in memory, and a name is text.
    assert_eq!(browser.eval("location.href").await, server.url("/play/web100"));
    let kept = "document.cookie + localStorage.length + sessionStorage.length";
    assert_eq!(browser.eval(kept).await, "00");
    assert_eq!(browser.eval("document.querySelector('h1').textContent").await, "Web <b>100</b>");
    browser.picture("not-started").await;

    // By the keyboard alone.
    browser.press(&[TAB]).await;
    assert_eq!(browser.eval("document.activeElement.id").await, "start");
    browser.press(&[ENTER]).await;
    browser.until(&status_is("Running")).await;
    let link = browser.eval("document.querySelector('#addresses a').href").await;
    let page = reqwest::get(link.as_str().expect("a link")).await.expect("an answer");
    assert_eq!(page.status(), StatusCode::OK);
    let rows = browser.eval("[...document.querySelectorAll('#addresses li')].map((li) => li.querySelector('.value').textContent)").await;
    let link = link.as_str().expect("a link").to_owned();
    assert_eq!(rows[1], format!("curl {link}"));
    assert!(rows[2].as_str().is_some_and(|row| row.starts_with("nc -u ")), "{rows}");
    browser
        .until("/^(1:00:00|59:\\d\\d)$/.test(document.getElementById('left').textContent)")
        .await;
    // Whatever can be pressed has a name, and what changes is told.
    let nameless = "[...document.querySelectorAll('button, a')].filter((each) => !(each.getAttribute('aria-label') || each.textContent).trim()).length";
    assert_eq!(browser.eval(nameless).await, 0);
    assert_eq!(browser.eval("document.querySelector('[role=status]').id").await, "status");

    for (name, scheme, width, height) in [
        ("running-light", "light", 1000, 800),
        ("running-dark", "dark", 1000, 800),
        ("running-phone", "dark", 390, 844),
    ] {
        browser.prefer(scheme).await;
        browser.resize(width, height).await;
        let fits = "document.documentElement.scrollWidth <= innerWidth";
        browser.until(fits).await;
        browser.picture(name).await;
    }

    let before = browser.eval("document.getElementById('until').textContent").await;
    browser.until("!document.getElementById('extend').hidden").await;
    browser.click("#extend").await;
    let (_, stacks) = server.get("/stacks").await;
    let id = stacks["stacks"][0]["stack_id"].as_str().expect("a stack").to_owned();
    let extended = async {
        loop {
            let (_, events) = server.get(&format!("/stacks/{id}/events")).await;
            let kinds = events["events"].as_array().expect("events").clone();
            if kinds.iter().any(|event| event["kind"] == "renewed") {
                break;
            }
        }
    };
    stackd_testkit::within("it is extended", extended).await;
    assert!(before.is_string());

    browser.click("#stop").await;
    browser.until("document.getElementById('confirm').open").await;
    browser.picture("stop").await;
    browser.click("#confirm button[value=stop]").await;
    browser.until(&status_is("Not started")).await;
    let (status, _) = server.get(&format!("/stacks/{id}")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    let solved = json!({"user": 7});
    assert_eq!(server.post("/challenges/12/solves", &solved).await.0, StatusCode::CREATED);
    browser.until(&status_is("Solved")).await;
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{complaints:#?}");
    drop(browser);
    assert!(!server.log().contains(&token(7)[..40]), "a token is in the log");
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_shows_the_page_in_a_frame_and_a_stranger_does_not() {
    let port = stackd_testkit::ports::free();
    let stacks = format!("http://127.0.0.1:{port}");
    let ours = platform(&stacks, "/play/web100", &token(7));
    let strangers = platform(&stacks, "/play/web100", &token(7));
    let listen = format!("127.0.0.1:{port}");
    let server = server(&["--player-page-origin", &ours, "--listen", &listen]).await;
    let browser = Browser::open(800, 700).await;
    browser.go(&ours).await;
    browser.enter_frame().await;
    browser.until(&status_is("Not started")).await;
    browser.picture("framed").await;
    browser.go(&strangers).await;
    let complaints = browser.complaints().await;
    assert!(complaints.iter().any(|line| line.contains("frame-ancestors")), "{complaints:#?}");
    drop(browser);
    server.finish().await;
}
