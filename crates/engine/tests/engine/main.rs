//! The engine over a real database and a simulated runtime, with the time in the test's hands.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod alone;
mod catalogue;
mod deadlines;
mod events;
mod jobs;
mod life;
mod players;
mod recovery;
