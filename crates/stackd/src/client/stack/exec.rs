//! `stackd stack exec`: a command in a stack, over a WebSocket.
//!
//! The framing is the server's (`v1.stackd.exec`): binary messages, whose first byte says what the
//! rest is.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use reqwest::header::{
    CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::terminal::{RawTerminal, size};
use crate::client::Api;
use crate::exit::{Exit, Failure};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const RESIZE: u8 = 4;

/// What to run, and where.
#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// The stack's id
    id: String,
    /// Which container; the stack's first where not given
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// How a command ended, as the server tells it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum End {
    Code(i32),
    Error(String),
}

pub(super) async fn run(args: ExecArgs, api: &Api) -> anyhow::Result<ExitCode> {
    match follow(&args, api).await {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => {
            // The other codes are the command's own.
            eprint!("{}", crate::exit::render(&error));
            Ok(ExitCode::from(Exit::NotRun.code()))
        }
    }
}

async fn follow(args: &ExecArgs, api: &Api) -> anyhow::Result<u8> {
    let terminal = args.tty && args.interactive;
    if terminal && !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "standard input is not a terminal")
            .hint("leave -t out to pass on what comes through a pipe")
            .into());
    }
    let socket = connect(args, api).await?;
    let (mut to_server, mut from_server) = socket.split();
    let raw = if terminal { RawTerminal::enter() } else { None };
    let mut resized = signal(SignalKind::window_change()).context("SIGWINCH cannot be caught")?;
    let mut stdin = tokio::io::stdin();
    let mut reading = args.interactive;
    let mut buffer = vec![0u8; 16 << 10];
    let lost = || Failure::new(Exit::Unreachable, "the connection to the server broke off");
    let end = loop {
        tokio::select! {
            message = from_server.next() => match message {
                Some(Ok(Message::Binary(message))) => {
                    if let Some(end) = shown(&message)? {
                        break end;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(lost().into()),
                // Pings are answered by the library.
                Some(Ok(_)) => {}
            },
            read = stdin.read(&mut buffer), if reading => {
                let length = read.unwrap_or(0);
                reading = length > 0;
                let mut message = vec![STDIN];
                message.extend_from_slice(&buffer[..length]);
                to_server.send(Message::binary(message)).await.map_err(|_| lost())?;
            }
            _ = resized.recv(), if raw.is_some() => {
                if let Some((columns, rows)) = size() {
                    let mut message = vec![RESIZE];
                    message.extend(json!({"columns": columns, "rows": rows}).to_string().bytes());
                    to_server.send(Message::binary(message)).await.map_err(|_| lost())?;
                }
            }
        }
    };
    drop(raw);
    let _ = to_server.close().await;
    match end {
        // A code is of one byte; what a runtime adds beyond that keeps being a failure.
        End::Code(code) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        End::Error(text) => Err(Failure::new(Exit::NotRun, text).into()),
    }
}

async fn connect(args: &ExecArgs, api: &Api) -> anyhow::Result<WebSocketStream<reqwest::Upgraded>> {
    let mut query: Vec<(&str, String)> =
        args.command.iter().map(|part| ("command", part.clone())).collect();
    query.extend(args.container.iter().map(|container| ("container", container.clone())));
    query.push(("tty", args.tty.to_string()));
    query.push(("stdin", args.interactive.to_string()));
    if let (true, Some((columns, rows))) = (args.tty, size()) {
        query.push(("columns", columns.min(1000).to_string()));
        query.push(("rows", rows.min(1000).to_string()));
    }
    let request = api
        .request(Method::GET, &["stacks", &args.id, "exec"])
        .query(&query)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, generate_key())
        .header(SEC_WEBSOCKET_PROTOCOL, "v1.stackd.exec");
    let response = api.send(request).await?;
    let upgraded = response.upgrade().await.map_err(|_| {
        Failure::new(Exit::Unreachable, "the server did not open a WebSocket")
            .hint("a proxy in between must let WebSockets through")
    })?;
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
}

/// Writes what the command wrote, or says how it ended.
fn shown(message: &[u8]) -> anyhow::Result<Option<End>> {
    let Some((channel, data)) = message.split_first() else { return Ok(None) };
    match *channel {
        STDOUT => {
            let mut out = std::io::stdout().lock();
            out.write_all(data).and_then(|()| out.flush()).context("output cannot be written")?;
        }
        STDERR => {
            std::io::stderr().lock().write_all(data).context("output cannot be written")?;
        }
        EXIT => {
            let end = serde_json::from_slice(data).context("the server's answer is not known")?;
            return Ok(Some(end));
        }
        // What a later server may add.
        _ => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_a_code_or_a_reason() {
        let end = |text: &str| {
            let mut message = vec![EXIT];
            message.extend_from_slice(text.as_bytes());
            shown(&message).unwrap().unwrap()
        };
        assert_eq!(end(r#"{"code":3}"#), End::Code(3));
        assert_eq!(end(r#"{"error":"gone"}"#), End::Error("gone".to_owned()));
        assert_eq!(shown(&[]).unwrap(), None);
        assert_eq!(shown(&[9, 1]).unwrap(), None);
    }
}
