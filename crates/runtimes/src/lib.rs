//! Drivers of [`stackd_core::runtime::Runtime`], a module and a feature each.
//!
//! A kernel or cluster fact lives here, in the driver that meets it; what should run is decided
//! elsewhere. No driver knows another one; what several of them do on this machine is in `host`, and
//! what they say of images in `images`.

#[cfg(feature = "docker")]
pub mod docker;
#[cfg(any(feature = "docker", feature = "oci"))]
mod host;
#[cfg(any(feature = "docker", feature = "kubernetes", feature = "oci"))]
mod images;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
#[cfg(feature = "oci")]
pub mod oci;
#[cfg(feature = "simulated")]
pub mod simulated;
