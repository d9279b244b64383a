//! Further commands in a stack's containers. Their input and output are this process's pipes or
//! terminal; the shim only starts and collects them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::Winsize;
use stackd_core::RuntimeError;
use stackd_core::runtime::{
    BoxFuture, ErrorKind, ExecInput, ExecOutput, ExecRequest, ExecSession, TerminalSize,
};
use stackd_core::stack::reason;
use stackd_shim::protocol::{ExecCommand, Request};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::client::{Client, watched};
use super::{not_running, plan::failed};

/// How much is read at once.
const BUFFER_BYTES: usize = 16 << 10;

/// Runs a command.
pub(super) async fn run(
    client: Arc<Client>,
    request: ExecRequest,
) -> Result<ExecSession, RuntimeError> {
    let ends = match request.terminal {
        Some(_) => None,
        None => Some(Pipes::new(request.stdin).map_err(|e| failed(e.to_string()))?),
    };
    let command = ExecCommand {
        exec: 0,
        container: request.container,
        command: request.command,
        terminal: request.terminal,
    };
    let theirs: Vec<BorrowedFd<'_>> = match &ends {
        Some(pipes) => pipes.theirs.iter().map(AsFd::as_fd).collect(),
        None => Vec::new(),
    };
    let (exec, reply, end) = client.exec(command, &theirs).await.map_err(|_| not_running())?;
    drop(theirs);
    let terminal =
        reply.map_err(|text| RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text))?;
    let guard = Guard { client, exec };
    let (sender, receiver) = mpsc::channel(64);
    let (input, sources) = match (terminal, ends) {
        (Some(master), _) => {
            let master = Arc::new(watch(master)?);
            let input = Input { sink: Some(Arc::clone(&master)), terminal: true };
            (input, vec![(master, false)])
        }
        (None, Some(Pipes { ours: [input, output, error], theirs })) => {
            drop(theirs);
            let sink = match input {
                Some(input) => Some(Arc::new(watch(input)?)),
                None => None,
            };
            let output = output.map(watch).transpose()?.map(|fd| (Arc::new(fd), false));
            let error = error.map(watch).transpose()?.map(|fd| (Arc::new(fd), true));
            (Input { sink, terminal: false }, output.into_iter().chain(error).collect())
        }
        (None, None) => return Err(failed("a command has no terminal".to_owned())),
    };
    tokio::spawn(carry(sources, sender, end, guard));
    Ok(ExecSession { output: Box::pin(ReceiverStream::new(receiver)), input: Box::new(input) })
}

fn watch(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, RuntimeError> {
    rustix::io::ioctl_fionbio(&fd, true)
        .map_err(io::Error::from)
        .and_then(|()| watched(fd))
        .map_err(|e| failed(format!("watch a command: {e}")))
}

/// Three pipes: this side's ends and the command's.
struct Pipes {
    ours: [Option<OwnedFd>; 3],
    theirs: Vec<OwnedFd>,
}

impl Pipes {
    fn new(stdin: bool) -> io::Result<Self> {
        let (input_read, input_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (output_read, output_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (error_read, error_write) = pipe_with(PipeFlags::CLOEXEC)?;
        // Without an input, the command finds its end at once.
        let input = stdin.then_some(input_write);
        Ok(Self {
            ours: [input, Some(output_read), Some(error_read)],
            theirs: vec![input_read, output_write, error_write],
        })
    }
}

/// Ends the command when nobody listens any more.
struct Guard {
    client: Arc<Client>,
    exec: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (client, exec) = (Arc::clone(&self.client), self.exec);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // A command that has ended is not found, which is as well.
                let _ = client.send(&Request::ExecEnd { exec }, &[]).await;
            });
        }
    }
}

type Sender = mpsc::Sender<Result<ExecOutput, RuntimeError>>;

/// Carries output until the command has ended and all of it was read, or until nobody listens.
async fn carry(
    sources: Vec<(Arc<AsyncFd<OwnedFd>>, bool)>,
    sender: Sender,
    end: oneshot::Receiver<i32>,
    guard: Guard,
) {
    let work = async {
        let mut readers = tokio::task::JoinSet::new();
        for (source, is_error) in sources {
            readers.spawn(read_all(source, is_error, sender.clone()));
        }
        let code = end.await;
        // Something that the command left behind may hold its output open; what it had written
        // itself is read within a moment.
        let rest = async { while readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), rest).await;
        let last = match code {
            Ok(code) => Ok(ExecOutput::Exit(code)),
            Err(_) => Err(not_running()),
        };
        let _ = sender.send(last).await;
    };
    tokio::select! {
        () = work => {}
        () = sender.closed() => {}
    }
    drop(guard);
}

async fn read_all(source: Arc<AsyncFd<OwnedFd>>, is_error: bool, sender: Sender) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Ok(mut ready) = source.readable().await else { return };
        let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer[..])?));
        match read {
            // The other side of a terminal ends with an error.
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(n)) => {
                let bytes = Bytes::copy_from_slice(&buffer[..n]);
                let output =
                    if is_error { ExecOutput::Stderr(bytes) } else { ExecOutput::Stdout(bytes) };
                if sender.send(Ok(output)).await.is_err() {
                    return;
                }
            }
            Err(_would_block) => {}
        }
    }
}

/// Where a command's input goes.
struct Input {
    sink: Option<Arc<AsyncFd<OwnedFd>>>,
    terminal: bool,
}

fn closed() -> RuntimeError {
    RuntimeError::open(ErrorKind::Rejected, reason::ERROR, "the command's input is closed")
}

impl ExecInput for Input {
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let sink = self.sink.as_ref().ok_or_else(closed)?;
            let mut rest = &data[..];
            while !rest.is_empty() {
                let mut ready = sink.writable().await.map_err(|_| closed())?;
                match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), rest)?)) {
                    Ok(Ok(n)) => rest = &rest[n..],
                    Ok(Err(_)) => return Err(closed()),
                    Err(_would_block) => {}
                }
            }
            Ok(())
        })
    }

    fn close(&mut self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            if self.terminal {
                // A terminal's input ends by a character.
                const END_OF_TRANSMISSION: u8 = 4;
                self.write(Bytes::from_static(&[END_OF_TRANSMISSION])).await?;
            }
            self.sink = None;
            Ok(())
        })
    }

    fn resize(&mut self, size: TerminalSize) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let (true, Some(sink)) = (self.terminal, &self.sink) else { return Ok(()) };
            let size =
                Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(sink.get_ref(), size).map_err(|_| closed())
        })
    }
}
