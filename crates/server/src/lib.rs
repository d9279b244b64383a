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

use axum::Router;
use axum::middleware::from_fn_with_state;

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
    let keyed = keyed.route_layer(from_fn_with_state(state.clone(), provisioner::admit));
    let challenges = challenges.route_layer(from_fn_with_state(state.clone(), challenges::admit));
    let player = player.route_layer(from_fn_with_state(state.clone(), player::admit));
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
    Ok(router.layer(from_fn_with_state(state.clone(), layers::observe)).with_state(state))
}
