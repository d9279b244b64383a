//! The store itself: which images are here, who uses them, and what may go.
//!
//! The rule of life: an image lives as long as a name or a lease, a layer as long as an image or a
//! pull in the making. Everything that decides is held in memory under one lock; the directory
//! follows it, in an order that never leaves a name without its image or an image without its
//! layers.

mod image;
mod lease;
mod room;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::config::{ImageConfig, Platform};
use super::digest::Digest;
use super::disk::{Disk, remove_tree};
use super::error::ImageError;
use super::pull::Puller;
use super::reference::ImageRef;
use super::unpack::UnpackLimits;

pub(super) use image::Record;
pub use image::{Image, ImageLayer};
pub use lease::ImageLease;
pub(super) use lease::Pins;
pub(super) use room::{Tally, forget_oldest};

/// How an image came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// From a registry.
    Pulled,
    /// From an archive.
    Loaded,
    /// From a root file system.
    Imported,
}

/// What a name stands for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Name {
    pub(super) image: Digest,
    pub(super) origin: Origin,
    pub(super) updated_at: Timestamp,
}

/// `names.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct NamesFile {
    version: u32,
    names: BTreeMap<String, Name>,
}

const NAMES_VERSION: u32 = 1;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) images: HashMap<Digest, Arc<Image>>,
    pub(super) names: BTreeMap<String, Name>,
    /// Image by the digest of an index that led to it.
    pub(super) aliases: HashMap<Digest, Digest>,
    pub(super) leases: HashMap<Digest, usize>,
    /// Layers that a pull or load in the making counts on.
    pins: HashMap<Digest, usize>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) disk: Disk,
    pub(super) config: ImageConfig,
    pub(super) platform: Platform,
    pub(super) state: RwLock<State>,
    /// Held while names or records are written, so that the files follow each other in order.
    pub(super) writing: Mutex<()>,
    pub(super) puller: Puller,
    /// Held while something is given up for room, or several would give up something for the same.
    giving_up: Mutex<()>,
    /// Whether all who use images have taken their leases. Until somebody says so, nothing is
    /// removed of its own accord: stacks outlive the process that knew what they use.
    settled: AtomicBool,
}

/// The images of this machine. Clones are the same store.
///
/// Only one process may have a store open; the data directory's lock sees to that.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

impl ImageStore {
    /// Opens the store in `root`, which is made where it does not exist, and cleans up what an
    /// earlier process left half done. Blocks on the disk.
    ///
    /// Images that have lost their name stay until [`ImageStore::collect_garbage`]: first those
    /// who still use them take their leases again.
    pub fn open(root: &Path, config: ImageConfig) -> Result<Self, ImageError> {
        let platform = match &config.platform {
            None => Platform::host(),
            Some(text) => Platform::parse(text).map_err(|e| ImageError::store(e.to_string()))?,
        };
        let disk = Disk::open(root, config.free_bytes)?;
        let mut state = State::default();
        for record in disk.records::<Record>()? {
            let digest = record.digest;
            let whole = record.layers.iter().all(|l| matches!(disk.layer(l.diff_id), Ok(Some(_))));
            if !whole || Digest::of(record.manifest.as_bytes()) != digest {
                tracing::warn!(image = %digest, "an image is damaged on disk and is forgotten");
                continue;
            }
            let image = Arc::new(Image::from_record(record, &disk, disk.last_use(digest))?);
            state.aliases.extend(image.aliases().iter().map(|alias| (*alias, digest)));
            state.images.insert(digest, image);
        }
        let names = disk.read_names::<NamesFile>()?.unwrap_or_default().names;
        state.names =
            names.into_iter().filter(|(_, name)| state.images.contains_key(&name.image)).collect();
        let puller = Puller::new();
        // The first use of the parser compiles it, which takes longer than a start should.
        let _warm = ImageRef::parse("a");
        Ok(Self {
            inner: Arc::new(Inner {
                disk,
                config,
                platform,
                state: RwLock::new(state),
                writing: Mutex::new(()),
                puller,
                giving_up: Mutex::new(()),
                settled: AtomicBool::new(false),
            }),
        })
    }

    /// Removes what neither a name nor a lease keeps, now and from now on: all who use images must
    /// have taken their leases. Blocks on the disk.
    pub fn collect_garbage(&self) -> Result<u64, ImageError> {
        self.inner.collect()
    }

    /// Takes a lease on an image that is here, by its manifest digest. A driver does so for every
    /// stack that it finds running.
    pub fn lease_by_digest(&self, digest: Digest) -> Option<ImageLease> {
        self.inner.lease(|_| Some(digest))
    }

    /// Takes a lease on an image that is here, without asking anybody else.
    pub fn lease(&self, reference: &str) -> Result<ImageLease, ImageError> {
        self.inner
            .lease(|state| state.find(reference))
            .ok_or_else(|| ImageError::NotHere { reference: reference.chars().take(300).collect() })
    }
}

impl State {
    /// The image that a person's text means: a name, a digest, or the unambiguous start of one.
    pub(super) fn find(&self, text: &str) -> Option<Digest> {
        if let Some(name) = self.names.get(text) {
            return Some(name.image);
        }
        if let Ok(digest) = text.parse::<Digest>() {
            return self.find_digest(digest);
        }
        if let Some(found) = ImageRef::parse(text).ok().and_then(|r| self.find_ref(&r)) {
            return Some(found);
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() < 6 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = self.images.values().filter(|image| {
            image.digest().hex().starts_with(digits)
                || image.config_digest().hex().starts_with(digits)
        });
        matching.next().filter(|_| matching.next().is_none()).map(|image| image.digest())
    }

    /// The image that a reference means. A digest says which by itself, whatever the name before
    /// it.
    pub(super) fn find_ref(&self, reference: &ImageRef) -> Option<Digest> {
        match reference.digest() {
            Some(digest) => self.find_digest(digest),
            None => self.names.get(&reference.key()).map(|name| name.image),
        }
    }

    fn find_digest(&self, digest: Digest) -> Option<Digest> {
        if self.images.contains_key(&digest) {
            return Some(digest);
        }
        self.aliases.get(&digest).copied().or_else(|| {
            self.images.values().find(|i| i.config_digest() == digest).map(|i| i.digest())
        })
    }
}

impl Inner {
    pub(super) fn lease(
        self: &Arc<Self>,
        find: impl FnOnce(&State) -> Option<Digest>,
    ) -> Option<ImageLease> {
        let mut state = self.state.write();
        let digest = find(&state)?;
        let image = Arc::clone(state.images.get(&digest)?);
        image.note_use();
        *state.leases.entry(digest).or_default() += 1;
        Some(ImageLease { image, store: Arc::clone(self) })
    }

    /// Keeps these layers, here already or about to be, until the pins are dropped.
    pub(super) fn pin(self: &Arc<Self>, layers: &[Digest]) -> Pins {
        let mut state = self.state.write();
        for layer in layers {
            *state.pins.entry(*layer).or_default() += 1;
        }
        Pins { store: Arc::clone(self), layers: layers.to_vec() }
    }

    pub(super) fn unpack_limits(&self) -> UnpackLimits {
        UnpackLimits {
            max_bytes: self.config.max_unpacked_bytes,
            max_entries: self.config.max_layer_entries,
            max_expansion: self.config.max_expansion,
        }
    }

    /// Takes an image whose layers are all in place into the store, under these names, and leases
    /// it. Blocks on the disk.
    pub(super) fn commit(
        self: &Arc<Self>,
        record: Record,
        names: &[String],
        origin: Origin,
    ) -> Result<ImageLease, ImageError> {
        let _writing = self.writing.lock();
        let digest = record.digest;
        let mut record = record;
        if let Some(known) = self.state.read().images.get(&digest) {
            record.aliases.extend_from_slice(known.aliases());
            record.aliases.sort_unstable();
            record.aliases.dedup();
            record.stored_at = known.stored_at();
        }
        let image = Arc::new(Image::from_record(record, &self.disk, SystemTime::now())?);
        self.disk.write_record(digest, &image.record)?;
        let lease = {
            let mut state = self.state.write();
            state.aliases.extend(image.aliases().iter().map(|alias| (*alias, digest)));
            state.images.insert(digest, Arc::clone(&image));
            *state.leases.entry(digest).or_default() += 1;
            ImageLease { image, store: Arc::clone(self) }
        };
        let updated_at = Timestamp::now();
        self.change_names(|all| {
            for name in names {
                all.insert(name.clone(), Name { image: digest, origin, updated_at });
            }
            forget_oldest(all);
        })?;
        Ok(lease)
    }

    /// Changes names in memory once they are on disk. The caller holds `writing`.
    pub(super) fn change_names(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Name>),
    ) -> Result<(), ImageError> {
        let mut names = self.state.read().names.clone();
        change(&mut names);
        let file = NamesFile { version: NAMES_VERSION, names };
        self.disk.write_names(&file)?;
        self.state.write().names = file.names;
        Ok(())
    }

    /// Removes what has just lost its last use, where it is known who uses what.
    pub(super) fn collect_if_settled(&self) -> Result<u64, ImageError> {
        if self.settled.load(Ordering::Acquire) { self.collect() } else { Ok(0) }
    }

    /// Removes images without name and lease, and layers without image and pin; tells how many
    /// bytes. Whoever asks for it knows that all leases are taken. Blocks on the disk.
    pub(super) fn collect(&self) -> Result<u64, ImageError> {
        self.settled.store(true, Ordering::Release);
        self.sweep().map(|(_, freed_bytes)| freed_bytes)
    }

    /// The same, where it is known who uses what; tells how many layers and how many bytes.
    fn sweep(&self) -> Result<(usize, u64), ImageError> {
        let mut trees = Vec::new();
        {
            let _writing = self.writing.lock();
            let mut state = self.state.write();
            let named: HashSet<Digest> = state.names.values().map(|name| name.image).collect();
            let unused: Vec<Digest> = state
                .images
                .keys()
                .filter(|digest| !named.contains(digest) && !state.leases.contains_key(digest))
                .copied()
                .collect();
            for digest in unused {
                self.disk.remove_record(digest)?;
                state.images.remove(&digest);
                state.aliases.retain(|_, image| *image != digest);
            }
            let used: HashSet<Digest> = state
                .images
                .values()
                .flat_map(|image| image.layers().iter().map(|layer| layer.diff_id))
                .chain(state.pins.keys().copied())
                .collect();
            for layer in self.disk.layers()? {
                if !used.contains(&layer) {
                    let bytes = self.disk.layer(layer)?.map_or(0, |facts| facts.unpacked_bytes);
                    trees.extend(self.disk.unlink_layer(layer)?.map(|path| (path, bytes)));
                }
            }
        }
        let (layers, mut freed_bytes) = (trees.len(), 0);
        for (path, bytes) in trees {
            remove_tree(&path)?;
            freed_bytes += bytes;
        }
        Ok((layers, freed_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::LayerFacts;
    use super::super::load::make_layer_root;
    use super::*;

    #[test]
    fn nothing_goes_of_its_own_accord_before_the_leases_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path(), ImageConfig::default()).unwrap();
        let layer = dir.path().join("layers").join(Digest::of(b"layer").hex());
        std::fs::create_dir(&layer).unwrap();
        assert_eq!(store.inner.collect_if_settled().unwrap(), 0);
        assert!(layer.exists(), "a stack that nobody has found yet may run from it");
        store.collect_garbage().unwrap();
        assert!(!layer.exists());
    }

    #[test]
    fn a_layer_of_an_image_in_the_making_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path(), ImageConfig::default()).unwrap();
        let disk = &store.inner.disk;
        let layer = Digest::of(b"layer");
        let pins = store.inner.pin(&[layer]);
        let made = disk.temporary_dir().unwrap();
        make_layer_root(&made.path().join("fs")).unwrap();
        let facts = LayerFacts { plain_bytes: 3, unpacked_bytes: 2, entries: 1 };
        disk.keep_layer(made, layer, facts).unwrap();

        assert_eq!(store.collect_garbage().unwrap(), 0);
        assert!(disk.layer(layer).unwrap().is_some());
        drop(pins);
        assert_eq!(store.collect_garbage().unwrap(), 2);
        assert!(disk.layer(layer).unwrap().is_none());
    }
}
