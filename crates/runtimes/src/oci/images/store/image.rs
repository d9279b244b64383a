//! An image that is here: its documents, and what can be read off them.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::SystemTime;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::super::digest::Digest;
use super::super::disk::Disk;
use super::super::error::ImageError;
use super::super::layer_files::read_users;
use super::super::model::{ConfigDocument, RunConfig};
use super::super::users::UserDatabase;

/// One layer of an image, unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// The digest of its archive before compression.
    pub diff_id: Digest,
    /// Bytes of its files.
    pub unpacked_bytes: u64,
}

/// An image as it is kept: the documents verbatim, since their digests are its names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::oci::images) struct Record {
    pub(in crate::oci::images) digest: Digest,
    /// Digests of indexes that led to it.
    pub(in crate::oci::images) aliases: Vec<Digest>,
    pub(in crate::oci::images) manifest: String,
    pub(in crate::oci::images) config: String,
    /// The lowest first.
    pub(in crate::oci::images) layers: Vec<ImageLayer>,
    pub(in crate::oci::images) stored_at: Timestamp,
}

/// An image that is here, ready to start from.
#[derive(Debug)]
pub struct Image {
    pub(super) record: Record,
    config_digest: Digest,
    document: ConfigDocument,
    layer_paths: Vec<PathBuf>,
    users: OnceLock<UserDatabase>,
    last_use: Mutex<SystemTime>,
}

impl Image {
    pub(super) fn from_record(
        record: Record,
        disk: &Disk,
        last_use: SystemTime,
    ) -> Result<Self, ImageError> {
        let document = serde_json::from_str(&record.config)
            .map_err(|e| ImageError::store(format!("image {}: {e}", record.digest)))?;
        let layer_paths = record.layers.iter().map(|l| disk.layer_root(l.diff_id)).collect();
        let config_digest = Digest::of(record.config.as_bytes());
        let (users, last_use) = (OnceLock::new(), Mutex::new(last_use));
        Ok(Self { record, config_digest, document, layer_paths, users, last_use })
    }

    pub(super) fn last_use(&self) -> SystemTime {
        *self.last_use.lock()
    }

    pub(super) fn note_use(&self) {
        *self.last_use.lock() = SystemTime::now();
    }

    /// Bytes of its documents, which are held in memory.
    pub(super) fn document_bytes(&self) -> usize {
        self.record.manifest.len() + self.record.config.len()
    }

    /// The digest of its manifest, which is its identity.
    pub fn digest(&self) -> Digest {
        self.record.digest
    }

    /// The digest of its configuration, which Docker shows as the image's id.
    pub fn config_digest(&self) -> Digest {
        self.config_digest
    }

    /// Digests of multi-platform indexes that it was reached through.
    pub fn aliases(&self) -> &[Digest] {
        &self.record.aliases
    }

    /// How it wants to be run.
    pub fn config(&self) -> &RunConfig {
        &self.document.config
    }

    /// Its layers, the lowest first.
    pub fn layers(&self) -> &[ImageLayer] {
        &self.record.layers
    }

    /// The directories of its layers, the lowest first, to be used as overlayfs' lower ones.
    /// They are shared: nothing may ever write to them.
    pub fn layer_paths(&self) -> &[PathBuf] {
        &self.layer_paths
    }

    /// Its users and groups; read once.
    pub fn users(&self) -> &UserDatabase {
        self.users.get_or_init(|| read_users(&self.layer_paths))
    }

    /// Bytes of all its files.
    pub fn unpacked_bytes(&self) -> u64 {
        self.record.layers.iter().map(|layer| layer.unpacked_bytes).sum()
    }

    /// `os/architecture[/variant]`.
    pub fn platform(&self) -> String {
        let ConfigDocument { os, architecture, variant, .. } = &self.document;
        let variant = variant.iter().flat_map(|v| ["/", v.as_str()]);
        [os, "/", architecture].into_iter().chain(variant).collect()
    }

    /// When it was built, as it says itself.
    pub fn created(&self) -> Option<&str> {
        self.document.created.as_deref()
    }

    /// When it came here.
    pub fn stored_at(&self) -> Timestamp {
        self.record.stored_at
    }

    /// Its configuration document, verbatim.
    pub fn config_document(&self) -> &str {
        &self.record.config
    }

    /// Its manifest, verbatim.
    pub fn manifest_document(&self) -> &str {
        &self.record.manifest
    }
}
