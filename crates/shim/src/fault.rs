//! Errors inside a shim: which step failed, and how.

use std::fmt;
use std::io;

/// A step that the machine refused. For the operator; what a caller may read is said where a step
/// can fail by a caller's doing.
#[derive(Debug)]
pub(crate) struct Fault {
    step: String,
    source: io::Error,
}

impl Fault {
    /// A fault of a step.
    pub(crate) fn new(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { step: step.into(), source: source.into() }
    }

    /// The system's number for it, where it has one.
    pub(crate) fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(libc::EIO)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.source)
    }
}

impl std::error::Error for Fault {}

/// Names the step that a result is of.
pub(crate) trait At<T> {
    /// Names it with a fixed text.
    fn at(self, step: &str) -> Result<T, Fault>;
    /// Names it with a text that is made only when needed.
    fn at_with(self, step: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &str) -> Result<T, Fault> {
        self.map_err(|e| Fault::new(step, e))
    }

    fn at_with(self, step: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|e| Fault::new(step(), e))
    }
}
