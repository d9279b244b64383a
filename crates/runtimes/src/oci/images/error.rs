//! What can go wrong with an image. One error for all of the store; waiters of one pull share it,
//! so it can be cloned.

use std::io;
use std::path::Path;

use stackd_core::runtime::{ErrorKind, RuntimeError};
use stackd_core::stack::{Condition, reason};

use super::digest::{Digest, InvalidDigest};
use crate::images;

/// A failure of the image store. Shown, it is for callers; [`ImageError::operator`] is for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The text does not name an image.
    #[error("invalid image reference \"{reference}\": {reason}")]
    InvalidReference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not in the store.
    #[error("image \"{reference}\" is not here; pull, load or import it first")]
    NotHere {
        /// Which.
        reference: String,
    },
    /// It is not in the store, and the pull policy forbids to fetch it.
    #[error("image \"{reference}\" is not here, and its pull policy is Never")]
    NeverPull {
        /// Which.
        reference: String,
    },
    /// Its registry does not have it.
    #[error("image \"{reference}\" does not exist in {registry}")]
    NotFound {
        /// Which.
        reference: String,
        /// Where it was looked for.
        registry: String,
    },
    /// Its registry wants other credentials.
    #[error("{registry} denies access to image \"{reference}\"")]
    Denied {
        /// Which.
        reference: String,
        /// Who denies it.
        registry: String,
        /// What the registry said.
        operator: String,
    },
    /// The configuration does not allow its registry.
    #[error("{}", images::not_allowed(.registry))]
    RegistryNotAllowed {
        /// Which registry.
        registry: String,
    },
    /// Its registry leads to where nobody is asked from here.
    #[error("{registry} may not be asked for image \"{reference}\": {why}")]
    OutOfReach {
        /// Which image.
        reference: String,
        /// Which registry.
        registry: String,
        /// What is wrong with the place.
        why: &'static str,
        /// Which place it is.
        operator: String,
    },
    /// The registry does not answer, or breaks off.
    #[error("{registry} cannot be reached for image \"{reference}\"{why}")]
    Unreachable {
        /// Which image.
        reference: String,
        /// Which registry.
        registry: String,
        /// Why, where it is more than that nobody answers; with a colon before it.
        why: &'static str,
        /// What happened.
        operator: String,
    },
    /// The credentials of a registry cannot be read.
    #[error("the credentials for {registry} cannot be read")]
    Credentials {
        /// Whose.
        registry: String,
        /// Why.
        operator: String,
    },
    /// It is hostile, damaged or of a kind that is not supported.
    #[error("{what}: {reason}")]
    Refused {
        /// The image, layer or archive, and the entry in it.
        what: String,
        /// Why, and what to do about it.
        reason: String,
    },
    /// Content is not what its digest says.
    #[error("{what} is damaged: its digest should be {expected} and is {actual}")]
    DigestMismatch {
        /// What.
        what: String,
        /// As promised.
        expected: Digest,
        /// As found.
        actual: Digest,
    },
    /// It is made for another machine.
    #[error("image \"{reference}\" is not made for {wanted}, only for {available}")]
    WrongPlatform {
        /// Which.
        reference: String,
        /// What this machine needs.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// It cannot be removed now.
    #[error("image \"{reference}\" is used by {leases} running stacks; delete them first")]
    InUse {
        /// Which.
        reference: String,
        /// How many.
        leases: usize,
    },
    /// The disk's reserve or the budget of pulled images is used up, by what cannot go.
    #[error("there is no room for further images on this machine now")]
    NoRoom {
        /// Room for what, how much is there, and which setting says so.
        operator: String,
    },
    /// The store is at fault: its disk, or its contents.
    #[error("the image store failed")]
    Store {
        /// What it was about, and what the system said.
        operator: String,
        /// There is no space left on its disk.
        disk_full: bool,
    },
}

impl ImageError {
    /// A failure of the store itself.
    pub(super) fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        let disk_full =
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Self::Store { operator: format!("{doing} {}: {error}", path.display()), disk_full }
    }

    pub(super) fn store(operator: impl Into<String>) -> Self {
        Self::Store { operator: operator.into(), disk_full: false }
    }

    pub(super) fn refused(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), reason: reason.into() }
    }

    pub(super) fn invalid_digest(what: &str, error: InvalidDigest) -> Self {
        Self::refused(what, error.to_string())
    }

    /// Everything that is known, for the log.
    pub fn operator(&self) -> String {
        match self {
            Self::Denied { operator, .. }
            | Self::OutOfReach { operator, .. }
            | Self::Unreachable { operator, .. }
            | Self::NoRoom { operator }
            | Self::Credentials { operator, .. } => format!("{self}: {operator}"),
            Self::Store { operator, .. } => operator.clone(),
            _ => self.to_string(),
        }
    }

    /// Whose move it is.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } | Self::Store { disk_full: true, .. } => ErrorKind::Retry,
            Self::NoRoom { .. } => ErrorKind::Saturated,
            Self::Store { .. } | Self::Credentials { .. } => ErrorKind::Failed,
            _ => ErrorKind::Rejected,
        }
    }
}

impl From<ImageError> for RuntimeError {
    fn from(error: ImageError) -> Self {
        let reason = match error {
            ImageError::NeverPull { .. } => reason::IMAGE_NEVER_PULL,
            _ => reason::IMAGE_PULL,
        };
        Self::new(error.kind(), Condition::new(reason, error.to_string()), error.operator())
    }
}
