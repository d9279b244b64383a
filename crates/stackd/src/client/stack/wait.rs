//! `stackd stack wait`: the server holds the answer back until there is something to say.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::Value;
use stackd_core::stack::reason;

use super::show::Stack;
use crate::client::Api;
use crate::exit::{Exit, Failure};

/// What to wait for.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// The stack's id
    id: String,
    /// Until it is ready for traffic, or until it has ended
    #[arg(long = "for", value_enum, default_value_t = For::Running)]
    until: For,
    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "5m",
          value_parser = stackd_core::duration::parse)]
    timeout: Duration,
}

/// What a stack is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum For {
    /// It is ready for traffic
    Running,
    /// It has ended
    Ended,
}

/// The server waits no longer than this in one go; on a terminal it is asked more often, so that
/// what it waits for can be shown.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const SHOWN_WAIT: Duration = Duration::from_secs(1);

pub(super) async fn run(args: WaitArgs, api: &Api) -> anyhow::Result<()> {
    let stack = Stack::read(&until(api, &args.id, args.until, args.timeout).await?)?;
    crate::out::line(stack.status)
}

/// Waits, and gives the stack as it then is.
pub(super) async fn until(
    api: &Api,
    id: &str,
    until: For,
    timeout: Duration,
) -> anyhow::Result<Value> {
    // None: later than any clock goes.
    let deadline = Instant::now().checked_add(timeout);
    let bar = progress();
    let word = match until {
        For::Running => "running",
        For::Ended => "ended",
    };
    loop {
        let left = deadline
            .map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        let longest = if bar.is_hidden() { LONGEST_WAIT } else { SHOWN_WAIT };
        let step = left.min(longest).max(Duration::from_millis(1));
        let request = api
            .request(Method::GET, &["stacks", id])
            .query(&[("wait", word), ("timeout", &format!("{}ms", step.as_millis()))])
            // Beyond what the server was asked to wait, it has to answer soon.
            .timeout(step + Duration::from_secs(30));
        let response = api.send(request).await?;
        let value = api.read(response).await?;
        let stack = Stack::read(&value)?;
        match until {
            For::Running if stack.status == "running" => return Ok(value),
            For::Running if stack.has_ended() => return Err(ended(&stack).into()),
            For::Ended if stack.has_ended() => return Ok(value),
            _ => {}
        }
        if left.is_zero() {
            let timeout = stackd_core::duration::show(timeout);
            let text = format!("{id} is {} after {timeout}: {}", stack.status, why(&stack));
            let text = text.trim_end_matches([':', ' ']).to_owned();
            return Err(Failure::new(Exit::TimedOut, text)
                .hint("wait longer with --timeout, or look at `stackd stack logs`")
                .into());
        }
        bar.set_message(format!("{id} {} {}", stack.status, why(&stack)));
    }
}

fn why(stack: &Stack) -> String {
    stack.message.clone().or_else(|| stack.reason.clone()).unwrap_or_default()
}

fn ended(stack: &Stack) -> Failure {
    let id = &stack.stack_id;
    let why = why(stack);
    let text = format!("{id} is {}: {why}", stack.status);
    let text = text.trim_end_matches([':', ' ']).to_owned();
    let failure = Failure::new(Exit::Ended, text);
    // What never ran has written nothing; the events tell how far it came.
    match stack.reason.as_deref() {
        Some(reason::IMAGE_PULL | reason::IMAGE_NEVER_PULL | reason::START_ERROR) => failure,
        _ => failure.hint(format!(
            "`stackd stack logs {id}` shows what it wrote; -c CONTAINER names another container"
        )),
    }
}

/// A line that moves while something is waited for; only on a terminal.
fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
