//! The admin socket: what local commands may ask of a running server.
//!
//! HTTP with JSON over a Unix socket that only the server's own user can open, which is all the
//! authentication there is. Not an API for others: it may change with every version.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Path as PathParam, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use stackd_core::{Clock, Timestamp};
use stackd_engine::Keys;
use stackd_engine::keys::{KeyError, NewKey};
use stackd_store::Permission;
use tokio::net::UnixListener;

use crate::exit::{Exit, Failure};

/// What the socket serves.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) info: Arc<Info>,
    pub(crate) keys: Keys,
    /// Where the runtime has images.
    pub(crate) images: Option<super::image::work::Home>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The server behind the socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Info {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) runtime: String,
    /// What it listens on.
    pub(crate) listen: Vec<String>,
}

/// A key, as local commands show it. The key itself is nowhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeyView {
    pub(crate) name: String,
    pub(crate) permissions: Vec<Permission>,
    pub(crate) dialects: Vec<String>,
    pub(crate) created_at: Timestamp,
    pub(crate) revoked_at: Option<Timestamp>,
}

/// What a new key is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeyRequest {
    pub(crate) name: String,
    pub(crate) permissions: Vec<Permission>,
    pub(crate) dialects: Vec<String>,
}

/// A new key's secret.
#[derive(Serialize, Deserialize)]
pub(crate) struct KeySecret {
    pub(crate) secret: String,
}

/// A refusal, with the exit code that the local command ends with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) error: String,
    pub(crate) exit: u8,
    /// What to do next. A server of an earlier version says nothing of it.
    #[serde(default)]
    pub(crate) hints: Vec<String>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (StatusCode::UNPROCESSABLE_ENTITY, Json(self)).into_response()
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let hints = failure.hints().to_vec();
        Self { error: failure.to_string(), exit: failure.exit().code(), hints }
    }
}

impl From<KeyRequest> for NewKey {
    fn from(request: KeyRequest) -> Self {
        Self { name: request.name, permissions: request.permissions, dialects: request.dialects }
    }
}

/// All keys, as they are shown.
pub(crate) fn key_views(keys: &Keys) -> Vec<KeyView> {
    let view = |key: Arc<stackd_store::ApiKey>| KeyView {
        name: key.name.clone(),
        permissions: key.permissions.clone(),
        dialects: key.dialects.clone(),
        created_at: key.created_at,
        revoked_at: key.revoked_at,
    };
    keys.list().into_iter().map(view).collect()
}

/// What an operator reads when a key was not made or revoked.
pub(crate) fn key_failure(error: KeyError) -> Failure {
    let text = error.to_string();
    match error {
        KeyError::Name => Failure::new(Exit::Usage, text),
        KeyError::NotFound(_) | KeyError::Revoked(_) => {
            Failure::new(Exit::NotFound, text).hint("`stackd key list` shows all keys")
        }
        KeyError::Exists(_) => Failure::new(Exit::Rejected, text)
            .hint("choose another name, or revoke that one with `stackd key revoke`"),
        KeyError::Store(error) => super::database(&error),
        KeyError::Unconfirmed => Failure::new(Exit::Saturated, text).hint(
            "`stackd key list` shows what is stored; it holds everywhere once the leader answers",
        ),
    }
}

/// Takes the socket's path. What is left of an earlier server is removed: the lock is held.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Failure> {
    let failure = |error: std::io::Error| {
        let text = format!("the admin socket {} cannot be made: {error}", path.display());
        Failure::new(Exit::Config, text).hint(
            "a socket's path has at most 107 bytes: choose a shorter --data-dir if it is longer",
        )
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failure(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failure)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failure)?;
    Ok(listener)
}

/// The calls of the socket.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/info", get(info))
        .route("/keys", get(list_keys).post(create_key))
        .route("/keys/{name}", delete(revoke_key))
        .route("/images", post(super::image::work::serve))
        .with_state(admin)
}

async fn info(State(admin): State<Admin>) -> Json<Info> {
    Json(Info::clone(&admin.info))
}

async fn list_keys(State(admin): State<Admin>) -> Json<Vec<KeyView>> {
    Json(key_views(&admin.keys))
}

async fn create_key(
    State(admin): State<Admin>,
    Json(request): Json<KeyRequest>,
) -> Result<Json<KeySecret>, Refusal> {
    let now = admin.clock.wall();
    let secret = admin.keys.create(request.into(), now).await.map_err(key_failure)?;
    Ok(Json(KeySecret { secret }))
}

async fn revoke_key(
    State(admin): State<Admin>,
    PathParam(name): PathParam<String>,
) -> Result<StatusCode, Refusal> {
    admin.keys.revoke(&name, admin.clock.wall()).await.map_err(key_failure)?;
    Ok(StatusCode::NO_CONTENT)
}
