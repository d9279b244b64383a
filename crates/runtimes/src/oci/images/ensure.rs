//! Makes sure that an image is here, and asks a registry only when it has to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use stackd_core::spec::ImagePullPolicy;
use tokio::sync::watch;

use super::config::SHORTEST_TIMEOUT;
use super::digest::Digest;
use super::error::ImageError;
use super::pull::TOO_SLOW;
use super::reference::ImageRef;
use super::store::{ImageLease, ImageStore, Inner, Origin};

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The registry or mirror that is asked.
    pub registry: String,
    /// The image's layers, the lowest first; empty until its manifest is known.
    pub layers: Vec<LayerProgress>,
}

/// How far one layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerProgress {
    /// The digest of its archive.
    pub digest: Digest,
    /// What is being done.
    pub step: LayerStep,
    /// Bytes of its archive that are here.
    pub downloaded_bytes: u64,
    /// Bytes of its archive.
    pub total_bytes: u64,
}

/// What is being done with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerStep {
    /// It waits for its turn.
    Waiting,
    /// Its archive is being downloaded.
    Downloading,
    /// Its archive is being unpacked.
    Unpacking,
    /// It is in place.
    Done,
}

/// Is told about every change; it must return at once.
pub type ProgressSink<'a> = &'a (dyn Fn(&Progress) + Send + Sync);

/// For those who do not want to know.
pub fn no_progress(_: &Progress) {}

/// What the waiters of one pull see.
#[derive(Debug, Clone, Default)]
struct PullState {
    progress: Progress,
    result: Option<Result<ImageLease, ImageError>>,
}

/// The pulls under way, by the key of their reference.
#[derive(Debug, Default)]
pub(super) struct Pulls(Mutex<HashMap<String, Reporter>>);

/// Where a pull tells how far it is.
#[derive(Debug, Clone)]
pub(super) struct Reporter(Arc<watch::Sender<PullState>>);

impl Reporter {
    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.0.send_modify(|state| change(&mut state.progress));
    }

    fn too_slow(&self, image: &ImageRef, limit: Duration) -> ImageError {
        let (reference, limit) = (image.familiar(), limit.as_secs());
        let registry = self.0.borrow().progress.registry.clone();
        let operator = format!("not done after {limit} s; see pull_timeout in [images]");
        ImageError::Unreachable { reference, registry, why: TOO_SLOW, operator }
    }
}

impl ImageStore {
    /// Makes sure that an image is here, and leases it.
    ///
    /// | policy | what happens |
    /// |---|---|
    /// | `Never` | it is here, or it is an error |
    /// | `IfNotPresent` | it is pulled where it is not here |
    /// | `Always` | the registry is asked what the name stands for, and what is missing is pulled |
    /// | none | `Always` for the tag `latest`, else `IfNotPresent`, as in Kubernetes |
    ///
    /// An image that was loaded or imported here needs no registry: with no policy it is used as
    /// it is, whatever its tag, and with `Always` it is used when the registry does not answer or
    /// does not know it. An image that was pulled as `latest` and has no policy is used as it is
    /// when the registry does not answer; that is logged. A digest says exactly which content is
    /// meant: once it is here, nobody is asked again.
    ///
    /// When the image is here and no registry is to be asked, this neither waits nor touches the
    /// disk.
    pub async fn ensure(
        &self,
        reference: &str,
        policy: Option<ImagePullPolicy>,
        progress: ProgressSink<'_>,
    ) -> Result<ImageLease, ImageError> {
        if reference.parse::<Digest>().is_ok() {
            return self.lease(reference);
        }
        let image = ImageRef::parse(reference)?;
        let local = self.inner.lease_with_origin(&image);
        let Some((lease, origin)) = local else {
            if policy == Some(ImagePullPolicy::Never) {
                return Err(ImageError::NeverPull { reference: reference.to_owned() });
            }
            return self.pull_shared(image, progress).await;
        };
        let Some(fallback) = Fallback::of(policy, &image, origin) else { return Ok(lease) };
        match self.pull_shared(image, progress).await {
            Err(error) if fallback.covers(&error) => {
                tracing::warn!(
                    image = reference,
                    error = error.operator(),
                    "the registry could not be asked; the image that is here is used"
                );
                Ok(lease)
            }
            result => result,
        }
    }

    /// Asks the registry, whatever is here, and leases what it has.
    pub async fn pull(
        &self,
        reference: &str,
        progress: ProgressSink<'_>,
    ) -> Result<ImageLease, ImageError> {
        self.pull_shared(ImageRef::parse(reference)?, progress).await
    }

    /// Joins the pull of this image that is under way, or starts one. It goes on for a while when
    /// its waiters leave, since others may come; what it has brought is kept.
    async fn pull_shared(
        &self,
        image: ImageRef,
        progress: ProgressSink<'_>,
    ) -> Result<ImageLease, ImageError> {
        let mut watcher = self.inner.join_pull(image);
        loop {
            let result = {
                let state = watcher.borrow_and_update();
                progress(&state.progress);
                state.result.clone()
            };
            if let Some(result) = result {
                return result;
            }
            if watcher.changed().await.is_err() {
                return Err(ImageError::store("a pull ended without a result"));
            }
        }
    }
}

/// When the image that is here is good enough although the registry was to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fallback {
    /// Never.
    Nothing,
    /// When the registry does not answer.
    Silence,
    /// Also when it does not have the image, or does not give it.
    Absence,
}

impl Fallback {
    /// `None`: the registry is not to be asked at all.
    fn of(policy: Option<ImagePullPolicy>, image: &ImageRef, origin: Origin) -> Option<Self> {
        let pulled = origin == Origin::Pulled;
        match policy {
            _ if image.digest().is_some() => None,
            Some(ImagePullPolicy::Always) if pulled => Some(Self::Nothing),
            Some(ImagePullPolicy::Always) => Some(Self::Absence),
            None if pulled && image.tag() == Some("latest") => Some(Self::Silence),
            _ => None,
        }
    }

    fn covers(self, error: &ImageError) -> bool {
        match error {
            ImageError::Unreachable { .. } => self != Self::Nothing,
            ImageError::NotFound { .. }
            | ImageError::Denied { .. }
            | ImageError::OutOfReach { .. }
            | ImageError::RegistryNotAllowed { .. } => self == Self::Absence,
            _ => false,
        }
    }
}

impl Inner {
    fn lease_with_origin(self: &Arc<Self>, image: &ImageRef) -> Option<(ImageLease, Origin)> {
        let mut origin = Origin::Pulled;
        let lease = self.lease(|state| {
            let name = state.names.get(&image.key());
            origin = name.map_or(Origin::Pulled, |name| name.origin);
            state.find_ref(image)
        })?;
        Some((lease, origin))
    }

    fn join_pull(self: &Arc<Self>, image: ImageRef) -> watch::Receiver<PullState> {
        let key = image.key();
        let mut pulls = self.puller.pulls.0.lock();
        if let Some(reporter) = pulls.get(&key) {
            return reporter.0.subscribe();
        }
        let (sender, watcher) = watch::channel(PullState::default());
        let reporter = Reporter(Arc::new(sender));
        pulls.insert(key.clone(), reporter.clone());
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            // Also when the pull panics, the next caller starts a new one.
            let forget = Forget { inner: Arc::clone(&inner), key, reporter: reporter.clone() };
            let limit = inner.config.pull_timeout.max(SHORTEST_TIMEOUT);
            let result = tokio::select! {
                result = tokio::time::timeout(limit, inner.pull(&image, &reporter)) => result,
                () = forget.when_abandoned() => {
                    tracing::info!(image = %image, "nobody waits for a pull; it is given up");
                    return;
                }
            };
            let result = result.unwrap_or_else(|_| Err(reporter.too_slow(&image, limit)));
            if let Err(error) = &result {
                tracing::warn!(image = %image, error = error.operator(), "the pull failed");
            }
            reporter.0.send_modify(|state| state.result = Some(result));
        });
        watcher
    }
}

/// Takes a pull off the list of those under way.
struct Forget {
    inner: Arc<Inner>,
    key: String,
    reporter: Reporter,
}

impl Forget {
    /// Completes when nobody has waited for the pull for some time. Then it is off the list, so
    /// that nobody joins it any more.
    async fn when_abandoned(&self) {
        let patience = self.inner.config.abandoned_pull;
        loop {
            self.reporter.0.closed().await;
            tokio::time::sleep(patience).await;
            let mut pulls = self.inner.puller.pulls.0.lock();
            if self.reporter.0.is_closed() {
                pulls.remove(&self.key);
                return;
            }
        }
    }
}

impl Drop for Forget {
    fn drop(&mut self) {
        let mut pulls = self.inner.puller.pulls.0.lock();
        // There may be a new one.
        if pulls.get(&self.key).is_some_and(|other| Arc::ptr_eq(&other.0, &self.reporter.0)) {
            pulls.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_asked_by_policy_tag_and_origin() {
        use ImagePullPolicy::{Always, IfNotPresent, Never};
        use Origin::{Imported, Loaded, Pulled};
        let pinned = format!("x@{}", Digest::of(b""));
        for (image, policy, origin, expected) in [
            ("x:1", None, Pulled, None),
            ("x:1", None, Loaded, None),
            ("x", None, Pulled, Some(Fallback::Silence)),
            ("x", None, Loaded, None),
            ("x:latest", None, Imported, None),
            ("x", Some(IfNotPresent), Pulled, None),
            ("x", Some(Never), Pulled, None),
            ("x:1", Some(Always), Pulled, Some(Fallback::Nothing)),
            ("x:1", Some(Always), Imported, Some(Fallback::Absence)),
            (&pinned, Some(Always), Pulled, None),
        ] {
            let reference = ImageRef::parse(image).unwrap();
            assert_eq!(Fallback::of(policy, &reference, origin), expected, "{image} {policy:?}");
        }
    }
}
