//! `POST /stacks`.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use sha2::{Digest, Sha256};
use stackd_core::pod;
use stackd_engine::{CreateStack, IdempotencyKey};

use super::model::{self, StackView};
use super::request::{self, CreateBody, CreateSchema};
use super::{DIALECT, labels};
use crate::ServerState;
use crate::auth::Caller;
use crate::fault::{ErrorBody, Fault, json_text};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Makes a stack.
///
/// Answers as soon as the stack is written down and has its node ports; it then starts in the
/// background, and its `status` is `creating` until it is ready for traffic.
#[utoipa::path(
    post, path = "/stacks", tag = "stacks", operation_id = "createStack",
    params(("Idempotency-Key" = Option<String>, Header,
        description = "1 to 255 visible ASCII characters. For 24 hours the same key and body give the same stack.",
        max_length = 255)),
    request_body(content = CreateSchema, examples(
        ("v2" = (summary = "A list of ports", value = json!({"target_port": [{"container_port": 80, "protocol": "TCP"}], "pod_spec": model::example::POD}))),
        ("v1" = (summary = "One port", value = json!({"target_port": 80, "pod_spec": model::example::POD}))),
    )),
    responses(
        (status = 201, description = "Accepted.", body = StackView, headers(
            ("Location" = String, description = "The stack's path."),
            ("Idempotent-Replayed" = Option<String>, description = "`true` where the stack was made by an earlier request with this Idempotency-Key."),
        )),
        (status = 400, description = "The body, the Pod or a parameter is refused, or a limit of one stack is exceeded.", body = ErrorBody, examples(
            ("pod" = (value = json!({"error": "invalid pod spec: kind must be Pod"}))),
            ("limit range" = (value = json!({"error": "invalid pod spec: maximum cpu usage per Container is 2"}))),
            ("ports" = (value = json!({"error": "invalid input: target_port is required"}))),
            ("body" = (value = json!({"error": "invalid json body"}))),
        )),
        (status = 409, description = "The stack of this Idempotency-Key is gone.", body = ErrorBody,
            example = json!({"error": "the stack of this Idempotency-Key is gone; use a new key for a new stack"})),
        (status = 422, description = "The Idempotency-Key was used with another body.", body = ErrorBody,
            example = json!({"error": "the Idempotency-Key was used with another request body"})),
        (status = 503, description = "No room, no node port, a quota is exceeded, or nothing can be written now.", body = ErrorBody, examples(
            ("room" = (value = json!({"error": "cluster saturated"}))),
            ("ports" = (value = json!({"error": "no available nodeport"}))),
            ("quota" = (value = json!({"error": "cluster saturated: requested memory exceeds the quota"}))),
            ("storage" = (value = json!({"error": "storage unavailable: the disk is full"}))),
        )),
    )
)]
pub(super) async fn create_stack(
    State(state): State<ServerState>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let bytes = request::read(body, state.config()).await?;
    let body: CreateBody = request::object(&bytes)?;
    let command = command(&state, &caller, &headers, &bytes, body)?;
    let created = state.engine().create(command).await?;
    let live = created.stack;
    let mut answer =
        json_text(StatusCode::CREATED, model::render(&state, &live).as_ref().to_owned());
    if let Ok(path) = HeaderValue::from_str(&format!("/stacks/{}", live.stack.id)) {
        answer.headers_mut().insert(LOCATION, path);
    }
    if created.replayed {
        answer.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(answer)
}

/// Reads a request into a command, or says the first thing that is wrong with it.
fn command(
    state: &ServerState,
    caller: &Caller,
    headers: &HeaderMap,
    bytes: &[u8],
    body: CreateBody,
) -> Result<CreateStack, Fault> {
    let yaml = body.pod_spec.filter(|yaml| !yaml.trim().is_empty());
    let yaml = yaml.ok_or_else(|| {
        Fault::new(StatusCode::BAD_REQUEST, "invalid pod spec: pod_spec is required")
    })?;
    let ports = body.target_port.read()?;
    let spec = pod::parse(&yaml, &ports, state.pod_defaults())?;

    let labels = body.labels.unwrap_or_default();
    labels::check(&labels)?;
    Ok(CreateStack {
        dialect: DIALECT,
        tenant: owner(body.owner)?.unwrap_or_else(|| caller.name().to_owned()),
        slot: None,
        spec,
        runtime_class: runtime_class(body.runtime_class)?,
        labels,
        // What is below zero is, like zero, below any bound.
        ttl: body.ttl_seconds.map(|ttl| Duration::from_secs(ttl.0.try_into().unwrap_or(0))),
        idempotency: idempotency(headers, caller, bytes)?,
    })
}

fn owner(owner: Option<String>) -> Result<Option<String>, Fault> {
    let Some(owner) = owner.filter(|owner| !owner.trim().is_empty()) else { return Ok(None) };
    if owner.chars().count() > 128 || owner.chars().any(char::is_control) {
        return Err(Fault::input(
            "owner must be at most 128 characters, none of them a control character",
        ));
    }
    Ok(Some(owner))
}

fn runtime_class(class: Option<String>) -> Result<Option<String>, Fault> {
    let Some(class) = class.filter(|class| !class.is_empty()) else { return Ok(None) };
    if class.chars().count() > 63 {
        return Err(Fault::input("runtime_class must be at most 63 characters"));
    }
    Ok(Some(class))
}

fn idempotency(
    headers: &HeaderMap,
    caller: &Caller,
    body: &[u8],
) -> Result<Option<IdempotencyKey>, Fault> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let visible =
        |text: &&str| (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let key =
        key.to_str().ok().filter(visible).ok_or_else(|| {
            Fault::input("Idempotency-Key must be 1 to 255 visible ASCII characters")
        })?;
    Ok(Some(IdempotencyKey {
        scope: caller.identity(),
        key: key.to_owned(),
        body_hash: Sha256::digest(body).into(),
    }))
}
