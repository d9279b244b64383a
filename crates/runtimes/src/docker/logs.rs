//! What containers have written, from the engine's own bounded log files.

use std::sync::Arc;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use stackd_core::runtime::{BoxStream, LogLine, LogOptions, LogStream, Observation};
use stackd_core::{RuntimeError, StackId, Timestamp};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::engine::{fault, is_absent};
use super::inventory::Inner;
use super::{objects, unknown};

/// The most bytes of one line, put together from its parts.
const MOST_LINE_BYTES: usize = 1 << 20;

type Lines = mpsc::Sender<Result<LogLine, RuntimeError>>;

/// Opens a container's log.
pub(super) fn open(
    inner: &Arc<Inner>,
    id: StackId,
    options: LogOptions,
) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
    let name = {
        let state = inner.state.lock();
        state.entries.get(&id).ok_or_else(unknown)?.container(options.container.as_deref())?
    };
    let container = objects::container(id, &name);
    let (sender, receiver) = mpsc::channel(256);
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let work = async {
            if options.follow {
                begun(&inner, id, &container).await;
            }
            read(&inner, &container, &options, &sender).await;
        };
        tokio::select! {
            () = work => {}
            () = sender.closed() => {}
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Waits until a container has been started, or never will be: the engine follows only what runs.
async fn begun(inner: &Arc<Inner>, id: StackId, container: &str) {
    let mut changes = inner.observe();
    loop {
        let there = inner.docker.inspect_container(container, None).await;
        let started = there.ok().and_then(|there| there.state?.started_at);
        let ended = inner.state.lock().entries.get(&id).is_none_or(|entry| entry.is_ended());
        if ended || started.is_some_and(|at| !at.starts_with("0001-")) {
            return;
        }
        loop {
            match changes.recv().await {
                Some(Observation::Stack(stack)) if stack.id == id => break,
                Some(_) => {}
                None => return,
            }
        }
    }
}

async fn read(inner: &Inner, container: &str, options: &LogOptions, sender: &Lines) {
    let asked = LogsOptionsBuilder::new()
        .stdout(true)
        .stderr(true)
        .timestamps(true)
        .follow(options.follow)
        .tail(&options.tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string()))
        .build();
    let mut parts = inner.docker.logs(container, Some(asked));
    let mut lines = [Assembler::new(LogStream::Stdout), Assembler::new(LogStream::Stderr)];
    while let Some(part) = parts.next().await {
        let (which, message) = match part {
            Ok(LogOutput::StdErr { message }) => (1, message),
            Ok(part) => (0, part.into_bytes()),
            // It was removed by somebody: there is nothing to tell.
            Err(e) if is_absent(&e) => break,
            Err(e @ Error::DockerResponseServerError { .. }) => {
                let _ = sender.send(Err(fault("read a log", &e))).await;
                return;
            }
            Err(_) => break,
        };
        for line in lines[which].take(&message) {
            if sender.send(Ok(line)).await.is_err() {
                return;
            }
        }
    }
    for line in lines.into_iter().filter_map(Assembler::rest) {
        let _ = sender.send(Ok(line)).await;
    }
}

/// Puts lines together: each part begins with the moment it was read at, and only the last part of
/// a line ends with a line feed.
struct Assembler {
    stream: LogStream,
    at: Option<Timestamp>,
    text: BytesMut,
    /// The beginning of a part whose time has not come whole.
    begun: BytesMut,
    /// A part follows, with a time before it.
    fresh: bool,
}

impl Assembler {
    fn new(stream: LogStream) -> Self {
        Self { stream, at: None, text: BytesMut::new(), begun: BytesMut::new(), fresh: true }
    }

    /// Takes a part; gives the lines that it ends.
    fn take(&mut self, message: &[u8]) -> Vec<LogLine> {
        let mut lines = Vec::new();
        for piece in message.split_inclusive(|byte| *byte == b'\n') {
            let mut piece = piece;
            if self.fresh {
                self.begun.extend_from_slice(piece);
                let Some(space) = self.begun.iter().position(|byte| *byte == b' ') else {
                    continue;
                };
                let time = std::str::from_utf8(&self.begun[..space]).ok();
                let at = time.and_then(|time| time.parse().ok());
                self.at = self.at.or(at);
                let rest = self.begun.len() - space - 1;
                piece = &piece[piece.len() - rest.min(piece.len())..];
                self.begun.clear();
                self.fresh = false;
            }
            let whole = piece.last() == Some(&b'\n');
            let text = if whole { &piece[..piece.len() - 1] } else { piece };
            self.text.extend_from_slice(text);
            if whole || self.text.len() > MOST_LINE_BYTES {
                lines.extend(self.line());
            }
            if whole {
                self.fresh = true;
            }
        }
        // The engine sends one part at a time.
        self.fresh = true;
        lines
    }

    fn line(&mut self) -> Option<LogLine> {
        let at = self.at.take()?;
        let mut text = self.text.split().freeze();
        if text.last() == Some(&b'\r') {
            text.truncate(text.len() - 1);
        }
        Some(LogLine { at, stream: self.stream, text: Bytes::copy_from_slice(&text) })
    }

    fn rest(mut self) -> Option<LogLine> {
        if self.text.is_empty() { None } else { self.line() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(parts: &[&str]) -> Vec<String> {
        let mut assembler = Assembler::new(LogStream::Stdout);
        let mut lines: Vec<_> =
            parts.iter().flat_map(|part| assembler.take(part.as_bytes())).collect();
        lines.extend(assembler.rest());
        lines.iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect()
    }

    #[test]
    fn lines_are_put_together_from_their_parts() {
        const AT: &str = "2026-01-02T03:04:05.000000006Z ";
        assert_eq!(texts(&[&format!("{AT}one\n"), &format!("{AT}two\n")]), ["one", "two"]);
        assert_eq!(texts(&[&format!("{AT}o"), &format!("{AT}ne\n")]), ["one"]);
        assert_eq!(texts(&[&format!("{AT}one\n{AT}two\r\n")]), ["one", "two"], "from a terminal");
        assert_eq!(texts(&[&format!("{AT}\n"), &format!("{AT}a b")]), ["", "a b"]);
    }
}
