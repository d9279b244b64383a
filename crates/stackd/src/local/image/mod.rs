//! `stackd image`: what stacks start from. Works with a server running or not.

mod engine;
mod progress;
mod show;
pub(crate) mod work;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use futures_util::StreamExt;
use reqwest::Method;
use stackd_core::TargetPort;
use stackd_runtimes::docker::EngineImages;
use stackd_runtimes::oci::images::{ImageStore, ImportOptions};
use stackd_store::Snapshot;
use tokio_util::io::ReaderStream;

use super::data_dir::DataDir;
use super::key::ListOutput;
use super::{Access, Direct};
use crate::client::stack::pod;
use crate::config::{Config, Driver};
use crate::exit::{Exit, Failure};
use crate::out;
pub(crate) use engine::packed;
use progress::Bars;
use work::{Done, Event, Home, Request, Source};

/// The commands for images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Pull images from a registry
    Pull {
        /// The images, for example nginx:stable or registry.example/app@sha256:…
        #[arg(required = true)]
        image: Vec<String>,
        /// Only print the digest
        #[arg(short, long)]
        quiet: bool,
    },
    /// Load images from an archive of `docker save`, or an OCI archive or layout directory
    Load {
        /// The archive; standard input where not given
        #[arg(default_value = "-")]
        archive: PathBuf,
        /// The image's name, where the archive has none
        #[arg(short, long)]
        name: Option<String>,
    },
    /// Make an image from a root file system: a tarball or a directory
    Import(ImportArgs),
    /// List images
    #[command(visible_alias = "ls")]
    List {
        /// How to show them
        #[arg(short, long, value_enum, default_value_t)]
        output: ListOutput,
    },
    /// Show everything about an image, as JSON
    Inspect {
        /// A name, a digest, or the start of one
        image: String,
    },
    /// Give an image a further name
    Tag {
        /// A name, a digest, or the start of one
        image: String,
        /// The further name
        name: String,
    },
    /// Remove images
    #[command(visible_alias = "rm")]
    Remove {
        /// Names, digests, or starts of them
        #[arg(required = true)]
        image: Vec<String>,
        /// Also images that running stacks use: their names go now, the rest with the last use
        #[arg(short, long)]
        force: bool,
    },
    /// Remove what nothing refers to
    Prune {
        /// Also every image that no running stack uses
        #[arg(short, long)]
        all: bool,
    },
}

/// How an image is made from a root file system.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The tarball (compressed or not) or directory; `-` is standard input
    source: PathBuf,
    /// The image's name, for example my-app:1
    name: String,
    /// The program and its arguments, one flag each
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// Arguments unless a stack gives others, one flag each; the program too where there is no
    /// entrypoint
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    command: Vec<String>,
    /// A variable; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pod::pair)]
    env: Vec<(String, String)>,
    /// A port that it listens on, as 80, 80/tcp or 53/udp; may be given several times
    #[arg(short, long, value_name = "PORT", value_parser = pod::port)]
    port: Vec<pod::Port>,
    /// The working directory
    #[arg(long, value_name = "DIR", default_value = "")]
    workdir: String,
    /// `user[:group]`, names or numbers; root where not given
    #[arg(long, value_name = "USER", default_value = "")]
    user: String,
    /// A label of the image; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pod::pair)]
    label: Vec<(String, String)>,
    /// The signal that asks it to end; SIGTERM where not given
    #[arg(long, value_name = "SIGNAL", default_value = "")]
    stop_signal: String,
}

impl From<ImportArgs> for Request {
    fn from(args: ImportArgs) -> Self {
        let port = |port: pod::Port| TargetPort {
            container_port: port.container_port,
            protocol: port.protocol,
        };
        let options = ImportOptions {
            name: args.name,
            entrypoint: args.entrypoint,
            command: args.command,
            env: args.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            ports: args.port.into_iter().map(port).collect(),
            working_dir: args.workdir,
            user: args.user,
            labels: args.label.into_iter().collect(),
            stop_signal: args.stop_signal,
        };
        Self::Import { source: Source::of(&args.source), options }
    }
}

pub(crate) async fn run(command: ImageCommand, config: &Config) -> anyhow::Result<()> {
    match command {
        ImageCommand::Pull { image, quiet } => {
            let images = Images::of(config, "stackd image pull").await?;
            for reference in image {
                let done = images.ask(Request::Pull { reference }).await?;
                out::write(show::added(&done, quiet))?;
            }
        }
        ImageCommand::Load { archive, name } => {
            let request = Request::Load { source: Source::of(&archive), name };
            let done = Images::of(config, "stackd image load").await?.ask(request).await?;
            out::write(show::added(&done, false))?;
        }
        ImageCommand::Import(args) => {
            let images = Images::of(config, "stackd image import").await?;
            out::write(show::added(&images.ask(args.into()).await?, false))?;
        }
        ImageCommand::List { output } => {
            let done = Images::of(config, "stackd image list").await?.ask(Request::List).await?;
            out::write(show::list(done, output)?)?;
        }
        ImageCommand::Inspect { image: reference } => {
            let images = Images::of(config, "stackd image inspect").await?;
            out::write(show::details(&images.ask(Request::Inspect { reference }).await?)?)?;
        }
        ImageCommand::Tag { image: reference, name } => {
            let images = Images::of(config, "stackd image tag").await?;
            images.ask(Request::Tag { reference, name }).await?;
        }
        ImageCommand::Remove { image, force } => {
            let images = Images::of(config, "stackd image remove").await?;
            images.refuse_while_in_use(config).await?;
            for reference in image {
                let done = images.ask(Request::Remove { reference, force }).await?;
                out::write(show::removed(&done))?;
            }
        }
        ImageCommand::Prune { all } => {
            let images = Images::of(config, "stackd image prune").await?;
            images.refuse_while_in_use(config).await?;
            out::write(show::removed(&images.ask(Request::Prune { all }).await?))?;
        }
    }
    Ok(())
}

/// Opens the image store of a data directory.
pub(crate) async fn open(config: &Config, data: &DataDir) -> anyhow::Result<ImageStore> {
    let (root, images) = (data.images(), config.images.clone());
    crate::client::use_ring();
    let open = tokio::task::spawn_blocking(move || ImageStore::open(&root, images));
    Ok(open.await.context("the image store cannot be opened")?.map_err(|e| work::failure(&e))?)
}

/// Whoever has the images: a server, or this process.
enum Images {
    Server(super::client::AdminClient),
    Here(Box<(ImageStore, Direct)>),
    /// The engine answers for itself.
    Engine(EngineImages),
}

impl Images {
    async fn of(config: &Config, what: &str) -> anyhow::Result<Self> {
        Ok(match Access::of(config, what).await? {
            Access::Server(server) => Self::Server(server),
            Access::Direct(direct) if config.runtime.driver == Driver::Docker => {
                let docker = crate::serve::docker_config(config, direct.data.path());
                crate::client::use_ring();
                let images = EngineImages::connect(&docker).await;
                Self::Engine(images.map_err(|e| Failure::new(Exit::Unreachable, e.to_string()))?)
            }
            Access::Direct(direct) => {
                Self::Here(Box::new((open(config, &direct.data).await?, direct)))
            }
        })
    }

    /// Without a server nobody knows which images the stacks that go on running use.
    async fn refuse_while_in_use(&self, config: &Config) -> anyhow::Result<()> {
        let Self::Here(here) = self else { return Ok(()) };
        if !here.1.data.database().exists() && config.store.database_url.is_none() {
            return Ok(());
        }
        let store = super::open_store(config, &here.1.data).await?;
        let snapshot: Snapshot = store.load().await.map_err(|error| super::database(&error))?;
        let running = snapshot.stacks.iter().filter(|stack| stack.is_active()).count();
        if running == 0 {
            return Ok(());
        }
        let text = format!("{running} stacks may still run from these images while no server does");
        Err(Failure::new(Exit::Busy, text)
            .hint("start the server: it knows which images are in use, and this command asks it")
            .into())
    }

    async fn ask(&self, request: Request) -> anyhow::Result<Done> {
        let bars = Bars::new();
        match self {
            Self::Here(here) => {
                let show = |progress: &_| bars.show(progress);
                let input = request.reads_stdin().then(|| Box::new(std::io::stdin()) as _);
                Ok(Home::Store(here.0.clone()).perform(request, input, &show).await?)
            }
            Self::Engine(images) => {
                let input = request.reads_stdin().then(|| Box::new(std::io::stdin()) as _);
                Ok(Home::Engine(images.clone()).perform(request, input, &|_| ()).await?)
            }
            Self::Server(server) => {
                let mut call = server.request(Method::POST, "images");
                call = call.query(&[("request", serde_json::to_string(&request)?)]);
                if request.reads_stdin() {
                    let input = ReaderStream::new(tokio::io::stdin());
                    call = call.body(reqwest::Body::wrap_stream(input));
                }
                let mut chunks = server.send(call).await?.bytes_stream();
                let mut lines = Vec::new();
                while let Some(chunk) = chunks.next().await {
                    lines.extend_from_slice(&chunk.context("the server broke off")?);
                    while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = lines.drain(..=end).collect();
                        match serde_json::from_slice(&line).context("the server's answer")? {
                            Event::Progress(progress) => bars.show(&progress),
                            Event::Done(done) => return Ok(done),
                            Event::Failed(refusal) => return Err(refusal.into_failure().into()),
                        }
                    }
                }
                Err(Failure::new(Exit::Unreachable, "the server broke off before the end").into())
            }
        }
    }
}

impl Source {
    /// A path as the server sees it, which may be in another directory.
    fn of(path: &Path) -> Self {
        if path.as_os_str() == "-" {
            return Self::Stdin;
        }
        Self::Path(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
    }
}
