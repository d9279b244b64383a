//! `/play/{challenge}`: the page on which a player starts a challenge.
//!
//! The page itself holds nothing of anybody, and of a challenge no more than its address said: all
//! it shows it asks the API for, with a token that it keeps in memory. It runs only its own script,
//! so that neither a challenge's name nor a stack's message could ever run as one.

use axum::Router;
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::{DOCTYPE, Markup, html};
use stackd_core::challenge::{ChallengeNumber, ChallengeRef};

use crate::ServerState;
use crate::fault::Fault;
use crate::params::PathText;

const SCRIPT: &str = include_str!("page/play.js");
const STYLE: &str = include_str!("page/play.css");

/// The parts of the page, which need no key and no token.
pub(crate) fn routes() -> Router<ServerState> {
    Router::new().route("/play/assets/{file}", get(asset))
}

async fn asset(PathText(name): PathText) -> Response {
    let (kind, text) = match name.as_str() {
        "play.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "play.css" => ("text/css; charset=utf-8", STYLE),
        _ => return Fault::new(StatusCode::NOT_FOUND, "not found").into_response(),
    };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, text).into_response()
}

/// The page on which a player starts a challenge.
///
/// It takes the player's token from the fragment of its address (`#token=…`) or from a page of a
/// configured origin that shows it in a frame (`postMessage({type: "stackd:token", token})`).
#[utoipa::path(
    get, path = "/play/{challenge}", tag = "player", operation_id = "playPage",
    params(("challenge" = String, Path, description = "The challenge's slug, or its number.", example = "web100")),
    responses(
        (status = 200, description = "The page.", body = String, content_type = "text/html"),
        (status = 404, description = "The same page, saying that there is no such challenge.", body = String, content_type = "text/html"),
    )
)]
pub(crate) async fn play(State(state): State<ServerState>, PathText(name): PathText) -> Response {
    let found = match name.parse() {
        // Every number has the page, whether there is such a challenge or not, so that nobody
        // learns anything by counting. With a token the API says what there is.
        Ok(ChallengeRef::Number(number)) => Some((number, number.to_string())),
        // Also where it is closed: whoever has a live stack of it must be able to see and stop it.
        Ok(slug @ ChallengeRef::Id(_)) => {
            let challenge = state.engine().challenges().get(&slug);
            challenge.map(|challenge| (challenge.number, challenge.id().to_string()))
        }
        Err(()) => None,
    };
    let origins = &state.config().player.page_origins;
    let (status, body) = match &found {
        Some((number, name)) => (StatusCode::OK, player(*number, name, origins)),
        None => (StatusCode::NOT_FOUND, missing()),
    };
    let page = document(&body, found.is_some()).into_string();
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, policy(origins)),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (status, headers, page).into_response()
}

/// Scripts and styles from here only, none of them in the page; frames where configured.
fn policy(origins: &[String]) -> HeaderValue {
    let ancestors = if origins.is_empty() { "'none'".to_owned() } else { origins.join(" ") };
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors {ancestors}"
    );
    // The origins were checked to be such at the start.
    HeaderValue::from_str(&policy)
        .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"))
}

fn document(body: &Markup, works: bool) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                meta name="color-scheme" content="light dark";
                title { "Challenge" }
                link rel="stylesheet" href="/play/assets/play.css";
                link rel="icon" href="data:,";
            }
            body {
                (body)
                @if works { script src="/play/assets/play.js" defer {} }
            }
        }
    }
}

fn missing() -> Markup {
    html! {
        main.card {
            p.eyebrow { "Challenge" }
            h1 { "There is no such challenge" }
            p.lead { "It may have been closed, or the link may be wrong. Go back to the platform and open it from there." }
        }
    }
}

/// The page of this challenge, under the name that its address gave.
fn player(number: ChallengeNumber, name: &str, origins: &[String]) -> Markup {
    html! {
        main.card #app data-challenge=(number) data-origins=(origins.join(" ")) data-state="loading" {
            p.eyebrow { "Challenge" }
            h1 #name { (name) }
            p.status {
                span.dot aria-hidden="true" {}
                // The script puts the focus here when what had it is gone.
                span #status role="status" tabindex="-1" { "Connecting…" }
            }
            p.lead #explain aria-live="polite" {}
            div.bar #progress hidden { div {} }

            section #reach hidden aria-labelledby="reach-title" {
                h2 #reach-title { "Where to find it" }
                ul.addresses #addresses {}
            }

            p.clock #clock hidden {
                span { "Time left " }
                strong #left role="timer" aria-live="off" { "–" }
                span #until {}
            }

            p.problem #problem role="alert" hidden {}

            div.actions {
                button.primary #start type="button" hidden { "Start" }
                button #extend type="button" hidden { "Extend" }
                button.quiet #stop type="button" hidden { "Stop" }
            }
            p.note #note {}
            p.note #told role="status" {}
            noscript { p.problem { "This page needs JavaScript to reach your challenge." } }
        }
        dialog #confirm aria-labelledby="confirm-title" aria-describedby="confirm-text" {
            form method="dialog" {
                h2 #confirm-title { "Stop this stack?" }
                p #confirm-text { "Everything in it is lost. You can start a new one afterwards." }
                div.actions {
                    button.danger value="stop" { "Stop it" }
                    button value="keep" autofocus { "Keep it" }
                }
            }
        }
        template #address {
            li {
                span.kind {}
                a.value {}
                code.value {}
                button.copy type="button" { span.word { "Copy" } span.unseen {} }
            }
        }
    }
}
