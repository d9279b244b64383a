//! The domain of stackd: what a stack is, what may be asked of it, and what happens to it next.
//!
//! This crate is pure. It opens no file, socket or database, and it does not depend on an async
//! executor; time and randomness come in as arguments. Rules live here ("may this stack be
//! removed?"), sequences of calls live in the engine, shapes of JSON live in the server, and facts
//! about a kernel or a cluster live in the runtime that meets them.

pub mod admission;
pub mod challenge;
pub mod clock;
pub mod duration;
pub mod event;
pub mod id;
pub mod isolation;
pub mod lifecycle;
pub mod pod;
pub mod port;
pub mod quantity;
pub mod runtime;
pub mod secret;
pub mod spec;
pub mod stack;
pub mod variables;

pub use clock::Clock;
pub use id::{JobId, StackId};
pub use port::{PortMapping, Protocol, TargetPort};
pub use runtime::{Runtime, RuntimeError};
pub use secret::Secret;
pub use spec::StackSpec;
pub use stack::{Desired, Observed, Owner, Phase, Stack};

/// A point in wall-clock time, shown as RFC 3339 UTC with up to nine digits of a second.
pub use jiff::Timestamp;
