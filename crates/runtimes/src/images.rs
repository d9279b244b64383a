//! What every driver says of images, whoever pulls them: which registry a name is of, whether that
//! one may be asked, and what is wrong with an image that has nothing to run.

#[cfg(any(feature = "docker", feature = "kubernetes"))]
use {
    oci_spec::distribution::{ParseError, Reference},
    stackd_core::RuntimeError,
    stackd_core::runtime::ErrorKind,
    stackd_core::stack::reason,
};

/// Whether images of a registry may be pulled; an empty list allows all.
pub(crate) fn is_allowed(allowed: &[String], registry: &str) -> bool {
    allowed.is_empty() || allowed.iter().any(|name| name == registry)
}

/// What is said of an image of another registry.
pub(crate) fn not_allowed(registry: &str) -> String {
    format!("images of {registry} may not be pulled here")
}

/// What is said of a container for which neither the image nor the Pod names a program.
pub(crate) fn no_command(container: &str) -> String {
    format!(
        "container \"{container}\": the image names no command; set command or args in the container"
    )
}

/// Reads the name of an image, as people write it.
#[cfg(any(feature = "docker", feature = "kubernetes"))]
pub(crate) fn parse(image: &str) -> Result<Reference, RuntimeError> {
    let invalid = |why: ParseError| {
        RuntimeError::open(
            ErrorKind::Rejected,
            reason::IMAGE_PULL,
            format!("invalid image reference \"{image}\": {why}"),
        )
    };
    let reference: Reference = image.parse().map_err(invalid)?;
    // `Host/app` is of Docker Hub to this library, and of the registry `Host` to a node.
    if reference.repository().bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(invalid(ParseError::NameContainsUppercase));
    }
    Ok(reference)
}

/// Refuses an image of a registry that may not be asked.
#[cfg(any(feature = "docker", feature = "kubernetes"))]
pub(crate) fn allow(allowed: &[String], reference: &Reference) -> Result<(), RuntimeError> {
    let registry = reference.registry();
    if is_allowed(allowed, registry) {
        return Ok(());
    }
    Err(RuntimeError::open(ErrorKind::Rejected, reason::IMAGE_PULL, not_allowed(registry)))
}
