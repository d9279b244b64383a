//! How much of the disk images take. Whoever makes a stack chooses its image, and the disks of all
//! stacks grow on the same file system: so a reserve stays free, and pulled images have a budget.
//!
//! What goes first is what nobody misses: layers of no image, then broken downloads, then the
//! pulled images that no stack uses, the one that was used longest ago first. A loaded or imported
//! image cannot be had again and never goes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::super::digest::Digest;
use super::super::disk::{PARTIAL_KEPT, Partial};
use super::super::error::ImageError;
use super::super::load::blocking;
use super::super::reference::familiar;
use super::{Image, ImageStore, Inner, Name, Origin, State};

/// How much is written between two looks at the disk.
const LOOK_EVERY_BYTES: u64 = 1 << 20;
/// How often what is kept for a while is looked through.
const TEND_EVERY: Duration = Duration::from_secs(3600);
/// The most bytes that the documents of pulled images may have; they are held in memory.
const MAX_DOCUMENT_BYTES: usize = 256 << 20;
/// The most names of pulled images: they are written as one file.
const MOST_PULLED_NAMES: usize = 4096;

/// Tells when it is time for a look at the disk.
#[derive(Debug, Default)]
pub(in crate::oci::images) struct Tally(u64);

impl Tally {
    /// Whether enough has been written since the last time.
    pub(in crate::oci::images) fn is_due(&mut self, written_bytes: u64) -> bool {
        self.0 = self.0.saturating_add(written_bytes);
        let due = self.0 >= LOOK_EVERY_BYTES;
        if due {
            self.0 = 0;
        }
        due
    }
}

impl ImageStore {
    /// Begins to look after the store: every hour, what has been kept for long enough goes, and
    /// when images were last used is written down. It ends with the store.
    pub fn tend(&self) {
        let store = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            let mut hour = tokio::time::interval(TEND_EVERY);
            hour.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                hour.tick().await;
                let Some(inner) = store.upgrade() else { return };
                if let Err(error) = blocking(move || inner.tend()).await {
                    let error = error.operator();
                    tracing::warn!(error, "the image store could not be cleared up");
                }
            }
        });
    }
}

impl State {
    /// The images that cannot be had again, and those that can.
    fn by_origin(&self) -> (Vec<&Arc<Image>>, Vec<&Arc<Image>>) {
        let names = self.names.values().filter(|name| name.origin != Origin::Pulled);
        let kept: HashSet<Digest> = names.map(|name| name.image).collect();
        self.images.values().partition(|image| kept.contains(&image.digest()))
    }

    fn pulled(&self) -> Vec<&Arc<Image>> {
        self.by_origin().1
    }
}

impl Inner {
    fn tend(&self) -> Result<(), ImageError> {
        let images: Vec<_> = self.state.read().images.values().map(Arc::clone).collect();
        for image in images {
            self.disk.set_last_use(image.digest(), image.last_use())?;
        }
        self.remove_partials(PARTIAL_KEPT)?;
        self.collect_if_settled()?;
        self.make_room()
    }

    /// The most bytes that pulled images may have.
    pub(in crate::oci::images) fn budget(&self) -> Result<u64, ImageError> {
        match self.config.max_pulled_bytes {
            Some(bytes) => Ok(bytes),
            None => Ok(self.disk.size_bytes()? / 2),
        }
    }

    /// Makes sure that pulled images are within their budget and the reserve is free. Blocks on
    /// the disk.
    pub(in crate::oci::images) fn make_room(&self) -> Result<(), ImageError> {
        {
            let _one = self.giving_up.lock();
            while self.document_bytes() > MAX_DOCUMENT_BYTES && self.evict()? {}
            let most = self.budget()?;
            loop {
                let taken = self.pulled_bytes()?;
                if taken <= most {
                    break;
                }
                if !self.give_something_up()? {
                    let operator = format!(
                        "pulled images have {taken} bytes and may have {most}, and the rest is in \
                         use; see max_pulled_bytes in [images]"
                    );
                    return Err(ImageError::NoRoom { operator });
                }
            }
        }
        self.keep_reserve()
    }

    /// The same, in the midst of a download: in a thread only where something has to go.
    pub(in crate::oci::images) async fn keep_reserve_meanwhile(
        self: &Arc<Self>,
    ) -> Result<(), ImageError> {
        if self.disk.shortage()?.is_none() {
            return Ok(());
        }
        let inner = Arc::clone(self);
        blocking(move || inner.keep_reserve()).await
    }

    /// Makes sure that the reserve is free. Blocks on the disk.
    pub(in crate::oci::images) fn keep_reserve(&self) -> Result<(), ImageError> {
        if self.disk.shortage()?.is_none() {
            return Ok(());
        }
        let _one = self.giving_up.lock();
        while let Some(shortage) = self.disk.shortage()? {
            if !self.give_something_up()? {
                return Err(shortage.into());
            }
        }
        Ok(())
    }

    /// Gives up what is missed least; `false` when there is nothing left.
    fn give_something_up(&self) -> Result<bool, ImageError> {
        if self.settled.load(Ordering::Acquire) && self.sweep()?.0 > 0 {
            return Ok(true);
        }
        let mut partials = self.disk.partials()?;
        partials.sort_by_key(|partial| partial.touched);
        for partial in partials {
            if self.remove_idle(&partial)? {
                return Ok(true);
            }
        }
        self.evict()
    }

    /// Removes the pulled image that nobody uses and that was used longest ago.
    fn evict(&self) -> Result<bool, ImageError> {
        if !self.settled.load(Ordering::Acquire) {
            return Ok(false);
        }
        {
            let _writing = self.writing.lock();
            let state = self.state.read();
            let pulled = state.pulled().into_iter();
            let idle = pulled.filter(|image| !state.leases.contains_key(&image.digest()));
            let Some(image) = idle.min_by_key(|image| image.last_use()).map(|i| i.digest()) else {
                return Ok(false);
            };
            let names = state.names.iter().filter(|(_, name)| name.image == image);
            let names: Vec<String> = names.map(|(name, _)| familiar(name)).collect();
            drop(state);
            tracing::info!(image = %image, ?names, "a pulled image is removed to make room");
            self.state.write().names.retain(|_, name| name.image != image);
        }
        // The names are written last, since that takes room; whoever reads the old ones meanwhile
        // forgets those without an image.
        self.sweep()?;
        let _writing = self.writing.lock();
        self.change_names(|_| ())?;
        Ok(true)
    }

    /// Bytes on the disk that pulls are to blame for.
    fn pulled_bytes(&self) -> Result<u64, ImageError> {
        let (mut layers, kept) = {
            let state = self.state.read();
            let layers = |images: Vec<&Arc<Image>>| -> HashMap<Digest, u64> {
                let layers = images.into_iter().flat_map(|image| image.layers());
                layers.map(|layer| (layer.diff_id, layer.unpacked_bytes)).collect()
            };
            let (kept, pulled) = state.by_origin();
            (layers(pulled), layers(kept))
        };
        for layer in self.disk.layers()? {
            // What no image has yet is of one in the making.
            if !layers.contains_key(&layer) && !kept.contains_key(&layer) {
                let bytes = self.disk.layer(layer)?.map_or(0, |facts| facts.unpacked_bytes);
                layers.insert(layer, bytes);
            }
        }
        layers.retain(|layer, _| !kept.contains_key(layer));
        let partials = self.disk.partials()?.into_iter().map(|partial| partial.bytes);
        Ok(layers.into_values().chain(partials).fold(0, u64::saturating_add))
    }

    fn document_bytes(&self) -> usize {
        self.state.read().pulled().iter().map(|image| image.document_bytes()).sum()
    }

    /// Removes broken downloads that nobody has touched for so long; tells how many bytes.
    pub(in crate::oci::images) fn remove_partials(
        &self,
        untouched: Duration,
    ) -> Result<u64, ImageError> {
        let mut freed_bytes = 0;
        for partial in self.disk.partials()? {
            if partial.is_older_than(untouched) && self.remove_idle(&partial)? {
                freed_bytes += partial.bytes;
            }
        }
        Ok(freed_bytes)
    }

    /// Removes a broken download, unless somebody goes on with it.
    fn remove_idle(&self, partial: &Partial) -> Result<bool, ImageError> {
        let removed = self.puller.unless_brought(partial.of, || self.disk.remove_partial(partial));
        removed.transpose().map(|removed| removed.is_some())
    }
}

/// Keeps the number of pulled names within its bound: the oldest go, also those of images in use.
/// Who wants such an image by that name again asks its registry, and need not download it.
pub(in crate::oci::images) fn forget_oldest(names: &mut BTreeMap<String, Name>) {
    let pulled = names.iter().filter(|(_, name)| name.origin == Origin::Pulled);
    let mut pulled: Vec<_> = pulled.map(|(key, name)| (name.updated_at, key.clone())).collect();
    let Some(too_many) = pulled.len().checked_sub(MOST_PULLED_NAMES).filter(|n| *n > 0) else {
        return;
    };
    pulled.sort_unstable();
    for (_, name) in &pulled[..too_many] {
        names.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use jiff::Timestamp;

    use super::super::super::config::ImageConfig;
    use super::super::super::import::ImportOptions;
    use super::*;

    #[test]
    fn the_oldest_pulled_names_go_and_no_others() {
        let name = |origin, second| Name {
            image: Digest::of(b""),
            origin,
            updated_at: Timestamp::from_second(second).unwrap(),
        };
        let mut names: BTreeMap<_, _> = (0..5000)
            .map(|n| (format!("pulled:{n}"), name(Origin::Pulled, n)))
            .chain((0..5000).map(|n| (format!("loaded:{n}"), name(Origin::Loaded, n))))
            .collect();
        forget_oldest(&mut names);
        assert_eq!(names.len(), 5000 + MOST_PULLED_NAMES);
        assert!(!names.contains_key("pulled:903") && names.contains_key("pulled:904"));
        let before = names.len();
        forget_oldest(&mut names);
        assert_eq!(names.len(), before);
    }

    #[tokio::test]
    async fn when_an_image_was_used_survives_a_restart_and_old_downloads_go() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("root/file"), "x").unwrap();
        let open = || ImageStore::open(&dir.path().join("images"), ImageConfig::default()).unwrap();
        let store = open();
        let options = ImportOptions { name: "app:1".to_owned(), ..ImportOptions::default() };
        let lease = store.import(&dir.path().join("root"), options).await.unwrap().lease;
        let (image, imported) = (lease.digest(), lease.image().last_use());
        drop(lease);
        let used = store.lease("app:1").unwrap().image().last_use();
        assert!(used > imported);
        let old = SystemTime::now() - 2 * PARTIAL_KEPT;
        for (name, touched) in [("old", old), ("new", SystemTime::now())] {
            let path = store.inner.disk.partial(Digest::of(name.as_bytes()));
            std::fs::File::create(path).unwrap().set_modified(touched).unwrap();
        }
        store.inner.tend().unwrap();
        let left: Vec<_> = store.inner.disk.partials().unwrap().iter().map(|p| p.of).collect();
        assert_eq!(left, [Digest::of(b"new")]);
        drop(store);
        assert!(open().lease_by_digest(image).is_some());
        assert!(open().inner.disk.last_use(image) >= used);
    }

    #[test]
    fn a_look_at_the_disk_is_due_after_so_many_bytes() {
        let mut tally = Tally::default();
        assert!(!tally.is_due(LOOK_EVERY_BYTES - 1));
        assert!(tally.is_due(1));
        assert!(!tally.is_due(1));
        assert!(tally.is_due(u64::MAX));
    }
}
