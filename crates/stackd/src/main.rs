//! The stackd binary: the server, the tools of its operator, and a client of its API.
//!
//! `main` is not async. A start of a stack re-executes this binary as a shim, which must be one
//! small process with one thread; so that is decided before anything else, and every other role
//! builds the executor that it needs.

#![warn(clippy::print_stdout)]

mod cli;
mod client;
mod config;
mod doctor;
mod exit;
mod local;
mod log;
mod out;
mod reference;
mod serve;
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    stackd_shim::main_if_requested();
    doctor::probe::main_if_requested().unwrap_or_else(cli::run)
}
