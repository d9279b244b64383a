//! How long each step took.

use std::time::Instant;

use crate::protocol::Step;

/// A row of steps, each from the end of the one before.
#[derive(Debug)]
pub(crate) struct Trace {
    last: Instant,
    steps: Vec<Step>,
}

impl Trace {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self { last: Instant::now(), steps: Vec::with_capacity(24) }
    }

    /// Ends a step.
    pub(crate) fn step(&mut self, name: &str) {
        let now = Instant::now();
        let micros = u64::try_from((now - self.last).as_micros()).unwrap_or(u64::MAX);
        self.steps.push(Step { name: name.to_owned(), micros });
        self.last = now;
    }

    /// What was measured.
    pub(crate) fn finish(self) -> Vec<Step> {
        self.steps
    }
}
