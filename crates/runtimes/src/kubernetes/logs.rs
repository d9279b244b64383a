//! What containers have written, from the API server: it asks the node.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{AsyncBufRead, AsyncBufReadExt as _};
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
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = tokio::select! {
            read = log.read_until(b'\n', &mut line) => read,
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
        let Some(line) = parse(&line) else { continue };
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
fn parse(line: &[u8]) -> Option<LogLine> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let space = line.iter().position(|byte| *byte == b' ')?;
    let (at, text) = line.split_at(space);
    let at: Timestamp = std::str::from_utf8(at).ok()?.parse().ok()?;
    let text = Bytes::copy_from_slice(text.get(1..)?);
    Some(LogLine { at, stream: LogStream::Stdout, text })
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

    #[test]
    fn a_line_is_its_time_and_its_text() {
        let line = parse(b"2026-01-02T03:04:05.123456789Z hello  world\n").unwrap();
        assert_eq!(line.at.to_string(), "2026-01-02T03:04:05.123456789Z");
        assert_eq!(&line.text[..], b"hello  world");
        assert_eq!(&parse(b"2026-01-02T03:04:05Z \n").unwrap().text[..], b"");
        assert!(parse(b"unable to retrieve container logs for containerd://1\n").is_none());
    }
}
