//! Standard output. `print!` panics when its reader has gone, which `| head` does all the time.

use std::io::{ErrorKind, Write};

use anyhow::Context;

/// Writes all of it. A reader who has seen enough is no failure.
pub(crate) fn write(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.context("the output cannot be written"),
    }
}

/// Writes a line.
pub(crate) fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    write(format!("{text}\n"))
}
