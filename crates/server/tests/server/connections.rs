//! Real connections: their limits, their end, TLS.

use std::net::SocketAddr;
use std::time::Duration;

use stackd_server::{ConfigError, ServeError, ServerConfig, Tls, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::harness::{App, KEY, Setup, soon};

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// Sends a request and reads until the other side closes.
async fn exchange(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

const LIVEZ: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn quick() -> Setup {
    let mut setup = Setup::default();
    setup.server.header_timeout = Duration::from_millis(200);
    setup
}

#[tokio::test]
async fn metrics_need_no_key_on_loopback() {
    let app = App::new().await;
    let address = app.listen().await;
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = exchange(connect(address).await, request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    // On a listener that others can reach they do, also for who comes over loopback.
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
    let (router, config, stopping) = (app.router.clone(), app.config.clone(), app.stopping.clone());
    tokio::spawn(async move { serve(router, vec![listener], None, &config, stopping).await });
    let answer = exchange(connect(address).await, request).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let keyed = request.replace("Host", &format!("X-API-KEY: {KEY}\r\nHost"));
    let answer = exchange(connect(address).await, &keyed).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn who_sends_no_headers_is_sent_away() {
    let app = App::with(quick()).await;
    let address = app.listen().await;
    for begun in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "GET /livez HTTP/1.1\r\nHost:"] {
        let answer = exchange(connect(address).await, begun).await;
        assert!(!answer.contains("200"), "{begun:?}: {answer}");
    }
    // An idle connection, too.
    let request = LIVEZ.replace("Connection: close\r\n", "");
    let answer = exchange(connect(address).await, &request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn an_idle_connection_of_the_second_version_is_closed() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let app = App::with(quick()).await;
    let address = app.listen().await;
    let id = app.running().await;
    let stream = TokioIo::new(connect(address).await);
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    // A request under way keeps it, however long that takes.
    for path in ["/livez", &format!("/stacks/{id}?wait=ended&timeout=600ms")] {
        let request = axum::http::Request::get(format!("http://localhost{path}"))
            .header("x-api-key", KEY)
            .body(axum::body::Body::empty());
        assert_eq!(soon(client.send_request(request.unwrap())).await.unwrap().status(), 200);
    }
    soon(connection).await.unwrap().unwrap();
    assert!(client.is_closed());
}

#[tokio::test]
async fn an_answer_may_take_longer_than_headers_may() {
    let app = App::with(quick()).await;
    let address = app.listen().await;
    let id = app.running().await;
    let request = format!(
        "GET /stacks/{id}?wait=ended&timeout=600ms HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\nConnection: close\r\n\r\n"
    );
    let answer = exchange(connect(address).await, &request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_room() {
    let mut setup = Setup::default();
    setup.server.max_connections = 1;
    let app = App::with(setup).await;
    let address = app.listen().await;
    let mut first = connect(address).await;
    first.write_all(LIVEZ.replace("Connection: close\r\n", "").as_bytes()).await.unwrap();
    let mut byte = [0; 1];
    soon(first.read_exact(&mut byte)).await.unwrap();
    let second = tokio::spawn(exchange(connect(address).await, LIVEZ));
    // Nothing comes while the first is there.
    let early =
        tokio::time::timeout(Duration::from_millis(200), async { second.is_finished() }).await;
    assert_eq!(early, Ok(false));
    drop(first);
    assert!(soon(second).await.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_request_under_way_ends_before_the_server_does() {
    let app = App::new().await;
    let id = app.running().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, config) = (app.router.clone(), app.config.clone());
    let stopping = CancellationToken::new();
    let serving = tokio::spawn({
        let stopping = stopping.clone();
        async move { serve(router, vec![listener], None, &config, stopping).await }
    });
    let request = format!(
        "GET /stacks/{id}?wait=ended HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {KEY}\r\n\r\n"
    );
    let waiting = tokio::spawn(async move { exchange(connect(address).await, &request).await });
    // The other connection shows that the first has been accepted.
    exchange(connect(address).await, LIVEZ).await;
    stopping.cancel();
    app.runtime.end(id.parse().unwrap(), stackd_runtimes::simulated::End::completed());
    assert!(soon(waiting).await.unwrap().starts_with("HTTP/1.1 200 "));
    soon(serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// Whoever shares out connections hears of the end a moment later.
#[tokio::test]
async fn a_server_that_is_to_stop_is_not_ready_and_answers_still() {
    let mut setup = Setup::default();
    setup.server.shutdown_delay = Duration::from_secs(3600);
    let app = App::with(setup).await;
    let address = app.listen().await;
    app.stopping.cancel();
    let readyz = LIVEZ.replace("/livez", "/readyz");
    let answer = soon(exchange(connect(address).await, &readyz)).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let answer = soon(exchange(connect(address).await, LIVEZ)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn without_authentication_only_loopback_is_listened_on() {
    let config = ServerConfig { auth: false, ..ServerConfig::default() };
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let result =
        serve(axum::Router::new(), vec![listener], None, &config, CancellationToken::new()).await;
    assert!(matches!(result, Err(ServeError::Config(ConfigError::AuthOff(_)))), "{result:?}");
}

#[tokio::test]
async fn tls_with_a_certificate_from_files() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-days",
            "2",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ])
        .args(["-keyout".as_ref(), key.as_os_str(), "-out".as_ref(), certificate.as_os_str()])
        .output()
        .expect("openssl makes the test's certificate");
    assert!(made.status.success(), "{made:?}");

    let app = App::with(quick()).await;
    let tls = Tls::load(&certificate, &key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, config, stopping) = (app.router.clone(), app.config.clone(), app.stopping.clone());
    tokio::spawn(async move { serve(router, vec![listener], Some(tls), &config, stopping).await });

    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(client));
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, connect(address).await).await.unwrap();
    let answer = exchange(stream, LIVEZ).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    // Who speaks no TLS, or nothing, gets nothing.
    assert!(!exchange(connect(address).await, LIVEZ).await.contains("200 OK"));
    assert_eq!(exchange(connect(address).await, "").await, "");

    assert!(matches!(
        Tls::load(&key, &key),
        Err(ServeError::Certificate { .. } | ServeError::Tls(_))
    ));
    assert!(matches!(Tls::load(&certificate, &certificate), Err(ServeError::PrivateKey { .. })));
    let none = directory.path().join("none.pem");
    let error = Tls::load(&none, &key).unwrap_err().to_string();
    assert!(error.contains("none.pem"), "{error}");
}
