//! Several servers on one database: any of them takes any request.
//!
//! A read waits until this replica is in step, then is answered here. What changes something is
//! passed on unchanged to the replica that leads; while none does it waits for a moment. A request
//! that may have reached a leader which then went away is sent again only where that cannot do it
//! twice.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request};
use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use stackd_engine::Leadership;
use stackd_store::Candidate;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ServerState;
use crate::config::ServerConfig;
use crate::fault::Fault;
use crate::pinned;

/// How long a request waits for a leader and its answer, in all: callers give up after 5 s.
const PATIENCE: Duration = Duration::from_millis(4500);
/// How long connecting to the leader may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Between two attempts with the same leader.
const RETRY: Duration = Duration::from_millis(50);

/// Says that a replica has passed the request on: who gets it does not pass it on again.
const FORWARDED: HeaderName = HeaderName::from_static("stackd-forwarded");
/// Says that the answer is of a replica that does not lead.
const NOT_LEADER: HeaderName = HeaderName::from_static("stackd-not-leader");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// The route whose POST the engine makes once for each `Idempotency-Key`.
const CREATE: &str = "/stacks";
/// The route whose POST gives the stack there is: a player has one of each challenge.
const PLAYER_CREATE: &str = "/api/challenges/{id}/stack";

/// How a dialect puts a refusal, which is always 503 here.
pub(crate) type Form = fn(Fault) -> Fault;

/// Connections to the replica that leads.
#[derive(Default)]
pub(crate) struct Forwarder(Mutex<Option<(Candidate, reqwest::Client)>>);

impl Forwarder {
    fn client(&self, leader: &Candidate) -> Result<reqwest::Client, String> {
        let mut known = self.0.lock();
        if let Some((of, client)) = known.as_ref()
            && of == leader
        {
            return Ok(client.clone());
        }
        // Also for a leader without TLS, whose certificate is none: a client with settings of its own
        // looks for the machine's authorities, of which an image may have none.
        let tls = pinned::client(&leader.certificate).map_err(|e| e.to_string())?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|e| e.to_string())?;
        *known = Some((leader.clone(), client.clone()));
        Ok(client)
    }
}

/// Passes on what changes something, unless this replica leads.
pub(crate) async fn forward(
    state: &ServerState,
    form: Form,
    request: Request,
    next: Next,
) -> Response {
    let Some(leadership) = state.engine().leadership() else { return next.run(request).await };
    let here = *leadership.borrow() == Leadership::Here;
    if here || request.method().is_safe() {
        return next.run(request).await;
    }
    if request.headers().contains_key(FORWARDED) {
        let refused = Fault::unavailable("this replica does not lead");
        let mut answer = form(refused).into_response();
        answer.headers_mut().insert(NOT_LEADER, HeaderValue::from_static("1"));
        return answer;
    }
    let (parts, body) = request.into_parts();
    let body = match read(body, state.config()).await {
        Ok(body) => body,
        // The handler says what it says of such a body.
        Err(unread) => return next.run(Request::from_parts(parts, unread)).await,
    };
    let mut passing = Passing::new(&parts, body, form);
    match tokio::time::timeout_at(
        Instant::now() + PATIENCE,
        passing.until_answered(state, leadership),
    )
    .await
    {
        Ok(Some(answer)) => answer,
        Ok(None) => next.run(Request::from_parts(parts, Body::from(passing.body))).await,
        Err(_) => form(passing.unanswered()).into_response(),
    }
}

/// Reads a body whole. One that is too long or does not come is given back as such.
async fn read(body: Body, config: &ServerConfig) -> Result<Bytes, Body> {
    let broken = || {
        Body::from_stream(stream::once(async { Err::<Bytes, _>(std::io::Error::other("unread")) }))
    };
    let reading = async {
        let mut frames = body.into_data_stream();
        let mut whole = Vec::new();
        while let Some(frame) = frames.next().await {
            whole.extend_from_slice(&frame.map_err(|_| broken())?);
            if whole.len() > config.body_limit_bytes {
                return Err(Body::from(whole));
            }
        }
        Ok(Bytes::from(whole))
    };
    tokio::time::timeout(config.body_timeout, reading).await.unwrap_or_else(|_| Err(broken()))
}

/// A request on its way to the leader.
struct Passing {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Bytes,
    /// Sent twice, it has the same effect as once.
    repeatable: bool,
    /// The caller gave no key of its own.
    own_key: bool,
    /// A leader may have got it and not have answered.
    sent: bool,
    form: Form,
}

impl Passing {
    fn new(parts: &Parts, body: Bytes, form: Form) -> Self {
        let mut headers = parts.headers.clone();
        for hop in
            [CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE]
        {
            headers.remove(hop);
        }
        headers.insert(FORWARDED, HeaderValue::from_static("1"));
        let route = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
        let creates = parts.method == Method::POST && route == Some(CREATE);
        let mut own_key = false;
        if creates && !headers.contains_key(IDEMPOTENCY_KEY) {
            // So that a create can be sent again when the leader goes away before it answers.
            if let Some(key) = random_key() {
                headers.insert(IDEMPOTENCY_KEY, key);
                own_key = true;
            }
        }
        let keyed = creates && headers.contains_key(IDEMPOTENCY_KEY);
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        Self {
            repeatable: keyed || parts.method != Method::POST || route == Some(PLAYER_CREATE),
            method: parts.method.clone(),
            target,
            headers,
            body,
            own_key,
            sent: false,
            form,
        }
    }

    /// The answer of whoever leads; `None` when that is this replica.
    async fn until_answered(
        &mut self,
        state: &ServerState,
        mut leadership: watch::Receiver<Leadership>,
    ) -> Option<Response> {
        loop {
            let now = leadership.borrow_and_update().clone();
            let answered = match &now {
                Leadership::Here => return None,
                Leadership::Nobody => {
                    // The sender is the engine's, which this server holds.
                    let _ = leadership.changed().await;
                    continue;
                }
                Leadership::There { leader, .. } => tokio::select! {
                    answer = self.ask(state, leader) => answer,
                    // Whoever is asked has lost the lease.
                    _ = leadership.changed() => None,
                },
            };
            if answered.is_some() {
                return answered;
            }
            if self.sent && !self.repeatable {
                return Some((self.form)(self.unanswered()).into_response());
            }
            let _ = tokio::time::timeout(RETRY, leadership.changed()).await;
            leadership.mark_changed();
        }
    }

    /// Asks a leader; nothing where it did not answer, or does not lead.
    async fn ask(&mut self, state: &ServerState, leader: &Candidate) -> Option<Response> {
        let client = match state.forwarder().client(leader) {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(error, leader = leader.address, "the leader cannot be asked");
                return None;
            }
        };
        let url = format!("{}{}", leader.address, self.target);
        let request = client
            .request(self.method.clone(), url)
            .headers(self.headers.clone())
            .body(self.body.clone());
        let before = std::mem::replace(&mut self.sent, true);
        let answered = match request.send().await {
            Ok(answer) => {
                let (status, headers) = (answer.status(), answer.headers().clone());
                answer.bytes().await.map(|body| (status, headers, body))
            }
            Err(error) => Err(error),
        };
        match answered {
            Ok((_, headers, _)) if headers.contains_key(NOT_LEADER) => {
                self.sent = before;
                None
            }
            Ok((status, mut headers, body)) => {
                for hop in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
                    headers.remove(hop);
                }
                if self.own_key {
                    headers.remove(REPLAYED);
                }
                Some((status, headers, body).into_response())
            }
            Err(error) => {
                if error.is_connect() {
                    self.sent = before;
                }
                let error = error.without_url();
                tracing::warn!(%error, leader = leader.address, "the leader did not answer");
                None
            }
        }
    }

    fn unanswered(&self) -> Fault {
        Fault::unavailable(if self.sent {
            "the leading replica went away before it answered; whether the request took effect is \
             not known: look before you ask again"
        } else {
            "no replica leads at the moment; try again"
        })
    }
}

fn random_key() -> Option<HeaderValue> {
    let mut bits = [0u8; 16];
    getrandom::fill(&mut bits).ok()?;
    HeaderValue::from_str(&format!("stackd-{}", hex::encode(bits))).ok()
}
