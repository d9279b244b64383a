//! What drivers share that keep a process of their own beside each stack on this machine: the
//! conversation with it, node ports, facts of the machine; credentials of registries, and the
//! names of signals.

pub(crate) mod client;
pub(crate) mod credentials;
pub(crate) mod machine;
pub(crate) mod ports;
pub(crate) mod signals;
