//! The provisioner: what a platform's back end calls. Both versions of its document are one API.
//!
//! Errors are `{"error": "<text>"}`; every text and status of the documents is mapped in
//! [`errors`]. Fields beyond the documents are added after the documented ones.

mod batch;
mod create;
mod delete;
mod errors;
mod exec;
mod get;
mod labels;
mod list;
mod logs;
mod model;
mod request;
mod stats;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use stackd_core::StackId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::fault::Fault;
use crate::{ServerState, auth, events, health};

pub(crate) use model::StatusSchema;

/// The name by which keys and owners mean this dialect.
pub const DIALECT: &str = "provisioner";

/// Lets a request in whose key is good for the provisioner.
pub(crate) async fn admit(
    State(state): State<ServerState>,
    request: Request,
    next: Next,
) -> Response {
    let authenticate = |state: &ServerState, request: &Request| {
        auth::authenticate(state, DIALECT, request.headers(), request.uri())
    };
    auth::admit(&state, request, next, |fault| fault, authenticate).await
}

/// Its routes; every one of them needs a key.
pub(crate) fn routes() -> OpenApiRouter<ServerState> {
    OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(stats::stats))
        .routes(routes!(list::list_stacks, create::create_stack))
        .routes(routes!(get::get_stack, delete::delete_stack))
        .routes(routes!(get::get_status))
        .routes(routes!(batch::batch_delete))
        .routes(routes!(batch::get_job))
        .routes(routes!(logs::get_logs))
        .routes(routes!(events::stack_events))
        .routes(routes!(exec::exec))
        .routes(routes!(events::all_events))
}

/// Reads the id of a path. What is not an id cannot be one of a stack.
pub(crate) fn stack_id(text: &str) -> Result<StackId, Fault> {
    text.parse().map_err(|_| errors::not_found())
}
