//! Commands in containers, over a WebSocket to the API server.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Sink, SinkExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess, TerminalSize as Size};
use stackd_core::runtime::{
    BoxFuture, ErrorKind, ExecInput, ExecOutput, ExecRequest, ExecSession, TerminalSize,
};
use stackd_core::stack::reason;
use stackd_core::{RuntimeError, StackId};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::error;
use super::inner::Inner;
use super::logs::unknown;
use super::status::State as ContainerState;

/// Bytes that are buffered of each stream, and messages that wait for a reader.
const BUFFER: usize = 64 << 10;
const AHEAD: usize = 64;

type Sender = mpsc::Sender<Result<ExecOutput, RuntimeError>>;

impl Inner {
    /// Runs a command.
    pub(super) async fn exec(
        self: &Arc<Self>,
        id: StackId,
        request: ExecRequest,
    ) -> Result<ExecSession, RuntimeError> {
        let container = self.container(id, request.container.as_deref())?;
        self.must_run(id, &container)?;
        let terminal = request.terminal;
        let params = AttachParams {
            container: Some(container),
            stdin: request.stdin,
            stdout: true,
            stderr: terminal.is_none(),
            tty: terminal.is_some(),
            max_stdin_buf_size: Some(BUFFER),
            max_stdout_buf_size: Some(BUFFER),
            max_stderr_buf_size: Some(BUFFER),
        };
        let name = id.to_string();
        let call = self.pods.exec(&name, request.command, &params);
        let mut process = self.call(&format!("running a command in {id}"), call).await?;
        let stdin = process.stdin();
        let mut sizes = process.terminal_size();
        if let (Some(sizes), Some(size)) = (&mut sizes, terminal) {
            // One that has ended already needs no size.
            let _ = sizes.send(of_size(size)).await;
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        self.spawn(forward(process, sender));
        Ok(ExecSession {
            output: Box::pin(ReceiverStream::new(receiver)),
            input: Box::new(Input { stdin, sizes }),
        })
    }

    fn must_run(&self, id: StackId, container: &str) -> Result<(), RuntimeError> {
        let state = self.state.lock();
        let entry = state.entries.get(&id).ok_or_else(|| unknown(id))?;
        let containers = entry.pod.iter().flat_map(|pod| &pod.view.containers);
        let runs = containers
            .into_iter()
            .any(|one| *one.name == *container && one.state == ContainerState::Running);
        if runs && entry.over.is_none() {
            return Ok(());
        }
        let text = format!("container {container} is not running");
        Err(RuntimeError::open(ErrorKind::Rejected, reason::COMPLETED, text))
    }
}

/// Passes on what a command writes, and at last its code. Ends with the reader.
async fn forward(mut process: AttachedProcess, sender: Sender) {
    let status = process.take_status();
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let work = async {
        let out = pass(stdout, &sender, ExecOutput::Stdout);
        let err = pass(stderr, &sender, ExecOutput::Stderr);
        tokio::join!(out, err);
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        // A reader who has gone needs no code.
        let _ = sender.send(code_of(status)).await;
    };
    tokio::select! {
        () = work => {}
        () = sender.closed() => {}
    }
}

async fn pass(
    stream: Option<impl AsyncRead + Unpin>,
    sender: &Sender,
    message: fn(Bytes) -> ExecOutput,
) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; BUFFER];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let data = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
        if sender.send(Ok(message(data))).await.is_err() {
            return;
        }
    }
}

/// The code of a command from the last words of the API server.
fn code_of(status: Option<Status>) -> Result<ExecOutput, RuntimeError> {
    let Some(status) = status else {
        return Err(error::retry("the connection of a command has broken"));
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(ExecOutput::Exit(0));
    }
    let causes = status.details.as_ref().and_then(|details| details.causes.as_ref());
    let code = causes.into_iter().flatten().find_map(|cause| {
        let is_code = cause.reason.as_deref() == Some("ExitCode");
        is_code.then(|| cause.message.as_deref()?.parse().ok()).flatten()
    });
    match code {
        Some(code) => Ok(ExecOutput::Exit(code)),
        None => {
            let text = status.message.unwrap_or_default();
            Err(RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text))
        }
    }
}

fn of_size(size: TerminalSize) -> Size {
    Size { width: size.columns, height: size.rows }
}

struct Input<W, S> {
    stdin: Option<W>,
    sizes: Option<S>,
}

fn ended() -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::COMPLETED, "the command takes no input")
}

impl<W, S> ExecInput for Input<W, S>
where
    W: AsyncWrite + Unpin + Send,
    S: Sink<Size> + Unpin + Send,
{
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let stdin = self.stdin.as_mut().ok_or_else(ended)?;
            stdin.write_all(&data).await.map_err(|_| ended())?;
            stdin.flush().await.map_err(|_| ended())
        })
    }

    fn close(&mut self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            if let Some(mut stdin) = self.stdin.take() {
                // It may have ended by itself.
                let _ = stdin.shutdown().await;
            }
            Ok(())
        })
    }

    fn resize(&mut self, size: TerminalSize) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let sizes = self.sizes.as_mut().ok_or_else(ended)?;
            sizes.send(of_size(size)).await.map_err(|_| ended())
        })
    }
}
