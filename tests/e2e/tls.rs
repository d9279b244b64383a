//! The API over TLS.

use crate::server::{Server, fetch};

#[tokio::test]
async fn a_certificate_makes_the_api_speak_tls_only() {
    let server = Server::with_tls().await;
    // The harness itself speaks HTTPS from here on, and trusts the test's authority alone.
    let (id, port) = server.sample(&["--env", "GREETING=hello"], &[]).await;
    assert!(fetch(port, "/json").await.expect("it serves").contains(r#""GREETING":"hello""#));
    let said = server.stackd_ok(&["stack", "exec", &id, "--", "/sample", "print", "2"]).await;
    assert_eq!(said, "line 1\nline 2\n", "an upgraded connection");

    let address = format!("127.0.0.1:{}", server.port());
    let plain = reqwest::get(format!("http://{address}/healthz")).await;
    assert!(plain.is_err(), "plain HTTP is answered: {plain:?}");
    let plain = server.stackd(&["stack", "list", "--server", &format!("http://{address}")]).await;
    assert_eq!(plain.status.code(), Some(4));

    // Who does not know the authority does not show it the key.
    let nobody = server.file("nobody.pem", b"");
    let mut command = tokio::process::Command::new(crate::server::stackd());
    command.args(["stack", "list", "--server", &server.url("")]);
    command.env("STACKD_API_KEY", server.key()).env("SSL_CERT_FILE", nobody);
    let untrusting = command.output().await.expect("it runs");
    let text = String::from_utf8_lossy(&untrusting.stderr);
    assert_eq!(untrusting.status.code(), Some(4), "{text}");
    assert!(text.contains("certificate") && text.contains("hint:"), "{text}");
    assert!(text.contains("--cacert") && text.contains("SSL_CERT_FILE"), "{text}");
    let wrong = server.stackd(&["stack", "list", "--cacert", "/nonexistent"]).await;
    assert_eq!(wrong.status.code(), Some(3), "{wrong:?}");

    // HTTP/2 with who can.
    let (authority, url) = (server.authority(), server.url("/healthz"));
    let key = format!("X-API-KEY: {}", server.key());
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sS", "--fail", "--http2", "--cacert", &authority, "-H", &key, &url]);
    curl.args(["-o", "/dev/null", "-w", "%{http_code} %{http_version}"]);
    let curl = curl.output().await.expect("curl; ci/install-test-deps.sh installs it");
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "200 2", "{curl:?}");

    // A terminal over an encrypted WebSocket.
    let mut terminal = server.terminal(&["stack", "exec", "-it", &id, "--", "/sample", "terminal"]);
    terminal.until("17 91").await;
    terminal.resize(120, 33);
    terminal.until("33 120").await;
    terminal.type_in("q\n");
    assert_eq!(terminal.ended().await, 5);
    server.finish().await;
}
