//! `stackd stack logs`.

use std::io::Write;

use clap::Args;
use futures_util::StreamExt;
use reqwest::Method;

use crate::client::Api;
use crate::exit::{Exit, Failure};

/// What part of the output is wanted.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// The stack's id
    id: String,
    /// Which container; the stack's first where not given
    #[arg(short, long)]
    container: Option<String>,
    /// Go on with what comes, until the stack ends
    #[arg(short, long)]
    follow: bool,
    /// Only this many last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u64>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
}

pub(super) async fn run(args: LogsArgs, api: &Api) -> anyhow::Result<()> {
    let mut request = api.request(Method::GET, &["stacks", &args.id, "logs"]);
    if let Some(container) = &args.container {
        request = request.query(&[("container", container)]);
    }
    if let Some(tail) = args.tail {
        request = request.query(&[("tail", tail)]);
    }
    for (name, on) in [("follow", args.follow), ("timestamps", args.timestamps)] {
        if on {
            request = request.query(&[(name, "true")]);
        }
    }
    let mut chunks = api.send(request).await?.bytes_stream();
    let mut out = std::io::stdout().lock();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| {
            Failure::new(Exit::Unreachable, "the log broke off before its end")
                .hint("the server may have stopped; the stack goes on, so try again")
        })?;
        // A reader that has seen enough (`| head`) is no failure.
        if out.write_all(&chunk).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}
