//! End to end: the real binary in processes of its own, real containers, clients over HTTP and by
//! the command line. Needs root. Every server has a directory and ports of its own, and a test
//! fails when anything of it is left.

#![expect(clippy::expect_used, reason = "a test that panics has failed")]

#[macro_use]
mod on;

mod alike;
mod browser;
mod chart_values;
mod cli;
mod cluster;
mod crash;
mod database;
mod doctor;
mod documents;
mod engine;
mod flags;
mod fleet;
mod helm;
mod images;
mod isolation;
mod leftovers;
mod play;
mod play_crash;
mod play_replicas;
mod ports;
mod replicas;
mod server;
mod terminal;
mod tls;
mod walkthrough;

/// The name under which the sample image stands in for a web server in the documents.
const IMAGE: &str = "nginx:stable";
