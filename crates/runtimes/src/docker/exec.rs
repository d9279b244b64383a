//! Further commands in a stack's containers, for callers and for probes, and the end of containers.

use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{ExecConfig, ExecInspectResponse};
use bollard::query_parameters::{
    KillContainerOptionsBuilder, ResizeExecOptionsBuilder, StopContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::StreamExt;
use stackd_core::runtime::{
    BoxFuture, ErrorKind, ExecInput, ExecOutput, ExecRequest, ExecSession, TerminalSize,
};
use stackd_core::stack::reason;
use stackd_core::{RuntimeError, StackId};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::engine::{answer, fault, is_absent, unless_absent};
use super::inventory::Inner;
use super::keeper::{handles, hold};
use super::not_running;
use crate::host::signals;

/// How soon it is asked again how a command is, at first and at last: one that has closed its output
/// may go on for long.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Runs a command.
pub(super) async fn run(
    inner: &Arc<Inner>,
    id: StackId,
    request: ExecRequest,
) -> Result<ExecSession, RuntimeError> {
    let container = inner.running(id, request.container.as_deref())?;
    let docker = &inner.docker;
    let config = ExecConfig {
        attach_stdin: Some(request.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(request.terminal.is_some()),
        cmd: Some(request.command),
        ..ExecConfig::default()
    };
    let made = docker.create_exec(&container, config).await;
    let exec = made.map_err(|e| refused("make a command", &e))?.id;
    let options =
        StartExecOptions { detach: false, tty: request.terminal.is_some(), output_capacity: None };
    let started = docker.start_exec(&exec, Some(options)).await;
    let started = started.map_err(|e| refused("run a command", &e))?;
    let StartExecResults::Attached { output, input } = started else {
        return Err(super::engine::failed("the engine runs a command without its output"));
    };
    let guard = Guard { inner: Arc::clone(inner), exec: exec.clone(), container };
    let mut input = Input {
        inner: Arc::clone(inner),
        exec: exec.clone(),
        sink: request.stdin.then_some(input),
        terminal: request.terminal.is_some(),
    };
    if let Some(size) = request.terminal {
        // The engine refuses it for a moment while the command begins; its size is then set by the
        // first change.
        let _ = input.resize(size).await;
    }
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(carry(output, sender, guard));
    Ok(ExecSession { output: Box::pin(ReceiverStream::new(receiver)), input: Box::new(input) })
}

/// What a command was refused for.
fn refused(doing: &str, error: &Error) -> RuntimeError {
    match answer(error) {
        Some((404 | 409, _)) => not_running(),
        Some((_, message)) => {
            RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, message.to_owned())
        }
        None => fault(doing, error),
    }
}

/// Ends the command when nobody listens any more.
struct Guard {
    inner: Arc<Inner>,
    exec: String,
    container: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (inner, exec) = (Arc::clone(&self.inner), std::mem::take(&mut self.exec));
        let container = std::mem::take(&mut self.container);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { kill(&inner, &exec, &container).await });
        }
    }
}

/// Ends a command, where it is on this machine: the engine itself has no word for that.
async fn kill(inner: &Inner, exec: &str, _container: &str) {
    if !inner.mold.abilities.is_here {
        return;
    }
    let Ok(there) = inner.docker.inspect_exec(exec).await else { return };
    let (Some(true), Some(pid), Some(container)) = (there.running, there.pid, there.container_id)
    else {
        return;
    };
    if let Ok(process) = hold(pid, &container) {
        let _ = rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL);
    }
}

type Output = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<LogOutput, Error>> + Send>>;
type Sender = mpsc::Sender<Result<ExecOutput, RuntimeError>>;

/// Carries output until the command has ended and all of it was read, or until nobody listens.
async fn carry(mut output: Output, sender: Sender, guard: Guard) {
    let work = async {
        while let Some(part) = output.next().await {
            let part = match part {
                Ok(LogOutput::StdErr { message }) => ExecOutput::Stderr(message),
                Ok(part) => ExecOutput::Stdout(part.into_bytes()),
                Err(_) => break,
            };
            if sender.send(Ok(part)).await.is_err() {
                return;
            }
        }
        let last = code(&guard.inner, &guard.exec).await.map(ExecOutput::Exit);
        let _ = sender.send(last).await;
    };
    tokio::select! {
        () = work => {}
        () = sender.closed() => {}
    }
    drop(guard);
}

/// The code of a command whose output has ended.
async fn code(inner: &Inner, exec: &str) -> Result<i32, RuntimeError> {
    let mut pause = FIRST_LOOK;
    loop {
        let there = inner.docker.inspect_exec(exec).await.map_err(|_| not_running())?;
        match ended(&there) {
            Some(Some(code)) => return Ok(code),
            Some(None) => return Err(not_running()),
            None => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(LAST_LOOK);
    }
}

/// Whether a command has ended, and with which code where that is known.
fn ended(there: &ExecInspectResponse) -> Option<Option<i32>> {
    let code = there.exit_code.map(|code| i32::try_from(code).unwrap_or(i32::MAX));
    (there.running == Some(false)).then_some(code)
}

/// What became of a probe's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// It ended with this code.
    Ended(i32),
    /// It had not ended in its time.
    Late,
    /// The engine did not run it, or does not say what became of it.
    Unknown,
}

/// Runs a probe's command to its end, or until it has had its time, which begins when it runs.
pub(super) async fn probe(
    inner: &Arc<Inner>,
    container: &str,
    command: Vec<String>,
    limit: Duration,
) -> Probe {
    let config = ExecConfig {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command),
        ..ExecConfig::default()
    };
    let Ok(made) = inner.docker.create_exec(container, config).await else {
        return Probe::Unknown;
    };
    let exec = made.id;
    let work = async {
        let started = inner.docker.start_exec(&exec, None).await.ok()?;
        if let StartExecResults::Attached { mut output, input } = started {
            drop(input);
            while let Some(Ok(_)) = output.next().await {}
        }
        code(inner, &exec).await.ok()
    };
    let its_time = async {
        begun(inner, &exec).await;
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        code = work => return code.map_or(Probe::Unknown, Probe::Ended),
        () = its_time => {}
    }
    // It may have ended long ago and the engine be late to tell.
    match inner.docker.inspect_exec(&exec).await.map(|there| ended(&there)) {
        Ok(Some(Some(code))) => Probe::Ended(code),
        Ok(None) => {
            kill(inner, &exec, container).await;
            Probe::Late
        }
        Ok(Some(None)) | Err(_) => Probe::Unknown,
    }
}

/// Waits until a command runs or has run.
async fn begun(inner: &Inner, exec: &str) {
    let mut pause = FIRST_LOOK;
    loop {
        tokio::time::sleep(pause).await;
        match inner.docker.inspect_exec(exec).await {
            Ok(there) if there.pid.is_some_and(|pid| pid > 0) => return,
            Ok(there) if matches!(ended(&there), Some(Some(_))) => return,
            // An engine that was restarted does not know it any more.
            Err(e) if is_absent(&e) => return,
            _ => {}
        }
        pause = (pause * 2).min(LAST_LOOK);
    }
}

/// Where a command's input goes.
struct Input {
    inner: Arc<Inner>,
    exec: String,
    sink: Option<std::pin::Pin<Box<dyn AsyncWrite + Send>>>,
    terminal: bool,
}

fn closed() -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::ERROR, "the command's input is closed")
}

impl ExecInput for Input {
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let sink = self.sink.as_mut().ok_or_else(closed)?;
            sink.write_all(&data).await.map_err(|_| closed())?;
            sink.flush().await.map_err(|_| closed())
        })
    }

    fn close(&mut self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            if self.terminal {
                // A terminal's input ends by a character.
                const END_OF_TRANSMISSION: u8 = 4;
                self.write(Bytes::from_static(&[END_OF_TRANSMISSION])).await?;
            }
            if let Some(mut sink) = self.sink.take() {
                sink.shutdown().await.map_err(|_| closed())?;
            }
            Ok(())
        })
    }

    fn resize(&mut self, size: TerminalSize) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            if !self.terminal {
                return Ok(());
            }
            let options = ResizeExecOptionsBuilder::new()
                .h(i32::from(size.rows))
                .w(i32::from(size.columns))
                .build();
            let resized = self.inner.docker.resize_exec(&self.exec, options).await;
            resized.map_err(|e| refused("resize a terminal", &e))
        })
    }
}

/// Ends a container: the signal that its image wants, after the grace another that cannot be
/// refused. Completes when it has ended.
pub(super) async fn end_container(
    inner: &Inner,
    container: &str,
    grace: Duration,
) -> Result<(), Error> {
    if grace.is_zero() || !would_hear(inner, container).await? {
        return kill_container(inner, container).await;
    }
    let seconds = i32::try_from(grace.as_secs().max(1)).unwrap_or(i32::MAX);
    let options = StopContainerOptionsBuilder::new().t(seconds).build();
    let stopped = inner.docker.stop_container(container, Some(options)).await;
    unless_absent(unless_ended(stopped))
}

/// Kills a container and waits for its end.
async fn kill_container(inner: &Inner, container: &str) -> Result<(), Error> {
    let options = KillContainerOptionsBuilder::new().signal("KILL").build();
    let killed = inner.docker.kill_container(container, Some(options)).await;
    unless_absent(unless_ended(killed))?;
    let mut ends = inner
        .docker
        .wait_container(container, None::<bollard::query_parameters::WaitContainerOptions>);
    match ends.next().await {
        // A code other than 0 is an end too.
        None | Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Ok(()),
        Some(Err(e)) => unless_absent(Err(e)),
    }
}

/// Gives a container that is being ended less time.
pub(super) fn end_soon(inner: &Arc<Inner>, container: &str, grace: Duration) {
    let (inner, container) = (Arc::clone(inner), container.to_owned());
    tokio::spawn(async move {
        tokio::time::sleep(grace).await;
        let options = KillContainerOptionsBuilder::new().signal("KILL").build();
        let _ = inner.docker.kill_container(&container, Some(options)).await;
    });
}

/// A result in which what does not run counts as ended.
fn unless_ended(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(e) if matches!(answer(&e), Some((304 | 409, _))) => Ok(()),
        other => other,
    }
}

/// Whether a container's first process would do something about the signal that asks it to end.
async fn would_hear(inner: &Inner, container: &str) -> Result<bool, Error> {
    if !inner.mold.abilities.is_here {
        return Ok(true);
    }
    let there = match inner.docker.inspect_container(container, None).await {
        Ok(there) => there,
        Err(e) => return unless_absent(Err(e)).map(|()| true),
    };
    let pid = there.state.and_then(|state| state.pid).unwrap_or(0);
    let wanted = there.config.and_then(|config| config.stop_signal);
    let number = match wanted.as_deref().filter(|name| !name.is_empty()) {
        None => Some(rustix::process::Signal::TERM.as_raw()),
        Some(name) => signals::number(name),
    };
    Ok(pid == 0 || number.is_none_or(|number| handles(pid, number)))
}
