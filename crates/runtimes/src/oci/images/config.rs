//! Settings of the image store: the `[images]` section of the configuration file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a timeout of 0 is taken for: it would let nothing happen.
pub(super) const SHORTEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Where images come from and how large they may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// A Docker `config.json` with the credentials of registries (`auths`, `credHelpers`,
    /// `credsStore`). It is read again at every pull. Without it, every pull is anonymous.
    pub docker_config: Option<PathBuf>,
    /// Registries (`host` or `host:port`) that are asked by plain HTTP. Those on a loopback
    /// address are asked by HTTPS and, where they do not speak it, by plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Registries (`host` or `host:port`) that may have an address which is not public: a private or
    /// a link's own one. So may those that another setting here names, or that `docker_config` has
    /// credentials for. No other registry is asked at such an address.
    pub internal_registries: Vec<String>,
    /// Registries that images may be pulled from; empty means any. Images that were loaded or
    /// imported are not concerned.
    pub allowed_registries: Vec<String>,
    /// Mirrors of a registry (`host` or `host:port`), asked in this order before the registry
    /// itself.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Files with further certificate authorities (PEM) to trust, besides the machine's own.
    pub extra_ca: Vec<PathBuf>,
    /// The platform of images, as `os/architecture` or `os/architecture/variant`; this machine's
    /// where absent.
    pub platform: Option<String>,
    /// How many layers are downloaded at once from one registry, over all pulls.
    pub max_concurrent_downloads: usize,
    /// How often a download that broke is taken up again without having advanced.
    pub download_attempts: u32,
    /// How long nothing may come before a download has broken.
    #[serde(with = "stackd_core::duration")]
    pub read_timeout: Duration,
    /// How long connecting to a registry may take.
    #[serde(with = "stackd_core::duration")]
    pub connect_timeout: Duration,
    /// Bytes a second, averaged over a minute, below which a download is given up. 0 asks for none.
    pub min_download_rate: u64,
    /// How long one pull may take in all. What it has brought is kept for the next one.
    #[serde(with = "stackd_core::duration")]
    pub pull_timeout: Duration,
    /// How long a pull goes on when nobody waits for it any more.
    #[serde(with = "stackd_core::duration")]
    pub abandoned_pull: Duration,
    /// Bytes of the disk that images never take, but no more than a tenth of it. Where less is
    /// free, pulled images that no stack uses go, the one that was used longest ago first.
    pub free_bytes: u64,
    /// The most bytes that all pulled images may have together; half of the disk where absent.
    /// Beyond it, those that no stack uses go in the same way. Loaded and imported images do not
    /// count and never go by themselves.
    pub max_pulled_bytes: Option<u64>,
    /// The most bytes that the compressed layers of one image may have together.
    pub max_download_bytes: u64,
    /// The most bytes that one image may have unpacked.
    pub max_unpacked_bytes: u64,
    /// The most files, directories and links that one layer may have.
    pub max_layer_entries: u64,
    /// The most layers that one image may have. The kernel stacks at most 500.
    pub max_layers: usize,
    /// How many times larger than its archive a layer may be unpacked, once it has passed 64 MiB.
    pub max_expansion: u64,
}

impl Default for ImageConfig {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            docker_config: None,
            insecure_registries: Vec::new(),
            internal_registries: Vec::new(),
            allowed_registries: Vec::new(),
            mirrors: BTreeMap::new(),
            extra_ca: Vec::new(),
            platform: None,
            max_concurrent_downloads: 3,
            download_attempts: 5,
            read_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            min_download_rate: 4 << 10,
            pull_timeout: Duration::from_secs(3600),
            abandoned_pull: Duration::from_secs(60),
            free_bytes: 2 * GIB,
            max_pulled_bytes: None,
            max_download_bytes: 10 * GIB,
            max_unpacked_bytes: 20 * GIB,
            max_layer_entries: 1_000_000,
            max_layers: 128,
            max_expansion: 250,
        }
    }
}

/// What images must be made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// As in Go: `amd64`, `arm64`.
    pub architecture: String,
    /// For example `v7`.
    pub variant: Option<String>,
}

/// The setting `platform` is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a platform: os/architecture or os/architecture/variant is expected")]
pub struct InvalidPlatform(String);

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Reads `os/architecture[/variant]`.
    pub fn parse(text: &str) -> Result<Self, InvalidPlatform> {
        let mut parts = text.split('/');
        let mut next = || parts.next().filter(|part| !part.is_empty()).map(str::to_owned);
        match (next(), next(), next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) => Ok(Self { os, architecture, variant }),
            _ => Err(InvalidPlatform(text.to_owned())),
        }
    }

    /// Whether something made for `other` is right for this. What names no platform fits.
    pub fn accepts(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let fits = |wanted: &str, given: &str| given.is_empty() || given == wanted;
        fits(&self.os, os)
            && fits(&self.architecture, architecture)
            && self
                .variant
                .as_deref()
                .is_none_or(|wanted| variant.is_none_or(|given| fits(wanted, given)))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_read_back_from_what_it_prints() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x"] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_was_made_for_it_fits() {
        let arm = Platform::parse("linux/arm/v7").unwrap();
        assert!(arm.accepts("linux", "arm", Some("v7")));
        assert!(arm.accepts("linux", "arm", None));
        assert!(arm.accepts("", "", None));
        assert!(!arm.accepts("linux", "arm", Some("v6")));
        assert!(!arm.accepts("linux", "arm64", None));
        assert!(!arm.accepts("windows", "arm", None));
    }
}
