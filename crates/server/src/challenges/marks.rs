//! What the platform tells of a challenge and somebody: solved, or locked.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use stackd_core::Timestamp;
use stackd_core::challenge::Subject;
use stackd_engine::challenges::Marked;
use stackd_store::Mark;
use utoipa::ToSchema;

use super::request::{self, DetailBody, Fields, InvalidBody, Problem};
use super::{named, not_found};
use crate::ServerState;
use crate::fault::{Fault, json};
use crate::params::{Params, PathText};

/// Somebody who has solved a challenge, or finds it locked.
#[derive(Serialize, ToSchema)]
#[schema(as = ChallengeMark, example = json!({"user": "7", "team": null, "since": "2026-04-17T19:00:00Z"}))]
struct MarkView<'a> {
    /// The user; null where it is a team.
    #[schema(required)]
    user: Option<&'a str>,
    /// The team; null where it is a user.
    #[schema(required)]
    team: Option<&'a str>,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
}

impl<'a> MarkView<'a> {
    fn of(marked: &'a Marked) -> Self {
        let (user, team) = match &marked.subject {
            Subject::User(user) => (Some(user.as_str()), None),
            Subject::Team(team) => (None, Some(team.as_str())),
        };
        Self { user, team, since: marked.at }
    }
}

/// Who: a user, a team, or both where both are known. Numbers and texts are the same.
#[derive(ToSchema)]
#[schema(as = ChallengeSubject, example = json!({"user": 7}))]
#[expect(dead_code, reason = "it only describes the body to readers of the API's document")]
struct SubjectSchema {
    /// The user.
    #[schema(value_type = Option<serde_json::Value>)]
    user: (),
    /// The team.
    #[schema(value_type = Option<serde_json::Value>)]
    team: (),
}

async fn subjects(state: &ServerState, body: Body) -> Result<Vec<Subject>, Fault> {
    let object = request::object(body, state.config()).await?;
    let mut fields = Fields::of(&object);
    let subjects = who(&mut fields);
    fields.finish().map(|()| subjects)
}

/// Who a body is about.
pub(super) fn who(fields: &mut Fields<'_>) -> Vec<Subject> {
    if fields.given("user").or(fields.given("team")).is_none() {
        fields.missing("", "user or team must say who it is");
    }
    let (user, team) = (fields.name("user"), fields.name("team"));
    user.map(Subject::User).into_iter().chain(team.map(Subject::Team)).collect()
}

/// Who a query is about.
fn subject(params: &Params) -> Result<Subject, Fault> {
    // As it is written: names are not trimmed.
    let named = |name| params.all(name).find(|value| !value.trim().is_empty());
    let kind = match (named("user"), named("team")) {
        (Some(user), None) => return Ok(Subject::User(user.to_owned())),
        (None, Some(team)) => return Ok(Subject::Team(team.to_owned())),
        (None, None) => "missing",
        (Some(_), Some(_)) => "value_error",
    };
    let message = "one of user and team must say who it is";
    Err(request::invalid([Problem::of_query(kind, "", message, None)]))
}

fn list(state: &ServerState, name: &str, mark: Mark) -> Result<Response, Fault> {
    let marks = state.engine().challenges().marks(&named(name)?, mark).ok_or_else(not_found)?;
    let views: Vec<_> = marks.iter().map(MarkView::of).collect();
    Ok(json(StatusCode::OK, &views))
}

async fn put(state: &ServerState, name: &str, mark: Mark, body: Body) -> Result<Response, Fault> {
    let name = named(name)?;
    let challenges = state.engine().challenges();
    challenges.get(&name).ok_or_else(not_found)?;
    let subjects = subjects(state, body).await?;
    let news = challenges.mark(name.clone(), mark, subjects.clone()).await?;
    let marks = challenges.marks(&name, mark).unwrap_or_default();
    let first = marks.iter().find(|marked| Some(&marked.subject) == subjects.first());
    let status = if news { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json(status, &first.map(MarkView::of)))
}

async fn delete(
    state: &ServerState,
    name: &str,
    mark: Mark,
    params: &Params,
) -> Result<Response, Fault> {
    let (name, subject) = (named(name)?, subject(params)?);
    if state.engine().challenges().unmark(name, mark, subject).await? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let text = match mark {
        Mark::Solved => "solve not found",
        Mark::Locked => "lock not found",
    };
    Err(Fault::new(StatusCode::NOT_FOUND, text).into_detail())
}

/// Who has solved a challenge.
#[utoipa::path(
    get, path = "/challenges/{challenge_id}/solves", tag = "challenges", operation_id = "listSolves",
    params(("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100")),
    responses(
        (status = 200, description = "Users and teams.", body = Vec<MarkView>),
        (status = 404, description = "There is no such challenge.", body = DetailBody,
            example = json!({"detail": "challenge not found"})),
    )
)]
pub(super) async fn list_solves(
    State(state): State<ServerState>,
    PathText(name): PathText,
) -> Result<Response, Fault> {
    list(&state, &name, Mark::Solved)
}

/// Tells that somebody has solved a challenge.
///
/// Their stack of it ends, unless the challenge says otherwise, and they get no further one. A
/// user's solve is also the team's where the team is known: from this body, or from a token that
/// the user has shown.
#[utoipa::path(
    post, path = "/challenges/{challenge_id}/solves", tag = "challenges", operation_id = "createSolve",
    params(("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100")),
    request_body(content = SubjectSchema),
    responses(
        (status = 201, description = "It is noted.", body = MarkView),
        (status = 200, description = "It was noted already.", body = MarkView),
        (status = 404, description = "There is no such challenge.", body = DetailBody,
            example = json!({"detail": "challenge not found"})),
        (status = 413, description = "The body is too large.", body = DetailBody,
            example = json!({"detail": "request body too large"})),
        (status = 422, description = "The body does not say who.", body = InvalidBody,
            example = json!({"detail": [{"type": "missing", "loc": ["body"], "msg": "user or team must say who it is", "input": null}]})),
        (status = 503, description = "Nothing can be written now.", body = DetailBody,
            example = json!({"detail": "storage unavailable: the disk is full"})),
    )
)]
pub(super) async fn put_solve(
    State(state): State<ServerState>,
    PathText(name): PathText,
    body: Body,
) -> Result<Response, Fault> {
    put(&state, &name, Mark::Solved, body).await
}

/// Takes a solve back.
#[utoipa::path(
    delete, path = "/challenges/{challenge_id}/solves", tag = "challenges", operation_id = "deleteSolve",
    params(
        ("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100"),
        ("user" = Option<String>, Query, description = "Whose: a user's."),
        ("team" = Option<String>, Query, description = "Whose: a team's."),
    ),
    responses(
        (status = 204, description = "It is gone."),
        (status = 404, description = "There is no such challenge, or no such solve.", body = DetailBody,
            example = json!({"detail": "solve not found"})),
        (status = 422, description = "The query does not say whose.", body = InvalidBody,
            example = json!({"detail": [{"type": "missing", "loc": ["query"], "msg": "one of user and team must say who it is", "input": null}]})),
        (status = 503, description = "Nothing can be written now.", body = DetailBody,
            example = json!({"detail": "storage unavailable: the disk is full"})),
    )
)]
pub(super) async fn delete_solve(
    State(state): State<ServerState>,
    PathText(name): PathText,
    params: Params,
) -> Result<Response, Fault> {
    delete(&state, &name, Mark::Solved, &params).await
}

/// For whom a challenge is locked.
#[utoipa::path(
    get, path = "/challenges/{challenge_id}/locks", tag = "challenges", operation_id = "listLocks",
    params(("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100")),
    responses(
        (status = 200, description = "Users and teams.", body = Vec<MarkView>),
        (status = 404, description = "There is no such challenge.", body = DetailBody,
            example = json!({"detail": "challenge not found"})),
    )
)]
pub(super) async fn list_locks(
    State(state): State<ServerState>,
    PathText(name): PathText,
) -> Result<Response, Fault> {
    list(&state, &name, Mark::Locked)
}

/// Locks a challenge for somebody: they get no stack of it. A live one goes on.
#[utoipa::path(
    post, path = "/challenges/{challenge_id}/locks", tag = "challenges", operation_id = "createLock",
    params(("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100")),
    request_body(content = SubjectSchema),
    responses(
        (status = 201, description = "It is noted.", body = MarkView),
        (status = 200, description = "It was noted already.", body = MarkView),
        (status = 404, description = "There is no such challenge.", body = DetailBody,
            example = json!({"detail": "challenge not found"})),
        (status = 413, description = "The body is too large.", body = DetailBody,
            example = json!({"detail": "request body too large"})),
        (status = 422, description = "The body does not say who.", body = InvalidBody,
            example = json!({"detail": [{"type": "missing", "loc": ["body"], "msg": "user or team must say who it is", "input": null}]})),
        (status = 503, description = "Nothing can be written now.", body = DetailBody,
            example = json!({"detail": "storage unavailable: the disk is full"})),
    )
)]
pub(super) async fn put_lock(
    State(state): State<ServerState>,
    PathText(name): PathText,
    body: Body,
) -> Result<Response, Fault> {
    put(&state, &name, Mark::Locked, body).await
}

/// Unlocks a challenge for somebody.
#[utoipa::path(
    delete, path = "/challenges/{challenge_id}/locks", tag = "challenges", operation_id = "deleteLock",
    params(
        ("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100"),
        ("user" = Option<String>, Query, description = "For a user."),
        ("team" = Option<String>, Query, description = "For a team."),
    ),
    responses(
        (status = 204, description = "It is gone."),
        (status = 404, description = "There is no such challenge, or no such lock.", body = DetailBody,
            example = json!({"detail": "lock not found"})),
        (status = 422, description = "The query does not say for whom.", body = InvalidBody,
            example = json!({"detail": [{"type": "missing", "loc": ["query"], "msg": "one of user and team must say who it is", "input": null}]})),
        (status = 503, description = "Nothing can be written now.", body = DetailBody,
            example = json!({"detail": "storage unavailable: the disk is full"})),
    )
)]
pub(super) async fn delete_lock(
    State(state): State<ServerState>,
    PathText(name): PathText,
    params: Params,
) -> Result<Response, Fault> {
    delete(&state, &name, Mark::Locked, &params).await
}
