//! Images are the engine's: here it is only decided when a registry is to be asked, by the rules of
//! the embedded runtime, and what the engine's words mean.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use oci_spec::distribution::Reference;
use parking_lot::Mutex;
use stackd_core::RuntimeError;
use stackd_core::runtime::ErrorKind;
use stackd_core::spec::ImagePullPolicy;
use stackd_core::stack::{Condition, reason};

use super::config::MachineConfig;
use super::engine::{answer, away, chain, is_absent};
use crate::host::credentials::{self, Credentials};
use crate::images;

type Pull = Shared<BoxFuture<'static, Result<(), RuntimeError>>>;

/// What is known of the engine's images.
pub(super) struct Images {
    docker: Docker,
    config: MachineConfig,
    /// Goes up with every change of the engine's images.
    known: Mutex<(u64, HashSet<String>)>,
    pulls: Mutex<HashMap<String, Pull>>,
}

impl Images {
    pub(super) fn new(docker: Docker, config: MachineConfig) -> Arc<Self> {
        Arc::new(Self { docker, config, known: Mutex::default(), pulls: Mutex::default() })
    }

    /// Something has changed: what was known counts no more.
    pub(super) fn forget(&self) {
        let mut known = self.known.lock();
        known.0 += 1;
        known.1.clear();
    }

    /// Makes sure that the engine has an image. The rules are those of the embedded runtime's
    /// store; an image that has no digest of a registry was loaded or built there.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        image: &str,
        policy: Option<ImagePullPolicy>,
    ) -> Result<(), RuntimeError> {
        let is_id = image.starts_with("sha256:");
        let reference = if is_id { None } else { Some(images::parse(image)?) };
        let asks = |reference: &Reference| {
            let latest = reference.tag() == Some("latest");
            let pinned = reference.digest().is_some();
            !pinned && (policy == Some(ImagePullPolicy::Always) || (policy.is_none() && latest))
        };
        let generation = {
            let known = self.known.lock();
            if known.1.contains(image) && !reference.as_ref().is_some_and(asks) {
                return Ok(());
            }
            known.0
        };
        let here = match self.docker.inspect_image(image).await {
            Ok(here) => Some(here),
            Err(e) if is_absent(&e) => None,
            Err(e) => return Err(trouble(image, &e)),
        };
        let was_pulled = |here: &ImageInspect| {
            here.repo_digests.as_ref().is_some_and(|digests| !digests.is_empty())
        };
        match (here, reference) {
            (Some(here), Some(reference)) if asks(&reference) => {
                let pulled = was_pulled(&here);
                if policy.is_none() && !pulled {
                    return Ok(());
                }
                match self.pull_shared(image, reference).await {
                    Err(error) if covers(policy, pulled, &error) => {
                        tracing::warn!(
                            image,
                            error = error.operator,
                            "the registry could not be asked; the image that is here is used"
                        );
                        Ok(())
                    }
                    result => result,
                }
            }
            (Some(_), _) => {
                let mut known = self.known.lock();
                if known.0 == generation {
                    known.1.insert(image.to_owned());
                }
                Ok(())
            }
            (None, _) if policy == Some(ImagePullPolicy::Never) => {
                let text = format!("image \"{image}\" is not here, and its pull policy is Never");
                Err(RuntimeError::open(ErrorKind::Rejected, reason::IMAGE_NEVER_PULL, text))
            }
            (None, None) => {
                let text = format!("image \"{image}\" is not here; pull or load it first");
                Err(rejected(text))
            }
            (None, Some(reference)) => self.pull_shared(image, reference).await,
        }
    }

    /// Joins the pull of this image that is under way, or starts one. It goes on when its waiters
    /// leave: what it brings is kept.
    async fn pull_shared(
        self: &Arc<Self>,
        image: &str,
        reference: Reference,
    ) -> Result<(), RuntimeError> {
        let pull = {
            let mut pulls = self.pulls.lock();
            match pulls.get(image) {
                Some(pull) => pull.clone(),
                None => {
                    let (images, name) = (Arc::clone(self), image.to_owned());
                    let work = tokio::spawn(async move {
                        let result = images.pull(&name, &reference).await;
                        images.pulls.lock().remove(&name);
                        if let Err(error) = &result {
                            tracing::warn!(image = name, error = error.operator, "a pull failed");
                        }
                        result
                    });
                    let pull = async move {
                        work.await.unwrap_or_else(|e| Err(super::engine::failed(e.to_string())))
                    };
                    let pull = pull.boxed().shared();
                    pulls.insert(image.to_owned(), pull.clone());
                    pull
                }
            }
        };
        pull.await
    }

    async fn pull(&self, image: &str, reference: &Reference) -> Result<(), RuntimeError> {
        let host = reference.registry();
        images::allow(&self.config.allowed_registries, reference)?;
        let found = credentials::find(host, self.config.docker_config.as_deref()).await;
        let credentials = found.map_err(|operator| {
            let text = format!("the credentials for {host} cannot be read");
            let condition = Condition::new(reason::IMAGE_PULL, text);
            RuntimeError::new(ErrorKind::Failed, condition, operator)
        })?;
        let name = format!("{host}/{}", reference.repository());
        let which = reference.digest().or(reference.tag()).unwrap_or("latest");
        let options = CreateImageOptionsBuilder::new().from_image(&name).tag(which).build();
        let mut steps = self.docker.create_image(Some(options), None, given(credentials, host));
        while let Some(step) = steps.next().await {
            step.map_err(|e| refused_pull(image, host, &e))?;
        }
        Ok(())
    }
}

fn given(credentials: Credentials, host: &str) -> Option<DockerCredentials> {
    let mut given =
        DockerCredentials { serveraddress: Some(host.to_owned()), ..DockerCredentials::default() };
    match credentials {
        Credentials::Anonymous => return None,
        Credentials::Password { user, password } => {
            given.username = Some(user);
            given.password = Some(password);
        }
        Credentials::IdentityToken(token) => given.identitytoken = Some(token),
        Credentials::RegistryToken(token) => given.registrytoken = Some(token),
    }
    Some(given)
}

/// Whether the image that is here is good enough although the registry did not give it.
fn covers(policy: Option<ImagePullPolicy>, pulled: bool, error: &RuntimeError) -> bool {
    match (policy, error.kind) {
        (Some(_), ErrorKind::Retry) => !pulled,
        (None, ErrorKind::Retry) => true,
        (Some(_), ErrorKind::Rejected) => !pulled,
        _ => false,
    }
}

fn rejected(text: String) -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::IMAGE_PULL, text)
}

/// The engine could not say whether it has an image.
fn trouble(image: &str, error: &Error) -> RuntimeError {
    match answer(error) {
        Some((400, message)) => rejected(format!("invalid image reference \"{image}\": {message}")),
        _ => away(format!("look for image {image}: {}", chain(error))),
    }
}

/// What a pull was refused for. The engine has no codes for it, only words.
fn refused_pull(image: &str, host: &str, error: &Error) -> RuntimeError {
    let operator = format!("pull {image}: {}", chain(error));
    let words = operator.to_ascii_lowercase();
    let any = |list: &[&str]| list.iter().any(|text| words.contains(text));
    let with = |kind, text: String| {
        RuntimeError::new(kind, Condition::new(reason::IMAGE_PULL, text), operator.clone())
    };
    let engine_is_away =
        answer(error).is_none() && !matches!(error, Error::DockerStreamError { .. });
    if engine_is_away {
        return away(operator.clone());
    }
    if any(&["no matching manifest", "does not match the specified platform"]) {
        let text = format!("image \"{image}\" is not made for the machine of the Docker engine");
        return with(ErrorKind::Rejected, text);
    }
    if any(&["unauthorized", "no basic auth credentials", "denied", "authentication required"]) {
        let text = format!("{host} denies access to image \"{image}\"");
        return with(ErrorKind::Rejected, text);
    }
    if any(&["manifest unknown", "not found", "name unknown", "does not exist"]) {
        let text = format!("image \"{image}\" does not exist in {host}");
        return with(ErrorKind::Rejected, text);
    }
    if any(&["no space left"]) {
        let text = "the Docker engine has no disk space left for the image".to_owned();
        return with(ErrorKind::Retry, text);
    }
    with(ErrorKind::Retry, format!("{host} cannot be reached for image \"{image}\""))
}
