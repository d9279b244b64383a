//! `GET /stacks/{stack_id}/exec`: a command inside a stack, over a WebSocket.
//!
//! The framing (subprotocol `v1.stackd.exec`): every message is binary, its first byte says what
//! the rest is. To the server: 0 is input (none: its end), 4 is a new size of the terminal. From
//! the server: 1 is output, 2 is error output, 3 is the end, after which nothing follows.

use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use stackd_core::RuntimeError;
use stackd_core::StackId;
use stackd_core::runtime::{
    BoxStream, ErrorKind, ExecInput, ExecOutput, ExecRequest, ExecSession, TerminalSize,
};
use stackd_store::Permission;
use tokio_util::sync::CancellationToken;

use super::errors::not_found;
use super::stack_id;
use crate::ServerState;
use crate::auth::Caller;
use crate::fault::{ErrorBody, Fault};
use crate::params::{Params, PathText};
use crate::serve::Connection;

const SUBPROTOCOL: &str = "v1.stackd.exec";
/// How often a quiet session shows that it is alive, and finds out whether the other side is.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The most that one message may carry.
const MAX_MESSAGE: usize = 1 << 20;
/// The most bytes that a command and its arguments may have.
const MAX_COMMAND: usize = 64 << 10;

mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const EXIT: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
}

/// What a message on [`channel::EXIT`] carries.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum End {
    Code(i32),
    Error(String),
}

/// What a message on [`channel::RESIZE`] carries.
#[derive(Deserialize)]
struct Size {
    columns: u16,
    rows: u16,
}

/// A command inside a stack, over a WebSocket.
///
/// Needs a key with the permission `exec`. The subprotocol is `v1.stackd.exec`: every message is
/// binary, and its first byte says what the rest is. To the server: `0` standard input (an empty
/// rest ends it), `4` a new size of the terminal (`{"columns":80,"rows":24}`). From the server: `1`
/// standard output, `2` standard error, `3` the end (`{"code":0}`, or `{"error":"…"}` where the
/// command could not be followed to its end), after which the server closes. Closing the WebSocket
/// ends the command.
#[utoipa::path(
    get, path = "/stacks/{stack_id}/exec", tag = "stacks", operation_id = "execInStack",
    params(
        ("stack_id" = String, Path, description = "The stack.", example = "stack-716b6384dd477b0b"),
        ("command" = Vec<String>, Query, description = "The command and its arguments, one parameter each, without a shell.", example = json!(["sh", "-c", "id"])),
        ("container" = Option<String>, Query, description = "Which container; the stack's first where not named."),
        ("tty" = Option<bool>, Query, description = "Give it a terminal."),
        ("stdin" = Option<bool>, Query, description = "Give it a standard input; always there with a terminal."),
        ("columns" = Option<u16>, Query, description = "The terminal's width; 80 by default.", minimum = 1, maximum = 1000),
        ("rows" = Option<u16>, Query, description = "The terminal's height; 24 by default.", minimum = 1, maximum = 1000),
    ),
    responses(
        (status = 101, description = "The command runs; the WebSocket carries its input and output."),
        (status = 400, description = "A parameter is not what it should be, or the command cannot be started.", body = ErrorBody,
            example = json!({"error": "invalid input: command is required"})),
        (status = 403, description = "The key lacks the permission; or authentication is off, and the request is not from this machine.", body = ErrorBody,
            example = json!({"error": "this api key may not run commands in stacks"})),
        (status = 404, description = "There is no such stack, or not any more.", body = ErrorBody,
            example = json!({"error": "stack not found"})),
        (status = 409, description = "The stack does not run.", body = ErrorBody,
            example = json!({"error": "the stack is stopped"})),
        (status = 503, description = "The runtime does not answer now.", body = ErrorBody,
            example = json!({"error": "the runtime cannot be reached"})),
        (status = 426, description = "The request is not one for a WebSocket.", body = ErrorBody,
            example = json!({"error": "this path speaks WebSocket only"})),
    )
)]
pub(super) async fn exec(
    State(state): State<ServerState>,
    Extension(caller): Extension<Caller>,
    connection: Option<Extension<Connection>>,
    PathText(id): PathText,
    params: Params,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Fault> {
    if !caller.may(Permission::Exec) {
        let text = "this api key may not run commands in stacks";
        return Err(Fault::new(StatusCode::FORBIDDEN, text));
    }
    let id = stack_id(&id)?;
    // Unknown is unknown, whatever else is wrong with the request.
    state.engine().get(id).ok_or_else(not_found)?;
    let request = read(&params)?;
    let upgrade = upgrade
        .map_err(|_| Fault::new(StatusCode::UPGRADE_REQUIRED, "this path speaks WebSocket only"))?;
    tracing::info!(stack = %id, key = caller.name(), "a command is run in a stack");
    let session = state.engine().exec(id, request).await?;
    let stopping = state.stopping().clone();
    Ok(upgrade
        .protocols([SUBPROTOCOL])
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(async move |socket| {
            relay(id, socket, session, stopping).await;
            drop(connection);
        }))
}

fn read(params: &Params) -> Result<ExecRequest, Fault> {
    let command: Vec<String> = params.all("command").map(str::to_owned).collect();
    if command.first().is_none_or(|program| program.is_empty()) {
        return Err(Fault::input("command is required"));
    }
    if command.iter().map(|part| part.len() + 1).sum::<usize>() > MAX_COMMAND {
        return Err(Fault::input(format_args!("command exceeds limit (max {MAX_COMMAND} bytes)")));
    }
    if command.iter().any(|part| part.contains('\0')) {
        return Err(Fault::input("command must not contain a zero byte"));
    }
    // The bound is far below what the type holds.
    let size = |name, default| {
        params
            .number(name, 1, 1000)
            .map(|n| n.and_then(|n| u16::try_from(n).ok()).unwrap_or(default))
    };
    let size = TerminalSize { columns: size("columns", 80)?, rows: size("rows", 24)? };
    let tty = params.switch("tty")?;
    Ok(ExecRequest {
        container: params.one("container").map(str::to_owned),
        command,
        terminal: tty.then_some(size),
        stdin: params.switch("stdin")? || tty,
    })
}

/// Carries input and output until the command ends, the caller goes, or the server stops. Both
/// directions run side by side, so that a command that reads nothing until it has written all can
/// do so. The command ends with the session that is dropped here.
async fn relay(id: StackId, socket: WebSocket, session: ExecSession, stopping: CancellationToken) {
    let (mut sink, stream) = socket.split();
    let ExecSession { output, input } = session;
    let end = tokio::select! {
        end = to_caller(id, output, &mut sink) => end,
        close = from_caller(id, stream, input) => close,
        () = stopping.cancelled() => Some(close(close_code::AWAY, "the server stops")),
    };
    if let Some(end) = end {
        let _ = sink.send(end).await;
        let _ = sink.close().await;
    }
}

fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

fn end_message(end: &End) -> Message {
    // A number or a text: nothing that could fail.
    message(channel::EXIT, serde_json::to_string(end).unwrap_or_default().as_bytes())
}

/// What a caller may know of a failure.
fn public(id: StackId, error: &RuntimeError) -> String {
    tracing::warn!(stack = %id, error = %error.operator, "a command broke off");
    match error.kind {
        ErrorKind::Failed => "internal server error".to_owned(),
        _ => error.to_string(),
    }
}

/// Sends what the command writes; gives the last message, if there is still somebody to send it to.
async fn to_caller(
    id: StackId,
    mut output: BoxStream<'static, Result<ExecOutput, RuntimeError>>,
    sink: &mut SplitSink<WebSocket, Message>,
) -> Option<Message> {
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let end = loop {
        let next = tokio::select! {
            next = output.next() => next,
            _ = heartbeat.tick() => {
                sink.send(Message::Ping(Bytes::new())).await.ok()?;
                continue;
            }
        };
        let sent = match next {
            Some(Ok(ExecOutput::Stdout(data))) => sink.send(message(channel::STDOUT, &data)).await,
            Some(Ok(ExecOutput::Stderr(data))) => sink.send(message(channel::STDERR, &data)).await,
            Some(Ok(ExecOutput::Exit(code))) => break End::Code(code),
            Some(Err(error)) => break End::Error(public(id, &error)),
            None => break End::Error("the command was lost".to_owned()),
        };
        sent.ok()?;
    };
    sink.send(end_message(&end)).await.ok()?;
    Some(close(close_code::NORMAL, ""))
}

/// Hands on what the caller sends; ends when the caller has gone or broken the rules.
async fn from_caller(
    id: StackId,
    mut stream: SplitStream<WebSocket>,
    mut input: Box<dyn ExecInput>,
) -> Option<Message> {
    loop {
        let data = match stream.next().await {
            Some(Ok(Message::Binary(data))) => data,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Text(_))) => {
                return Some(close(close_code::UNSUPPORTED, "messages are binary"));
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
        };
        let done = match data.first() {
            Some(&channel::STDIN) if data.len() == 1 => input.close().await,
            Some(&channel::STDIN) => input.write(data.slice(1..)).await,
            Some(&channel::RESIZE) => {
                let Ok(Size { columns, rows }) = serde_json::from_slice(&data[1..]) else {
                    return Some(close(close_code::PROTOCOL, "not a size of a terminal"));
                };
                input.resize(TerminalSize { columns, rows }).await
            }
            _ => return Some(close(close_code::PROTOCOL, "an unknown kind of message")),
        };
        // A command that ended or closed its input: its end comes the other way.
        if let Err(error) = done {
            tracing::debug!(stack = %id, error = %error.operator, "input was not taken");
        }
    }
}
