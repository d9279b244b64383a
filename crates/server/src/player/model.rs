//! What a stack looks like to a player: the document's fields in their order, then what was added.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use stackd_core::stack::{Condition, reason};
use stackd_core::{PortMapping, StackId, Timestamp};
use stackd_engine::LiveStack;
use stackd_engine::challenges::DIALECT;
use utoipa::ToSchema;

use crate::ServerState;

/// A player's stack.
#[derive(Serialize, ToSchema)]
#[schema(as = PlayerStack, example = example)]
pub(crate) struct PlayerStackView<'a> {
    /// Its identity.
    #[schema(value_type = String)]
    stack_id: StackId,
    /// The challenge's number.
    challenge_id: u64,
    /// How far it has come: `creating`, then `running`.
    status: &'static str,
    /// Where its ports are; left out while that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_public_ip: Option<&'a str>,
    /// The port there that leads to `target_port`; left out while that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_port: Option<u16>,
    /// The challenge's own port.
    target_port: u16,
    /// When it is taken away.
    #[serde(serialize_with = "whole_seconds")]
    #[schema(value_type = String, format = DateTime)]
    ttl_expires_at: Timestamp,
    /// When it was made.
    #[serde(serialize_with = "whole_seconds")]
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When something of it last changed.
    #[serde(serialize_with = "whole_seconds")]
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// All of its ports, where there are several; the first is the one above.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<serde_json::Value>>)]
    ports: Option<&'a [PortMapping]>,
    /// One word for why it is not simply running; left out where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// The same in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Cow<'a, str>>,
}

/// A time without a fraction of a second.
pub(super) fn whole_seconds<S: Serializer>(at: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
    let seconds = Timestamp::from_second(at.as_second()).unwrap_or(*at);
    s.collect_str(&seconds)
}

pub(super) fn is_queued(live: &LiveStack) -> bool {
    live.stack.observed.condition.as_ref().is_some_and(|c| c.reason == reason::QUEUED)
}

/// The stack in JSON, rendered once for every version of it; only the place in the queue moves
/// without a new one.
pub(super) fn render(state: &ServerState, live: &LiveStack) -> Arc<str> {
    if is_queued(live) || live.stack.owner.dialect != DIALECT {
        return text(state, live);
    }
    Arc::clone(live.rendered.get_or_init(|| text(state, live)))
}

/// Why a stack is not simply running, as far as it is a player's business: names of images, registries
/// and machines are not.
pub(super) fn told(condition: &Condition) -> Cow<'_, str> {
    let text = match condition.reason.as_str() {
        // These speak of the stack itself.
        reason::QUEUED
        | reason::INITIALIZING
        | reason::CONTAINER_CREATING
        | reason::NOT_READY
        | reason::COMPLETED
        | reason::ERROR
        | reason::OOM_KILLED
        | reason::PIDS_LIMIT
        | reason::DISK_FULL
        | reason::UNHEALTHY
        | reason::NODE_REBOOTED
        | reason::STOPPED => return Cow::Borrowed(&condition.message),
        reason::PULLING => "its image is being fetched",
        reason::START_TIMEOUT => "it was not ready in time; the organisers can find out why",
        reason::UNSCHEDULABLE | reason::EXCEEDED_QUOTA | reason::NODE_PORT_TAKEN => {
            "there is no room for it at the moment"
        }
        _ => "something is wrong with it; the organisers can find out what",
    };
    Cow::Borrowed(text)
}

fn text(state: &ServerState, live: &LiveStack) -> Arc<str> {
    // No part of a stack can fail to be written: there are no maps and no floats.
    serde_json::to_string(&view(state, live)).unwrap_or_else(|_| "{}".to_owned()).into()
}

fn view<'a>(state: &ServerState, live: &'a LiveStack) -> PlayerStackView<'a> {
    let stack = &live.stack;
    let observed = &stack.observed;
    let first = stack.ports.first();
    let condition = observed.condition.as_ref();
    let place = if is_queued(live) { state.engine().queue_place(stack.id) } else { None };
    let message = condition.map(|condition| match place {
        Some((place, length)) => {
            format!("waiting for a start slot: place {place} of {length}").into()
        }
        None => told(condition),
    });
    PlayerStackView {
        stack_id: stack.id,
        challenge_id: stack.owner.slot.parse().unwrap_or_default(),
        status: observed.phase.as_str(),
        node_public_ip: observed.node_public_ip.as_deref(),
        node_port: first.filter(|_| observed.node.is_some()).map(|port| port.node_port),
        target_port: first.map_or(0, |port| port.container_port),
        ttl_expires_at: stack.expires_at,
        created_at: stack.created_at,
        updated_at: stack.updated_at,
        ports: (stack.ports.len() > 1 && observed.node.is_some()).then_some(&stack.ports),
        reason: condition.map(|condition| condition.reason.as_str()),
        message,
    }
}

/// The stack of the document.
pub(super) fn example() -> serde_json::Value {
    serde_json::json!({
        "stack_id": "stack-716b6384dd477b0b",
        "challenge_id": 12,
        "status": "running",
        "node_public_ip": "12.34.56.78",
        "node_port": 31538,
        "target_port": 80,
        "ttl_expires_at": "2026-02-10T04:02:26Z",
        "created_at": "2026-02-10T02:02:26Z",
        "updated_at": "2026-02-10T02:07:29Z"
    })
}
