//! The JSON of images, as far as it is used here: indexes, manifests and configurations, OCI's and
//! Docker's, which agree in these fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use stackd_core::port::{Protocol, TargetPort};

use super::digest::Digest;

/// The most bytes that an index, manifest or configuration may have.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Points to content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<DescriptorPlatform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DescriptorPlatform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

/// An index or a manifest: which, is told by what it has.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IndexOrManifest {
    #[serde(default)]
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: Option<String>,
    #[serde(default)]
    pub(super) manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Option<Vec<Descriptor>>,
}

/// One image for one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    /// From the media type of a layer; `None` is not one that can be unpacked.
    pub(super) fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            OCI_LAYER_TAR
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Some(Self::Plain),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// From the first bytes of an archive.
    pub(super) fn of_magic(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// An image's configuration document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ConfigDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created: Option<String>,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) config: RunConfig,
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RootFs {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) diff_ids: Vec<Digest>,
}

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user[:group]`, names or numbers; empty is root.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub user: String,
    /// `port/protocol`, as written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program, and arguments that always hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Arguments unless others are given; the program too where there is no entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// The working directory; empty is `/`.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub working_dir: String,
    /// The image's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to end, where it wants another than `SIGTERM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

impl RunConfig {
    /// The ports that the image says it listens on, sorted; what cannot be read is left out.
    pub fn ports(&self) -> Vec<TargetPort> {
        let mut ports: Vec<_> = self
            .exposed_ports
            .keys()
            .filter_map(|text| {
                let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
                let container_port = number.parse().ok().filter(|port| *port > 0)?;
                Some(TargetPort { container_port, protocol: Protocol::parse(protocol)? })
            })
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// Docker writes `null` where it means nothing.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_nulls_are_nothing() {
        let document: ConfigDocument = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","config":{"User":"","ExposedPorts":null,
            "Env":null,"Entrypoint":null,"Cmd":["sh"],"Labels":null,"Volumes":{"/x":{}}},
            "rootfs":{"type":"layers","diff_ids":null},"history":[{"created_by":"x"}]}"#,
        )
        .unwrap();
        assert_eq!(document.config, RunConfig { cmd: vec!["sh".to_owned()], ..Default::default() });
    }

    #[test]
    fn ports_are_read_from_what_the_image_exposes() {
        let config: RunConfig = serde_json::from_str(
            r#"{"ExposedPorts":{"80/tcp":{},"53/udp":{},"443":{},"x/tcp":{},"0/tcp":{}}}"#,
        )
        .unwrap();
        let ports: Vec<_> =
            config.ports().iter().map(|p| format!("{}/{}", p.container_port, p.protocol)).collect();
        assert_eq!(ports, ["53/UDP", "80/TCP", "443/TCP"]);
    }

    #[test]
    fn compression_is_told_by_media_type_or_first_bytes() {
        let gzip = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        assert_eq!(Compression::of_media_type(gzip), Some(Compression::Gzip));
        assert_eq!(Compression::of_media_type("application/x-tar"), None);
        assert_eq!(Compression::of_magic(b"\x28\xb5\x2f\xfd"), Compression::Zstd);
        assert_eq!(Compression::of_magic(b"\x1f\x8b"), Compression::Gzip);
        assert_eq!(Compression::of_magic(b""), Compression::Plain);
    }
}
