//! The process beside each embedded stack. It is the server's own binary, run again as
//! `stackd shim`: made ahead of need as a blank that holds empty namespaces and a disk, it becomes
//! the shim of one stack when it is told to, and ends with it.
//!
//! It starts the stack's containers, relays its ports, keeps its logs, checks its health, and
//! answers on a socket. It outlives the server. It is the first process of a process namespace
//! around all of its stack's, so when it dies, however it dies, the kernel ends them all; and all
//! else that it holds (mounts, loop devices, network) is held by nothing else.
//!
//! Where another engine runs the containers, it is only their keeper: it enters their network, relays
//! their ports and checks their health, and starts nothing.
//!
//! It has one thread, because it forks; and it trusts nothing that comes from inside a stack.

mod blank;
mod control;
mod exec;
mod fault;
mod keeper;
mod launch;
mod logs;
mod poll;
mod probe;
pub mod protocol;
mod relay;
mod state;
mod supervisor;
mod sys;
mod trace;
pub mod trial;

pub use launch::process::open_files;
pub use launch::seccomp_profile::profile as seccomp_profile;
pub use state::read as read_state;

/// The first argument that makes this binary a shim.
pub const ARGUMENT: &str = "shim";

/// Becomes a shim, and never returns, if this process was started as one. To be called first of
/// all in `main`, before any thread is made.
pub fn main_if_requested() {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT) {
        blank::run()
    }
}
