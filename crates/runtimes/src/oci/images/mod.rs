//! The images of the embedded runtime: a content-addressed store of unpacked layers.
//!
//! It owns `<data-dir>/images`: pulls from registries, loads archives, imports root file systems,
//! and hands out leases that name the directories to stack. It never mounts or runs anything, and
//! it trusts no byte of an image: see `unpack` for what is refused.
//!
//! # When is a registry asked?
//!
//! Kubernetes' rules, but for one thing: what was loaded or imported here is not looked for
//! elsewhere unless somebody insists. See [`ImageStore::ensure`].

mod archive;
mod config;
mod digest;
mod disk;
mod document;
mod ensure;
mod error;
mod import;
mod layer_files;
mod load;
mod model;
mod ops;
mod pull;
mod reference;
mod store;
mod unpack;
pub mod users;

pub use config::{ImageConfig, InvalidPlatform, Platform};
pub use digest::{Digest, InvalidDigest};
pub use ensure::{LayerProgress, LayerStep, Progress, ProgressSink, no_progress};
pub use error::ImageError;
pub use import::ImportOptions;
pub use load::Added;
pub use model::RunConfig;
pub use ops::{ImageDetails, ImageSummary, Removed};
pub use pull::install_tls_provider;
pub use reference::ImageRef;
pub use store::{Image, ImageLayer, ImageLease, ImageStore, Origin};
