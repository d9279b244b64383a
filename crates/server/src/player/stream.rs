//! What a player's page follows: everything about one challenge that is the player's, live.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream;
use serde::Serialize;
use serde_json::value::RawValue;
use stackd_core::Timestamp;
use stackd_core::challenge::{ChallengeNumber, ChallengeRef};
use stackd_store::Mark;
use utoipa::ToSchema;

use super::errors::{self, PlayerErrorBody};
use super::handlers::number;
use super::model::{self, PlayerStackView, whole_seconds};
use super::token::Session;
use crate::ServerState;
use crate::fault::Fault;
use crate::params::PathText;

/// How often a quiet stream shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often the place in the queue is looked at: it moves with the starts of others.
const QUEUE_LOOK: Duration = Duration::from_secs(1);

/// A challenge and a player, as they are now.
#[derive(Serialize, ToSchema)]
#[schema(as = PlayerState)]
struct StateView {
    /// The server's time.
    #[serde(serialize_with = "whole_seconds")]
    #[schema(value_type = String, format = DateTime)]
    now: Timestamp,
    /// The challenge; null where there is none for players any more.
    #[schema(required)]
    challenge: Option<ChallengePart>,
    /// Whether the player has solved it.
    solved: bool,
    /// Whether it is locked for the player.
    locked: bool,
    /// The live stack, as `GET` gives it; null where there is none.
    #[schema(required, value_type = Option<PlayerStackView>)]
    stack: Option<Box<RawValue>>,
    /// The place in the queue of starts; null where it does not wait.
    #[schema(required)]
    queue: Option<QueuePart>,
    /// How the last stack ended, where it did so by itself and is still kept.
    #[schema(required)]
    ended: Option<EndedPart>,
}

/// What a page shows of a challenge.
#[derive(Serialize, ToSchema)]
#[schema(as = PlayerChallenge)]
struct ChallengePart {
    /// Its number.
    id: u64,
    /// Its name.
    name: String,
    /// What players speak with it: `http` or `tcp`.
    protocol: &'static str,
    /// How long a stack of it lives.
    ttl_seconds: u64,
    /// How long a stack of it can live by being extended.
    longest_seconds: u64,
    /// Whether players may start stacks of it.
    stack_enabled: bool,
}

/// A place in the queue of starts.
#[derive(Serialize, ToSchema)]
#[schema(as = PlayerQueue)]
struct QueuePart {
    /// From 1.
    place: usize,
    /// How many wait.
    length: usize,
}

/// How a stack ended.
#[derive(Serialize, ToSchema)]
#[schema(as = PlayerEnded)]
struct EndedPart {
    /// `stopped`, `failed` or `node_deleted`.
    status: &'static str,
    /// Why, in a sentence.
    message: Option<String>,
}

fn look(state: &ServerState, session: &Session, number: ChallengeNumber) -> StateView {
    let (engine, players) = (state.engine(), state.engine().players());
    let player = &session.player;
    let challenge = engine.challenges().get(&ChallengeRef::Number(number));
    let challenge = challenge.filter(|challenge| challenge.definition.enabled);
    let live = players.get(&player.owner, number);
    let now = Timestamp::now();
    let queue = live.as_ref().filter(|live| model::is_queued(live));
    let queue = queue.and_then(|live| engine.queue_place(live.stack.id));
    let ended = if live.is_some() { None } else { players.last_ended(&player.owner, number) };
    StateView {
        now,
        challenge: challenge.map(|challenge| ChallengePart {
            id: number.get(),
            name: challenge.definition.name.clone(),
            protocol: challenge.definition.scheme.as_str(),
            ttl_seconds: players.lifetime(&challenge).as_secs(),
            longest_seconds: players.longest(&challenge).as_secs(),
            stack_enabled: challenge.definition.stack_enabled,
        }),
        solved: players.is_marked(Mark::Solved, number, player),
        locked: players.is_marked(Mark::Locked, number, player),
        stack: live.and_then(|live| {
            RawValue::from_string(model::render(state, &live).as_ref().to_owned()).ok()
        }),
        queue: queue.map(|(place, length)| QueuePart { place, length }),
        ended: ended.map(|live| EndedPart {
            status: live.stack.observed.phase.as_str(),
            message: live.stack.observed.condition.as_ref().map(|c| model::told(c).into_owned()),
        }),
    }
}

/// Everything about a challenge that is the player's, live.
///
/// Server-sent events: each is named `state` and holds all there is, at first and after every
/// change. The stream ends when the token does. It is read with `fetch`, which can send the token
/// in a header.
#[utoipa::path(
    get, path = "/api/challenges/{id}/stack/events", tag = "player", operation_id = "followMyStack",
    params(("id" = u64, Path, description = "The challenge's number.", minimum = 1, example = 12)),
    responses(
        (status = 200, description = "The stream.", content((StateView = "text/event-stream"))),
        (status = 400, description = "The path names no challenge.", body = PlayerErrorBody,
            example = json!({"error": "invalid input", "details": [{"field": "id", "reason": "invalid"}]})),
        (status = 404, description = "There is no such challenge, and no stack of it.", body = PlayerErrorBody,
            example = json!({"error": "challenge not found"})),
    )
)]
pub(super) async fn follow_stack(
    State(state): State<ServerState>,
    Extension(session): Extension<Session>,
    PathText(id): PathText,
) -> Result<Response, Fault> {
    let number = number(&id)?;
    let first = look(&state, &session, number);
    if first.challenge.is_none() && first.stack.is_none() {
        return Err(errors::no_challenge());
    }
    let over = {
        let (state, session) = (state.clone(), session.clone());
        async move {
            if let Some(tokens) = state.tokens() {
                tokens.ends(&session).await;
            }
        }
    };
    let stopping = state.stopping().clone();
    let changed = state.engine().players().changed(&session.player.owner);
    let states = stream::unfold(
        (state, session, changed, true),
        move |(state, session, changed, begin)| async move {
            if !begin {
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep(QUEUE_LOOK), if waits(&state, &session, number) => {}
                }
            }
            // Registered before the look, so that no change between the two is missed.
            let next = state.engine().players().changed(&session.player.owner);
            let view = look(&state, &session, number);
            Some((view, (state, session, next, false)))
        },
    );
    let events = states
        .take_until(async move {
            tokio::select! {
                () = over => {}
                () = stopping.cancelled() => {}
            }
        })
        .map(|view| {
            let data = serde_json::to_string(&view).unwrap_or_default();
            Ok::<_, Infallible>(sse::Event::default().event("state").data(data))
        });
    let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive"));
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(([unbuffered], stream).into_response())
}

/// Whether the player's stack waits for its start.
fn waits(state: &ServerState, session: &Session, number: ChallengeNumber) -> bool {
    let live = state.engine().players().get(&session.player.owner, number);
    live.is_some_and(|live| model::is_queued(&live))
}
