//! The player's endpoints.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use stackd_core::challenge::ChallengeNumber;
use utoipa::ToSchema;

use super::errors::{self, PlayerErrorBody};
use super::model::{self, PlayerStackView};
use super::token::Session;
use crate::ServerState;
use crate::fault::{Fault, json, json_text};
use crate::params::PathText;

/// That something is done.
#[derive(Serialize, ToSchema)]
#[schema(as = Done, example = json!({"status": "ok"}))]
pub(super) struct DoneView {
    /// Always `ok`.
    status: &'static str,
}

pub(super) fn number(text: &str) -> Result<ChallengeNumber, Fault> {
    text.parse().map_err(|()| errors::invalid_id())
}

/// The player's live stacks, newest first.
#[utoipa::path(
    get, path = "/api/stacks", tag = "player", operation_id = "listMyStacks",
    responses(
        (status = 200, description = "The stacks of the user, or of the team.", body = Vec<PlayerStackView>,
            example = json!([model::example()])),
        (status = 503, description = "No token can be verified here, or what there is cannot be known now.", body = PlayerErrorBody, examples(
            ("disabled" = (value = json!({"error": "stack feature disabled"}))),
            ("unavailable" = (value = json!({"error": "stack provisioner unavailable"}))),
        )),
    )
)]
pub(super) async fn list_stacks(
    State(state): State<ServerState>,
    Extension(session): Extension<Session>,
) -> Response {
    let stacks = state.engine().players().list(&session.player.owner);
    let rendered: Vec<_> = stacks.iter().map(|live| model::render(&state, live)).collect();
    json_text(StatusCode::OK, format!("[{}]", rendered.join(",")))
}

/// Starts a stack of a challenge, or gives the one there is.
///
/// Answers at once; the stack is `creating` until it is ready for traffic. A live stack of one's
/// own is given back as it is and touches no limit.
#[utoipa::path(
    post, path = "/api/challenges/{id}/stack", tag = "player", operation_id = "createMyStack",
    params(("id" = u64, Path, description = "The challenge's number.", minimum = 1, example = 12)),
    responses(
        (status = 201, description = "The stack.", body = PlayerStackView),
        (status = 400, description = "The path names no challenge, or players start no stacks of it.", body = PlayerErrorBody, examples(
            ("id" = (value = json!({"error": "invalid input", "details": [{"field": "id", "reason": "invalid"}]}))),
            ("stack" = (value = json!({"error": "stack not enabled for challenge"}))),
        )),
        (status = 403, description = "The challenge is locked.", body = PlayerErrorBody,
            example = json!({"error": "challenge locked"})),
        (status = 404, description = "There is no such challenge.", body = PlayerErrorBody,
            example = json!({"error": "challenge not found"})),
        (status = 409, description = "It is solved, or there are too many live stacks.", body = PlayerErrorBody, examples(
            ("limit" = (value = json!({"error": "stack limit reached"}))),
            ("solved" = (value = json!({"error": "challenge already solved"}))),
        )),
        (status = 429, description = "Too many creates within the window.", body = PlayerErrorBody,
            headers(
                ("X-RateLimit-Limit" = u32, description = "How many are allowed in a window."),
                ("X-RateLimit-Remaining" = u32, description = "How many are left."),
                ("X-RateLimit-Reset" = u64, description = "Seconds until the window is over."),
                ("Retry-After" = u64, description = "The same."),
            ),
            example = json!({"error": "too many submissions", "rate_limit": {"limit": 1, "remaining": 0, "reset_seconds": 60}})),
        (status = 503, description = "No token can be verified here, or no stack can be started now.", body = PlayerErrorBody, examples(
            ("disabled" = (value = json!({"error": "stack feature disabled"}))),
            ("unavailable" = (value = json!({"error": "stack provisioner unavailable"}))),
        )),
    )
)]
pub(super) async fn create_stack(
    State(state): State<ServerState>,
    Extension(session): Extension<Session>,
    PathText(id): PathText,
) -> Result<Response, Fault> {
    let number = number(&id)?;
    let started = state.engine().players().start(session.player, number).await;
    let live = started.map_err(errors::refused)?;
    Ok(json_text(StatusCode::CREATED, model::render(&state, &live).as_ref().to_owned()))
}

/// The player's live stack of a challenge.
#[utoipa::path(
    get, path = "/api/challenges/{id}/stack", tag = "player", operation_id = "getMyStack",
    params(("id" = u64, Path, description = "The challenge's number.", minimum = 1, example = 12)),
    responses(
        (status = 200, description = "The stack.", body = PlayerStackView),
        (status = 400, description = "The path names no challenge.", body = PlayerErrorBody,
            example = json!({"error": "invalid input", "details": [{"field": "id", "reason": "invalid"}]})),
        (status = 404, description = "There is none, or it has ended.", body = PlayerErrorBody,
            example = json!({"error": "stack not found"})),
        (status = 503, description = "No token can be verified here, or what there is cannot be known now.", body = PlayerErrorBody, examples(
            ("disabled" = (value = json!({"error": "stack feature disabled"}))),
            ("unavailable" = (value = json!({"error": "stack provisioner unavailable"}))),
        )),
    )
)]
pub(super) async fn get_stack(
    State(state): State<ServerState>,
    Extension(session): Extension<Session>,
    PathText(id): PathText,
) -> Result<Response, Fault> {
    let live = state.engine().players().get(&session.player.owner, number(&id)?);
    let live = live.ok_or_else(errors::no_stack)?;
    Ok(json_text(StatusCode::OK, model::render(&state, &live).as_ref().to_owned()))
}

/// Ends the player's stack of a challenge.
#[utoipa::path(
    delete, path = "/api/challenges/{id}/stack", tag = "player", operation_id = "deleteMyStack",
    params(("id" = u64, Path, description = "The challenge's number.", minimum = 1, example = 12)),
    responses(
        (status = 200, description = "It is gone.", body = DoneView),
        (status = 400, description = "The path names no challenge.", body = PlayerErrorBody,
            example = json!({"error": "invalid input", "details": [{"field": "id", "reason": "invalid"}]})),
        (status = 404, description = "There is none, or it has ended.", body = PlayerErrorBody,
            example = json!({"error": "stack not found"})),
        (status = 503, description = "No token can be verified here, or nothing can be written now.", body = PlayerErrorBody,
            example = json!({"error": "stack provisioner unavailable"})),
    )
)]
pub(super) async fn delete_stack(
    State(state): State<ServerState>,
    Extension(session): Extension<Session>,
    PathText(id): PathText,
) -> Result<Response, Fault> {
    let stopped = state.engine().players().stop(session.player.owner, number(&id)?).await;
    match stopped.map_err(errors::not_written)? {
        true => Ok(json(StatusCode::OK, &DoneView { status: "ok" })),
        false => Err(errors::no_stack()),
    }
}

/// Extends the player's stack of a challenge.
///
/// To the challenge's lifetime from now, at most to the longest life that is configured (twice
/// that lifetime by default).
#[utoipa::path(
    post, path = "/api/challenges/{id}/stack/renew", tag = "player", operation_id = "renewMyStack",
    params(("id" = u64, Path, description = "The challenge's number.", minimum = 1, example = 12)),
    responses(
        (status = 200, description = "The stack with its new deadline.", body = PlayerStackView),
        (status = 400, description = "The path names no challenge.", body = PlayerErrorBody,
            example = json!({"error": "invalid input", "details": [{"field": "id", "reason": "invalid"}]})),
        (status = 404, description = "There is none, or it has ended.", body = PlayerErrorBody,
            example = json!({"error": "stack not found"})),
        (status = 409, description = "It would not end later than it does.", body = PlayerErrorBody,
            example = json!({"error": "stack cannot be extended"})),
        (status = 503, description = "No token can be verified here, or nothing can be written now.", body = PlayerErrorBody,
            example = json!({"error": "stack provisioner unavailable"})),
    )
)]
pub(super) async fn renew_stack(
    State(state): State<ServerState>,
    Extension(session): Extension<Session>,
    PathText(id): PathText,
) -> Result<Response, Fault> {
    let extended = state.engine().players().extend(session.player.owner, number(&id)?).await;
    let live = extended.map_err(errors::not_extended)?;
    Ok(json_text(StatusCode::OK, model::render(&state, &live).as_ref().to_owned()))
}
