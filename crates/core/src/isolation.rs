//! What every stack may do, on every runtime. One constant set; a runtime that cannot apply a part
//! of it says so in its documentation and in `stackd doctor`.

use serde::{Deserialize, Serialize};

use crate::spec::Restrictions;

/// How much a stack's processes may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// What images off the shelf need to run as root inside their own user namespace.
    #[default]
    Default,
    /// Nothing but binding low ports.
    Strict,
}

impl Profile {
    /// The capabilities that root has inside the stack, by their kernel names without `CAP_`.
    pub const fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[
                "CHOWN",
                "DAC_OVERRIDE",
                "FOWNER",
                "FSETID",
                "KILL",
                "SETGID",
                "SETUID",
                "SETPCAP",
                "NET_BIND_SERVICE",
            ],
            Self::Strict => &["NET_BIND_SERVICE"],
        }
    }
}

/// Paths that show nothing inside a stack.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kallsyms",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// Paths that cannot be written inside a stack.
pub const READ_ONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/sys"];

/// The most processes and threads a stack may have unless configured.
pub const DEFAULT_PIDS_LIMIT: u32 = 256;

/// What a runtime enforces on its platform, of what one platform cannot and another can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforcement {
    /// Whether root inside is nobody outside.
    pub user_namespace: bool,
    /// Which filter of system calls.
    pub seccomp: String,
    /// Whether it limits processes and threads as it is told.
    pub pids_limit: bool,
}

impl Default for Enforcement {
    /// All of it, with the filter of this program.
    fn default() -> Self {
        Self { user_namespace: true, seccomp: "stackd/default".to_owned(), pids_limit: true }
    }
}

/// What is really applied to a stack. It is stricter than what the rendered Pod says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectiveSecurity {
    /// Which profile.
    pub profile: Profile,
    /// The capabilities of root inside.
    pub capabilities: Vec<String>,
    /// Always true: no program gains rights by being run.
    pub no_new_privileges: bool,
    /// Whether root inside is nobody outside.
    pub user_namespace: bool,
    /// Which filter of system calls.
    pub seccomp: String,
    /// What it may reach beyond its published ports: `none`.
    pub egress: String,
    /// The most processes and threads; none where that is not for stackd to set.
    pub pids_limit: Option<u32>,
    /// The most bytes on disk.
    pub disk_bytes: u64,
    /// Whether the containers' own file systems cannot be written.
    #[serde(default)]
    pub read_only_root: bool,
}

/// The capabilities that root has inside a stack, by their kernel names without `CAP_`: those of
/// the profile that the stack does not do without.
pub fn capabilities(
    profile: Profile,
    restrictions: &Restrictions,
) -> impl Iterator<Item = &'static str> {
    let dropped = &restrictions.drop_capabilities;
    profile.capabilities().iter().copied().filter(|name| !dropped.contains(*name))
}

/// The most processes and threads of a stack.
pub fn pids_limit(configured: u32, restrictions: &Restrictions) -> u32 {
    restrictions.pids_limit.map_or(configured, |own| own.min(configured))
}

impl EffectiveSecurity {
    /// What holds for a stack with this profile and these limits. `pids_limit` is the configured
    /// one.
    pub fn new(
        profile: Profile,
        pids_limit: u32,
        disk_bytes: u64,
        restrictions: &Restrictions,
        enforced: &Enforcement,
    ) -> Self {
        Self {
            profile,
            capabilities: capabilities(profile, restrictions).map(str::to_owned).collect(),
            no_new_privileges: true,
            user_namespace: enforced.user_namespace,
            seccomp: enforced.seccomp.clone(),
            egress: "none".to_owned(),
            pids_limit: enforced.pids_limit.then(|| self::pids_limit(pids_limit, restrictions)),
            disk_bytes,
            read_only_root: restrictions.read_only_root,
        }
    }
}
