//! `GET /stacks/{stack_id}` and `GET /stacks/{stack_id}/status`.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use stackd_engine::WaitFor;

use super::model::{self, StackView, StatusView};
use super::{errors, stack_id};
use crate::ServerState;
use crate::fault::{ErrorBody, Fault, json, json_text};
use crate::params::{Params, PathText};

const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const MAX_WAIT: Duration = Duration::from_secs(300);

/// One stack.
///
/// With `wait`, the answer comes when the stack is as asked for or the time is up, and shows it as
/// it then is.
#[utoipa::path(
    get, path = "/stacks/{stack_id}", tag = "stacks", operation_id = "getStack",
    params(
        ("stack_id" = String, Path, description = "The stack.", example = "stack-716b6384dd477b0b"),
        ("wait" = Option<String>, Query, description = "`running`: until it is ready for traffic, or has ended without. `ended`: until it has ended.", pattern = "^(running|ended)$"),
        ("timeout" = Option<String>, Query, description = "How long to wait at most, in whole seconds or as `1m30s`; 30 s by default, at most 5 min.", example = "30s"),
    ),
    responses(
        (status = 200, description = "The stack.", body = StackView),
        (status = 400, description = "A parameter is not what it should be.", body = ErrorBody,
            example = json!({"error": "invalid input: wait must be running or ended"})),
        (status = 404, description = "There is no such stack, or not any more.", body = ErrorBody,
            example = json!({"error": "stack not found"})),
    )
)]
pub(super) async fn get_stack(
    State(state): State<ServerState>,
    PathText(id): PathText,
    params: Params,
) -> Result<Response, Fault> {
    let id = stack_id(&id)?;
    let engine = state.engine();
    let live = match wait_for(&params)? {
        None => engine.get(id),
        Some((until, timeout)) => tokio::select! {
            live = engine.wait(id, until, timeout) => live,
            () = state.stopping().cancelled() => engine.get(id),
        },
    };
    let live = live.ok_or_else(errors::not_found)?;
    Ok(json_text(StatusCode::OK, model::render(&state, &live).as_ref().to_owned()))
}

fn wait_for(params: &Params) -> Result<Option<(WaitFor, Duration)>, Fault> {
    let timeout = params.time("timeout", MAX_WAIT)?.unwrap_or(DEFAULT_WAIT);
    match params.one("wait") {
        None => Ok(None),
        Some("running") => Ok(Some((WaitFor::Running, timeout))),
        Some("ended") => Ok(Some((WaitFor::Ended, timeout))),
        Some(_) => Err(Fault::input("wait must be running or ended")),
    }
}

/// The status of one stack.
#[utoipa::path(
    get, path = "/stacks/{stack_id}/status", tag = "stacks", operation_id = "getStackStatus",
    params(("stack_id" = String, Path, description = "The stack.", example = "stack-716b6384dd477b0b")),
    responses(
        (status = 200, description = "Its status and ports.", body = StatusView),
        (status = 404, description = "There is no such stack, or not any more.", body = ErrorBody,
            example = json!({"error": "stack not found"})),
    )
)]
pub(super) async fn get_status(
    State(state): State<ServerState>,
    PathText(id): PathText,
) -> Result<Response, Fault> {
    let live = state.engine().get(stack_id(&id)?).ok_or_else(errors::not_found)?;
    Ok(json(StatusCode::OK, &model::status(&state, &live)))
}
