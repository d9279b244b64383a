//! Loads archives: `docker save` in its old and its new form, OCI archives and layout directories.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use serde::Deserialize;

use super::archive::{Archive, Section};
use super::digest::Digest;
use super::disk::{LayerFacts, make_dir};
use super::document::{self, Document, Documents};
use super::error::ImageError;
use super::model::{Compression, Descriptor, Manifest, OCI_CONFIG, OCI_LAYER_TAR, OCI_MANIFEST};
use super::reference::ImageRef;
use super::store::{ImageLayer, ImageLease, ImageStore, Inner, Origin, Record};
use super::unpack::{Overseer, UnpackLimits, unpack_layer};

/// How deep indexes may point to indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// An image that has come into the store.
#[derive(Debug, Clone)]
pub struct Added {
    /// The names that it has got, normalised. Where the archive had none, its digest.
    pub names: Vec<String>,
    /// Keeps it for now.
    pub lease: ImageLease,
}

/// One line of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Loads every image of an archive or layout directory that is made for this machine.
    ///
    /// `name` is given to the image where the archive names none; with several images it is
    /// refused.
    pub async fn load(&self, path: &Path, name: Option<&str>) -> Result<Vec<Added>, ImageError> {
        let inner = Arc::clone(&self.inner);
        let (path, name) = (path.to_owned(), name.map(str::to_owned));
        blocking(move || {
            let archive = Archive::open(&path, &inner.disk, inner.unpack_limits())?;
            inner.load(&archive, name.as_deref())
        })
        .await
    }

    /// Loads every image of an archive that comes as a stream. It is read to its end in a thread
    /// of its own.
    pub async fn load_reader(
        &self,
        reader: impl Read + Send + 'static,
        name: Option<&str>,
    ) -> Result<Vec<Added>, ImageError> {
        let inner = Arc::clone(&self.inner);
        let name = name.map(str::to_owned);
        blocking(move || {
            let archive = Archive::from_reader(reader, &inner.disk, inner.unpack_limits())?;
            inner.load(&archive, name.as_deref())
        })
        .await
    }
}

/// Runs disk work in a thread where it may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|e| Err(ImageError::store(format!("a worker of the store died: {e}"))))
}

impl Inner {
    fn load(
        self: &Arc<Self>,
        archive: &Archive,
        name: Option<&str>,
    ) -> Result<Vec<Added>, ImageError> {
        let name = name.map(ImageRef::parse).transpose()?.map(|reference| reference.key());
        let saved: Option<Vec<SavedImage>> = archive
            .document("manifest.json")?
            .map(|text| serde_json::from_slice(&text))
            .transpose()
            .map_err(|e| ImageError::refused("manifest.json", format!("it cannot be read: {e}")))?;
        let mut added = if let Some(index) = archive.document("index.json")? {
            self.load_layout(archive, &index, saved.as_deref().unwrap_or_default())?
        } else if let Some(saved) = saved {
            saved.iter().map(|image| self.load_saved(archive, image)).collect::<Result<_, _>>()?
        } else {
            return Err(ImageError::refused(
                "the archive",
                "it is neither a docker save archive (manifest.json) nor an OCI layout \
                 (index.json); a root file system is imported, not loaded",
            ));
        };
        if let Some(name) = name {
            let [only] = &mut added[..] else {
                return Err(ImageError::refused(
                    "the archive",
                    format!(
                        "it has {} images, so that none of them can be given a name",
                        added.len()
                    ),
                ));
            };
            only.names.push(name);
            only.names.sort_unstable();
            only.names.dedup();
        }
        for image in &mut added {
            if image.names.is_empty() {
                image.names.push(image.lease.digest().to_string());
            }
            let _writing = self.writing.lock();
            self.name(&image.names, image.lease.digest(), Origin::Loaded)?;
        }
        Ok(added)
    }

    fn load_layout(
        self: &Arc<Self>,
        archive: &Archive,
        index: &[u8],
        saved: &[SavedImage],
    ) -> Result<Vec<Added>, ImageError> {
        let what = "index.json";
        let Document::Index(entries) = document::parse(what, index)? else {
            return Err(ImageError::refused(what, "it is not an index"));
        };
        let mut added: Vec<Added> = Vec::new();
        let mut foreign = BTreeSet::new();
        for entry in &entries {
            // One that is for another machine is passed over, unless there is nothing else.
            let chosen = match document::choose(std::slice::from_ref(entry), &self.platform) {
                Ok(entry) => entry,
                Err(available) => {
                    foreign.insert(available);
                    continue;
                }
            };
            let mut names = names_of(entry);
            let (aliases, text, manifest) =
                self.follow(archive, chosen, &entry.digest.to_string())?;
            let config_name = blob_name(manifest.config.digest);
            for image in saved.iter().filter(|image| image.config == config_name) {
                names.extend(normalised(image.repo_tags.iter().flatten())?);
            }
            names.sort_unstable();
            names.dedup();
            let what = names.first().cloned().unwrap_or_else(|| chosen.digest.to_string());
            let config = blob_document(archive, &manifest.config)?;
            let documents =
                Documents::check(&what, text, manifest, config, &self.platform, &self.config)?;
            let lease = self.load_layers(&what, &documents, aliases, |layer, _| {
                let (section, _) = archive.member(&blob_name(layer.digest))?.ok_or_else(|| {
                    ImageError::refused(&what, format!("its layer {} is missing", layer.digest))
                })?;
                Ok(section)
            })?;
            match added.iter_mut().find(|other| other.lease.digest() == lease.digest()) {
                Some(other) => other.names.extend(names),
                None => added.push(Added { names, lease }),
            }
        }
        if added.is_empty() {
            let available: Vec<_> = foreign.into_iter().collect();
            return Err(ImageError::WrongPlatform {
                reference: "the archive".to_owned(),
                wanted: self.platform.to_string(),
                available: if available.is_empty() {
                    "nothing".to_owned()
                } else {
                    available.join(", ")
                },
            });
        }
        Ok(added)
    }

    /// Follows indexes down to the manifest for this machine.
    fn follow(
        &self,
        archive: &Archive,
        from: &Descriptor,
        what: &str,
    ) -> Result<(Vec<Digest>, Vec<u8>, Manifest), ImageError> {
        let mut aliases = Vec::new();
        let mut at = from.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let text = blob_document(archive, &at)?;
            match document::parse(what, &text)? {
                Document::Manifest(manifest) => return Ok((aliases, text, manifest)),
                Document::Index(entries) => {
                    aliases.push(at.digest);
                    at = document::choose(&entries, &self.platform)
                        .map_err(|available| ImageError::WrongPlatform {
                            reference: what.to_owned(),
                            wanted: self.platform.to_string(),
                            available,
                        })?
                        .clone();
                }
            }
        }
        Err(ImageError::refused(what, "its indexes are nested too deeply"))
    }

    /// Loads an image of the old form, which has no manifest: one is made for it.
    fn load_saved(
        self: &Arc<Self>,
        archive: &Archive,
        saved: &SavedImage,
    ) -> Result<Added, ImageError> {
        let names = normalised(saved.repo_tags.iter().flatten())?;
        let what = names.first().cloned().unwrap_or_else(|| saved.config.clone());
        let config_text = archive.required_document(&saved.config)?;
        // Where the file is named by a digest, it has to be the right one.
        let stem = saved.config.rsplit('/').next().unwrap_or_default();
        let stem = stem.strip_suffix(".json").unwrap_or(stem);
        if let Ok(expected) = Digest::from_hex(stem) {
            check_digest(&saved.config, &config_text, expected)?;
        }
        let config = document::parse_config(&what, &config_text, &self.platform)?;
        let diff_ids = &config.rootfs.diff_ids;
        document::check_layer_count(&what, saved.layers.len(), &self.config)?;
        if saved.layers.len() != diff_ids.len() {
            return Err(ImageError::refused(
                what,
                format!(
                    "it has {} layers and its configuration {}",
                    saved.layers.len(),
                    diff_ids.len()
                ),
            ));
        }
        let _pins = self.pin(diff_ids);
        let mut room = self.unpack_limits();
        let mut layers = Vec::new();
        let mut descriptors = Vec::new();
        for (path, diff_id) in saved.layers.iter().zip(diff_ids) {
            let (section, _) = archive.member(path)?.ok_or_else(|| {
                ImageError::refused(&what, format!("its layer {path} is missing"))
            })?;
            let compression = Compression::of_magic(&section.peek()?);
            let layer = format!("layer {} of {what}", diff_id.short());
            let facts = self.place_layer(
                &layer,
                *diff_id,
                || Ok(section),
                compression,
                None,
                &mut room,
                &AtomicBool::new(false),
            )?;
            layers.push(ImageLayer { diff_id: *diff_id, unpacked_bytes: facts.unpacked_bytes });
            descriptors.push(Descriptor {
                media_type: OCI_LAYER_TAR.to_owned(),
                digest: *diff_id,
                size: facts.plain_bytes,
                platform: None,
                annotations: Default::default(),
            });
        }
        let record = make_record(config_text, descriptors, layers)?;
        let lease = self.commit(record, &[], Origin::Loaded)?;
        Ok(Added { names, lease })
    }

    /// Puts the layers of an image in place and takes it into the store, without names.
    fn load_layers(
        self: &Arc<Self>,
        what: &str,
        documents: &Documents,
        aliases: Vec<Digest>,
        open: impl Fn(&Descriptor, Digest) -> Result<Section, ImageError>,
    ) -> Result<ImageLease, ImageError> {
        let _pins = self.pin(&documents.config.rootfs.diff_ids);
        let mut room = self.unpack_limits();
        let mut layers = Vec::new();
        for (layer, compression, diff_id) in documents.layers(what)? {
            let facts = self.place_layer(
                &format!("layer {} of {what}", layer.digest.short()),
                diff_id,
                || open(layer, diff_id),
                compression,
                Some(layer.digest),
                &mut room,
                &AtomicBool::new(false),
            )?;
            layers.push(ImageLayer { diff_id, unpacked_bytes: facts.unpacked_bytes });
        }
        let record = Record {
            digest: documents.manifest_digest,
            aliases,
            manifest: documents.manifest_text.clone(),
            config: documents.config_text.clone(),
            layers,
            stored_at: Timestamp::now(),
        };
        self.commit(record, &[], Origin::Loaded)
    }

    /// Makes sure that a layer is in place; `room` shrinks by what it holds.
    #[expect(clippy::too_many_arguments, reason = "what one layer is, used by three callers")]
    pub(super) fn place_layer<R: Read>(
        &self,
        what: &str,
        diff_id: Digest,
        open: impl FnOnce() -> Result<R, ImageError>,
        compression: Compression,
        blob: Option<Digest>,
        room: &mut UnpackLimits,
        cancelled: &AtomicBool,
    ) -> Result<LayerFacts, ImageError> {
        let facts = match self.disk.layer(diff_id)? {
            Some(facts) => facts,
            None => {
                let made = self.disk.temporary_dir()?;
                let root = made.path().join("fs");
                make_layer_root(&root)?;
                let keep_reserve = || self.keep_reserve();
                let overseer = Overseer::new(cancelled, &keep_reserve);
                keep_reserve()?;
                let unpacked =
                    unpack_layer(what, open()?, compression, blob, &root, *room, &overseer)?;
                if unpacked.diff_id != diff_id {
                    return Err(ImageError::DigestMismatch {
                        what: format!("{what}, unpacked,"),
                        expected: diff_id,
                        actual: unpacked.diff_id,
                    });
                }
                let facts = LayerFacts {
                    plain_bytes: unpacked.plain_bytes,
                    unpacked_bytes: unpacked.unpacked_bytes,
                    entries: unpacked.entries,
                };
                self.disk.keep_layer(made, diff_id, facts)?;
                facts
            }
        };
        room.max_bytes = room.max_bytes.checked_sub(facts.unpacked_bytes).ok_or_else(|| {
            ImageError::refused(
                what,
                "unpacked, the image is larger than allowed; see max_unpacked_bytes and \
                 max_pulled_bytes in [images]",
            )
        })?;
        Ok(facts)
    }
}

/// The directory that a layer is unpacked into, as archives without an entry for it mean it.
pub(super) fn make_layer_root(root: &Path) -> Result<(), ImageError> {
    make_dir(root)?;
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(root, open_to_all).map_err(|e| ImageError::io("making", root, &e))
}

/// The record of an image that came without a manifest.
pub(super) fn make_record(
    config: Vec<u8>,
    layer_descriptors: Vec<Descriptor>,
    layers: Vec<ImageLayer>,
) -> Result<Record, ImageError> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: Descriptor {
            media_type: OCI_CONFIG.to_owned(),
            digest: Digest::of(&config),
            size: config.len() as u64,
            platform: None,
            annotations: Default::default(),
        },
        layers: layer_descriptors,
    };
    let manifest = serde_json::to_string(&manifest)
        .map_err(|e| ImageError::store(format!("writing a manifest: {e}")))?;
    let config = String::from_utf8(config)
        .map_err(|_| ImageError::refused("the image", "its configuration is not UTF-8"))?;
    Ok(Record {
        digest: Digest::of(manifest.as_bytes()),
        aliases: Vec::new(),
        manifest,
        config,
        layers,
        stored_at: Timestamp::now(),
    })
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn blob_document(archive: &Archive, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
    let name = blob_name(descriptor.digest);
    let text = archive.required_document(&name)?;
    check_digest(&name, &text, descriptor.digest)?;
    Ok(text)
}

pub(super) fn check_digest(what: &str, text: &[u8], expected: Digest) -> Result<(), ImageError> {
    let actual = Digest::of(text);
    if actual == expected {
        return Ok(());
    }
    Err(ImageError::DigestMismatch { what: what.to_owned(), expected, actual })
}

/// The names that an entry of an index carries. `ref.name` alone may be a mere tag, which names
/// nothing.
fn names_of(entry: &Descriptor) -> Vec<String> {
    let annotation = |key: &str| entry.annotations.get(key).map(String::as_str);
    let full = annotation("io.containerd.image.name").or_else(|| {
        annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']))
    });
    full.and_then(|name| ImageRef::parse(name).ok()).map(|r| r.key()).into_iter().collect()
}

fn normalised<'a>(tags: impl Iterator<Item = &'a String>) -> Result<Vec<String>, ImageError> {
    tags.map(|tag| ImageRef::parse(tag).map(|reference| reference.key())).collect()
}
