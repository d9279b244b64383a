//! Whether the server is there and whether it can work.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::ServerState;

/// That the server answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health, example = json!({"status": "ok"}))]
pub(crate) struct HealthBody {
    /// Always `ok`.
    status: &'static str,
}

/// Health, for callers with a key.
///
/// Answers as soon as the server listens.
#[utoipa::path(
    get, path = "/healthz", tag = "health", operation_id = "healthz",
    responses((status = 200, description = "The server answers.", body = HealthBody))
)]
pub(crate) async fn healthz() -> Json<HealthBody> {
    Json(HealthBody { status: "ok" })
}

/// Liveness, without a key.
///
/// Answers as soon as the server listens; a server that does not should be restarted.
#[utoipa::path(
    get, path = "/livez", tag = "health", operation_id = "livez",
    responses((status = 200, description = "The server answers.", body = HealthBody))
)]
pub(crate) async fn livez() -> Json<HealthBody> {
    Json(HealthBody { status: "ok" })
}

/// Whether the server can make and remove stacks now.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Readiness, example = json!({"status": "ok", "store": "ok", "runtime": "ok"}))]
pub(crate) struct ReadyBody {
    /// `ok` or `unavailable`.
    status: &'static str,
    /// Whether writes are made durable: `ok` or `unavailable`.
    store: &'static str,
    /// Whether the runtime has told what it runs: `ok` or `unavailable`.
    runtime: &'static str,
    /// Where there are several servers: `leader`, `follower`, or `behind` when it cannot follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<&'static str>,
}

/// Readiness, without a key.
///
/// 503 while writes cannot be made durable, while the runtime has not told yet what it runs, or
/// while the server stops. Reads are answered all the same. A replica that follows needs no more
/// than to be in step with the database.
#[utoipa::path(
    get, path = "/readyz", tag = "health", operation_id = "readyz",
    responses(
        (status = 200, description = "Stacks can be made and removed.", body = ReadyBody),
        (status = 503, description = "Not now.", body = ReadyBody,
            example = json!({"status": "unavailable", "store": "unavailable", "runtime": "ok"})),
    )
)]
pub(crate) async fn readyz(State(state): State<ServerState>) -> Response {
    let word = |ok: bool| if ok { "ok" } else { "unavailable" };
    let health = state.engine().health();
    let (store, runtime) = (health.store.is_ok(), health.runtime_synced);
    let ready = store && runtime && !state.stopping().is_cancelled();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let replica = health.replica.map(|replica| match replica {
        _ if replica.leads => "leader",
        _ if replica.in_step => "follower",
        _ => "behind",
    });
    let body =
        ReadyBody { status: word(ready), store: word(store), runtime: word(runtime), replica };
    (status, Json(body)).into_response()
}
