//! Logs and commands of stacks that do not run.

use std::sync::Arc;

use bytes::Bytes;
use stackd_core::runtime::{
    BoxFuture, BoxStream, ErrorKind, ExecInput, ExecOutput, ExecRequest, ExecSession, LogLine,
    LogOptions, LogStream, RuntimeState, TerminalSize,
};
use stackd_core::spec::StackSpec;
use stackd_core::stack::reason;
use stackd_core::{RuntimeError, StackId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::state::{Shared, Sim, not_running};
use super::unknown;

type Lines = BoxStream<'static, Result<LogLine, RuntimeError>>;

/// The name of the container that is meant.
fn container(spec: &StackSpec, asked: Option<&str>) -> Result<String, RuntimeError> {
    let mut names = spec.all_containers().map(|c| c.name.as_str());
    let found = match asked {
        Some(name) => names.find(|known| *known == name),
        None => spec.containers.first().map(|c| c.name.as_str()),
    };
    found.map(str::to_owned).ok_or_else(|| {
        let message = format!("the stack has no container {:?}", asked.unwrap_or_default());
        RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, message)
    })
}

fn lines_of(sim: &Sim, name: &str) -> Vec<LogLine> {
    let image = sim.request.spec.all_containers().find(|c| c.name == name);
    let image = image.map_or("", |c| c.image.as_str());
    let line = |stream, text: String| LogLine { at: sim.started_at, stream, text: text.into() };
    let mut lines = vec![
        line(LogStream::Stdout, format!("simulated: {image} as {name}, nothing runs")),
        line(LogStream::Stderr, "simulated: this line is from standard error".to_owned()),
    ];
    match &sim.observed.state {
        RuntimeState::Incomplete | RuntimeState::Starting { .. } => {}
        RuntimeState::Running { .. } => {
            lines.push(line(LogStream::Stdout, "simulated: ready".to_owned()));
        }
        RuntimeState::Ended { exit_code, at, .. } => {
            lines.push(line(LogStream::Stdout, "simulated: ready".to_owned()));
            let text = format!("simulated: ended with {}", exit_code.unwrap_or_default());
            lines.push(LogLine { at: *at, ..line(LogStream::Stdout, text) });
        }
    }
    lines
}

pub(super) fn logs(
    shared: &Arc<Shared>,
    id: StackId,
    options: &LogOptions,
) -> Result<Lines, RuntimeError> {
    shared.reach()?;
    let state = shared.lock();
    let sim = state.stacks.get(&id).ok_or_else(|| unknown(id))?;
    let name = container(&sim.request.spec, options.container.as_deref())?;
    let lines = lines_of(sim, &name);
    let known = lines.len();
    let ended = sim.has_ended();
    drop(state);
    let skip = options.tail.map_or(0, |tail| known.saturating_sub(tail));
    let (sender, receiver) = mpsc::unbounded_channel();
    for line in lines.into_iter().skip(skip) {
        // The receiver is in this function's hands, so that it is there.
        let _ = sender.send(Ok(line));
    }
    if options.follow && !ended {
        tokio::spawn(follow(Arc::clone(shared), id, name, known, sender));
    }
    Ok(Box::pin(UnboundedReceiverStream::new(receiver)))
}

async fn follow(
    shared: Arc<Shared>,
    id: StackId,
    name: String,
    mut sent: usize,
    sender: mpsc::UnboundedSender<Result<LogLine, RuntimeError>>,
) {
    let Some(mut changed) = shared.watch(id) else { return };
    loop {
        let (lines, ended) = match shared.lock().stacks.get(&id) {
            Some(sim) => (lines_of(sim, &name), sim.has_ended()),
            None => return,
        };
        let new = lines.into_iter().skip(sent);
        for line in new {
            sent += 1;
            if sender.send(Ok(line)).is_err() {
                return;
            }
        }
        if ended {
            return;
        }
        tokio::select! {
            change = changed.changed() => if change.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

/// Prints the command. With an input, prints that too until it ends. `exit N` ends with N.
pub(super) fn exec(
    shared: &Arc<Shared>,
    id: StackId,
    request: ExecRequest,
) -> Result<ExecSession, RuntimeError> {
    shared.reach()?;
    let state = shared.lock();
    let sim = state.stacks.get(&id).ok_or_else(|| unknown(id))?;
    if sim.has_ended() {
        return Err(not_running(id));
    }
    container(&sim.request.spec, request.container.as_deref())?;
    drop(state);
    let code = match request.command.as_slice() {
        [] => {
            let message = "the command is empty";
            return Err(RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, message));
        }
        [exit, code] if exit == "exit" => code.parse().unwrap_or(2),
        _ => 0,
    };
    let (output, receiver) = mpsc::unbounded_channel();
    let terminal = request.terminal.is_some();
    let end = if terminal { "\r\n" } else { "\n" };
    let echo = format!("{}{end}", request.command.join(" "));
    let _ = output.send(Ok(ExecOutput::Stdout(echo.into())));
    let mut input = Input { output: Some(output), code, terminal };
    if !request.stdin {
        input.end();
    }
    let output = Box::pin(UnboundedReceiverStream::new(receiver));
    Ok(ExecSession { output, input: Box::new(input) })
}

struct Input {
    output: Option<mpsc::UnboundedSender<Result<ExecOutput, RuntimeError>>>,
    code: i32,
    terminal: bool,
}

impl Input {
    fn end(&mut self) {
        if let Some(output) = self.output.take() {
            let _ = output.send(Ok(ExecOutput::Exit(self.code)));
        }
    }
}

/// What a terminal makes of Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

impl ExecInput for Input {
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let end = self.terminal.then(|| data.iter().position(|b| *b == END_OF_TRANSMISSION));
            let end = end.flatten();
            if let Some(output) = &self.output {
                let echo = data.slice(..end.unwrap_or(data.len()));
                if !echo.is_empty() {
                    let _ = output.send(Ok(ExecOutput::Stdout(echo)));
                }
            }
            if end.is_some() {
                self.end();
            }
            Ok(())
        })
    }

    fn close(&mut self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.end();
            Ok(())
        })
    }

    fn resize(&mut self, _size: TerminalSize) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async { Ok(()) })
    }
}
