//! Pods: read from a caller's YAML into a [`StackSpec`], and shown again as the hardened Pod.
//!
//! [`parse`] takes a strict subset of Kubernetes' `v1.Pod`. What it accepts can run here; anything
//! else is refused by name, so that nothing a caller wrote is ever silently dropped. It looks, and
//! reports the first fault, in this order:
//!
//! 1. the YAML itself: size, syntax, one document, no key twice, bounds on depth, nodes and aliases;
//! 2. `kind`;
//! 3. what is forbidden for everybody, wherever it stands: the host's namespaces, security contexts
//!    (the Pod's, then the containers'), service accounts, placement, ephemeral containers,
//!    `hostPath`, projected tokens;
//! 4. the document from top to bottom: metadata, the Pod's own fields, volumes, init containers,
//!    containers. In each object first the fields it cannot have, then its fields one by one;
//! 5. what spans containers: ports to publish.
//!
//! `null` counts as absent, as do zero values where Kubernetes cannot tell them from absent (an
//! empty text, 0, `false`, an empty list). An empty `securityContext` counts as given.

mod emit;
mod error;
mod image;
mod names;
mod plain;
mod probe;
mod read;
mod render;
mod tree;
mod yaml;

#[cfg(test)]
mod tests;

pub use error::PodError;
pub use read::parse;
pub use render::render;

#[cfg(doc)]
use crate::spec::StackSpec;

/// What is filled in for a container that does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodDefaults {
    /// CPU of a container that names none; `None` makes it an error.
    pub cpu_milli: Option<u64>,
    /// Memory of a container that names none; `None` makes it an error.
    pub memory_bytes: Option<u64>,
}
