//! What people do with images: list, look, name, remove.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stackd_core::port::TargetPort;

use super::digest::Digest;
use super::error::ImageError;
use super::load::blocking;
use super::model::RunConfig;
use super::reference::{ImageRef, familiar};
use super::store::{Image, ImageLayer, ImageStore, Inner, Name, Origin, State, forget_oldest};

/// An image as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// Its names, without the default registry. Empty where it has lost them and is still used.
    pub names: Vec<String>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The digest of its configuration: what Docker calls the image's id.
    pub id: Digest,
    /// How it came here, by its newest name.
    pub origin: Option<Origin>,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Bytes of its files. Layers that images share are counted for each.
    pub size_bytes: u64,
    /// When it was built, as it says itself.
    pub created: Option<String>,
    /// When it came here.
    pub stored_at: Timestamp,
    /// How many running stacks and pulls keep it.
    pub leases: usize,
}

/// Everything about an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// What a list shows.
    #[serde(flatten)]
    pub summary: ImageSummary,
    /// Digests of multi-platform indexes that it was reached through.
    pub aliases: Vec<Digest>,
    /// How it wants to be run.
    pub config: RunConfig,
    /// The ports that it says it listens on.
    pub ports: Vec<TargetPort>,
    /// Its layers, the lowest first.
    pub layers: Vec<ImageLayer>,
}

/// What a removal has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The names that are gone.
    pub untagged: Vec<String>,
    /// The images that are gone. One that is still used goes with its last use.
    pub deleted: Vec<Digest>,
    /// Bytes that were given back.
    pub freed_bytes: u64,
}

impl State {
    fn summary(&self, image: &Image) -> ImageSummary {
        let digest = image.digest();
        let names = || self.names.iter().filter(|(_, name)| name.image == digest);
        let newest = names().max_by_key(|(_, name)| name.updated_at);
        ImageSummary {
            names: names().map(|(key, _)| familiar(key)).collect(),
            digest,
            id: image.config_digest(),
            origin: newest.map(|(_, name)| name.origin),
            platform: image.platform(),
            size_bytes: image.unpacked_bytes(),
            created: image.created().map(str::to_owned),
            stored_at: image.stored_at(),
            leases: self.leases.get(&digest).copied().unwrap_or(0),
        }
    }
}

impl ImageStore {
    /// All images, by name.
    pub fn list(&self) -> Vec<ImageSummary> {
        let state = self.inner.state.read();
        let mut all: Vec<_> = state.images.values().map(|image| state.summary(image)).collect();
        all.sort_by(|a, b| (&a.names, a.digest).cmp(&(&b.names, b.digest)));
        all
    }

    /// Everything about one image, by name, digest, or the start of one.
    pub fn inspect(&self, reference: &str) -> Result<ImageDetails, ImageError> {
        let state = self.inner.state.read();
        let image = state.find(reference).and_then(|digest| state.images.get(&digest));
        let image = image.ok_or_else(|| not_here(reference))?;
        Ok(ImageDetails {
            summary: state.summary(image),
            aliases: image.aliases().to_vec(),
            config: image.config().clone(),
            ports: image.config().ports(),
            layers: image.layers().to_vec(),
        })
    }

    /// Gives an image a further name.
    pub async fn tag(&self, reference: &str, name: &str) -> Result<(), ImageError> {
        let name = ImageRef::parse(name)?;
        if name.digest().is_some() {
            return Err(ImageError::InvalidReference {
                reference: name.to_string(),
                reason: "a digest cannot be given as a name".to_owned(),
            });
        }
        let lease = self.lease(reference)?;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let _writing = inner.writing.lock();
            let digest = lease.digest();
            let origin = inner.state.read().origin(digest).unwrap_or(Origin::Loaded);
            inner.name(&[name.key()], digest, origin)
        })
        .await
    }

    /// Removes a name, and with its last name the image. Named by a digest, all its names go.
    ///
    /// An image that is in use is refused, unless `force` is set: then its names go now, and the
    /// rest with its last use.
    pub async fn remove(&self, reference: &str, force: bool) -> Result<Removed, ImageError> {
        let inner = Arc::clone(&self.inner);
        let reference = reference.to_owned();
        blocking(move || inner.remove(&reference, force)).await
    }

    /// Removes every image that no running stack uses (`all`), or only what nothing refers to:
    /// layers and images that were left behind, and broken downloads.
    pub async fn prune(&self, all: bool) -> Result<Removed, ImageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.prune(all)).await
    }
}

impl State {
    pub(super) fn origin(&self, image: Digest) -> Option<Origin> {
        let names = self.names.values().filter(|name| name.image == image);
        names.max_by_key(|name| name.updated_at).map(|name| name.origin)
    }
}

impl Inner {
    /// Gives an image names; the caller holds `writing`.
    pub(super) fn name(
        &self,
        names: &[String],
        image: Digest,
        origin: Origin,
    ) -> Result<(), ImageError> {
        let updated_at = Timestamp::now();
        self.change_names(|all| {
            for name in names {
                all.insert(name.clone(), Name { image, origin, updated_at });
            }
            forget_oldest(all);
        })
    }

    fn remove(&self, reference: &str, force: bool) -> Result<Removed, ImageError> {
        let mut removed = Removed::default();
        let digest = {
            let _writing = self.writing.lock();
            let (digest, names) = {
                let state = self.state.read();
                let digest = state.find(reference).ok_or_else(|| not_here(reference))?;
                let key = ImageRef::parse(reference).ok().map(|reference| reference.key());
                let all = || state.names.iter().filter(|(_, name)| name.image == digest);
                let one: Vec<String> = all()
                    .map(|(name, _)| name.clone())
                    .filter(|name| Some(name) == key.as_ref() || name == reference)
                    .collect();
                let names: Vec<String> = if one.is_empty() {
                    all().map(|(name, _)| name.clone()).collect()
                } else {
                    one
                };
                let leases = state.leases.get(&digest).copied().unwrap_or(0);
                if leases > 0 && !force && names.len() == all().count() {
                    let reference = reference.to_owned();
                    return Err(ImageError::InUse { reference, leases });
                }
                (digest, names)
            };
            self.change_names(|all| all.retain(|name, _| !names.contains(name)))?;
            removed.untagged = names.iter().map(|name| familiar(name)).collect();
            digest
        };
        removed.freed_bytes = self.collect()?;
        if !self.state.read().images.contains_key(&digest) {
            removed.deleted.push(digest);
        }
        Ok(removed)
    }

    fn prune(&self, all: bool) -> Result<Removed, ImageError> {
        let mut removed = Removed::default();
        let before: Vec<Digest> = self.state.read().images.keys().copied().collect();
        if all {
            let _writing = self.writing.lock();
            let unused: Vec<String> = {
                let state = self.state.read();
                let used = |name: &Name| state.leases.contains_key(&name.image);
                let unused = state.names.iter().filter(|(_, name)| !used(name));
                unused.map(|(name, _)| name.clone()).collect()
            };
            self.change_names(|names| names.retain(|name, _| !unused.contains(name)))?;
            removed.untagged = unused.iter().map(|name| familiar(name)).collect();
        }
        removed.freed_bytes = self.collect()?;
        removed.freed_bytes += self.remove_partials(std::time::Duration::ZERO)?;
        let state = self.state.read();
        removed.deleted = before.into_iter().filter(|d| !state.images.contains_key(d)).collect();
        removed.deleted.sort_unstable();
        Ok(removed)
    }
}

fn not_here(reference: &str) -> ImageError {
    ImageError::NotHere { reference: reference.chars().take(300).collect() }
}
