//! Reads the documents of an image and checks what everything later relies on.

use super::config::{ImageConfig, Platform};
use super::digest::Digest;
use super::error::ImageError;
use super::model::{
    Compression, ConfigDocument, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, IndexOrManifest,
    Manifest, OCI_INDEX, OCI_MANIFEST,
};

/// What a document of a registry or layout turned out to be.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// Reads an index or manifest. `what` names the image or archive for errors.
pub(super) fn parse(what: &str, text: &[u8]) -> Result<Document, ImageError> {
    let document: IndexOrManifest = serde_json::from_slice(text)
        .map_err(|e| ImageError::refused(what, format!("its manifest cannot be read: {e}")))?;
    let media_type = document.media_type.unwrap_or_default();
    if document.schema_version != 2 {
        return Err(ImageError::refused(
            what,
            "its manifest is of a kind that is no longer supported (schema 1); push it again with \
             a current tool",
        ));
    }
    // A document that could be read as either is read differently by others: refused.
    match (document.manifests, document.config, document.layers) {
        (Some(manifests), None, None)
            if matches!(media_type.as_str(), "" | OCI_INDEX | DOCKER_INDEX) =>
        {
            Ok(Document::Index(manifests))
        }
        (None, Some(config), Some(layers))
            if matches!(media_type.as_str(), "" | OCI_MANIFEST | DOCKER_MANIFEST) =>
        {
            Ok(Document::Manifest(Manifest { schema_version: 2, media_type, config, layers }))
        }
        _ => Err(ImageError::refused(
            what,
            format!("it is not an image but something else (\"{media_type}\")"),
        )),
    }
}

/// Chooses the entry of an index that is made for this machine; the error names what there is.
pub(super) fn choose<'a>(
    manifests: &'a [Descriptor],
    platform: &Platform,
) -> Result<&'a Descriptor, String> {
    let is_image = |descriptor: &&Descriptor| {
        let kind = descriptor.annotations.get("vnd.docker.reference.type");
        kind.is_none_or(|kind| kind != "attestation-manifest")
            && matches!(
                descriptor.media_type.as_str(),
                "" | OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_INDEX
            )
    };
    let fits = |descriptor: &&Descriptor| {
        descriptor
            .platform
            .as_ref()
            .is_none_or(|p| platform.accepts(&p.os, &p.architecture, p.variant.as_deref()))
    };
    manifests.iter().filter(is_image).find(fits).ok_or_else(|| {
        let mut names: Vec<_> = manifests
            .iter()
            .filter(is_image)
            .filter_map(|descriptor| descriptor.platform.as_ref())
            .map(|p| {
                let variant = p.variant.iter().flat_map(|v| ["/", v.as_str()]);
                [p.os.as_str(), "/", &p.architecture].into_iter().chain(variant).collect::<String>()
            })
            .take(20)
            .collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
    })
}

/// A manifest and configuration that belong together, ready for their layers.
#[derive(Debug)]
pub(super) struct Documents {
    pub(super) manifest_text: String,
    pub(super) manifest_digest: Digest,
    pub(super) manifest: Manifest,
    pub(super) config_text: String,
    pub(super) config: ConfigDocument,
}

impl Documents {
    /// Checks a manifest and its configuration against each other and against the limits.
    pub(super) fn check(
        what: &str,
        manifest_text: Vec<u8>,
        manifest: Manifest,
        config_text: Vec<u8>,
        platform: &Platform,
        limits: &ImageConfig,
    ) -> Result<Self, ImageError> {
        let refused = |reason: String| ImageError::refused(what, reason);
        let manifest_digest = Digest::of(&manifest_text);
        let manifest_text = String::from_utf8(manifest_text)
            .map_err(|_| refused("its manifest is not UTF-8".to_owned()))?;
        let config = parse_config(what, &config_text, platform)?;
        let config_text = String::from_utf8(config_text)
            .map_err(|_| refused("its configuration is not UTF-8".to_owned()))?;
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(refused(format!(
                "its manifest has {layers} layers and its configuration {diff_ids}"
            )));
        }
        check_layer_count(what, layers, limits)?;
        Ok(Self { manifest_text, manifest_digest, manifest, config_text, config })
    }

    /// Each layer with its compression and the digest of what it unpacks to.
    pub(super) fn layers(
        &self,
        what: &str,
    ) -> Result<Vec<(&Descriptor, Compression, Digest)>, ImageError> {
        self.manifest
            .layers
            .iter()
            .zip(&self.config.rootfs.diff_ids)
            .map(|(layer, diff_id)| {
                let compression = Compression::of_media_type(&layer.media_type);
                let compression = compression.ok_or_else(|| {
                    let kind: String = layer.media_type.chars().take(100).collect();
                    ImageError::refused(
                        what,
                        format!("a layer of kind \"{kind}\" is not supported"),
                    )
                })?;
                Ok((layer, compression, *diff_id))
            })
            .collect()
    }
}

/// Reads an image's configuration.
pub(super) fn parse_config(
    what: &str,
    text: &[u8],
    platform: &Platform,
) -> Result<ConfigDocument, ImageError> {
    let refused = |reason: String| ImageError::refused(what, reason);
    let config: ConfigDocument = serde_json::from_slice(text)
        .map_err(|e| refused(format!("its configuration cannot be read: {e}")))?;
    if config.rootfs.kind != "layers" {
        return Err(refused(format!("its file system is of kind \"{}\"", config.rootfs.kind)));
    }
    if !platform.accepts(&config.os, &config.architecture, config.variant.as_deref()) {
        return Err(ImageError::WrongPlatform {
            reference: what.to_owned(),
            wanted: platform.to_string(),
            available: format!("{}/{}", config.os, config.architecture),
        });
    }
    Ok(config)
}

pub(super) fn check_layer_count(
    what: &str,
    layers: usize,
    limits: &ImageConfig,
) -> Result<(), ImageError> {
    if layers == 0 {
        return Err(ImageError::refused(what, "it has no layers"));
    }
    if layers > limits.max_layers {
        let max = limits.max_layers;
        return Err(ImageError::refused(what, format!("it has {layers} layers, more than {max}")));
    }
    Ok(())
}
