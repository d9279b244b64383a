//! Whose credentials a registry gets.

use super::super::config::ImageConfig;
use super::super::error::ImageError;
use crate::host::credentials;

pub(super) use crate::host::credentials::Credentials;

/// Finds the credentials for a registry or mirror.
pub(super) async fn find(host: &str, config: &ImageConfig) -> Result<Credentials, ImageError> {
    let found = credentials::find(host, config.docker_config.as_deref()).await;
    found.map_err(|operator| ImageError::Credentials {
        registry: host.to_owned(),
        operator: format!("docker_config in [images]: {operator}"),
    })
}
