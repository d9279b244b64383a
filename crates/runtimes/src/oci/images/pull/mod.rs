//! Pulls images from registries.
//!
//! A pull asks the mirrors of the image's registry in order, then the registry. Whoever is asked,
//! content counts only by its digest. Layers come in parallel and are unpacked one after another,
//! each in a thread that may wait for the disk; a layer that is here, or that another pull is
//! bringing, is not brought again.

mod auth;
mod blob;
mod client;
mod token;

pub use self::client::install_tls_provider;

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::client::{Endpoint, Session, Sessions};
use super::config::ImageConfig;
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

/// What pulls share.
#[derive(Debug)]
pub(super) struct Puller {
    pub(super) pulls: Pulls,
    sessions: Sessions,
    downloads: Semaphore,
    /// Who is bringing a layer; others wait for it.
    bringing: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Puller {
    pub(super) fn new(config: &ImageConfig) -> Self {
        Self {
            pulls: Pulls::default(),
            sessions: Sessions::default(),
            downloads: Semaphore::new(config.max_concurrent_downloads.max(1)),
            bringing: Mutex::default(),
        }
    }

    fn bringing(&self, layer: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.bringing.lock();
        all.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = all.get(&layer).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        all.insert(layer, Arc::downgrade(&lock));
        lock
    }
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
        let allowed = &self.config.allowed_registries;
        if !allowed.is_empty() && !allowed.iter().any(|name| name == registry) {
            return Err(ImageError::RegistryNotAllowed { registry: registry.to_owned() });
        }
        let mirrors = self.config.mirrors.get(registry).map(Vec::as_slice).unwrap_or_default();
        for mirror in mirrors {
            match self.pull_from(image, &Endpoint::mirror(mirror), reporter).await {
                Err(error) if !matches!(error, ImageError::Store { .. }) => {
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
        result
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
        let total: u64 = documents.manifest.layers.iter().map(|layer| layer.size).sum();
        if total > self.config.max_download_bytes {
            return Err(ImageError::refused(
                what,
                format!("its layers have {total} bytes; raise max_download_bytes in [images]"),
            ));
        }
        let layers = self.bring_layers(session, &what, &documents, reporter).await?;
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
            let lease = inner.commit(record, &names, Origin::Pulled)?;
            // Only now does the image itself keep its layers.
            drop(layers.pins);
            inner.collect_if_settled()?;
            Ok(lease)
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
                Document::Manifest(manifest) => return Ok((aliases, text, manifest)),
                Document::Index(entries) => {
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
        let room = Arc::new(tokio::sync::Mutex::new(self.unpack_limits()));
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
        let bringing = self.puller.bringing(diff_id);
        let _bringing = bringing.lock().await;

        let blob = descriptor.digest;
        let partial = self.disk.partial(blob);
        if self.disk.layer(diff_id)?.is_none() {
            let _download = self.puller.downloads.acquire().await;
            let on_bytes = |n| report(LayerStep::Downloading, Some(n));
            blob::download(session, blob, descriptor.size, &partial, &self.config, &on_bytes)
                .await?;
        }

        let mut limits = Arc::clone(room).lock_owned().await;
        report(LayerStep::Unpacking, Some(descriptor.size));
        let (inner, cancel) = (Arc::clone(self), Arc::clone(cancel));
        let what = format!("layer {} of {what}", blob.short());
        let facts = blocking(move || {
            let open = || File::open(&partial).map_err(|e| ImageError::io("opening", &partial, &e));
            let result = inner.place_layer(
                &what,
                diff_id,
                open,
                compression,
                Some(blob),
                &mut limits,
                &cancel,
            );
            // What turned out wrong must not be taken up again; what is in place is not needed.
            if !matches!(result, Err(ImageError::Store { .. })) {
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
