//! The one place where this dialect turns refusals into statuses and texts.

use axum::http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;
use stackd_core::challenge::Refusal;
use stackd_engine::challenges::PlayError;
use stackd_engine::{CreateError, ExtendError, Unavailable};
use utoipa::ToSchema;

use crate::fault::Fault;

/// A refusal of the player dialect.
#[derive(ToSchema)]
#[schema(as = PlayerError, example = json!({"error": "stack not found"}))]
#[expect(dead_code, reason = "it only describes refusals to readers of the API's document")]
pub(crate) struct PlayerErrorBody {
    /// What is wrong.
    error: String,
    /// Which part of the request, with `invalid input`.
    #[schema(value_type = Option<Vec<serde_json::Value>>)]
    details: (),
    /// The limit, with `too many submissions`.
    #[schema(value_type = Option<serde_json::Value>)]
    rate_limit: (),
}

/// How a request went, for the meters: a few words, whatever the text.
pub(super) fn outcome(status: StatusCode, said: Option<&str>) -> &'static str {
    match said {
        Some("challenge not found") => "challenge_not_found",
        Some("stack not enabled for challenge") => "not_enabled",
        Some("challenge already solved") => "solved",
        Some("challenge locked") => "locked",
        Some("too many submissions") => "rate_limited",
        Some("stack limit reached") => "limit_reached",
        Some("stack not found") => "stack_not_found",
        Some("stack cannot be extended") => "not_extended",
        Some("invalid input") => "invalid_input",
        // Also what another replica has said.
        _ if status.is_success() => "ok",
        _ if status.is_server_error() => "unavailable",
        _ => "refused",
    }
}

pub(super) fn missing_authorization() -> Fault {
    Fault::new(StatusCode::UNAUTHORIZED, "missing authorization")
}

pub(super) fn invalid_authorization() -> Fault {
    Fault::new(StatusCode::UNAUTHORIZED, "invalid authorization")
}

/// No key verifies tokens, or none can be had now.
pub(super) fn disabled() -> Fault {
    Fault::unavailable("stack feature disabled")
}

pub(super) fn no_stack() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "stack not found")
}

/// The path names no challenge.
pub(super) fn invalid_id() -> Fault {
    Fault::new(StatusCode::BAD_REQUEST, "invalid input").with_body(json!({
        "error": "invalid input",
        "details": [{"field": "id", "reason": "invalid"}],
    }))
}

pub(super) fn unavailable(why: &dyn std::fmt::Display) -> Fault {
    tracing::info!(%why, "a player did not get a stack");
    Fault::unavailable("stack provisioner unavailable")
}

/// Why nothing can be done now, whatever the reason, in the document's words.
pub(super) fn unavailable_form(fault: Fault) -> Fault {
    unavailable(&fault.text)
}

fn too_many(limit: u32, reset_seconds: u64) -> Fault {
    let text = "too many submissions";
    let header = |name, value: u64| (HeaderName::from_static(name), HeaderValue::from(value));
    let headers = [
        header("x-ratelimit-limit", limit.into()),
        header("x-ratelimit-remaining", 0),
        header("x-ratelimit-reset", reset_seconds),
    ];
    let fault = Fault::new(StatusCode::TOO_MANY_REQUESTS, text)
        .with_retry_after(reset_seconds)
        .with_body(json!({
            "error": text,
            "rate_limit": {"limit": limit, "remaining": 0, "reset_seconds": reset_seconds},
        }));
    headers.into_iter().fold(fault, |fault, (name, value)| fault.with_header(name, value))
}

pub(super) fn refused(error: PlayError) -> Fault {
    match error {
        PlayError::Refused(refusal) => {
            let status = match refusal {
                Refusal::NotFound => StatusCode::NOT_FOUND,
                Refusal::NotEnabled => StatusCode::BAD_REQUEST,
                Refusal::Solved | Refusal::Limit => StatusCode::CONFLICT,
                Refusal::Locked => StatusCode::FORBIDDEN,
                Refusal::Rate => StatusCode::TOO_MANY_REQUESTS,
            };
            Fault::new(status, refusal.to_string())
        }
        PlayError::Rate { limit, reset_seconds } => too_many(limit, reset_seconds),
        PlayError::Unavailable(error) => unavailable(&error),
        PlayError::Create(error) => match error {
            // The challenge was checked when it was written: what no longer fits is the
            // organiser's to mend, and of no use to a player.
            CreateError::LimitRange(_)
            | CreateError::Ttl { .. }
            | CreateError::RuntimeClass(_)
            | CreateError::Quota(_)
            | CreateError::Saturated(_)
            | CreateError::NoNodePort
            | CreateError::Unavailable(_) => unavailable(&error),
            // Players send no such key, and an owner's own stack is an answer.
            error => Fault::internal(&error),
        },
    }
}

pub(super) fn not_written(error: Unavailable) -> Fault {
    unavailable(&error)
}

pub(super) fn not_extended(error: ExtendError) -> Fault {
    match error {
        ExtendError::NotFound => no_stack(),
        ExtendError::NotLater => Fault::new(StatusCode::CONFLICT, error.to_string()),
        ExtendError::Unavailable(error) => unavailable(&error),
    }
}

pub(super) fn no_challenge() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "challenge not found")
}
