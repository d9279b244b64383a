//! The API as its callers meet it: the real router over a real database and a runtime that starts
//! nothing.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod additions;
mod auth;
mod challenges;
mod connections;
mod contract;
mod documents;
mod faults;
mod flags;
mod harness;
mod meters;
mod openapi;
mod player;
mod player_page;
mod player_tokens;
mod shared;
mod streams;
mod tokens;
