//! The engine's images, for the commands of an operator.

use std::sync::Arc;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptions, ListImagesOptions, RemoveImageOptionsBuilder,
    TagImageOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use stackd_core::runtime::ErrorKind;
use stackd_core::spec::ImagePullPolicy;
use stackd_core::stack::reason;
use stackd_core::{RuntimeError, Timestamp};

use super::config::DockerConfig;
use super::engine::{self, EngineError, answer, fault};
use super::images::Images;

/// The images of a Docker engine. Clones are the same.
#[derive(Clone)]
pub struct EngineImages {
    pub(super) docker: Docker,
    pub(super) images: Arc<Images>,
}

/// An image of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineImage {
    /// What the engine calls it: `sha256:…`, the digest of its configuration.
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// When it was built.
    pub created_at: Timestamp,
    /// How many containers are made from it.
    pub containers: usize,
}

/// A root file system that becomes an image: what goes with it, as lines of a Dockerfile.
#[derive(Debug, Clone, Default)]
pub struct EngineImport {
    /// Its name, with a tag.
    pub name: String,
    /// For example `ENTRYPOINT ["/app"]`.
    pub changes: Vec<String>,
}

impl EngineImages {
    /// Connects to the engine that is configured.
    pub async fn connect(config: &DockerConfig) -> Result<Self, EngineError> {
        let docker = engine::connect(config).await?;
        let images = Images::new(docker.clone(), config.machine.clone());
        Ok(Self { docker, images })
    }

    /// Pulls an image, whatever is here.
    pub async fn pull(&self, reference: &str) -> Result<EngineImage, RuntimeError> {
        let policy = Some(ImagePullPolicy::Always);
        self.images.prepare(reference, policy).await?;
        self.find(reference).await
    }

    /// Loads what `docker save` wrote; gives the images that were in it.
    pub async fn load(
        &self,
        archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Vec<EngineImage>, RuntimeError> {
        let options = ImportImageOptions::default();
        let mut steps = self.docker.import_image_stream(options, archive, None);
        let mut names = Vec::new();
        while let Some(step) = steps.next().await {
            let step = step.map_err(|e| refused("load an archive", &e))?;
            let said = step.stream.unwrap_or_default();
            let said = said.trim();
            let name = said
                .strip_prefix("Loaded image: ")
                .or_else(|| said.strip_prefix("Loaded image ID: "));
            names.extend(name.map(str::to_owned));
        }
        self.images.forget();
        let mut loaded: Vec<EngineImage> = Vec::new();
        for name in names {
            let image = self.find(&name).await?;
            if loaded.iter().all(|known| known.id != image.id) {
                loaded.push(image);
            }
        }
        Ok(loaded)
    }

    /// Makes an image of a root file system, as a tarball.
    pub async fn import(
        &self,
        rootfs: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
        import: EngineImport,
    ) -> Result<EngineImage, RuntimeError> {
        let (repository, tag) = split(&import.name);
        let options = CreateImageOptionsBuilder::new().from_src("-").repo(repository).tag(tag);
        let options = options.changes(import.changes.clone()).build();
        let body = bollard::body_try_stream(rootfs);
        let mut steps = self.docker.create_image(Some(options), Some(body), None);
        while let Some(step) = steps.next().await {
            step.map_err(|e| refused("import a root file system", &e))?;
        }
        self.images.forget();
        self.find(&import.name).await
    }

    /// All images that have a name.
    pub async fn list(&self) -> Result<Vec<EngineImage>, RuntimeError> {
        let images = self.docker.list_images(None::<ListImagesOptions>).await;
        let images = images.map_err(|e| fault("list images", &e))?;
        let mut list: Vec<_> = images
            .into_iter()
            .map(|image| EngineImage {
                id: image.id,
                names: image.repo_tags.into_iter().filter(|tag| tag != "<none>:<none>").collect(),
                size_bytes: u64::try_from(image.size).unwrap_or(0),
                created_at: Timestamp::from_second(image.created).unwrap_or(Timestamp::UNIX_EPOCH),
                containers: usize::try_from(image.containers).unwrap_or(0),
            })
            .collect();
        list.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(list)
    }

    /// Gives an image a further name.
    pub async fn tag(&self, image: &str, name: &str) -> Result<(), RuntimeError> {
        let (repository, tag) = split(name);
        let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        let tagged = self.docker.tag_image(image, Some(options)).await;
        tagged.map_err(|e| refused("name an image", &e))
    }

    /// Removes a name, and the image with its last one. Says what the engine removed: names first,
    /// then ids.
    pub async fn remove(
        &self,
        image: &str,
        force: bool,
    ) -> Result<(Vec<String>, Vec<String>), RuntimeError> {
        let options = RemoveImageOptionsBuilder::new().force(force).build();
        let removed = self.docker.remove_image(image, Some(options), None).await;
        let removed = removed.map_err(|e| refused("remove an image", &e))?;
        self.images.forget();
        let names = removed.iter().filter_map(|one| one.untagged.clone()).collect();
        Ok((names, removed.into_iter().filter_map(|one| one.deleted).collect()))
    }

    async fn find(&self, name: &str) -> Result<EngineImage, RuntimeError> {
        let there = self.docker.inspect_image(name).await;
        let there = there.map_err(|e| refused("look at an image", &e))?;
        Ok(EngineImage {
            id: there.id.unwrap_or_default(),
            names: there.repo_tags.unwrap_or_default(),
            size_bytes: there.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
            created_at: Timestamp::UNIX_EPOCH,
            containers: 0,
        })
    }
}

fn split(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "latest"),
    }
}

/// What the engine itself says of an image is meant for whoever asked.
fn refused(doing: &str, error: &Error) -> RuntimeError {
    let text = match error {
        Error::DockerStreamError { error } => Some(error.as_str()),
        other => answer(other).map(|(_, text)| text),
    };
    match text {
        Some(text) => RuntimeError::open(
            ErrorKind::Rejected,
            reason::IMAGE_PULL,
            format!("the Docker engine refused to {doing}: {text}"),
        ),
        None => fault(doing, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(split("a/b:1"), ("a/b", "1"));
        assert_eq!(split("host:5000/a"), ("host:5000/a", "latest"));
        assert_eq!(split("host:5000/a:1"), ("host:5000/a", "1"));
    }
}
