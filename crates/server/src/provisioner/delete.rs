//! `DELETE /stacks/{stack_id}`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use stackd_core::StackId;
use utoipa::ToSchema;

use super::stack_id;
use crate::ServerState;
use crate::fault::{ErrorBody, Fault, json};
use crate::params::PathText;

/// That a stack is gone.
#[derive(Serialize, ToSchema)]
#[schema(as = Deleted, example = json!({"deleted": true, "stack_id": "stack-716b6384dd477b0b"}))]
struct DeletedView {
    /// Always true.
    deleted: bool,
    /// Which.
    #[schema(value_type = String)]
    stack_id: StackId,
}

/// Takes a stack away.
///
/// Answers once that is written down: from then on the stack is unknown everywhere.
#[utoipa::path(
    delete, path = "/stacks/{stack_id}", tag = "stacks", operation_id = "deleteStack",
    params(("stack_id" = String, Path, description = "The stack.", example = "stack-716b6384dd477b0b")),
    responses(
        (status = 200, description = "It is gone.", body = inline(DeletedView)),
        (status = 404, description = "There is no such stack, or not any more.", body = ErrorBody,
            example = json!({"error": "stack not found"})),
        (status = 503, description = "Nothing can be written now; the stack is still there.", body = ErrorBody,
            example = json!({"error": "storage unavailable: the disk is full"})),
    )
)]
pub(super) async fn delete_stack(
    State(state): State<ServerState>,
    PathText(id): PathText,
) -> Result<Response, Fault> {
    let stack_id = stack_id(&id)?;
    state.engine().delete(stack_id).await?;
    Ok(json(StatusCode::OK, &DeletedView { deleted: true, stack_id }))
}
