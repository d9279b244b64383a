//! What containers have written, from the API server: it asks the node.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};
use kube::api::LogParams;
use stackd_core::runtime::{BoxStream, ErrorKind, LogLine, LogOptions, LogStream};
use stackd_core::stack::reason;
use stackd_core::{RuntimeError, StackId, Timestamp};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::inner::Inner;
use super::status::State as ContainerState;

/// How many lines wait for a reader.
const AHEAD: usize = 256;
/// The most bytes of a line that are kept, as many as a container's runtime keeps of one: a longer one,
/// which the kubelet puts together without end, is told in parts.
const MOST_LINE_BYTES: u64 = 16 << 10;

type Lines = BoxStream<'static, Result<LogLine, RuntimeError>>;
type Sender = mpsc::Sender<Result<LogLine, RuntimeError>>;

impl Inner {
    /// The container that is meant.
    pub(super) fn container(
        &self,
        id: StackId,
        asked: Option<&str>,
    ) -> Result<String, RuntimeError> {
        let state = self.state.lock();
        let entry = state.entries.get(&id).filter(|entry| !entry.removing);
        let pod = entry.and_then(|entry| entry.pod.as_ref()).ok_or_else(|| unknown(id))?;
        let mut containers = pod.view.containers.iter();
        let found = match asked {
            Some(name) => containers.find(|container| *container.name == *name),
            None => containers.find(|container| !container.init),
        };
        found.map(|container| container.name.to_string()).ok_or_else(|| {
            let text = format!("the stack has no container {:?}", asked.unwrap_or_default());
            RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text)
        })
    }

    /// Whether a container has written, or may write again; none where there is no such container
    /// any more.
    fn container_state(&self, id: StackId, name: &str) -> Option<ContainerState> {
        let state = self.state.lock();
        let entry = state.entries.get(&id).filter(|entry| !entry.removing)?;
        let mut containers = entry.pod.as_ref()?.view.containers.iter();
        containers.find(|container| *container.name == *name).map(|found| found.state.clone())
    }

    /// Opens the output of a container.
    pub(super) async fn logs(
        self: &Arc<Self>,
        id: StackId,
        options: LogOptions,
    ) -> Result<Lines, RuntimeError> {
        let container = self.container(id, options.container.as_deref())?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        let mut params = LogParams {
            container: Some(container.clone()),
            follow: options.follow,
            tail_lines: options.tail.map(|tail| i64::try_from(tail).unwrap_or(i64::MAX)),
            timestamps: true,
            ..LogParams::default()
        };
        let began = |state: &ContainerState| !matches!(state, ContainerState::Waiting(_));
        let first = match self.container_state(id, &container).filter(began) {
            Some(_) => Some(self.open_log(id, &params).await?),
            None => None,
        };
        if first.is_none() && !options.follow {
            return Ok(Box::pin(ReceiverStream::new(receiver)));
        }
        let inner = Arc::clone(self);
        self.spawn(async move {
            let mut opened = first;
            let mut last = None;
            loop {
                if opened.is_none() {
                    // A reader who waits for a container that never begins may go away meanwhile.
                    tokio::select! {
                        () = inner.until(id, |inner| {
                            inner.container_state(id, &container).as_ref().is_none_or(began)
                        }) => {}
                        () = sender.closed() => return,
                    }
                    if inner.container_state(id, &container).is_none() {
                        return;
                    }
                    match inner.open_log(id, &params).await {
                        Ok(log) => opened = Some(log),
                        Err(error) => {
                            let _ = sender.send(Err(error)).await;
                            return;
                        }
                    }
                }
                let Some(log) = opened.take() else { return };
                if !forward(log, &sender, &mut last).await || !params.follow {
                    return;
                }
                // The node's end of the stream may have gone without the container's.
                match inner.container_state(id, &container) {
                    Some(ContainerState::Running) => {}
                    _ => return,
                }
                tokio::select! {
                    () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {}
                    () = sender.closed() => return,
                }
                if !matches!(inner.container_state(id, &container), Some(ContainerState::Running)) {
                    params.follow = false;
                }
                params.tail_lines = None;
                params.since_time = last;
            }
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    async fn open_log(
        &self,
        id: StackId,
        params: &LogParams,
    ) -> Result<std::pin::Pin<Box<dyn AsyncBufRead + Send>>, RuntimeError> {
        let name = id.to_string();
        let what = format!("reading the log of {id}");
        match self.call(&what, self.pods.log_stream(&name, params)).await {
            Ok(log) => Ok(Box::pin(log)),
            Err(error) => Err(of_log(&error)),
        }
    }
}

/// Sends every line that is newer than the last one. False when the reader has gone.
async fn forward(
    mut log: std::pin::Pin<Box<dyn AsyncBufRead + Send>>,
    sender: &Sender,
    last: &mut Option<Timestamp>,
) -> bool {
    let since = *last;
    let mut part = Vec::new();
    // Of the line that goes on, where its last part was not the end of it.
    let mut goes_on = None;
    loop {
        part.clear();
        let mut next = (&mut log).take(MOST_LINE_BYTES);
        let read = tokio::select! {
            read = next.read_until(b'\n', &mut part) => read,
            () = sender.closed() => return false,
        };
        match read {
            Ok(0) => return true,
            Ok(_) => {}
            Err(failure) => {
                tracing::debug!(error = %failure, "the stream of a log has broken");
                return true;
            }
        }
        let line = match goes_on.take() {
            None => parse(&part),
            Some(at) => Some(line(at, text_of(&part))),
        };
        let Some(line) = line else { continue };
        goes_on = (!part.ends_with(b"\n")).then_some(line.at);
        if since.is_some_and(|since| line.at <= since) {
            continue;
        }
        *last = Some(line.at);
        if sender.send(Ok(line)).await.is_err() {
            return false;
        }
    }
}

/// Takes a line apart: the time it was read at, a space, what was written.
fn parse(part: &[u8]) -> Option<LogLine> {
    let whole = text_of(part);
    let space = whole.iter().position(|byte| *byte == b' ')?;
    let (at, text) = whole.split_at(space);
    let at: Timestamp = std::str::from_utf8(at).ok()?.parse().ok()?;
    Some(line(at, text.get(1..)?))
}

fn text_of(part: &[u8]) -> &[u8] {
    part.strip_suffix(b"\n").unwrap_or(part)
}

fn line(at: Timestamp, text: &[u8]) -> LogLine {
    LogLine { at, stream: LogStream::Stdout, text: Bytes::copy_from_slice(text) }
}

/// A pod that is gone has no log, which is not the cluster's fault.
fn of_log(error: &RuntimeError) -> RuntimeError {
    let text = "the log cannot be read: the pod is gone, or its node does not answer";
    match error.kind {
        ErrorKind::Rejected => RuntimeError::open(ErrorKind::Rejected, reason::LOST, text),
        kind => RuntimeError::new(
            kind,
            stackd_core::stack::Condition::new(reason::RETRYING, text),
            &*error.operator,
        ),
    }
}

/// There is no such stack.
pub(super) fn unknown(id: StackId) -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::LOST, format!("{id} is not here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a log of these bytes.
    async fn read(log: Vec<u8>) -> Vec<LogLine> {
        let (sender, mut lines) = mpsc::channel(10);
        let log = Box::pin(futures_util::io::Cursor::new(log));
        assert!(forward(log, &sender, &mut None).await);
        drop(sender);
        let mut read = Vec::new();
        while let Some(line) = lines.recv().await {
            read.push(line.unwrap());
        }
        read
    }

    #[tokio::test]
    async fn a_line_without_end_is_told_in_parts() {
        const AT: &[u8] = b"2026-01-02T03:04:05Z ";
        let long = vec![b'x'; 40 << 10];
        let log = [AT, &long, b"\n", AT, b"next\n"].concat();
        let lines = read(log).await;
        let sizes: Vec<_> = lines.iter().map(|line| line.text.len()).collect();
        assert_eq!(sizes, [(16 << 10) - AT.len(), 16 << 10, (8 << 10) + AT.len(), 4]);
        assert!(lines.iter().all(|line| line.at == lines[0].at));
    }

    #[test]
    fn a_line_is_its_time_and_its_text() {
        let line = parse(b"2026-01-02T03:04:05.123456789Z hello  world\n").unwrap();
        assert_eq!(line.at.to_string(), "2026-01-02T03:04:05.123456789Z");
        assert_eq!(&line.text[..], b"hello  world");
        assert_eq!(&parse(b"2026-01-02T03:04:05Z \n").unwrap().text[..], b"");
        assert!(parse(b"unable to retrieve container logs for containerd://1\n").is_none());
    }
}
