//! What happens around every request: its id, its line in the log, its count, the form of a refusal,
//! and the last resort when nothing answers it or something breaks.
//!
//! It is one layer and not several: each one more is some copies of the routes below it, a request.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tower_http::cors::CorsLayer;
use tracing::Instrument;

use crate::auth::KEY_HEADER;
use crate::config::{ConfigError, ServerConfig};
use crate::fault::{self, Fault};
use crate::{ServerState, challenges};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Every answer carries the id; the log has one line a request: for debugging, where it has only read
/// and was answered well. Of the address only the route's template is kept, never the query, since a
/// key may stand in it.
pub(crate) async fn observe(
    State(state): State<ServerState>,
    mut request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let id = request_id(request.headers().get(REQUEST_ID));
    // Whoever the request is passed on to logs it under the same id.
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let is_http1 = request.version() <= Version::HTTP_11;
    let wants_problem = fault::wants_problem(request.headers());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", |route| route.as_str());
    let shown_id = id.to_str().unwrap_or_default();
    let span = tracing::info_span!("request", id = shown_id, method = method.as_str(), route);

    let answering = async {
        let mut response = unbroken(&uri, next.run(request)).await;
        if wants_problem {
            response = fault::as_problem(response, uri.path());
        }
        response.headers_mut().insert(REQUEST_ID, id.clone());
        if is_http1 && state.stopping().is_cancelled() {
            // The next request is for another server; the one after this, when it has started again.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let status = response.status();
        let took = begun.elapsed();
        let (code, latency_ms) = (status.as_u16(), took.as_secs_f64() * 1000.0);
        if method.is_safe() && code < 400 {
            tracing::debug!(status = code, latency_ms, "answered");
        } else {
            tracing::info!(status = code, latency_ms, "answered");
        }
        state.metrics().answered(&method, route, status, took);
        response
    };
    answering.instrument(span).await
}

/// Takes the caller's id over where it can stand in a log line, else makes one.
fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    let sane = |id: &HeaderValue| {
        let byte_fits = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(b);
        (1..=128).contains(&id.len()) && id.as_bytes().iter().all(byte_fits)
    };
    if let Some(id) = given.filter(|id| sane(id)) {
        return id.clone();
    }
    new_request_id()
}

/// An id that no other request has, of this process or of another. It is no secret.
fn new_request_id() -> HeaderValue {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| {
        let mut bits = [0; 8];
        // Without randomness, ids of one process still differ.
        let _ = getrandom::fill(&mut bits);
        u64::from_ne_bytes(bits)
    });
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = [*PROCESS, NEXT.fetch_add(1, Ordering::Relaxed)].map(u64::to_be_bytes);
    HeaderValue::try_from(hex::encode(id.concat()))
        .unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// Which pages of other origins may call: those that the configuration names.
///
/// Where none is named there is no layer at all: it would answer every `OPTIONS`, whatever the path.
pub(crate) fn cors(config: &ServerConfig) -> Result<Option<CorsLayer>, ConfigError> {
    let origins = config.cors_origins()?;
    if origins.is_empty() {
        return Ok(None);
    }
    let asked = [
        "authorization",
        "content-type",
        "accept",
        "idempotency-key",
        "if-none-match",
        "last-event-id",
    ];
    let shown = [
        "etag",
        "link",
        "location",
        "idempotent-replayed",
        "retry-after",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ];
    let headers = asked.map(HeaderName::from_static).into_iter();
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(
            headers.chain([HeaderName::from_static(KEY_HEADER), REQUEST_ID]).collect::<Vec<_>>(),
        )
        .expose_headers(
            shown.map(HeaderName::from_static).into_iter().chain([REQUEST_ID]).collect::<Vec<_>>(),
        )
        .max_age(Duration::from_secs(3600));
    Ok(Some(layer))
}

/// A refusal in the form of the dialect that owns the path.
fn in_form_of(uri: &Uri, fault: Fault) -> Fault {
    if challenges::owns(uri.path()) { fault.into_detail() } else { fault }
}

/// No route has this path.
pub(crate) async fn not_found(uri: Uri) -> Fault {
    in_form_of(&uri, Fault::new(StatusCode::NOT_FOUND, "not found"))
}

/// The path's route does not have this method.
pub(crate) async fn method_not_allowed(uri: Uri) -> Fault {
    in_form_of(&uri, Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"))
}

/// The caller gets an answer also when a handler breaks.
async fn unbroken(uri: &Uri, answering: impl Future<Output = Response>) -> Response {
    let answer = AssertUnwindSafe(answering).catch_unwind().await;
    answer.unwrap_or_else(|payload| broken(uri, &*payload))
}

fn broken(uri: &Uri, payload: &(dyn Any + Send)) -> Response {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    let text = format!("panic: {}", text.unwrap_or("of an unknown kind"));
    let mut response = in_form_of(uri, Fault::internal(&text)).into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_breaks_is_told_in_the_form_of_its_dialect() {
        for (path, expected) in [
            ("/stacks", r#"{"error":"internal server error"}"#),
            ("/challenges/a", r#"{"detail":"internal server error"}"#),
        ] {
            let answer = unbroken(&Uri::from_static(path), async { panic!("hush") }).await;
            assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let body = axum::body::to_bytes(answer.into_body(), 1000).await.unwrap();
            assert_eq!(body, expected);
        }
    }

    #[test]
    fn a_sane_request_id_is_taken_over() {
        let id = |text: &'static str| request_id(Some(&HeaderValue::from_static(text)));
        assert_eq!(id("3f1c/a-b_c.d:e+f=@1"), "3f1c/a-b_c.d:e+f=@1");
        for bad in ["", "two words", "quote\"", "<script>"] {
            assert_eq!(id(bad).len(), 32, "{bad:?}");
        }
        assert_eq!(id(Box::leak("x".repeat(129).into_boxed_str())).len(), 32);
        assert_ne!(request_id(None), request_id(None));
    }
}
