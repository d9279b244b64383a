//! How a command ends: its exit code, and what it tells the person who ran it.
//!
//! A failure says what is wrong, where, and in `hint:` lines what to do next. Every code below is
//! documented in `docs/cli.md`; scripts rely on them, so a code keeps its meaning.

use std::fmt;
use std::process::ExitCode;

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something failed that has no code of its own.
    Failed = 1,
    /// The command line was not understood.
    Usage = 2,
    /// A setting is wrong, or settings contradict each other.
    Config = 3,
    /// The server could not be reached.
    Unreachable = 4,
    /// The API key is missing, wrong, or not good for this.
    Denied = 5,
    /// There is no such stack, image or key.
    NotFound = 6,
    /// The server refused the request: what was asked is not valid.
    Rejected = 7,
    /// No room, no node port, or the server cannot write now; the same may work later.
    Saturated = 8,
    /// What was waited for did not happen in time.
    TimedOut = 9,
    /// The stack ended or failed where it should run.
    Ended = 10,
    /// Another process holds what is needed: the data directory, or a port.
    Busy = 11,
    /// The machine lacks something that stackd needs.
    Unfit = 12,
    /// A command could not be run inside a stack (`stack exec` only, whose other codes are those
    /// of the command).
    NotRun = 125,
}

impl Exit {
    /// All of them, with what they mean, in the order of the reference page.
    pub(crate) const ALL: [(Self, &'static str); 13] = [
        (Self::Failed, "Something failed that has no code of its own."),
        (Self::Usage, "The command line was not understood."),
        (Self::Config, "A setting is wrong, or settings contradict each other."),
        (Self::Unreachable, "The server could not be reached."),
        (Self::Denied, "The API key is missing, wrong, or not good for this."),
        (Self::NotFound, "There is no such stack, image or key."),
        (Self::Rejected, "The server refused the request: what was asked is not valid."),
        (
            Self::Saturated,
            "No room, no node port, or the server cannot write now; the same may work later.",
        ),
        (Self::TimedOut, "What was waited for did not happen in time."),
        (Self::Ended, "The stack ended or failed where it should run."),
        (Self::Busy, "Another process holds what is needed: the data directory, or a port."),
        (Self::Unfit, "The machine lacks something that stackd needs."),
        (
            Self::NotRun,
            "`stack exec` only: the command could not be run. Its other codes are the command's own.",
        ),
    ];

    pub(crate) const fn code(self) -> u8 {
        self as u8
    }
}

/// A failure with an exit code of its own and advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    exit: Exit,
    text: String,
    hints: Vec<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), hints: Vec::new() }
    }

    /// Adds a line that says what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn hints(&self) -> &[String] {
        &self.hints
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The exit code that an error stands for.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|e| e.downcast_ref::<Failure>()).map_or(Exit::Failed, |f| f.exit).code()
}

/// What a person reads about an error: `error:`, its causes, and `hint:` lines.
pub(crate) fn render(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  caused by: {cause}\n"));
    }
    for failure in error.chain().filter_map(|e| e.downcast_ref::<Failure>()) {
        for hint in &failure.hints {
            text.push_str(&format!("hint: {hint}\n"));
        }
    }
    text
}

/// Tells about an error on standard error and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprint!("{}", render(error));
    ExitCode::from(code_of(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_code_and_hints_below_a_context() {
        let failure = Failure::new(Exit::Busy, "port 80 is taken").hint("choose another");
        let error = anyhow::Error::new(failure).context("the server could not start");
        assert_eq!(code_of(&error), 11);
        assert_eq!(
            render(&error),
            "error: the server could not start\n  caused by: port 80 is taken\nhint: choose another\n"
        );
        assert_eq!(code_of(&anyhow::anyhow!("plain")), 1);
    }

    #[test]
    fn every_code_is_listed_once_and_in_order() {
        assert!(Exit::ALL.windows(2).all(|two| two[0].0.code() < two[1].0.code()));
    }
}
