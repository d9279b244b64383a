//! The player: what a browser calls, with the platform's own tokens; and the page that calls it.
//!
//! Errors are `{"error": "<text>"}`, sometimes with `details` or `rate_limit`.

mod config;
mod errors;
mod handlers;
mod jws;
mod keys;
mod model;
mod page;
mod stream;
mod token;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::ServerState;

pub use config::{OwnerKind, PlayerConfig};
pub(crate) use errors::PlayerErrorBody;
pub(crate) use page::{__path_play, play, routes as page_routes};
pub(crate) use token::{Tokens, admit};

/// Its routes; every one of them needs a token.
pub(crate) fn routes() -> OpenApiRouter<ServerState> {
    OpenApiRouter::new()
        .routes(routes!(handlers::list_stacks))
        .routes(routes!(handlers::get_stack, handlers::create_stack, handlers::delete_stack))
        .routes(routes!(handlers::renew_stack))
        .routes(routes!(stream::follow_stack))
}
