//! Making the inside of a stack: namespaces, file systems, limits, and the processes in them.
//!
//! What happens here happens before any process of the stack runs, or by descriptor. A path is
//! never walked through a tree that the stack can write without `RESOLVE_IN_ROOT`, and a mount is
//! never found again by its path.

pub(crate) mod capabilities;
pub(crate) mod cell;
pub(crate) mod cgroup;
pub(crate) mod disk;
pub(crate) mod netlink;
pub(crate) mod process;
pub(crate) mod rootfs;
pub(crate) mod seccomp;
pub(crate) mod seccomp_profile;
pub(crate) mod volumes;
