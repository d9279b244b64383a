//! Pulls images from registries.
//!
//! A pull asks the mirrors of the image's registry in order, then the registry. Whoever is asked,
//! content counts only by its digest. Layers come in parallel and are unpacked one after another,
//! each in a thread that may wait for the disk; a layer that is here, or that another pull is
//! bringing from the same place, is not brought again.
//!
//! Registries are hostile, and a pull is as slow as its registry. So none shares anything with
//! another that it could hold: neither turns to download, nor half a download, nor the wait for a
//! layer of which an image merely says that it is the same.

mod auth;
mod blob;
mod client;
mod pace;
mod reach;
mod token;

pub(super) use self::client::TOO_SLOW;
pub use self::client::install_tls_provider;

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::blob::Download;
use self::client::{Endpoint, Session, Sessions};
use super::digest::Digest;
use super::document::{self, Document, Documents};
use super::ensure::{LayerProgress, LayerStep, Pulls, Reporter};
use super::error::ImageError;
use super::load::blocking;
use super::model::{Compression, Descriptor, Manifest};
use super::reference::ImageRef;
use super::store::{ImageLayer, ImageLease, Inner, Origin, Record};
use super::unpack::UnpackLimits;

/// How many layers of one pull are looked after at once.
const LAYERS_AT_ONCE: usize = 8;
/// How deep indexes may point to indexes.
const MAX_INDEX_DEPTH: usize = 4;
/// How many layers are unpacked at once, over all pulls: a decoder may hold 128 MiB. No registry can
/// make that wait, since the archive is here.
const UNPACKED_AT_ONCE: usize = 8;

/// What pulls share.
#[derive(Debug)]
pub(super) struct Puller {
    pub(super) pulls: Pulls,
    sessions: Sessions,
    /// The turns to download, by registry or mirror.
    downloads: Each<String, Semaphore>,
    /// Who is bringing a blob of a registry; others wait for it.
    bringing: Each<Digest, tokio::sync::Mutex<()>>,
    unpacking: Semaphore,
}

/// One for each key, as long as somebody has it.
#[derive(Debug)]
struct Each<K, T>(Mutex<HashMap<K, Weak<T>>>);

impl<K: Eq + Hash, T> Each<K, T> {
    fn of(&self, key: K, new: impl FnOnce() -> T) -> Arc<T> {
        let mut all = self.0.lock();
        all.retain(|_, one| one.strong_count() > 0);
        if let Some(one) = all.get(&key).and_then(Weak::upgrade) {
            return one;
        }
        let one = Arc::new(new());
        all.insert(key, Arc::downgrade(&one));
        one
    }

    /// Does something while nobody has the one of `key`, and nobody gets it.
    fn unless_had<R>(&self, key: &K, work: impl FnOnce() -> R) -> Option<R> {
        let all = self.0.lock();
        let had = all.get(key).is_some_and(|one| one.strong_count() > 0);
        (!had).then(work)
    }
}

impl Puller {
    pub(super) fn new() -> Self {
        Self {
            pulls: Pulls::default(),
            sessions: Sessions::default(),
            downloads: Each(Mutex::default()),
            bringing: Each(Mutex::default()),
            unpacking: Semaphore::new(UNPACKED_AT_ONCE),
        }
    }

    /// Does something with a broken download, unless somebody goes on with it.
    pub(super) fn unless_brought<R>(&self, partial: Digest, work: impl FnOnce() -> R) -> Option<R> {
        self.bringing.unless_had(&partial, work)
    }
}

/// The name of the download of a blob. What another registry has sent of it is of no use: it may be
/// anything, and would be found out only at the end.
fn partial_of(registry: &str, blob: Digest) -> Digest {
    Digest::of(format!("{registry} {blob}").as_bytes())
}

/// Tells the threads of a pull that nobody waits for them any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A layer to bring.
struct Wanted<'a> {
    position: usize,
    descriptor: &'a Descriptor,
    compression: Compression,
    diff_id: Digest,
}

impl Inner {
    /// Pulls from the first that has it: a mirror or the registry.
    pub(super) async fn pull(
        self: &Arc<Self>,
        image: &ImageRef,
        reporter: &Reporter,
    ) -> Result<ImageLease, ImageError> {
        let registry = image.registry();
        if !crate::images::is_allowed(&self.config.allowed_registries, registry) {
            return Err(ImageError::RegistryNotAllowed { registry: registry.to_owned() });
        }
        let mirrors = self.config.mirrors.get(registry).map(Vec::as_slice).unwrap_or_default();
        for mirror in mirrors {
            match self.pull_from(image, &Endpoint::mirror(mirror), reporter).await {
                Err(error)
                    if !matches!(error, ImageError::Store { .. } | ImageError::NoRoom { .. }) =>
                {
                    let error = error.operator();
                    tracing::info!(image = %image, mirror, error, "a mirror did not have it");
                }
                result => return result,
            }
        }
        self.pull_from(image, &Endpoint::registry(image), reporter).await
    }

    async fn pull_from(
        self: &Arc<Self>,
        image: &ImageRef,
        endpoint: &Endpoint,
        reporter: &Reporter,
    ) -> Result<ImageLease, ImageError> {
        reporter.update(|progress| {
            endpoint.host.clone_into(&mut progress.registry);
            progress.layers.clear();
        });
        let sessions = &self.puller.sessions;
        let session = sessions.open(image, endpoint, &self.config).await?;
        let result = self.pull_with(&session, image, reporter).await;
        if matches!(result, Err(ImageError::Denied { .. })) {
            // A token that was given back or has expired early must not be used again.
            sessions.forget(endpoint);
        }
        result.map_err(|error| session.told(error))
    }

    async fn pull_with(
        self: &Arc<Self>,
        session: &Session,
        image: &ImageRef,
        reporter: &Reporter,
    ) -> Result<ImageLease, ImageError> {
        let what = image.familiar();
        let names = [image.key()];
        // Asking for the digest alone is cheap, and free of a registry's count of pulls.
        if self.state.read().find_ref(image).is_some() {
            let digest = session.digest().await?;
            if let Some(lease) = self.lease(|state| state.find(&digest.to_string())) {
                return self.take_over(lease, image).await;
            }
        }

        let (aliases, text, manifest) = self.resolve(session, image).await?;
        let config = session.document(&manifest.config).await?;
        let documents =
            Documents::check(&what, text, manifest, config, &self.platform, &self.config)?;
        let mut sizes = documents.manifest.layers.iter().map(|layer| layer.size);
        let total = sizes.try_fold(0, u64::checked_add);
        let most = self.config.max_download_bytes.min(self.budget()?);
        if total.is_none_or(|total| total > most) {
            let total = total.map_or("too many".to_owned(), |total| total.to_string());
            return Err(ImageError::refused(
                what,
                format!(
                    "its layers have {total} bytes and may have {most}; see max_download_bytes and \
                     max_pulled_bytes in [images]"
                ),
            ));
        }
        let layers = match self.bring_layers(session, &what, &documents, reporter).await {
            // What has come so far is of use once the registry is back, and only then.
            Err(error) if !matches!(error, ImageError::Unreachable { .. }) => {
                let inner = Arc::clone(self);
                if let Err(error) = blocking(move || inner.collect_if_settled()).await {
                    let error = error.operator();
                    tracing::warn!(error, "the layers of a failed pull could not be removed");
                }
                return Err(error);
            }
            brought => brought?,
        };
        let record = Record {
            digest: documents.manifest_digest,
            aliases,
            manifest: documents.manifest_text,
            config: documents.config_text,
            layers: layers.kept,
            stored_at: Timestamp::now(),
        };
        let inner = Arc::clone(self);
        blocking(move || {
            let made = inner.make_room();
            let made = made.and_then(|()| inner.commit(record, &names, Origin::Pulled));
            // Only now does the image itself keep its layers.
            drop(layers.pins);
            inner.collect_if_settled()?;
            made
        })
        .await
    }

    /// Notes that the name stands for an image that is here already.
    async fn take_over(
        self: &Arc<Self>,
        lease: ImageLease,
        image: &ImageRef,
    ) -> Result<ImageLease, ImageError> {
        let key = image.key();
        let known = self.state.read().names.get(&key).map(|name| (name.image, name.origin));
        if known == Some((lease.digest(), Origin::Pulled)) {
            return Ok(lease);
        }
        let inner = Arc::clone(self);
        blocking(move || {
            let _writing = inner.writing.lock();
            inner.name(&[key], lease.digest(), Origin::Pulled)?;
            Ok(lease)
        })
        .await
    }

    /// Follows indexes down to the manifest for this machine.
    async fn resolve(
        &self,
        session: &Session,
        image: &ImageRef,
    ) -> Result<(Vec<Digest>, Vec<u8>, Manifest), ImageError> {
        let what = image.familiar();
        let mut aliases = Vec::new();
        let mut pinned = image.digest();
        for _ in 0..MAX_INDEX_DEPTH {
            let text = session.manifest(pinned).await?;
            match document::parse(&what, &text)? {
                Document::Manifest(manifest) => {
                    session.note_registry();
                    return Ok((aliases, text, manifest));
                }
                Document::Index(entries) => {
                    session.note_registry();
                    aliases.push(Digest::of(&text));
                    let entry =
                        document::choose(&entries, &self.platform).map_err(|available| {
                            ImageError::WrongPlatform {
                                reference: what.clone(),
                                wanted: self.platform.to_string(),
                                available,
                            }
                        })?;
                    pinned = Some(entry.digest);
                }
            }
        }
        Err(ImageError::refused(what, "its indexes are nested too deeply"))
    }

    async fn bring_layers(
        self: &Arc<Self>,
        session: &Session,
        what: &str,
        documents: &Documents,
        reporter: &Reporter,
    ) -> Result<Layers, ImageError> {
        let pins = self.pin(&documents.config.rootfs.diff_ids);
        let layers = documents.layers(what)?;
        reporter.update(|progress| {
            let waiting = |(layer, _, _): &(&Descriptor, _, _)| LayerProgress {
                digest: layer.digest,
                step: LayerStep::Waiting,
                downloaded_bytes: 0,
                total_bytes: layer.size,
            };
            progress.layers = layers.iter().map(waiting).collect();
        });
        let cancel = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancel));
        // Unpacking is one after another: what one layer takes, the next one has less.
        let mut limits = self.unpack_limits();
        limits.max_bytes = limits.max_bytes.min(self.budget()?);
        let room = Arc::new(tokio::sync::Mutex::new(limits));
        let mut bringing = Vec::new();
        for (position, (descriptor, compression, diff_id)) in layers.into_iter().enumerate() {
            let wanted = Wanted { position, descriptor, compression, diff_id };
            bringing
                .push(self.bring_layer(session, what, wanted, &room, &cancel, reporter).boxed());
        }
        let kept =
            futures_util::stream::iter(bringing).buffered(LAYERS_AT_ONCE).try_collect().await?;
        Ok(Layers { kept, pins })
    }

    async fn bring_layer(
        self: &Arc<Self>,
        session: &Session,
        what: &str,
        wanted: Wanted<'_>,
        room: &Arc<tokio::sync::Mutex<UnpackLimits>>,
        cancel: &Arc<AtomicBool>,
        reporter: &Reporter,
    ) -> Result<ImageLayer, ImageError> {
        let Wanted { position, descriptor, compression, diff_id } = wanted;
        let report = |step: LayerStep, downloaded: Option<u64>| {
            reporter.update(|progress| {
                if let Some(layer) = progress.layers.get_mut(position) {
                    layer.step = step;
                    layer.downloaded_bytes = downloaded.unwrap_or(layer.downloaded_bytes);
                }
            });
        };
        let blob = descriptor.digest;
        let of = partial_of(session.host(), blob);
        let bringing = self.puller.bringing.of(of, Default::default).lock_owned().await;
        let partial = self.disk.partial(of);
        if self.disk.layer(diff_id)?.is_none() {
            let turns = || Semaphore::new(self.config.max_concurrent_downloads.max(1));
            let turns = self.puller.downloads.of(session.host().to_owned(), turns);
            let _download = turns.acquire().await;
            let (inner, path) = (self, partial.as_path());
            let on_bytes = &|n| report(LayerStep::Downloading, Some(n));
            let size_bytes = descriptor.size;
            Download { inner, session, blob, size_bytes, path, on_bytes }.run().await?;
        }

        let mut limits = Arc::clone(room).lock_owned().await;
        let _unpacking = self.puller.unpacking.acquire().await;
        report(LayerStep::Unpacking, Some(descriptor.size));
        let (inner, cancel) = (Arc::clone(self), Arc::clone(cancel));
        let what = format!("layer {} of {what}", blob.short());
        let facts = blocking(move || {
            // Also when the pull is given up, nobody else touches the file before this has ended.
            let _bringing = bringing;
            let open = || File::open(&partial).map_err(|e| ImageError::io("opening", &partial, &e));
            let result = inner.make_room().and_then(|()| {
                let blob = Some(blob);
                inner.place_layer(&what, diff_id, open, compression, blob, &mut limits, &cancel)
            });
            // What turned out wrong must not be taken up again; what is in place is not needed;
            // and where there is no room, it takes some.
            if !matches!(result, Err(ImageError::Store { disk_full: false, .. })) {
                let _gone_already = std::fs::remove_file(&partial);
            }
            result
        })
        .await?;
        report(LayerStep::Done, Some(descriptor.size));
        Ok(ImageLayer { diff_id, unpacked_bytes: facts.unpacked_bytes })
    }
}

/// The layers of an image, in place, and kept there.
struct Layers {
    kept: Vec<ImageLayer>,
    pins: super::store::Pins,
}
