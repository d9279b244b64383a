//! What is done with images: one description of it, carried out by the server or by the command.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use stackd_runtimes::docker::EngineImages;
use stackd_runtimes::oci::images::{
    Added, Digest, ImageDetails, ImageError, ImageStore, ImageSummary, ImportOptions, Progress,
    Removed,
};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::exit::{Exit, Failure};
use crate::local::admin::{Admin, Refusal};

/// What is wanted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Pull { reference: String },
    Load { source: Source, name: Option<String> },
    Import { source: Source, options: ImportOptions },
    List,
    Inspect { reference: String },
    Tag { reference: String, name: String },
    Remove { reference: String, force: bool },
    Prune { all: bool },
}

/// Where an archive comes from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// A file or directory of this machine.
    Path(PathBuf),
    /// The command's standard input.
    Stdin,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Done {
    Added(Vec<AddedImage>),
    Listed(Vec<ImageSummary>),
    Details(Box<ImageDetails>),
    Removed(Removed),
    Tagged,
}

/// An image that is here now.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AddedImage {
    pub(crate) names: Vec<String>,
    pub(crate) digest: Digest,
}

/// One line of the server's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    Progress(Progress),
    Done(Done),
    Failed(Refusal),
}

impl Request {
    pub(crate) fn reads_stdin(&self) -> bool {
        match self {
            Self::Load { source, .. } | Self::Import { source, .. } => *source == Source::Stdin,
            _ => false,
        }
    }
}

/// What an operator reads when the image store refuses: all that is known.
pub(crate) fn failure(error: &ImageError) -> Failure {
    let failure = |exit| Failure::new(exit, format!("{error}"));
    let with_cause = |exit| Failure::new(exit, error.operator());
    match error {
        ImageError::InvalidReference { .. } => failure(Exit::Usage)
            .hint("write it as name:tag, registry.example/name:tag or name@sha256:…"),
        ImageError::NotHere { .. } | ImageError::NeverPull { .. } => {
            failure(Exit::NotFound).hint("`stackd image list` shows what is here")
        }
        ImageError::NotFound { .. } => failure(Exit::NotFound)
            .hint("check the name and the tag; private images want --docker-config"),
        ImageError::Denied { .. } => with_cause(Exit::Denied).hint(
            "--docker-config names a config.json with credentials (`docker login` makes one)",
        ),
        ImageError::RegistryNotAllowed { .. } => failure(Exit::Denied)
            .hint("images.allowed_registries in the configuration says which ones may be asked"),
        ImageError::OutOfReach { .. } => with_cause(Exit::Denied)
            .hint("a registry of an inner network is named with --internal-registry"),
        ImageError::Unreachable { .. } => with_cause(Exit::Unreachable)
            .hint("a registry that speaks only plain HTTP is named with --insecure-registry")
            .hint("without a network: `stackd image load` takes what `docker save` wrote"),
        ImageError::Credentials { .. } => {
            with_cause(Exit::Config).hint("--docker-config names the file they are in")
        }
        ImageError::InUse { .. } => {
            failure(Exit::Busy).hint("--force lets it go with its last use")
        }
        ImageError::NoRoom { .. } | ImageError::Store { disk_full: true, .. } => {
            with_cause(Exit::Saturated).hint("`stackd image prune` frees what nothing uses")
        }
        ImageError::Store { .. } => with_cause(Exit::Failed),
        ImageError::Refused { .. }
        | ImageError::DigestMismatch { .. }
        | ImageError::WrongPlatform { .. } => failure(Exit::Rejected),
    }
}

/// Who has the images.
#[derive(Clone)]
pub(crate) enum Home {
    /// The embedded runtime's store.
    Store(ImageStore),
    /// A Docker engine.
    Engine(EngineImages),
}

impl Home {
    /// Carries a request out.
    pub(crate) async fn perform(
        &self,
        request: Request,
        input: Option<Box<dyn Read + Send>>,
        progress: &(dyn Fn(&Progress) + Send + Sync),
    ) -> Result<Done, Failure> {
        match self {
            Self::Store(store) => perform(store, request, input, progress).await,
            Self::Engine(images) => super::engine::perform(images, request, input).await,
        }
    }
}

async fn perform(
    store: &ImageStore,
    request: Request,
    input: Option<Box<dyn Read + Send>>,
    progress: &(dyn Fn(&Progress) + Send + Sync),
) -> Result<Done, Failure> {
    let missing = || Failure::new(Exit::Failed, "there is no input to read");
    let done = match request {
        Request::Pull { reference } => store.pull(&reference, progress).await.map(|lease| {
            let digest = lease.digest();
            Done::Added(vec![AddedImage { names: vec![reference], digest }])
        }),
        Request::Load { source: Source::Path(path), name } => {
            store.load(&path, name.as_deref()).await.map(added)
        }
        Request::Load { source: Source::Stdin, name } => {
            store.load_reader(input.ok_or_else(missing)?, name.as_deref()).await.map(added)
        }
        Request::Import { source: Source::Path(path), options } => {
            store.import(&path, options).await.map(|one| added(vec![one]))
        }
        Request::Import { source: Source::Stdin, options } => {
            let reader = input.ok_or_else(missing)?;
            store.import_reader(reader, options).await.map(|one| added(vec![one]))
        }
        Request::List => Ok(Done::Listed(store.list())),
        Request::Inspect { reference } => {
            store.inspect(&reference).map(|details| Done::Details(Box::new(details)))
        }
        Request::Tag { reference, name } => {
            store.tag(&reference, &name).await.map(|()| Done::Tagged)
        }
        Request::Remove { reference, force } => {
            store.remove(&reference, force).await.map(Done::Removed)
        }
        Request::Prune { all } => store.prune(all).await.map(Done::Removed),
    };
    done.map_err(|error| failure(&error))
}

fn added(images: Vec<Added>) -> Done {
    let one = |added: Added| AddedImage { digest: added.lease.digest(), names: added.names };
    Done::Added(images.into_iter().map(one).collect())
}

/// The query of the admin socket's call.
#[derive(Deserialize)]
pub(crate) struct Asked {
    request: String,
}

/// The admin socket's call: one JSON object a line, the last of which tells the end. It goes on
/// when the command goes away: what a pull has brought is of use to the next one.
pub(crate) async fn serve(
    State(admin): State<Admin>,
    Query(asked): Query<Asked>,
    body: Body,
) -> Result<Body, Refusal> {
    let home = admin.images.clone().ok_or_else(|| {
        Failure::new(Exit::Rejected, "the server's runtime has no images of its own")
    })?;
    let request: Request = serde_json::from_str(&asked.request).map_err(|error| {
        Failure::new(Exit::Usage, format!("the server does not know this request: {error}"))
    })?;
    let body = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let input: Box<dyn Read + Send> = Box::new(SyncIoBridge::new(Box::pin(body)));
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let sender = Arc::new(sender);
        let tell = {
            let sender = Arc::clone(&sender);
            move |event: Event| {
                // Nothing in an event can fail to be written; nobody may be left to read it.
                let mut line = serde_json::to_vec(&event).unwrap_or_default();
                line.push(b'\n');
                let _ = sender.send(Ok::<_, std::io::Error>(Bytes::from(line)));
            }
        };
        let progress = |progress: &Progress| tell(Event::Progress(progress.clone()));
        let done = home.perform(request, Some(input), &progress).await;
        tell(done.map_or_else(|failure| Event::Failed(failure.into()), Event::Done));
    });
    let lines = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
    Ok(Body::from_stream(lines.boxed()))
}
