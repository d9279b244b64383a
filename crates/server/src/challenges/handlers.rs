//! `/challenges` and `/challenges/{challenge_id}`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use stackd_core::challenge::Challenge;
use utoipa::ToSchema;

use super::model::{self, ChallengeView, RuntimeSchema, SchemeSchema};
use super::request::{self, DetailBody, InvalidBody, Patch, Problem};
use super::{named, not_found, schema};
use crate::ServerState;
use crate::fault::{Fault, json};
use crate::params::{Params, PathText};

/// A challenge to write: described by `image` and `port`, or by `pod_spec` and `target_port`.
#[derive(ToSchema)]
#[schema(as = ChallengeCreate, example = json!({"id": "web100", "name": "Web 100", "runtime": "docker", "image": "myctf-web100:latest", "port": 80, "cpu_count": 1, "memory_mb": 512, "ttl_seconds": 3600}))]
#[expect(dead_code, reason = "it only describes the body to readers of the API's document")]
struct CreateSchema {
    /// Its slug: a DNS label with at least one letter. Unique.
    id: String,
    /// Its number; the next one where absent. Unique; that of a challenge that is gone is given again only to who asks for it.
    #[schema(minimum = 1)]
    number: Option<u64>,
    /// What people call it.
    #[schema(max_length = 200)]
    name: String,
    /// How strongly its stacks are isolated. Starting one that nothing here serves is 503.
    #[schema(value_type = RuntimeSchema)]
    runtime: (),
    /// The image of its one container.
    image: Option<String>,
    /// The port that it listens on.
    #[schema(minimum = 1, maximum = 65535)]
    port: Option<u16>,
    /// What players speak with it; `http` where absent.
    #[schema(value_type = Option<SchemeSchema>)]
    protocol: (),
    /// CPU cores: 1 (the default), 2 or 4, unless configured.
    cpu_count: Option<u32>,
    /// Memory in MB: 512 (the default), 1024 or 2048, unless configured.
    memory_mb: Option<u32>,
    /// How long a stack of it lives; the server's default where absent.
    #[schema(minimum = 1)]
    ttl_seconds: Option<u64>,
    /// Further options: a JSON object in a string, with the keys that `/schemas/challenge.json`
    /// describes.
    extra_config: Option<String>,
    /// A Pod as `POST /stacks` takes it, in place of image, port, CPU and memory.
    pod_spec: Option<String>,
    /// The ports of the Pod to publish: a number, or a list of `{container_port, protocol}`.
    target_port: Option<Value>,
    /// Whether it is there for players at all; true where absent.
    enabled: Option<bool>,
    /// Whether players may start stacks of it; true where absent.
    stack_enabled: Option<bool>,
    /// Whether solving it ends the solver's stack; true where absent.
    destroy_on_solve: Option<bool>,
}

/// All challenges, by slug.
#[utoipa::path(
    get, path = "/challenges", tag = "challenges", operation_id = "listChallenges",
    responses((status = 200, description = "The challenges.", body = Vec<ChallengeView>,
        example = json!([model::example()])))
)]
pub(super) async fn list_challenges(State(state): State<ServerState>) -> Response {
    let challenges = state.engine().challenges().list();
    let views: Vec<_> = challenges.iter().map(|one| ChallengeView::of(one)).collect();
    json(StatusCode::OK, &views)
}

/// Writes a challenge.
///
/// All that can be wrong with it is refused now, not when a player starts it.
#[utoipa::path(
    post, path = "/challenges", tag = "challenges", operation_id = "createChallenge",
    params(("dry_run" = Option<bool>, Query, description = "Only say what would be written, or why it would not be.")),
    request_body(content = CreateSchema),
    responses(
        (status = 201, description = "It is written.", body = ChallengeView),
        (status = 409, description = "A challenge of this slug or number exists, or one of this number did.", body = DetailBody, examples(
            ("exists" = (value = json!({"detail": "challenge already exists"}))),
            ("used" = (value = json!({"detail": "challenge number already used"}))),
        )),
        (status = 413, description = "The body is too large.", body = DetailBody,
            example = json!({"detail": "request body too large"})),
        (status = 422, description = "The challenge is not valid: all that is wrong with it.", body = InvalidBody,
            example = json!({"detail": [{"type": "value_error", "loc": ["body", "port"], "msg": "port must be from 1 to 65535", "input": 70000}]})),
        (status = 503, description = "Nothing can be written now.", body = DetailBody,
            example = json!({"detail": "storage unavailable: the disk is full"})),
    )
)]
pub(super) async fn create_challenge(
    State(state): State<ServerState>,
    params: Params,
    body: Body,
) -> Result<Response, Fault> {
    let dry_run = switch(&params, "dry_run")?;
    let object = request::object(body, state.config()).await?;
    let (draft, number) = request::create(&object)?;
    let challenges = state.engine().challenges();
    let created = match dry_run {
        true => challenges.try_create(draft, number).map(Arc::new),
        false => challenges.create(draft, number).await,
    };
    let challenge = created.map_err(|error| request::refused(error, &object))?;
    Ok(json(StatusCode::CREATED, &ChallengeView::of(&challenge)))
}

/// One challenge.
#[utoipa::path(
    get, path = "/challenges/{challenge_id}", tag = "challenges", operation_id = "getChallenge",
    params(("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100")),
    responses(
        (status = 200, description = "The challenge.", body = ChallengeView),
        (status = 404, description = "There is no such challenge.", body = DetailBody,
            example = json!({"detail": "challenge not found"})),
    )
)]
pub(super) async fn get_challenge(
    State(state): State<ServerState>,
    PathText(name): PathText,
) -> Result<Response, Fault> {
    let challenge = state.engine().challenges().get(&named(&name)?).ok_or_else(not_found)?;
    Ok(json(StatusCode::OK, &ChallengeView::of(&challenge)))
}

/// Changes a challenge, for stacks that are made from now on.
///
/// Only the fields that are there are changed; the whole object may be sent as well. `null` clears
/// `ttl_seconds` and `extra_config`. `id` and `number` cannot be changed.
#[utoipa::path(
    patch, path = "/challenges/{challenge_id}", tag = "challenges", operation_id = "editChallenge",
    params(
        ("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100"),
        ("dry_run" = Option<bool>, Query, description = "Only say how it would be, or why it would not."),
    ),
    request_body(content = CreateSchema, example = json!({"ttl_seconds": 3600, "cpu_count": 2, "memory_mb": 1024})),
    responses(
        (status = 200, description = "The challenge as it is now.", body = ChallengeView),
        (status = 404, description = "There is no such challenge.", body = DetailBody,
            example = json!({"detail": "challenge not found"})),
        (status = 413, description = "The body is too large.", body = DetailBody,
            example = json!({"detail": "request body too large"})),
        (status = 422, description = "What is asked for is not valid: all that is wrong with it.", body = InvalidBody,
            example = json!({"detail": [{"type": "value_error", "loc": ["body", "port"], "msg": "port must be from 1 to 65535", "input": 70000}]})),
        (status = 503, description = "Nothing can be written now.", body = DetailBody,
            example = json!({"detail": "storage unavailable: the disk is full"})),
    )
)]
pub(super) async fn edit_challenge(
    State(state): State<ServerState>,
    PathText(name): PathText,
    params: Params,
    body: Body,
) -> Result<Response, Fault> {
    let name = named(&name)?;
    let dry_run = switch(&params, "dry_run")?;
    let challenges = state.engine().challenges();
    challenges.get(&name).ok_or_else(not_found)?;
    let object = request::object(body, state.config()).await?;
    let patch = Patch::read(&object)?;
    let edit = move |challenge: &Challenge, draft| patch.apply(challenge, draft);
    let edited = match dry_run {
        true => challenges.try_edit(&name, edit).map(Arc::new),
        false => challenges.edit(name, edit).await,
    };
    let challenge = edited.map_err(|error| request::refused(error, &object))?;
    Ok(json(StatusCode::OK, &ChallengeView::of(&challenge)))
}

/// Removes a challenge.
///
/// No stacks are made of it any more; live ones end in their own time, or now with `destroy`.
#[utoipa::path(
    delete, path = "/challenges/{challenge_id}", tag = "challenges", operation_id = "deleteChallenge",
    params(
        ("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100"),
        ("destroy" = Option<bool>, Query, description = "Take its live stacks away, too."),
    ),
    responses(
        (status = 204, description = "It is gone."),
        (status = 404, description = "There is no such challenge.", body = DetailBody,
            example = json!({"detail": "challenge not found"})),
        (status = 422, description = "A parameter is not what it should be.", body = InvalidBody,
            example = json!({"detail": [{"type": "bool_type", "loc": ["query", "destroy"], "msg": "destroy must be true or false", "input": "maybe"}]})),
        (status = 503, description = "Nothing can be written now.", body = DetailBody,
            example = json!({"detail": "storage unavailable: the disk is full"})),
    )
)]
pub(super) async fn delete_challenge(
    State(state): State<ServerState>,
    PathText(name): PathText,
    params: Params,
) -> Result<Response, Fault> {
    let destroy = switch(&params, "destroy")?;
    state.engine().challenges().delete(named(&name)?, destroy).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn switch(params: &Params, name: &'static str) -> Result<bool, Fault> {
    params.switch(name).map_err(|_| {
        let message = format!("{name} must be true or false");
        request::invalid([Problem::of_query("bool_type", name, &message, params.one(name))])
    })
}

/// The schema of a challenge's file, for editors.
///
/// What `stackd challenge apply` reads, as JSON Schema. Needs no key.
#[utoipa::path(
    get, path = "/schemas/challenge.json", tag = "challenges", operation_id = "challengeSchema",
    responses((status = 200, description = "The schema.", body = Value, content_type = "application/json"))
)]
pub(crate) async fn file_schema() -> Json<Value> {
    Json(schema::file())
}
