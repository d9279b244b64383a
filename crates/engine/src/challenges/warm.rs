//! Images pulled ahead of need, so that the first player does not wait for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures_util::stream;
use parking_lot::Mutex;
use stackd_core::challenge::Challenge;
use stackd_core::runtime::BoxStream;
use stackd_core::spec::ImagePullPolicy;

use super::Challenges;
use crate::book::SharedEngine;
use crate::view::View;

/// What becomes of an image that is pulled ahead of need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// The image, as the challenge names it.
    pub image: String,
    /// How far it is.
    pub state: WarmState,
}

/// How far an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarmState {
    /// It is being made ready.
    Pulling,
    /// Stacks can start from it.
    Ready,
    /// It could not be had; the text says why.
    Failed(String),
}

/// How many images were made ready ahead of need, since the server started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warmed {
    /// Stacks could start from them.
    pub ready: u64,
    /// They could not be had.
    pub failed: u64,
    /// They are being made ready now.
    pub pulling: u64,
}

/// The same, being counted.
#[derive(Default)]
pub(super) struct Warming(Mutex<Warmed>);

/// An image that is being made ready. Whoever waits for it may go away.
struct Pulling<'a>(&'a Warming);

impl Warming {
    fn begin(&self) -> Pulling<'_> {
        self.0.lock().pulling += 1;
        Pulling(self)
    }
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        self.0.0.lock().pulling -= 1;
    }
}

/// The images of challenges, each once, with what their Pods say about pulling.
fn images<'a>(
    challenges: impl IntoIterator<Item = &'a Challenge>,
) -> BTreeMap<String, Option<ImagePullPolicy>> {
    let containers = challenges.into_iter().flat_map(|challenge| challenge.spec.all_containers());
    containers.map(|c| (c.image.clone(), c.image_pull_policy)).collect()
}

async fn pull(view: &View, image: &str, policy: Option<ImagePullPolicy>) -> WarmState {
    let warming = &view.board.warmed;
    let pulling = warming.begin();
    let prepared = view.runtime.prepare(image, policy).await;
    drop(pulling);
    match prepared {
        Ok(()) => {
            warming.0.lock().ready += 1;
            WarmState::Ready
        }
        Err(error) => {
            warming.0.lock().failed += 1;
            tracing::warn!(image, error = error.operator, "an image was not pulled ahead of need");
            WarmState::Failed(error.condition.message)
        }
    }
}

/// Pulls the images of a challenge, for nobody in particular.
pub(super) fn in_background(shared: &SharedEngine, challenge: &Challenge) {
    for (image, policy) in images([challenge]) {
        let task = Arc::clone(shared);
        shared.tasks.spawn(async move {
            tokio::select! {
                _ = pull(&task.view, &image, policy) => {}
                () = task.stop.cancelled() => {}
            }
        });
    }
}

impl Challenges<'_> {
    /// How many images were made ready ahead of need.
    pub fn warmed(&self) -> Warmed {
        *self.view().board.warmed.0.lock()
    }

    /// Pulls the images of these challenges one after another, and tells how it goes. It ends when
    /// nobody listens.
    pub fn warm(&self, challenges: &[Arc<Challenge>]) -> BoxStream<'static, Warm> {
        let todo: VecDeque<_> = images(challenges.iter().map(AsRef::as_ref)).into_iter().collect();
        let view = Arc::clone(self.view());
        let state = (view, todo, false);
        Box::pin(stream::unfold(state, |(view, mut todo, told)| async move {
            let (image, policy) = todo.front()?.clone();
            if !told {
                let state = WarmState::Pulling;
                return Some((Warm { image, state }, (view, todo, true)));
            }
            let state = pull(&view, &image, policy).await;
            todo.pop_front();
            Some((Warm { image, state }, (view, todo, false)))
        }))
    }
}
