//! `GET /stacks/{stack_id}/logs`.

use std::io;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Serialize;
use stackd_core::runtime::{LogLine, LogOptions, LogStream};
use utoipa::ToSchema;

use super::stack_id;
use crate::ServerState;
use crate::fault::{ErrorBody, Fault};
use crate::params::{Params, PathText};

const NDJSON: &str = "application/x-ndjson";
/// More lines than any log that is kept has.
const MAX_TAIL: u64 = 1_000_000;

/// One line, as JSON.
#[derive(Serialize, ToSchema)]
#[schema(as = LogLine, example = json!({"time": "2026-02-10T02:02:26.601Z", "stream": "stdout", "text": "listening on :80"}))]
struct LineView<'a> {
    /// When it was read.
    #[schema(value_type = String, format = DateTime)]
    time: Timestamp,
    /// Where it was written to.
    #[schema(value_type = String, pattern = "^(stdout|stderr)$")]
    stream: LogStream,
    /// What, without the line's end; bytes that are not UTF-8 are replaced.
    text: &'a str,
}

/// How lines are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    WithTimes,
    Json,
}

/// What a container has written.
///
/// Plain text; with `Accept: application/x-ndjson` one JSON object a line. Also for stacks that
/// have ended, until they are gone.
#[utoipa::path(
    get, path = "/stacks/{stack_id}/logs", tag = "stacks", operation_id = "getStackLogs",
    params(
        ("stack_id" = String, Path, description = "The stack.", example = "stack-716b6384dd477b0b"),
        ("container" = Option<String>, Query, description = "Which container; the stack's first where not named."),
        ("tail" = Option<u64>, Query, description = "Only this many last lines.", maximum = 1000000),
        ("follow" = Option<bool>, Query, description = "Go on with what comes, until the stack ends."),
        ("timestamps" = Option<bool>, Query, description = "Begin each line of the text with its time."),
    ),
    responses(
        (status = 200, description = "The lines.", content(
            (String = "text/plain", example = json!("listening on :80\n")),
            (LineView = "application/x-ndjson"),
        )),
        (status = 400, description = "A parameter is not what it should be.", body = ErrorBody,
            example = json!({"error": "invalid input: the stack has no container \"db\""})),
        (status = 404, description = "There is no such stack, or not any more.", body = ErrorBody,
            example = json!({"error": "stack not found"})),
        (status = 503, description = "The runtime does not answer now.", body = ErrorBody,
            example = json!({"error": "the runtime cannot be reached"})),
    )
)]
pub(super) async fn get_logs(
    State(state): State<ServerState>,
    PathText(id): PathText,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Fault> {
    let id = stack_id(&id)?;
    let options = LogOptions {
        container: params.one("container").map(str::to_owned),
        tail: params.number("tail", 0, MAX_TAIL)?.map(|lines| lines as usize),
        follow: params.switch("follow")?,
    };
    let json = headers.get_all(ACCEPT).iter().any(|accept| {
        accept.to_str().is_ok_and(|accept| accept.to_ascii_lowercase().contains(NDJSON))
    });
    let form = match (json, params.switch("timestamps")?) {
        (true, _) => Form::Json,
        (false, true) => Form::WithTimes,
        (false, false) => Form::Plain,
    };

    let lines = state.engine().logs(id, options).await?;
    let stopping = state.stopping().clone();
    let body = lines.take_until(stopping.cancelled_owned()).map(move |line| match line {
        Ok(line) => Ok(shown(&line, form)),
        Err(error) => {
            // The answer has begun: all that is left is to break it off visibly.
            tracing::warn!(stack = %id, error = %error.operator, "a log broke off");
            Err(io::Error::other(error))
        }
    });
    let content_type = if json { NDJSON } else { "text/plain; charset=utf-8" };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(content_type)),
        // What a stack writes is its own and must not be taken for a page of this server.
        (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

fn shown(line: &LogLine, form: Form) -> Bytes {
    let mut bytes = BytesMut::with_capacity(line.text.len() + 96);
    match form {
        Form::Plain => bytes.put_slice(&line.text),
        Form::WithTimes => {
            bytes.put_slice(line.at.to_string().as_bytes());
            bytes.put_u8(b' ');
            bytes.put_slice(&line.text);
        }
        Form::Json => {
            let text = String::from_utf8_lossy(&line.text);
            let view = LineView { time: line.at, stream: line.stream, text: &text };
            // Two texts and a word: nothing that could fail.
            bytes.put_slice(serde_json::to_string(&view).unwrap_or_default().as_bytes());
        }
    }
    bytes.put_u8(b'\n');
    bytes.freeze()
}
