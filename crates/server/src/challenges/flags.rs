//! Whether a flag that somebody has handed in to the platform is theirs.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use stackd_engine::challenges::FlagError;
use utoipa::ToSchema;

use super::marks::who;
use super::request::{self, DetailBody, Fields, InvalidBody};
use super::{named, not_found};
use crate::ServerState;
use crate::fault::{Fault, json};
use crate::params::PathText;

/// A flag, and whose it should be: a user's, a team's, or of either where both are named.
#[derive(ToSchema)]
#[schema(as = FlagCheck, example = json!({"user": 7, "flag": "flag{225312c401066bd480a30449de6e8c1f}"}))]
#[expect(dead_code, reason = "it only describes the body to readers of the API's document")]
struct CheckSchema {
    /// The user.
    #[schema(value_type = Option<serde_json::Value>)]
    user: (),
    /// The team.
    #[schema(value_type = Option<serde_json::Value>)]
    team: (),
    /// What was handed in, to the letter.
    flag: String,
}

/// The verdict.
#[derive(Serialize, ToSchema)]
#[schema(as = FlagVerdict, example = json!({"correct": true}))]
struct Verdict {
    /// Whether it is theirs.
    correct: bool,
}

impl From<FlagError> for Fault {
    fn from(error: FlagError) -> Self {
        let status = match error {
            FlagError::NotFound => StatusCode::NOT_FOUND,
            FlagError::NoFlag => StatusCode::CONFLICT,
            FlagError::NoSecret => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string()).into_detail()
    }
}

/// Says whether a flag is somebody's.
///
/// The flag of another owner is wrong. It notes nothing: a solve is told by itself.
#[utoipa::path(
    post, path = "/challenges/{challenge_id}/flag/check", tag = "challenges", operation_id = "checkFlag",
    params(("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100")),
    request_body(content = CheckSchema),
    responses(
        (status = 200, description = "Whether it is.", body = Verdict),
        (status = 404, description = "There is no such challenge.", body = DetailBody,
            example = json!({"detail": "challenge not found"})),
        (status = 409, description = "It has no flag.", body = DetailBody,
            example = json!({"detail": "challenge has no flag"})),
        (status = 413, description = "The body is too large.", body = DetailBody,
            example = json!({"detail": "request body too large"})),
        (status = 422, description = "The body does not say who, or no flag.", body = InvalidBody,
            example = json!({"detail": [{"type": "missing", "loc": ["body", "flag"], "msg": "flag is required", "input": null}]})),
        (status = 503, description = "The secret that it is derived from is not set any more.", body = DetailBody,
            example = json!({"detail": "flags cannot be derived: no flag_secret is set"})),
    )
)]
pub(super) async fn check_flag(
    State(state): State<ServerState>,
    PathText(name): PathText,
    body: Body,
) -> Result<Response, Fault> {
    let name = named(&name)?;
    let challenges = state.engine().challenges();
    challenges.get(&name).ok_or_else(not_found)?;
    let object = request::object(body, state.config()).await?;
    let mut fields = Fields::of(&object);
    let owners = who(&mut fields);
    if fields.given("flag").is_none() {
        fields.missing("flag", "flag is required");
    }
    let flag = fields.text("flag").unwrap_or_default();
    fields.finish()?;
    let correct = challenges.is_flag(&name, &owners, &flag)?;
    Ok(json(StatusCode::OK, &Verdict { correct }))
}
