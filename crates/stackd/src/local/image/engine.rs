//! What is done with images where they are a Docker engine's.

use std::io::{Read, Write};
use std::path::PathBuf;

use axum::body::Bytes;
use stackd_core::RuntimeError;
use stackd_core::runtime::ErrorKind;
use stackd_runtimes::docker::{EngineImage, EngineImages, EngineImport};
use stackd_runtimes::oci::images::{Digest, ImageSummary, ImportOptions, Removed};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::work::{AddedImage, Done, Request, Source};
use crate::exit::{Exit, Failure};

/// Carries a request out.
pub(crate) async fn perform(
    images: &EngineImages,
    request: Request,
    input: Option<Box<dyn Read + Send>>,
) -> Result<Done, Failure> {
    let missing = || Failure::new(Exit::Failed, "there is no input to read");
    let by_engine = |command: &str| {
        Failure::new(Exit::Rejected, "the images are those of the Docker engine")
            .hint(format!("`docker image {command}` does that there"))
    };
    let done = match request {
        Request::Pull { reference } => images.pull(&reference).await.map(|image| vec![image]),
        Request::Load { source, name } => {
            let archive = match source {
                Source::Path(path) if path.is_dir() => {
                    let text = format!("{} is a directory", path.display());
                    return Err(Failure::new(Exit::Rejected, text)
                        .hint("a Docker engine takes what `docker save` wrote, as one file"));
                }
                Source::Path(path) => opened(path)?,
                Source::Stdin => input.ok_or_else(missing)?,
            };
            let mut loaded = images.load(copied(archive)).await.map_err(refused)?;
            if let (Some(name), [image]) = (name, &mut loaded[..]) {
                images.tag(&image.id, &name).await.map_err(refused)?;
                image.names = vec![name];
            }
            Ok(loaded)
        }
        Request::Import { source, options } => {
            let import = import(&options)?;
            let image = match source {
                Source::Path(path) if path.is_dir() => images.import(packed(path), import).await,
                Source::Path(path) => images.import(copied(opened(path)?), import).await,
                Source::Stdin => images.import(copied(input.ok_or_else(missing)?), import).await,
            };
            image.map(|image| vec![image])
        }
        Request::List => {
            let list = images.list().await.map_err(refused)?;
            return Ok(Done::Listed(list.iter().filter_map(summary).collect()));
        }
        Request::Tag { reference, name } => {
            return images.tag(&reference, &name).await.map(|()| Done::Tagged).map_err(refused);
        }
        Request::Remove { reference, force } => {
            let (untagged, deleted) = images.remove(&reference, force).await.map_err(refused)?;
            let deleted = deleted.iter().filter_map(|id| id.parse().ok()).collect();
            return Ok(Done::Removed(Removed { untagged, deleted, freed_bytes: 0 }));
        }
        Request::Inspect { .. } => return Err(by_engine("inspect")),
        Request::Prune { .. } => return Err(by_engine("prune")),
    };
    let added = |image: EngineImage| {
        Some(AddedImage { digest: image.id.parse().ok()?, names: image.names })
    };
    let images = done.map_err(refused)?;
    Ok(Done::Added(images.into_iter().filter_map(added).collect()))
}

/// What an operator reads when the engine refuses: all that is known.
fn refused(error: RuntimeError) -> Failure {
    let exit = match error.kind {
        ErrorKind::Rejected => Exit::Rejected,
        ErrorKind::Retry | ErrorKind::Saturated => Exit::Unreachable,
        ErrorKind::Failed => Exit::Failed,
    };
    Failure::new(exit, error.operator)
}

fn summary(image: &EngineImage) -> Option<ImageSummary> {
    let id: Digest = image.id.parse().ok()?;
    Some(ImageSummary {
        names: image.names.clone(),
        digest: id,
        id,
        origin: None,
        platform: "-".to_owned(),
        size_bytes: image.size_bytes,
        created: Some(image.created_at.to_string()),
        stored_at: image.created_at,
        leases: image.containers,
    })
}

/// The options as the engine takes them: lines of a Dockerfile.
fn import(options: &ImportOptions) -> Result<EngineImport, Failure> {
    let words = |name: &str, words: &[String]| {
        let list = serde_json::to_string(words).unwrap_or_default();
        (!words.is_empty()).then(|| format!("{name} {list}"))
    };
    let word = |name: &str, word: &str| (!word.is_empty()).then(|| format!("{name} {word}"));
    let pair = |name: &'static str, key: &str, value: &str| {
        let quoted = serde_json::to_string(value).unwrap_or_default();
        format!("{name} {key}={}", quoted.replace('$', "\\$"))
    };
    let mut changes = Vec::new();
    changes.extend(words("ENTRYPOINT", &options.entrypoint));
    changes.extend(words("CMD", &options.command));
    for line in &options.env {
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| Failure::new(Exit::Usage, format!("{line:?} is not NAME=VALUE")))?;
        changes.push(pair("ENV", name, value));
    }
    for port in &options.ports {
        let protocol = port.protocol.as_str().to_ascii_lowercase();
        changes.push(format!("EXPOSE {}/{protocol}", port.container_port));
    }
    changes.extend(word("WORKDIR", &options.working_dir));
    changes.extend(word("USER", &options.user));
    changes.extend(options.labels.iter().map(|(name, value)| pair("LABEL", name, value)));
    changes.extend(word("STOPSIGNAL", &options.stop_signal));
    Ok(EngineImport { name: options.name.clone(), changes })
}

fn opened(path: PathBuf) -> Result<Box<dyn Read + Send>, Failure> {
    match std::fs::File::open(&path) {
        Ok(file) => Ok(Box::new(file)),
        Err(error) => {
            let text = format!("{} cannot be read: {error}", path.display());
            Err(Failure::new(Exit::NotFound, text))
        }
    }
}

/// Parts of a file.
pub(crate) type Chunks = ReceiverStream<std::io::Result<Bytes>>;

/// What a reader gives, as it is sent.
fn copied(mut reader: Box<dyn Read + Send>) -> Chunks {
    written(move |sink| std::io::copy(&mut reader, sink).map(drop))
}

/// A directory as a tarball.
pub(crate) fn packed(path: PathBuf) -> Chunks {
    written(move |sink| {
        let mut archive = tar::Builder::new(sink);
        archive.follow_symlinks(false);
        archive.append_dir_all(".", path)?;
        archive.into_inner().map(drop)
    })
}

/// What is written, as it is sent.
fn written(work: impl FnOnce(&mut Sink) -> std::io::Result<()> + Send + 'static) -> Chunks {
    let (sender, receiver) = mpsc::channel(16);
    tokio::task::spawn_blocking(move || {
        let mut sink = Sink(sender);
        if let Err(error) = work(&mut sink) {
            // Nobody may be left to hear it.
            let _ = sink.0.blocking_send(Err(error));
        }
    });
    ReceiverStream::new(receiver)
}

struct Sink(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(data)));
        sent.map(|()| data.len()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_lines_of_a_dockerfile() {
        let options = ImportOptions {
            name: "a:1".to_owned(),
            entrypoint: vec!["/a b".to_owned()],
            env: vec!["X=1 $Y \"z\"".to_owned()],
            user: "web".to_owned(),
            ..ImportOptions::default()
        };
        let import = import(&options).unwrap();
        let expected = ["ENTRYPOINT [\"/a b\"]", r#"ENV X="1 \$Y \"z\"""#, "USER web"];
        assert_eq!(import.changes, expected);
    }
}
