//! `POST /challenges/{challenge_id}/warm`: its images, pulled ahead of need.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
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
    /// For how long it has been pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<u64>,
}

/// How long nothing is said while an image is pulled: what is between may take silence for an end.
const SILENCE: Duration = Duration::from_secs(5);

/// The lines of an answer. A pull that takes its time is told of again and again.
fn lines(warm: impl Stream<Item = Warm> + Unpin, silence: Duration) -> impl Stream<Item = Bytes> {
    stream::unfold((warm, None::<(Warm, Instant)>), move |(mut warm, mut pulling)| async move {
        loop {
            match tokio::time::timeout(silence, warm.next()).await {
                Ok(None) => return None,
                Ok(Some(next)) => {
                    let text = line(&next, None);
                    pulling = (next.state == WarmState::Pulling).then(|| (next, Instant::now()));
                    return Some((text, (warm, pulling)));
                }
                Err(_) => {
                    if let Some((image, since)) = &pulling {
                        let text = line(image, Some(since.elapsed().as_secs()));
                        return Some((text, (warm, pulling)));
                    }
                }
            }
        }
    })
}

fn line(warm: &Warm, seconds: Option<u64>) -> Bytes {
    let (state, message) = match &warm.state {
        WarmState::Pulling => ("pulling", None),
        WarmState::Ready => ("ready", None),
        WarmState::Failed(why) => ("failed", Some(why.as_str())),
    };
    let view = WarmView { image: &warm.image, state, message, seconds };
    // Nothing in it can fail to be written.
    let mut line = serde_json::to_vec(&view).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Pulls a challenge's images ahead of need.
///
/// Answers as it goes: one JSON object a line, at least two for each image.
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
    let warm = warm.take_until(Box::pin(state.stopping().clone().cancelled_owned()));
    let lines = lines(warm, SILENCE).map(Ok::<_, Infallible>);
    Ok(([(CONTENT_TYPE, LINES)], Body::from_stream(lines)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_pull_is_told_of_again() {
        let warm = |state| Warm { image: "web:1".to_owned(), state };
        let (pull, mut pulled) = tokio::sync::mpsc::unbounded_channel();
        pull.send(warm(WarmState::Pulling)).unwrap();
        let pulled = stream::poll_fn(move |context| pulled.poll_recv(context));
        let lines = lines(pulled, Duration::from_millis(1));
        let told = lines.map(|line| serde_json::from_slice::<serde_json::Value>(&line).unwrap());
        let mut told = Box::pin(told);
        let first = told.next().await.unwrap();
        assert_eq!((&first["state"], first.get("seconds")), (&"pulling".into(), None));
        for _ in 0..2 {
            let again = told.next().await.unwrap();
            assert_eq!((&again["state"], again["seconds"].is_u64()), (&"pulling".into(), true));
        }
        pull.send(warm(WarmState::Ready)).unwrap();
        drop(pull);
        let rest: Vec<_> = told.collect().await;
        assert_eq!(rest.last().unwrap()["state"], "ready");
    }
}
