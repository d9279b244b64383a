//! `POST /stacks/batch-delete` and its job.

use std::collections::HashSet;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde::Serialize;
use stackd_core::JobId;
use stackd_store::JobError;
use utoipa::ToSchema;

use super::request::{self, BatchBody, BatchSchema};
use crate::ServerState;
use crate::fault::{ErrorBody, Fault, json};
use crate::params::PathText;

/// The job that was accepted.
#[derive(Serialize, ToSchema)]
#[schema(as = JobAccepted, example = json!({"job_id": "job-0f4c8e1d2b3a5968"}))]
struct AcceptedView {
    /// By which to ask for its progress.
    #[schema(value_type = String)]
    job_id: JobId,
}

/// Takes many stacks away, one after another, in the background.
///
/// The job goes on across a restart of the server.
#[utoipa::path(
    post, path = "/stacks/batch-delete", tag = "stacks", operation_id = "batchDeleteStacks",
    request_body = BatchSchema,
    responses(
        (status = 202, description = "Accepted.", body = inline(AcceptedView)),
        (status = 400, description = "The body is not what it should be.", body = ErrorBody, examples(
            ("no ids" = (value = json!({"error": "invalid input"}))),
            ("a blank id" = (value = json!({"error": "invalid stack_ids"}))),
            ("not a list of texts" = (value = json!({"error": "invalid json body"}))),
        )),
        (status = 503, description = "Nothing can be written now.", body = ErrorBody,
            example = json!({"error": "the database refuses the change: …"})),
    )
)]
pub(super) async fn batch_delete(
    State(state): State<ServerState>,
    body: Body,
) -> Result<Response, Fault> {
    let bytes = request::read(body, state.config()).await?;
    let body: BatchBody = request::object(&bytes)?;
    let stack_ids = distinct(body.stack_ids.unwrap_or_default())?;
    let job_id = state.engine().batch_delete(stack_ids).await?;
    Ok(json(StatusCode::ACCEPTED, &AcceptedView { job_id }))
}

/// The ids without spaces around them, each once, in the order asked.
fn distinct(ids: Vec<String>) -> Result<Vec<String>, Fault> {
    let bad = |text: &'static str| Err(Fault::new(StatusCode::BAD_REQUEST, text));
    if ids.is_empty() {
        return bad("invalid input");
    }
    let mut seen = HashSet::with_capacity(ids.len());
    let mut distinct = Vec::with_capacity(ids.len());
    for id in ids {
        let id = id.trim();
        if id.is_empty() {
            return bad("invalid stack_ids");
        }
        if seen.insert(id.to_owned()) {
            distinct.push(id.to_owned());
        }
    }
    Ok(distinct)
}

/// How far a batch delete is.
#[derive(Serialize, ToSchema)]
#[schema(as = Job, example = json!({
    "job_id": "job-0f4c8e1d2b3a5968",
    "status": "completed",
    "total": 2,
    "deleted": 1,
    "not_found": 0,
    "failed": 1,
    "errors": [{"stack_id": "stack-716b6384dd477b0b", "error": "storage unavailable: the disk is full"}],
    "created_at": "2026-02-10T02:02:26.535664Z",
    "updated_at": "2026-02-10T02:03:10.535664Z"
}))]
struct JobView<'a> {
    /// Its identity.
    #[schema(value_type = String)]
    job_id: JobId,
    /// `queued`, `running`, `completed`, or `failed` when every delete failed.
    #[schema(value_type = JobStatusSchema)]
    status: &'static str,
    /// How many distinct ids were asked for.
    total: usize,
    /// How many stacks were deleted.
    deleted: u64,
    /// How many did not exist.
    not_found: u64,
    /// How many could not be deleted.
    failed: u64,
    /// The first 100 failures; left out where there is none.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<JobErrorSchema>, required = false)]
    errors: &'a [JobError],
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it last went on.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// How far a job is.
#[derive(ToSchema)]
#[schema(as = JobStatus, rename_all = "snake_case")]
#[expect(dead_code, reason = "it only describes `JobStatus` to readers of the API's document")]
enum JobStatusSchema {
    Queued,
    Running,
    Completed,
    Failed,
}

/// A stack that a job could not delete.
#[derive(ToSchema)]
#[schema(as = JobError)]
#[expect(dead_code, reason = "it only describes `JobError` to readers of the API's document")]
struct JobErrorSchema {
    /// Which.
    stack_id: String,
    /// Why.
    #[schema(max_length = 512)]
    error: String,
}

/// The progress of a batch delete.
#[utoipa::path(
    get, path = "/stacks/batch-delete/{job_id}", tag = "stacks", operation_id = "getBatchDeleteJob",
    params(("job_id" = String, Path, description = "The job.", example = "job-0f4c8e1d2b3a5968")),
    responses(
        (status = 200, description = "How far it is.", body = inline(JobView)),
        (status = 404, description = "There is no such job.", body = ErrorBody,
            example = json!({"error": "job not found"})),
    )
)]
pub(super) async fn get_job(
    State(state): State<ServerState>,
    PathText(id): PathText,
) -> Result<Response, Fault> {
    let job = id.parse().ok().and_then(|id: JobId| state.engine().job(id));
    let job = job.ok_or_else(|| Fault::new(StatusCode::NOT_FOUND, "job not found"))?;
    let view = JobView {
        job_id: job.id,
        status: job.status.as_str(),
        total: job.stack_ids.len(),
        deleted: job.deleted,
        not_found: job.not_found,
        failed: job.failed,
        errors: &job.errors,
        created_at: job.created_at,
        updated_at: job.updated_at,
    };
    Ok(json(StatusCode::OK, &view))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_trimmed_and_counted_once() {
        let ids = |ids: &[&str]| distinct(ids.iter().map(|id| (*id).to_owned()).collect());
        assert_eq!(ids(&[" b", "a", "b "]), Ok(vec!["b".to_owned(), "a".to_owned()]));
        assert_eq!(ids(&[]).unwrap_err().text, "invalid input");
        assert_eq!(ids(&["a", " "]).unwrap_err().text, "invalid stack_ids");
    }
}
