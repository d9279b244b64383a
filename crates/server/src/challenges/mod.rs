//! The catalogue of challenges: a part of the instancer's document that its dialects share, with
//! what the platform tells of solves and locks, and asks of flags.
//!
//! Errors are `{"detail": "<text>"}`, what is wrong with a body 422 with a list of
//! `{"type", "loc", "msg", "input"}`. A key that is missing is 401 here, and a wrong one 403.

mod flags;
mod handlers;
mod marks;
mod model;
mod request;
mod schema;
mod warm;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use stackd_core::challenge::ChallengeRef;
use stackd_engine::challenges::ChallengeError;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::ServerState;
use crate::auth::{self, Caller};
use crate::fault::Fault;

pub(crate) use handlers::{__path_file_schema, file_schema};
pub(crate) use request::{DetailBody, InvalidBody};
pub use schema::FILE as CHALLENGE_SCHEMA;

/// Keys that are limited to one of these may use the catalogue.
pub(crate) const DIALECTS: [&str; 2] = ["instancer", stackd_engine::challenges::DIALECT];

/// Whether a path is the catalogue's.
pub(crate) fn owns(path: &str) -> bool {
    path.strip_prefix("/challenges").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Its routes; every one of them needs a key.
pub(crate) fn routes() -> OpenApiRouter<ServerState> {
    OpenApiRouter::new()
        .routes(routes!(handlers::list_challenges, handlers::create_challenge))
        .routes(routes!(
            handlers::get_challenge,
            handlers::edit_challenge,
            handlers::delete_challenge
        ))
        .routes(routes!(warm::warm_challenge))
        .routes(routes!(flags::check_flag))
        .routes(routes!(marks::list_solves, marks::put_solve, marks::delete_solve))
        .routes(routes!(marks::list_locks, marks::put_lock, marks::delete_lock))
}

/// Lets a request in whose key is good for the catalogue.
pub(crate) async fn admit(
    State(state): State<ServerState>,
    request: Request,
    next: Next,
) -> Response {
    auth::admit(&state, request, next, Fault::into_detail, authenticate).await
}

fn authenticate(state: &ServerState, request: &Request) -> Result<Caller, Fault> {
    let (headers, uri) = (request.headers(), request.uri());
    if !state.config().auth {
        return auth::local_only(state, headers, uri).map(|()| Caller(None));
    }
    let secret = auth::secret(headers, uri)
        .ok_or_else(|| Fault::new(StatusCode::UNAUTHORIZED, "missing api key"))?;
    let key = state.engine().keys().authenticate(&secret).filter(|key| {
        let dialects = &key.dialects;
        dialects.is_empty() || dialects.iter().any(|d| DIALECTS.contains(&d.as_str()))
    });
    key.map(|key| Caller(Some(key)))
        .ok_or_else(|| Fault::new(StatusCode::FORBIDDEN, "invalid api key"))
}

/// The challenge that a path names; what names none is not there.
fn named(text: &str) -> Result<ChallengeRef, Fault> {
    text.parse().map_err(|()| not_found())
}

fn not_found() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "challenge not found").into_detail()
}

impl From<ChallengeError> for Fault {
    fn from(error: ChallengeError) -> Self {
        match error {
            ChallengeError::NotFound => not_found(),
            ChallengeError::Exists | ChallengeError::NumberUsed => {
                Self::new(StatusCode::CONFLICT, error.to_string()).into_detail()
            }
            // Without a body there is nothing to look up.
            ChallengeError::Invalid(_) => request::refused(error, &Default::default()),
            ChallengeError::Unavailable(error) => Self::from(error).into_detail(),
        }
    }
}
