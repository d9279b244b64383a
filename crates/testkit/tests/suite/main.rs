//! The kit, and the simulated runtime by the contract.

#![expect(clippy::expect_used, reason = "a test that panics has failed")]

mod containerfile;
mod engine;
mod kubernetes;
mod sample;
mod simulated;
