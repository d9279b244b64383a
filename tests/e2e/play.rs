//! The player's page in a real browser.

use std::io::{Read, Write};
use std::net::TcpListener;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use stackd_testkit::within;

use crate::IMAGE;
use crate::browser::Browser;
use crate::server::Server;

pub(crate) const SECRET: &str = "a-secret-of-the-platform-0123456789abcdef";
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const SHIFT: &str = "\u{e008}";
const ESCAPE: &str = "\u{e00c}";
/// A server whose stacks seem to be at such an address, and are nowhere.
const SIMULATED: [&str; 4] = [
    "--runtime",
    "simulated",
    "--simulated-public-ip",
    "a-machine-with-a-long-name.of-many.challenges.ctf.example.org",
];

/// A token that the platform gives to a user, good for an hour.
pub(crate) fn token(user: u32) -> String {
    token_for(user, 3600)
}

/// The same, good for so many seconds.
fn token_for(user: u32, seconds: i64) -> String {
    use base64::Engine as _;
    let part = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let claims = json!({"uid": user, "exp": stackd_core::Timestamp::now().as_second() + seconds});
    let head = format!("{}.{}", part(br#"{"alg":"HS256"}"#), part(claims.to_string().as_bytes()));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{head}.{}", part(ring::hmac::sign(&key, head.as_bytes()).as_ref()))
}

/// A page of a platform that shows the player's page as the documentation tells it to. It counts how
/// often it is asked for a token.
fn platform(stacks: &str, token: &str) -> String {
    let guide = include_str!("../../docs/behind-your-ctf-platform.md");
    let (_, rest) = guide.split_once("```html\n").expect("how to show it in a frame");
    let (frame, _) = rest.split_once("```").expect("its end");
    let frame = frame.replace("https://stacks.example", stacks);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let origin = format!("http://127.0.0.1:{}", listener.local_addr().expect("an address").port());
    let page = format!(
        "<!doctype html><title>Platform</title><script>var token = '{token}', asked = 0;\
         function currentToken() {{ asked += 1; return token; }}</script>{frame}"
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

/// What a server needs for players.
fn options<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--player-jwt-secret", SECRET][..], more].concat()
}

/// Writes a challenge: one of the sample, changed by `more`.
async fn challenge(server: &Server, id: &str, number: u32, more: Value) {
    let mut challenge = json!({
        "id": id, "number": number, "name": "Web <b>100</b>", "runtime": "docker",
        "image": IMAGE, "port": 80, "ttl_seconds": 3600,
    });
    for (name, value) in more.as_object().expect("fields") {
        challenge[name] = value.clone();
    }
    let (status, made) = server.post("/challenges", &challenge).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
}

async fn edit(server: &Server, number: u32, change: Value) {
    let request = server.request(Method::PATCH, &format!("/challenges/{number}")).json(&change);
    assert_eq!(server.send(request).await.0, StatusCode::OK);
}

/// What another player's browser does.
async fn does(server: &Server, user: u32, method: Method, status: StatusCode) {
    let request = Client::new().request(method, server.url("/api/challenges/12/stack"));
    let answer = within("an answer", request.bearer_auth(token(user)).send()).await;
    assert_eq!(answer.expect("an answer").status(), status);
}

/// Opens the page of a challenge anew, as a player who comes from the platform.
async fn enter(browser: &Browser, server: &Server, page: &str) {
    browser.go("about:blank").await;
    browser.go(&format!("{}#token={}", server.url(page), token(7))).await;
}

fn says(id: &str, words: &str) -> String {
    format!("document.getElementById('{id}').textContent === '{words}'")
}

fn status_is(words: &str) -> String {
    says("status", words)
}

/// Whether this has the focus.
fn has_focus(id: &str) -> String {
    format!("document.activeElement.id === '{id}'")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_player_starts_reaches_extends_and_stops_a_stack() {
    let server = Server::with_options(&options(&["--player-create-max", "100"])).await;
    let ports = json!({"ports": [{"port": 7, "protocol": "udp"}]}).to_string();
    challenge(&server, "web100", 12, json!({"extra_config": ports})).await;
    let browser = Browser::open(1000, 800).await;
    browser.allow_clipboard(&server.url("")).await;
    browser.go(&server.url("/play/web100")).await;
    browser.until(&status_is("Not signed in")).await;
    browser.look("signed-out").await;

    enter(&browser, &server, "/play/web100").await;
    browser.until(&status_is("Not started")).await;
    // The token is nowhere but in memory, and a name is text.
    assert_eq!(browser.eval("location.href").await, server.url("/play/web100"));
    let kept = "document.cookie + localStorage.length + sessionStorage.length";
    assert_eq!(browser.eval(kept).await, "00");
    assert_eq!(browser.eval("document.querySelector('h1').textContent").await, "Web <b>100</b>");
    browser.look("not-started").await;

    // By the keyboard alone, which never loses its place.
    browser.press(&[TAB]).await;
    assert_eq!(browser.eval(&has_focus("start")).await, true);
    browser.press(&[ENTER]).await;
    browser.until(&has_focus("stop")).await;
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
    browser.look("running").await;
    for (css, role, name) in [
        ("#status", "status", ""),
        ("#told", "status", ""),
        ("#left", "timer", ""),
        ("#reach", "region", "Where to find it"),
        ("#addresses", "list", ""),
        ("#addresses a", "link", &link),
        ("#addresses li:nth-child(2) .copy", "button", "Copy curl 80 command"),
        ("#extend", "button", "Extend"),
        ("#stop", "button", "Stop"),
    ] {
        assert_eq!(browser.told(css).await, (role.to_owned(), name.to_owned()), "{css}");
    }

    let before = browser.eval("document.getElementById('until').textContent").await;
    browser.chord(&[SHIFT, TAB]).await;
    assert_eq!(browser.eval(&has_focus("extend")).await, true);
    // So that there is an hour to add.
    edit(&server, 12, json!({"ttl_seconds": 7200})).await;
    browser.press(&[ENTER]).await;
    browser
        .until("/^(2:00:00|1:59:\\d\\d)$/.test(document.getElementById('left').textContent)")
        .await;
    let until = browser.eval("document.getElementById('until').textContent").await;
    assert_ne!(until, before);
    let until = until.as_str().expect("a text");
    browser.until(&says("told", &format!("Extended {until}."))).await;
    assert_eq!(browser.eval(&has_focus("extend")).await, true);

    browser.chord(&[SHIFT, TAB]).await;
    browser.chord(&[SHIFT, TAB]).await;
    browser.press(&[ENTER]).await;
    browser.until(&says("told", "Copied the curl 80 command.")).await;
    assert_eq!(browser.eval("navigator.clipboard.readText()").await, format!("curl {link}"));

    browser.press(&[TAB, TAB, TAB, ENTER]).await;
    browser.until("document.getElementById('confirm').open").await;
    assert_eq!(browser.told("#confirm").await, ("dialog".into(), "Stop this stack?".into()));
    browser.look("stop").await;
    browser.press(&[ESCAPE]).await;
    browser.until("!document.getElementById('confirm').open").await;
    assert_eq!(browser.eval(&has_focus("stop")).await, true);
    assert_eq!(browser.eval(&status_is("Running")).await, true);
    browser.press(&[ENTER]).await;
    browser.until("document.activeElement.textContent === 'Keep it'").await;
    browser.chord(&[SHIFT, TAB]).await;
    browser.press(&[ENTER]).await;
    browser.until(&status_is("Not started")).await;
    browser.until(&has_focus("start")).await;
    assert_eq!(server.get("/stacks").await.1["stacks"], json!([]));

    let solved = json!({"user": 7});
    assert_eq!(server.post("/challenges/12/solves", &solved).await.0, StatusCode::CREATED);
    browser.until(&status_is("Solved")).await;
    browser.until(&has_focus("status")).await;
    browser.look("solved").await;
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{complaints:#?}");
    drop(browser);
    assert!(!server.log().contains(&token(7)[..40]), "a token is in the log");
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_near_its_end_is_told_and_one_of_a_closed_challenge_can_be_stopped() {
    let server = Server::with_options(&options(&["--player-create-max", "100"])).await;
    challenge(&server, "short", 12, json!({"ttl_seconds": 290})).await;
    let command = json!({"command": ["/sample", "exit", "3"]}).to_string();
    challenge(&server, "broken", 13, json!({"extra_config": command})).await;
    let browser = Browser::open(1000, 800).await;
    enter(&browser, &server, "/play/broken").await;
    browser.until(&status_is("Not started")).await;
    browser.click("#start").await;
    browser.until(&status_is("It has ended")).await;
    browser.look("ended").await;

    enter(&browser, &server, "/play/short").await;
    browser.until(&status_is("Not started")).await;
    browser.click("#start").await;
    browser.until(&status_is("Running")).await;
    browser.until(&says("explain", "Less than 5 minutes left.")).await;
    browser.look("near-the-end").await;
    edit(&server, 12, json!({"ttl_seconds": 3600})).await;
    browser.click("#extend").await;
    browser.until(&says("explain", "")).await;
    // There is a way to it while it lasts, by whatever name the page is opened.
    edit(&server, 12, json!({"enabled": false})).await;
    for page in ["/play/12", "/play/short"] {
        enter(&browser, &server, page).await;
        browser.until(&status_is("Running")).await;
        let port = "/^127\\.0\\.0\\.1:\\d+$/.test(document.querySelector('#addresses .value').textContent)";
        assert_eq!(browser.eval(port).await, true);
    }
    browser.look("closed-running").await;
    browser.click("#stop").await;
    browser.click("#confirm button[value=stop]").await;
    browser.until(&status_is("Closed")).await;
    drop(browser);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_player_waits_in_the_queue_and_is_told_what_is_refused() {
    let queue = ["--simulated-concurrent-starts", "1", "--simulated-start-delay", "1h"];
    let mut server = Server::without_images(&options(&[&SIMULATED[..], &queue].concat())).await;
    challenge(&server, "web100", 12, json!({})).await;
    does(&server, 8, Method::POST, StatusCode::CREATED).await;
    does(&server, 9, Method::POST, StatusCode::CREATED).await;
    within("the one ahead waits", async {
        let (_, mut stacks) = server.get("/stacks").await;
        while !stacks.to_string().contains("place 1 of 1") {
            stacks = server.get("/stacks").await.1;
        }
    })
    .await;
    let browser = Browser::open(1000, 800).await;
    // More often than a browser has connections to one server: pages that were left need none.
    for _ in 0..7 {
        enter(&browser, &server, "/play/web100").await;
        browser.until(&status_is("Not started")).await;
    }
    browser.click("#start").await;
    browser.until(&status_is("Waiting for its turn")).await;
    browser.until(&says("explain", "Place 2 of 2 in the queue.")).await;
    browser.look("queued").await;
    does(&server, 9, Method::DELETE, StatusCode::OK).await;
    browser.until(&says("explain", "Place 1 of 1 in the queue.")).await;
    does(&server, 8, Method::DELETE, StatusCode::OK).await;
    browser.until(&status_is("Starting…")).await;
    browser.look("starting").await;

    // A dialog that asks about what is gone goes with it.
    browser.click("#stop").await;
    browser.until("document.getElementById('confirm').open").await;
    does(&server, 7, Method::DELETE, StatusCode::OK).await;
    browser.until("!document.getElementById('confirm').open").await;
    browser.until(&has_focus("start")).await;
    browser.press(&[ENTER]).await;
    browser.until("document.getElementById('problem').textContent.startsWith('You have just started one. Try again in ')").await;
    assert_eq!(browser.eval(&has_focus("start")).await, true);
    assert_eq!(browser.told("#problem").await.0, "alert");
    browser.look("refused").await;

    let user = json!({"user": 7});
    assert_eq!(server.post("/challenges/12/locks", &user).await.0, StatusCode::CREATED);
    browser.until(&status_is("Locked")).await;
    browser.look("locked").await;
    server.stop();
    browser.until(&status_is("Reconnecting…")).await;
    browser.look("reconnecting").await;
    drop(browser);
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_shows_the_page_in_a_frame_and_a_stranger_does_not() {
    let port = stackd_testkit::ports::free();
    let stacks = format!("http://127.0.0.1:{port}");
    // A platform whose own session is about to end: it gives out the same token whenever asked.
    let ours = platform(&stacks, &token_for(7, 2));
    let strangers = platform(&stacks, &token(7));
    let listen = format!("127.0.0.1:{port}");
    let frames = ["--player-page-origin", &ours, "--listen", &listen];
    let server = Server::without_images(&options(&[&SIMULATED[..], &frames].concat())).await;
    challenge(&server, "web100", 12, json!({})).await;
    let browser = Browser::open(800, 700).await;
    browser.go(&ours).await;
    browser.enter_frame().await;
    browser.until(&status_is("Not signed in")).await;
    let over = "Your session on the platform has ended. Open the challenge there again.";
    browser.until(&says("explain", over)).await;
    // It asks again, and does not try again what was refused.
    browser.leave_frame().await;
    let asked = browser.eval("asked").await.as_u64().expect("a count");
    browser.until(&format!("asked >= {}", asked + 2)).await;
    let metrics = server.request(Method::GET, "/metrics").send().await.expect("an answer");
    let metrics = metrics.text().await.expect("a text");
    let refused = "stackd_player_token_refusals_total{reason=\"expired\"} ";
    let refused = metrics.lines().find_map(|line| line.strip_prefix(refused));
    assert_eq!(refused, Some("1"), "{metrics}");
    browser.eval(&format!("token = '{}'", token(7))).await;
    browser.enter_frame().await;
    browser.until(&status_is("Not started")).await;
    browser.click("#start").await;
    browser.until(&status_is("Running")).await;
    browser.leave_frame().await;
    browser.picture("framed").await;
    // The address is a long one.
    enter(&browser, &server, "/play/web100").await;
    browser.until(&status_is("Running")).await;
    browser.look("long-address").await;

    browser.go(&strangers).await;
    let complaints = browser.complaints().await;
    assert!(complaints.iter().any(|line| line.contains("frame-ancestors")), "{complaints:#?}");
    drop(browser);
    server.finish().await;
}
