//! A registry that breaks off, lies, waits, or wants tokens: a small one of the test's own.

mod broken;
mod reach;
mod tokens;
mod wedged;

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
