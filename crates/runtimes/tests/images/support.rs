//! Builds archives and images, byte by byte where they have to be wrong.

use std::io::Write;
use std::path::Path;

use stackd_runtimes::oci::images::{Digest, ImageConfig, ImageStore};

/// A store in a directory of its own.
pub struct TestStore {
    pub store: ImageStore,
    pub dir: tempfile::TempDir,
}

impl TestStore {
    pub fn new() -> Self {
        Self::with(ImageConfig::default())
    }

    pub fn with(config: ImageConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images"), config).unwrap();
        Self { store, dir }
    }

    /// Opens the same directory again, as after a restart. Everything of the first one must have
    /// been dropped.
    pub fn reopen(self, config: ImageConfig) -> Self {
        let Self { store, dir } = self;
        drop(store);
        let store = ImageStore::open(&dir.path().join("images"), config).unwrap();
        Self { store, dir }
    }

    /// The names in one of its directories, sorted.
    pub fn names_in(&self, part: &str) -> Vec<String> {
        let path = self.dir.path().join("images").join(part);
        let mut names: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A tar archive in the making.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(size as u64);
        header
    }

    pub fn file(mut self, name: &str, content: &[u8]) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, 0o644, content.len());
        self.0.append_data(&mut header, name, content).unwrap();
        self
    }

    pub fn directory(mut self, name: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Directory, 0o755, 0);
        self.0.append_data(&mut header, name, std::io::empty()).unwrap();
        self
    }

    pub fn symlink(mut self, name: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    pub fn hard_link(mut self, name: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Link, 0o644, 0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    /// An entry with its name as it is, and any field changed: what no honest tool writes.
    pub fn raw(
        mut self,
        name: &[u8],
        kind: u8,
        content: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = Self::header(tar::EntryType::new(kind), 0o644, content.len());
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// Extended attributes and the like, for the next entry.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A configuration document for layers with these digests.
pub fn config_json(diff_ids: &[Digest]) -> Vec<u8> {
    let platform = stackd_runtimes::oci::images::Platform::host();
    serde_json::to_vec(&serde_json::json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {
            "Cmd": ["/bin/app"],
            "Env": ["A=1"],
            "ExposedPorts": {"80/tcp": {}},
            "User": "web",
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap()
}

/// Writes `bytes` to a new file in `dir`.
pub fn file_in(dir: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A `docker save` archive of the old form: images by name, each a list of uncompressed layers.
pub fn docker_save(images: &[(&str, &[&[u8]])]) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut manifest = Vec::new();
    for (name, layers) in images {
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = config_json(&diff_ids);
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let mut paths = Vec::new();
        for (layer, diff_id) in layers.iter().zip(&diff_ids) {
            let path = format!("{}/layer.tar", diff_id.hex());
            tar = tar.file(&path, layer);
            paths.push(path);
        }
        tar = tar.file(&config_name, &config);
        manifest.push(serde_json::json!({
            "Config": config_name,
            "RepoTags": if name.is_empty() { vec![] } else { vec![name] },
            "Layers": paths,
        }));
    }
    tar.file("manifest.json", &serde_json::to_vec(&manifest).unwrap()).bytes()
}

/// Content by digest, with a manifest and its index entry: what layouts and registries share.
#[derive(Default, Clone)]
pub struct Blobs {
    pub by_digest: std::collections::BTreeMap<Digest, Vec<u8>>,
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

impl Blobs {
    pub fn add(&mut self, content: Vec<u8>) -> (Digest, usize) {
        let (digest, size) = (Digest::of(&content), content.len());
        self.by_digest.insert(digest, content);
        (digest, size)
    }

    /// An image of these layers: (plain tar, as it is sent, suffix of its media type).
    pub fn image(&mut self, layers: &[(&[u8], Vec<u8>, &str)]) -> Digest {
        let diff_ids: Vec<_> = layers.iter().map(|(plain, ..)| Digest::of(plain)).collect();
        let (config, config_size) = self.add(config_json(&diff_ids));
        let layers: Vec<_> = layers
            .iter()
            .map(|(_, sent, suffix)| {
                let (digest, size) = self.add(sent.clone());
                let media_type = format!("{LAYER}{suffix}");
                serde_json::json!({"mediaType": media_type, "digest": digest, "size": size})
            })
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config,
                "size": config_size,
            },
            "layers": layers,
        });
        self.add(serde_json::to_vec(&manifest).unwrap()).0
    }

    /// An index entry for a manifest.
    pub fn entry(&self, manifest: Digest, more: serde_json::Value) -> serde_json::Value {
        let mut entry = serde_json::json!({
            "mediaType": OCI_MANIFEST,
            "digest": manifest,
            "size": self.by_digest[&manifest].len(),
        });
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    }

    pub fn index(entries: &[serde_json::Value]) -> Vec<u8> {
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": entries,
        });
        serde_json::to_vec(&index).unwrap()
    }

    /// The members of a layout, by name.
    pub fn layout(&self, entries: &[serde_json::Value]) -> Vec<(String, Vec<u8>)> {
        let mut members = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), Self::index(entries)),
        ];
        for (digest, content) in &self.by_digest {
            members.push((format!("blobs/sha256/{}", digest.hex()), content.clone()));
        }
        members
    }
}

/// An archive of these members.
pub fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    members.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, content)).bytes()
}
