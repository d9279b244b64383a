//! `POST /challenges/{challenge_id}/warm`: its images, pulled ahead of need.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Serialize;
use stackd_engine::challenges::{Warm, WarmState};
use utoipa::ToSchema;

use super::request::DetailBody;
use super::{named, not_found};
use crate::ServerState;
use crate::fault::Fault;
use crate::params::PathText;

/// One line of the answer.
#[derive(Serialize, ToSchema)]
#[schema(as = WarmLine, example = json!({"image": "myctf-web100:latest", "state": "ready"}))]
struct WarmView<'a> {
    /// The image.
    image: &'a str,
    /// `pulling`, then `ready` or `failed`.
    state: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

fn line(warm: &Warm) -> Bytes {
    let (state, message) = match &warm.state {
        WarmState::Pulling => ("pulling", None),
        WarmState::Ready => ("ready", None),
        WarmState::Failed(why) => ("failed", Some(why.as_str())),
    };
    let view = WarmView { image: &warm.image, state, message };
    // Nothing in it can fail to be written.
    let mut line = serde_json::to_vec(&view).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Pulls a challenge's images ahead of need.
///
/// Answers as it goes: one JSON object a line, two for each image.
#[utoipa::path(
    post, path = "/challenges/{challenge_id}/warm", tag = "challenges", operation_id = "warmChallenge",
    params(("challenge_id" = String, Path, description = "Its slug, or its number.", example = "web100")),
    responses(
        (status = 200, description = "How it goes.", content((WarmView = "application/x-ndjson"))),
        (status = 404, description = "There is no such challenge.", body = DetailBody,
            example = json!({"detail": "challenge not found"})),
    )
)]
pub(super) async fn warm_challenge(
    State(state): State<ServerState>,
    PathText(name): PathText,
) -> Result<Response, Fault> {
    const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
    let challenge = state.engine().challenges().get(&named(&name)?).ok_or_else(not_found)?;
    let warm = state.engine().challenges().warm(&[challenge]);
    let lines = warm.take_until(state.stopping().clone().cancelled_owned());
    let lines = lines.map(|warm| Ok::<_, Infallible>(line(&warm)));
    Ok(([(CONTENT_TYPE, LINES)], Body::from_stream(lines)).into_response())
}
