//! What has happened: to one stack as a list, and to all of them as a stream without end.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Serialize;
use stackd_core::StackId;
use stackd_core::event::{Event, Seq};
use stackd_engine::EventMessage;
use utoipa::ToSchema;

use crate::ServerState;
use crate::fault::{ErrorBody, Fault, json};
use crate::params::{Params, PathText};
use crate::provisioner::stack_id;

/// How often a quiet stream shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A change of a stack.
#[derive(Serialize, ToSchema)]
#[schema(as = Event, example = json!({
    "seq": 42,
    "time": "2026-02-10T02:02:26.548112Z",
    "stack_id": "stack-716b6384dd477b0b",
    "kind": "changed",
    "status": "running"
}))]
struct EventView<'a> {
    /// Its place in the one order of all changes.
    seq: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    time: Timestamp,
    /// Of which stack.
    #[schema(value_type = String)]
    stack_id: StackId,
    /// `created`, `changed`, `renewed` (its deadline was moved), `deleted` (by a caller),
    /// `expired`, or `removed` (nothing of it is left).
    #[schema(value_type = EventKindSchema)]
    kind: &'static str,
    /// The stack's status from then on.
    #[schema(value_type = crate::provisioner::StatusSchema)]
    status: &'static str,
    /// The stack's reason from then on, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// The stack's message from then on, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

/// What happened to a stack.
#[derive(ToSchema)]
#[schema(as = EventKind, rename_all = "snake_case")]
#[expect(dead_code, reason = "it only describes `EventKind` to readers of the API's document")]
enum EventKindSchema {
    Created,
    Changed,
    Renewed,
    Deleted,
    Expired,
    Removed,
}

/// What has happened to a stack.
#[derive(Serialize, ToSchema)]
#[schema(as = EventList)]
struct EventList<'a> {
    /// Oldest first.
    events: Vec<EventView<'a>>,
}

/// Events are no longer kept from where the reader wanted to go on.
#[derive(Serialize)]
struct ResetView {
    oldest: u64,
}

fn view(Event { seq, event }: &Event) -> EventView<'_> {
    EventView {
        seq: seq.0,
        time: event.at,
        stack_id: event.stack,
        kind: event.kind.as_str(),
        status: event.phase.as_str(),
        reason: event.reason.as_deref(),
        message: event.message.as_deref(),
    }
}

/// What has happened to a stack, oldest first; at most the last 1000 events that are kept.
#[utoipa::path(
    get, path = "/stacks/{stack_id}/events", tag = "events", operation_id = "getStackEvents",
    params(("stack_id" = String, Path, description = "The stack.", example = "stack-716b6384dd477b0b")),
    responses(
        (status = 200, description = "Its events.", body = inline(EventList)),
        (status = 404, description = "There is no such stack, or not any more.", body = ErrorBody,
            example = json!({"error": "stack not found"})),
        (status = 503, description = "The database cannot be read now.", body = ErrorBody,
            example = json!({"error": "storage unavailable: the database does not answer"})),
    )
)]
pub(crate) async fn stack_events(
    State(state): State<ServerState>,
    PathText(id): PathText,
) -> Result<Response, Fault> {
    let events = state.engine().events_of(stack_id(&id)?).await?;
    Ok(json(StatusCode::OK, &EventList { events: events.iter().map(view).collect() }))
}

/// The ordered stream of all changes.
///
/// Server-sent events: the `id` is the event's `seq`, the `event` its kind, the `data` an event in
/// JSON. A reader that comes back with `Last-Event-ID` goes on where it was; where events since
/// then are no longer kept, it first gets a `reset` event (`{"oldest": 7}`) and must read the whole
/// state again.
#[utoipa::path(
    get, path = "/events", tag = "events", operation_id = "streamEvents",
    params(
        ("Last-Event-ID" = Option<u64>, Header, description = "Go on after this event; without it, only what happens from now on is sent."),
        ("last_event_id" = Option<u64>, Query, description = "The same, for clients that cannot set headers. The header wins."),
        ("stack_id" = Option<String>, Query, description = "Only the changes of this stack."),
    ),
    responses(
        (status = 200, description = "The stream.", content((String = "text/event-stream",
            example = json!("id: 42\nevent: changed\ndata: {\"seq\":42,\"time\":\"2026-02-10T02:02:26.548112Z\",\"stack_id\":\"stack-716b6384dd477b0b\",\"kind\":\"changed\",\"status\":\"running\"}\n\n")))),
        (status = 400, description = "A parameter is not what it should be.", body = ErrorBody,
            example = json!({"error": "invalid input: Last-Event-ID must be a whole number"})),
        (status = 404, description = "`stack_id` is not the id of any stack.", body = ErrorBody,
            example = json!({"error": "stack not found"})),
    )
)]
pub(crate) async fn all_events(
    State(state): State<ServerState>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Fault> {
    let after = last_event(&headers, &params)?;
    let only = params.one("stack_id").map(stack_id).transpose()?;
    let stopping = state.stopping().clone();
    let messages = state.engine().events(after).take_until(stopping.cancelled_owned());
    let stream = messages.filter_map(move |message| {
        let sent = sse_event(&message, only);
        std::future::ready(sent.map(Ok::<_, Infallible>))
    });
    let stream = Sse::new(stream).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive"));
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(([unbuffered], stream).into_response())
}

fn last_event(headers: &HeaderMap, params: &Params) -> Result<Option<Seq>, Fault> {
    let header = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?").trim());
    let given = header.filter(|text| !text.is_empty()).or_else(|| params.one("last_event_id"));
    given
        .map(|text| text.parse().map(Seq))
        .transpose()
        .map_err(|_| Fault::input("Last-Event-ID must be a whole number"))
}

/// One message as it is sent; nothing for a stack that is not asked for.
fn sse_event(message: &EventMessage, only: Option<StackId>) -> Option<sse::Event> {
    let (id, name, data) = match message {
        EventMessage::Event(event) if only.is_some_and(|id| id != event.event.stack) => {
            return None;
        }
        EventMessage::Event(event) => {
            (event.seq.0, event.event.kind.as_str(), serde_json::to_string(&view(event)))
        }
        // Its id leads a reader that breaks off right here to the first event that is kept.
        EventMessage::Reset { oldest } => {
            let data = serde_json::to_string(&ResetView { oldest: oldest.0 });
            (oldest.0.saturating_sub(1), "reset", data)
        }
    };
    Some(sse::Event::default().id(id.to_string()).event(name).data(data.ok()?))
}
