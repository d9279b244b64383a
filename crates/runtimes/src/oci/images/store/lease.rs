//! What keeps images and layers from being removed.

use std::sync::Arc;

use super::super::digest::Digest;
use super::{Image, Inner};

/// Keeps an image and its layers from being removed, as long as it lives.
#[derive(Debug)]
pub struct ImageLease {
    pub(super) image: Arc<Image>,
    pub(super) store: Arc<Inner>,
}

impl ImageLease {
    /// The image that is kept.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }
}

impl std::ops::Deref for ImageLease {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}

impl Clone for ImageLease {
    fn clone(&self) -> Self {
        *self.store.state.write().leases.entry(self.image.digest()).or_default() += 1;
        Self { image: Arc::clone(&self.image), store: Arc::clone(&self.store) }
    }
}

impl Drop for ImageLease {
    fn drop(&mut self) {
        self.image.note_use();
        let digest = self.image.digest();
        let orphaned = {
            let mut state = self.store.state.write();
            let Some(count) = state.leases.get_mut(&digest) else { return };
            *count -= 1;
            if *count > 0 {
                return;
            }
            state.leases.remove(&digest);
            !state.names.values().any(|name| name.image == digest)
        };
        if orphaned {
            // Rare, and it removes whole trees: not in whatever thread this happens to be.
            let store = Arc::clone(&self.store);
            std::thread::spawn(move || {
                if let Err(error) = store.collect_if_settled() {
                    tracing::warn!(
                        error = error.operator(),
                        "an unused image could not be removed"
                    );
                }
            });
        }
    }
}

/// Keeps layers from being collected while an image is made of them.
pub(in crate::oci::images) struct Pins {
    pub(super) store: Arc<Inner>,
    pub(super) layers: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.store.state.write();
        for layer in &self.layers {
            if let Some(count) = state.pins.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(layer);
                }
            }
        }
    }
}
