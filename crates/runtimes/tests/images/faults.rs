//! A registry that breaks off, lies, waits, or wants tokens: a small one of the test's own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use stackd_core::runtime::{ErrorKind, RuntimeError};
use stackd_runtimes::oci::images::{
    Digest, ImageConfig, ImageError, LayerStep, Progress, no_progress,
};
use tokio::sync::{Semaphore, mpsc};

use super::support::{Blobs, OCI_MANIFEST, Tar, TestStore, gzip};

/// How it behaves.
pub struct Behaviour {
    /// How many times an answer with a large blob breaks off, and after how many bytes.
    pub breaks: AtomicUsize,
    pub break_after: usize,
    pub ranges: bool,
    /// Blobs wait for this.
    pub gate: Option<Semaphore>,
    pub token: Option<Token>,
    /// Which answer never ends.
    pub endless: Option<&'static str>,
    /// Of large blobs one byte comes, and then nothing.
    pub trickles: AtomicBool,
    /// Where those who ask for such a place are sent: (part of a path, another base).
    pub redirect: Option<(&'static str, String)>,
    /// Where the token server is said to be.
    pub realm: Option<String>,
    /// It is no registry: everything is answered with this.
    pub page: Option<(StatusCode, &'static str)>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            breaks: 0.into(),
            break_after: 100_000,
            ranges: true,
            gate: None,
            token: None,
            endless: None,
            trickles: false.into(),
            redirect: None,
            realm: None,
            page: None,
        }
    }
}

/// What the token server wants to see before it gives the token.
#[derive(Clone, Copy)]
pub enum Token {
    Anonymous,
    Password(&'static str),
    Refresh(&'static str),
}

pub struct Registry {
    pub host: String,
    blobs: Blobs,
    tags: HashMap<String, Digest>,
    behaviour: Behaviour,
    /// What was asked, in order.
    requests: parking_lot::Mutex<Vec<String>>,
    /// The number of the token that is good now.
    good: AtomicUsize,
    /// Bytes of answers that never end.
    sent: Arc<AtomicUsize>,
    /// Who asked, as they said.
    authorizations: parking_lot::Mutex<Vec<String>>,
    /// Is told when somebody goes away who was waiting for more.
    given_up: (mpsc::UnboundedSender<()>, tokio::sync::Mutex<mpsc::UnboundedReceiver<()>>),
}

impl Registry {
    pub async fn start(blobs: Blobs, image: Digest, behaviour: Behaviour) -> Arc<Self> {
        Self::with_tags(blobs, [("1".to_owned(), image)].into(), behaviour).await
    }

    pub async fn with_tags(
        blobs: Blobs,
        tags: HashMap<String, Digest>,
        behaviour: Behaviour,
    ) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        let registry = Arc::new(Self {
            host: listener.local_addr().unwrap().to_string(),
            blobs,
            tags,
            behaviour,
            requests: parking_lot::Mutex::default(),
            good: AtomicUsize::new(0),
            sent: Arc::default(),
            authorizations: parking_lot::Mutex::default(),
            given_up: (sender, receiver.into()),
        });
        let router = axum::Router::new().fallback(answer).with_state(Arc::clone(&registry));
        // It ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, router).await });
        registry
    }

    fn name(&self) -> String {
        self.tagged("1")
    }

    pub fn tagged(&self, tag: &str) -> String {
        format!("{}/app:{tag}", self.host)
    }

    fn token(&self) -> String {
        match self.good.load(Ordering::Relaxed) {
            0 => "good".to_owned(),
            n => format!("good-{n}"),
        }
    }

    fn asked(&self, what: &str) -> Vec<String> {
        self.requests.lock().iter().filter(|line| line.contains(what)).cloned().collect()
    }
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let page = registry.behaviour.page;
    let mut response = match page {
        Some(page) => page.into_response(),
        None => answer_as_registry(&registry, request).await,
    };
    if page.is_none() {
        let version = "registry/2.0".parse().unwrap();
        response.headers_mut().insert("docker-distribution-api-version", version);
    }
    response
}

async fn answer_as_registry(registry: &Arc<Registry>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let text =
        |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let range = text(header::RANGE);
    registry.requests.lock().push(format!("{} {path} {range}", parts.method).trim().to_owned());
    registry.authorizations.lock().push(text(header::AUTHORIZATION));
    if let Some((place, base)) = &registry.behaviour.redirect
        && path.contains(place)
    {
        let to = format!("{base}{path}");
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response();
    }
    if registry.behaviour.endless.is_some_and(|place| path.contains(place)) {
        let sent = Arc::clone(&registry.sent);
        return Body::from_stream(stream::repeat_with(move || {
            sent.fetch_add(64 << 10, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 64 << 10]))
        }))
        .into_response();
    }
    if path == "/token" {
        let body = axum::body::to_bytes(body, 1 << 16).await.unwrap();
        return token(registry, &parts.method, &text(header::AUTHORIZATION), &body);
    }
    let good = format!("Bearer {}", registry.token());
    if registry.behaviour.token.is_some() && text(header::AUTHORIZATION) != good {
        let own = format!("http://{}/token", registry.host);
        let realm = registry.behaviour.realm.as_ref().unwrap_or(&own);
        let realm = format!("Bearer realm=\"{realm}\",service=\"test\"");
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm)]).into_response();
    }
    let not_found = || StatusCode::NOT_FOUND.into_response();
    let Some((kind, name)) = path.strip_prefix("/v2/app/").and_then(|rest| rest.split_once('/'))
    else {
        return if path == "/v2/" { "{}".into_response() } else { not_found() };
    };
    let digest = registry.tags.get(name).copied().or_else(|| name.parse().ok());
    let Some(digest) = digest else { return not_found() };
    let Some(content) = registry.blobs.by_digest.get(&digest).cloned() else { return not_found() };
    match kind {
        "manifests" => ([(header::CONTENT_TYPE, OCI_MANIFEST)], content).into_response(),
        "blobs" => blob(registry, content, &range).await,
        _ => not_found(),
    }
}

fn token(registry: &Registry, method: &Method, authorization: &str, body: &Bytes) -> Response {
    let body = String::from_utf8_lossy(body);
    let good = match registry.behaviour.token {
        Some(Token::Anonymous) => authorization.is_empty(),
        Some(Token::Password(basic)) => authorization == format!("Basic {basic}"),
        Some(Token::Refresh(token)) => {
            method == Method::POST && body.contains(&format!("refresh_token={token}"))
        }
        None => false,
    };
    if good {
        let token = registry.token();
        format!(r#"{{"token":"{token}","access_token":"{token}"}}"#).into_response()
    } else {
        StatusCode::UNAUTHORIZED.into_response()
    }
}

async fn blob(registry: &Registry, content: Vec<u8>, range: &str) -> Response {
    let behaviour = &registry.behaviour;
    if let Some(gate) = &behaviour.gate {
        gate.acquire().await.unwrap().forget();
    }
    let from: usize = range
        .strip_prefix("bytes=")
        .and_then(|range| range.strip_suffix('-'))
        .filter(|_| behaviour.ranges)
        .map_or(0, |from| from.parse().unwrap());
    let rest = content[from..].to_vec();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_LENGTH, rest.len().into());
    let status = if from > 0 {
        let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
        headers.insert(header::CONTENT_RANGE, range.parse().unwrap());
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    if rest.len() > 10_000 && behaviour.trickles.load(Ordering::Relaxed) {
        let gone = Gone(registry.given_up.0.clone());
        let more = async move {
            let _gone = gone;
            std::future::pending().await
        };
        let first = Ok::<_, std::io::Error>(Bytes::from(rest).slice(..1));
        let body = Body::from_stream(stream::iter([first]).chain(stream::once(more)));
        return (status, headers, body).into_response();
    }
    let less = |n: usize| n.checked_sub(1);
    let breaks = rest.len() > behaviour.break_after
        && behaviour.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
    let body = if breaks {
        let part = Bytes::from(rest).slice(..behaviour.break_after);
        // The part is on its way only once the server finds nothing more to send.
        let broken = async {
            tokio::task::yield_now().await;
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
        };
        Body::from_stream(stream::iter([Ok(part)]).chain(stream::once(broken)))
    } else {
        rest.into()
    };
    (status, headers, body).into_response()
}

/// Somebody who waits for more of a blob.
struct Gone(mpsc::UnboundedSender<()>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// What does not become smaller by compression.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*state >> 33) as u8
    };
    (0..len).map(|_| step(&mut state)).collect()
}

/// An image of one layer of noise, and the layer's blob.
fn image() -> (Blobs, Digest, Digest) {
    let tar = Tar::new().file("noise", &noise(350_000)).bytes();
    let sent = gzip(&tar);
    let mut blobs = Blobs::default();
    let image = blobs.image(&[(&tar, sent.clone(), "+gzip")]);
    (blobs, image, Digest::of(&sent))
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let (blobs, digest, layer) = image();
    let behaviour = Behaviour { breaks: 2.into(), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    let lease = test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(std::fs::read(lease.layer_paths()[0].join("noise")).unwrap(), noise(350_000));
    let asked = registry.asked(&layer.to_string());
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(!asked[0].contains("bytes="), "{asked:?}");
    assert!(asked[1].contains("bytes=") && asked[2].contains("bytes="), "{asked:?}");
    assert_ne!(asked[1], asked[2], "it did not advance");
}

#[tokio::test]
async fn a_registry_without_ranges_is_asked_from_the_start() {
    let (blobs, digest, _) = image();
    let behaviour = Behaviour { breaks: 1.into(), ranges: false, ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    let lease = test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(std::fs::read(lease.layer_paths()[0].join("noise")).unwrap(), noise(350_000));
}

#[tokio::test]
async fn a_download_goes_on_after_a_restart() {
    let (blobs, digest, layer) = image();
    let behaviour = Behaviour { breaks: 1.into(), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let config = ImageConfig { download_attempts: 0, ..ImageConfig::default() };
    let test = TestStore::with(config.clone());
    let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    assert_eq!(test.names_in("partial").len(), 1);
    assert!(test.store.list().is_empty());

    let test = test.reopen(config);
    test.store.pull(&registry.name(), &no_progress).await.unwrap();
    let asked = registry.asked(&layer.to_string());
    assert!(asked.len() == 2 && asked[1].contains("bytes="), "{asked:?}");
    assert_eq!(test.names_in("partial"), [""; 0]);
}

#[tokio::test]
async fn any_number_of_waiters_share_one_pull() {
    let (blobs, digest, layer) = image();
    let behaviour = Behaviour { gate: Some(Semaphore::new(1)), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    // The configuration has passed the gate, the layer waits there until all have joined.
    let (sender, mut joined) = mpsc::unbounded_channel();
    let waiters: Vec<_> = (0..5)
        .map(|n| {
            let (store, name, sender) = (test.store.clone(), registry.name(), sender.clone());
            tokio::spawn(async move {
                let tell = move |progress: &Progress| {
                    if !progress.layers.is_empty() {
                        let _ = sender.send(n);
                    }
                };
                store.ensure(&name, None, &tell).await
            })
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 5 {
        seen.insert(joined.recv().await.unwrap());
    }
    registry.behaviour.gate.as_ref().unwrap().add_permits(100);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap().digest(), digest);
    }
    assert_eq!(registry.asked("GET /v2/app/manifests/").len(), 1);
    assert_eq!(registry.asked(&layer.to_string()).len(), 1);
}

#[tokio::test]
async fn a_pull_goes_on_when_its_waiter_leaves() {
    let (blobs, digest, _) = image();
    let behaviour = Behaviour { gate: Some(Semaphore::new(1)), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    let (sender, mut joined) = mpsc::unbounded_channel();
    let (store, name) = (test.store.clone(), registry.name());
    let waiter = tokio::spawn(async move {
        let tell = move |progress: &Progress| {
            if !progress.layers.is_empty() {
                let _ = sender.send(());
            }
        };
        store.ensure(&name, None, &tell).await
    });
    joined.recv().await.unwrap();
    waiter.abort();
    registry.behaviour.gate.as_ref().unwrap().add_permits(100);
    test.store.ensure(&registry.name(), None, &no_progress).await.unwrap();
    assert_eq!(registry.asked("GET /v2/app/manifests/").len(), 1);
}

#[tokio::test]
async fn content_that_is_not_what_was_promised_is_refused() {
    let (blobs, digest, layer) = image();
    let sent = blobs.by_digest[&layer].clone();
    let mut flipped = sent.clone();
    flipped[200_000] ^= 1;
    let mut longer = sent.clone();
    longer.push(0);
    for (content, expected) in
        [(flipped, "is damaged: its digest should be"), (longer, "sends more for")]
    {
        let mut lying = blobs.clone();
        lying.by_digest.insert(layer, content);
        let registry = Registry::start(lying, digest, Behaviour::default()).await;
        let test = TestStore::new();
        let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(test.store.list().is_empty());
        for part in ["tmp", "layers", "images"] {
            assert_eq!(test.names_in(part), [""; 0], "{part}");
        }
        // What was wrong is not taken up again.
        for left in test.names_in("partial") {
            let path = test.dir.path().join("images/partial").join(left);
            assert_eq!(std::fs::metadata(path).unwrap().len(), 0);
        }
    }

    // Another manifest under a pinned digest, and another configuration.
    let config = *blobs.by_digest.keys().find(|key| **key != digest && **key != layer).unwrap();
    for changed in [digest, config] {
        let mut lying = blobs.clone();
        lying.by_digest.get_mut(&changed).unwrap().push(b' ');
        let registry = Registry::start(lying, digest, Behaviour::default()).await;
        let test = TestStore::new();
        let pinned = format!("{}/app@{digest}", registry.host);
        let error = test.store.pull(&pinned, &no_progress).await.unwrap_err();
        let refused =
            matches!(error, ImageError::DigestMismatch { .. } | ImageError::Refused { .. });
        assert!(refused, "{error:?}");
    }
}

/// Whoever makes a stack may name a registry: it must not fill the memory of the server.
#[tokio::test]
async fn answers_that_never_end_are_not_read_to_the_end() {
    for (place, most, expected) in
        [("manifests", 4 << 20, "its manifest is too large"), ("token", 1 << 20, "gave no token")]
    {
        let (blobs, digest, _) = image();
        let token = (place == "token").then_some(Token::Anonymous);
        let behaviour = Behaviour { token, endless: Some(place), ..Behaviour::default() };
        let registry = Registry::start(blobs, digest, behaviour).await;
        let test = TestStore::new();
        let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
        assert!(error.operator().contains(expected), "{place}: {}", error.operator());
        let sent = registry.sent.load(Ordering::Relaxed);
        // What the kernel holds of a connection comes on top.
        assert!((most..most + (16 << 20)).contains(&sent), "{place}: {sent} bytes");
    }
}

#[tokio::test]
async fn a_name_that_is_nobodys_is_told_as_that() {
    let test = TestStore::new();
    let error = test.store.pull("no-such-registry.invalid/app:1", &no_progress).await.unwrap_err();
    let text = "no-such-registry.invalid cannot be reached for image \
                \"no-such-registry.invalid/app:1\": its name cannot be resolved";
    assert_eq!(error.to_string(), text);
}

#[tokio::test]
async fn a_token_that_runs_out_is_fetched_anew() {
    let (blobs, digest, _) = image();
    let behaviour = Behaviour { token: Some(Token::Anonymous), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(registry.asked("/token").len(), 1, "it is used for everything");
    registry.good.store(1, Ordering::Relaxed);
    test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(registry.asked("/token").len(), 2);
}

#[tokio::test]
async fn bearer_tokens_are_fetched_with_whatever_credentials_there_are() {
    let dir = tempfile::tempdir().unwrap();
    for (n, (token, entry, right)) in [
        (Token::Anonymous, None, true),
        // user:password
        (Token::Password("dXNlcjpwYXNzd29yZA=="), Some(r#"{"auth":"dXNlcjpwYXNzd29yZA=="}"#), true),
        (Token::Password("dXNlcjpwYXNzd29yZA=="), Some(r#"{"auth":"dXNlcjp4"}"#), false),
        (Token::Refresh("idt"), Some(r#"{"identitytoken":"idt"}"#), true),
        (Token::Refresh("idt"), Some(r#"{"identitytoken":"other"}"#), false),
        (Token::Refresh("idt"), Some(r#"{"registrytoken":"good"}"#), true),
        (Token::Refresh("idt"), Some(r#"{"registrytoken":"bad"}"#), false),
        (Token::Refresh("idt"), None, false),
    ]
    .into_iter()
    .enumerate()
    {
        let (blobs, digest, _) = image();
        let behaviour = Behaviour { token: Some(token), ..Behaviour::default() };
        let registry = Registry::start(blobs, digest, behaviour).await;
        let docker_config = entry.map(|entry| {
            let path = dir.path().join(format!("{n}.json"));
            let json = format!(r#"{{"auths":{{"{}":{entry}}}}}"#, registry.host);
            std::fs::write(&path, json).unwrap();
            path
        });
        let test = TestStore::with(ImageConfig { docker_config, ..ImageConfig::default() });
        let result = test.store.pull(&registry.name(), &no_progress).await;
        match result {
            Ok(_) => assert!(right, "case {n} was let in"),
            Err(error) => {
                assert!(!right, "case {n}: {}", error.operator());
                assert!(matches!(error, ImageError::Denied { .. }), "case {n}: {error}");
            }
        }
    }
}

/// Waits, but not for ever.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(60), work).await.expect("it never ends")
}

/// An image of `layers` layers of noise, none of them another's.
fn image_of(layers: usize) -> (Blobs, Digest) {
    let tars: Vec<_> =
        (0..layers).map(|n| Tar::new().file(&n.to_string(), &noise(20_000 + n)).bytes()).collect();
    let layers: Vec<_> = tars.iter().map(|tar| (&tar[..], gzip(tar), "+gzip")).collect();
    let mut blobs = Blobs::default();
    let image = blobs.image(&layers);
    (blobs, image)
}

/// Begins a pull and waits until so many of its layers are being downloaded.
async fn begin(
    test: &TestStore,
    name: String,
    downloading: usize,
) -> tokio::task::JoinHandle<Result<(), ImageError>> {
    let (sender, mut begun) = mpsc::unbounded_channel();
    let store = test.store.clone();
    let pull = tokio::spawn(async move {
        let tell = move |progress: &Progress| {
            let come = |layer: &&_| {
                let layer: &stackd_runtimes::oci::images::LayerProgress = layer;
                layer.step == LayerStep::Downloading && layer.downloaded_bytes > 0
            };
            if progress.layers.iter().filter(come).count() >= downloading {
                let _ = sender.send(());
            }
        };
        store.ensure(&name, None, &tell).await.map(drop)
    });
    within(begun.recv()).await.expect("it has begun");
    pull
}

#[tokio::test]
async fn a_registry_that_trickles_holds_up_no_other() {
    let trickling = || Behaviour { trickles: true.into(), ..Behaviour::default() };
    // The hostile image says that its layers are those of the good one, and more.
    let (blobs, digest) = image_of(3);
    let hostile = Registry::start(blobs.clone(), digest, trickling()).await;
    let good = Registry::start(blobs, digest, Behaviour::default()).await;
    let test = TestStore::new();
    let pull = begin(&test, hostile.name(), 3).await;
    let lease = within(test.store.pull(&good.name(), &no_progress)).await.unwrap();
    assert_eq!(lease.digest(), digest);
    assert!(!pull.is_finished());
    pull.abort();
}

#[tokio::test]
async fn what_one_registry_has_sent_of_a_blob_is_not_taken_for_anothers() {
    let (blobs, digest, layer) = image();
    let mut lying = blobs.clone();
    let flipped = lying.by_digest.get_mut(&layer).unwrap();
    flipped[1000] ^= 1;
    let behaviour = Behaviour { breaks: 1.into(), ..Behaviour::default() };
    let hostile = Registry::start(lying, digest, behaviour).await;
    let good = Registry::start(blobs, digest, Behaviour::default()).await;
    let test = TestStore::with(ImageConfig { download_attempts: 0, ..ImageConfig::default() });
    test.store.pull(&hostile.name(), &no_progress).await.unwrap_err();
    assert_eq!(test.names_in("partial").len(), 1, "it was broken off");
    test.store.pull(&good.name(), &no_progress).await.unwrap();
}

#[tokio::test]
async fn a_pull_that_takes_too_long_is_given_up() {
    let (blobs, digest, layer) = image();
    let behaviour = Behaviour { trickles: true.into(), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::with(ImageConfig {
        pull_timeout: Duration::from_secs(1),
        ..ImageConfig::default()
    });
    let error = within(test.store.pull(&registry.name(), &no_progress)).await.unwrap_err();
    assert!(error.to_string().ends_with("it sends too slowly"), "{error}");
    assert!(error.operator().contains("pull_timeout in"), "{}", error.operator());
    assert_eq!(error.kind(), ErrorKind::Retry);

    // What has come is taken up by the next one.
    registry.behaviour.trickles.store(false, Ordering::Relaxed);
    within(test.store.pull(&registry.name(), &no_progress)).await.unwrap();
    let asked = registry.asked(&layer.to_string());
    assert!(asked.last().unwrap().ends_with("bytes=1-"), "{asked:?}");
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_is_given_up() {
    let (blobs, digest, _) = image();
    let behaviour = Behaviour { trickles: true.into(), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test =
        TestStore::with(ImageConfig { abandoned_pull: Duration::ZERO, ..ImageConfig::default() });
    begin(&test, registry.name(), 1).await.abort();
    within(async { registry.given_up.1.lock().await.recv().await }).await.unwrap();

    registry.behaviour.trickles.store(false, Ordering::Relaxed);
    within(test.store.pull(&registry.name(), &no_progress)).await.unwrap();
    assert_eq!(registry.asked("GET /v2/app/manifests/").len(), 2, "it was begun anew");
}

#[tokio::test]
async fn sizes_that_add_up_to_nothing_are_refused() {
    let (mut blobs, digest) = image_of(2);
    let manifest = blobs.by_digest.remove(&digest).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["size"] = (1_u64 << 63).into();
    }
    let (digest, _) = blobs.add(serde_json::to_vec(&manifest).unwrap());
    let registry = Registry::start(blobs, digest, Behaviour::default()).await;
    let test = TestStore::new();
    let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
    assert!(error.to_string().contains("its layers have too many bytes"), "{error}");
    assert_eq!(registry.asked("blobs").len(), 1, "only the configuration was fetched");
}

#[tokio::test]
async fn redirects_lead_nowhere_inside_and_take_no_credentials_along() {
    let (blobs, digest, layer) = image();
    let storage = Registry::start(blobs.clone(), digest, Behaviour::default()).await;
    let place = Some(("/blobs/", format!("http://{}", storage.host)));
    let token = Some(Token::Anonymous);
    let behaviour = Behaviour { redirect: place, token, ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;

    let test = TestStore::new();
    let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
    assert!(matches!(error, ImageError::OutOfReach { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert_eq!(storage.asked("").len(), 0, "nobody was sent there");

    // The operator knows this registry, and so where it keeps its blobs.
    let config =
        ImageConfig { internal_registries: vec![registry.host.clone()], ..ImageConfig::default() };
    let test = TestStore::with(config);
    test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(storage.asked(&layer.to_string()).len(), 1);
    assert!(storage.authorizations.lock().iter().all(String::is_empty));
    assert!(registry.authorizations.lock().iter().any(|shown| shown.starts_with("Bearer ")));
}

#[tokio::test]
async fn a_registry_that_redirects_for_ever_is_left() {
    let (blobs, digest, _) = image();
    let behaviour =
        Behaviour { redirect: Some(("/manifests/", String::new())), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
    assert!(error.operator().contains("redirects again and again"), "{}", error.operator());
    assert_eq!(registry.asked("/manifests/").len(), 6);
}

/// The answer of a token server is sent to the registry: it must come from nowhere else.
#[tokio::test]
async fn tokens_come_from_where_they_are_said_to_be_and_from_nowhere_inside() {
    let (blobs, digest, _) = image();
    let page = Some((StatusCode::OK, r#"{"token":"secret"}"#));
    let secret = Behaviour { page, ..Behaviour::default() };
    let secret = Registry::start(Blobs::default(), digest, secret).await;
    let inside = format!("http://{}", secret.host);
    for (redirect, realm) in [
        (Some(("/token", inside.clone())), None),
        (None, Some(format!("{inside}/latest"))),
        (None, Some("http://169.254.169.254/latest".to_owned())),
    ] {
        let token = Some(Token::Anonymous);
        let behaviour = Behaviour { token, redirect, realm, ..Behaviour::default() };
        let registry = Registry::start(blobs.clone(), digest, behaviour).await;
        let test = TestStore::new();
        let error = within(test.store.pull(&registry.name(), &no_progress)).await.unwrap_err();
        assert!(matches!(error, ImageError::Denied { .. }), "{error:?}");
        assert!(registry.authorizations.lock().iter().all(String::is_empty));
    }
}

/// Whoever makes a stack must not find out by the names of images which ports are open here.
#[tokio::test]
async fn what_is_no_registry_looks_like_a_closed_port() {
    let test = TestStore::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut hosts = vec![closed.to_string()];
    for page in [
        (StatusCode::OK, "<html>"),
        (StatusCode::OK, "{}"),
        (StatusCode::NOT_FOUND, "no"),
        (StatusCode::UNAUTHORIZED, "who?"),
        (StatusCode::INTERNAL_SERVER_ERROR, ""),
    ] {
        let behaviour = Behaviour { page: Some(page), ..Behaviour::default() };
        let digest = Digest::of(b"");
        hosts.push(Registry::start(Blobs::default(), digest, behaviour).await.host.clone());
    }
    for host in hosts {
        let name = format!("{host}/app:1");
        let error = within(test.store.pull(&name, &no_progress)).await.unwrap_err();
        let error = RuntimeError::from(error);
        let expected = format!("{host} cannot be reached for image \"{name}\"");
        assert_eq!((error.kind, error.condition.message), (ErrorKind::Retry, expected));
    }
}

#[tokio::test]
async fn a_private_address_is_asked_only_where_it_is_configured() {
    let test = TestStore::new();
    for host in ["10.255.255.1:5000", "169.254.169.254", "192.168.255.254:80", "0x7f.1:5000"] {
        let name = format!("{host}/app:1");
        let error = within(test.store.pull(&name, &no_progress)).await.unwrap_err();
        assert!(matches!(error, ImageError::OutOfReach { .. }), "{host}: {error:?}");
    }
}
