//! The engine over a real database and a simulated runtime, with the time in the test's hands.

mod admission;
mod alone;
mod deadlines;
mod events;
mod jobs;
mod life;
mod players;
mod recovery;
