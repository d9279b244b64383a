//! The API: HTTP in, one use case of the engine, one answer out.
//!
//! A handler reads a request into a command, calls the engine once, and maps what comes back. It
//! holds no rules: those are the engine's and the domain's. Each dialect has a folder with its own
//! words and its one table of errors; what dialects share stands beside them.

mod auth;
mod challenges;
mod config;
mod docs_page;
mod events;
mod fault;
mod health;
mod layers;
mod metrics;
mod openapi;
mod params;
mod pinned;
mod player;
mod provisioner;
mod replicas;
mod serve;
mod state;

use axum::middleware::{from_fn, from_fn_with_state};
use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;

pub use challenges::CHALLENGE_SCHEMA;
pub use config::{ConfigError, ServerConfig, is_loopback};
use openapi::Routes;
pub use openapi::openapi;
pub use player::{OwnerKind, PlayerConfig};
pub use provisioner::DIALECT as PROVISIONER;

/// The dialects that a key can be limited to.
pub const DIALECTS: [&str; 3] = [provisioner::DIALECT, "instancer", "player"];
pub use serve::{ServeError, Tls, serve};
pub use state::ServerState;

/// All dialects over one engine.
pub fn router(state: ServerState) -> Result<Router, ConfigError> {
    let cors = layers::cors(state.config())?;
    let Routes { keyed, challenges, player, open, document } = openapi::routes();
    // The last is the outermost: a replica that is behind knows of no revoked key, and nothing is
    // passed on for somebody who is not let in.
    let replicated = (state.clone(), replicas::PLAIN);
    let keyed = keyed
        .route_layer(from_fn_with_state(replicated.clone(), replicas::forward))
        .route_layer(from_fn_with_state((state.clone(), provisioner::DIALECT), auth::require_key))
        .route_layer(from_fn_with_state(replicated, replicas::in_step));
    let replicated = (state.clone(), replicas::DETAIL);
    let challenges = challenges
        .route_layer(from_fn_with_state(replicated.clone(), replicas::forward))
        .route_layer(from_fn_with_state(state.clone(), challenges::require_key))
        .route_layer(from_fn_with_state(replicated, replicas::in_step))
        .route_layer(CatchPanicLayer::custom(layers::panicked_in_detail));
    let replicated = (state.clone(), replicas::PLAYER);
    let player = player
        .route_layer(from_fn_with_state(replicated.clone(), replicas::forward))
        .route_layer(from_fn_with_state(state.clone(), player::require_token))
        .route_layer(from_fn_with_state(replicated, replicas::in_step));
    state.prepare_tokens()?;
    let router = Router::new()
        .merge(keyed)
        .merge(challenges)
        .merge(player)
        .merge(player::page_routes())
        .merge(open)
        .merge(docs_page::routes(&document))
        .method_not_allowed_fallback(layers::method_not_allowed)
        .fallback(layers::not_found);
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    let router = router
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(from_fn(fault::as_problem))
        .layer(from_fn(layers::observe))
        .layer(Extension(state.clone()))
        .with_state(state);
    Ok(router)
}
