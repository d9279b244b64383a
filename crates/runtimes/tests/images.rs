//! The image store, from outside: archives built here, and a real registry on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    missing_docs,
    dead_code,
    reason = "a test binary: a panic is its way to say no, and nobody links it"
)]

mod images {
    pub mod faults;
    pub mod hostile;
    pub mod local;
    pub mod registry;
    pub mod room;
    pub mod support;
    pub mod unpack;
}
