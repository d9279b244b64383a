//! What the embedded runtime needs of a machine, as far as it can be seen without starting anything.
//!
//! `stackd doctor` shows it, and a server that lacks a part of it refuses to start: isolation is
//! never skipped in silence.

use std::io;
use std::path::Path;

use rustix::fs::{Access, access};
use stackd_shim::trial;

use super::config::{DiskKind, OciConfig};

/// One thing that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// What it is.
    pub name: &'static str,
    /// Whether it is there.
    pub met: bool,
    /// What was found.
    pub found: String,
    /// What to do where it is not there.
    pub fix: &'static str,
}

/// Everything that is needed with these settings. It reads the kernel's own files, and tries on the
/// file system of the data directory what that has to be able to; nothing of it is left.
pub fn requirements(config: &OciConfig) -> Vec<Requirement> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let there = |name, met: bool, fix| {
        let found = if met { "there" } else { "missing" }.to_owned();
        Requirement { name, met, found, fix }
    };
    let mut needs = vec![
        kernel(&read("/proc/sys/kernel/osrelease")),
        capabilities(&read("/proc/self/status")),
        there(
            "overlay",
            read("/proc/filesystems").split_whitespace().any(|name| name == "overlay"),
            "load the module: `modprobe overlay`",
        ),
        namespaces(&|name| read(&format!("/proc/sys/user/max_{name}_namespaces"))),
        there(
            "seccomp",
            read("/proc/sys/kernel/seccomp/actions_avail").split(' ').any(|one| one == "errno"),
            "take a kernel with CONFIG_SECCOMP_FILTER",
        ),
        cgroups(&read("/proc/self/cgroup"), &read("/sys/fs/cgroup/cgroup.controllers"), &|path| {
            // Mounted elsewhere is not read-only.
            !path.exists() || access(path, Access::WRITE_OK).is_ok()
        }),
        swap(&read("/proc/meminfo"), swap_is_limited(Path::new("/sys/fs/cgroup"))),
    ];
    needs.extend(data_directory(config));
    if config.disk == DiskKind::Loop {
        needs.push(there(
            "loop devices",
            Path::new("/dev/loop-control").exists(),
            "load the module: `modprobe loop`; or keep writable layers in memory: --disk memory",
        ));
        let path = std::env::var_os("PATH").unwrap_or_default();
        needs.push(there(
            "mkfs.ext4",
            std::env::split_paths(&path).any(|dir| dir.join("mkfs.ext4").is_file()),
            "install e2fsprogs, and have its directory (/usr/sbin or /sbin) in PATH",
        ));
    }
    needs
}

/// An overlay takes id-mapped layers since 5.19.
fn kernel(release: &str) -> Requirement {
    let release = release.trim();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let version: (u32, u32) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    Requirement {
        name: "kernel",
        met: version >= (5, 19),
        found: release.to_owned(),
        fix: "take Linux 5.19 or newer",
    }
}

/// What not every file system can. Without it each start would fail.
fn data_directory(config: &OciConfig) -> Vec<Requirement> {
    let path = std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let there = path.ancestors().find(|part| part.is_dir()).unwrap_or(Path::new("/"));
    let tried = |name, result: io::Result<()>| Requirement {
        name,
        met: result.is_ok(),
        found: match result {
            Ok(()) => format!("on {}", there.display()),
            Err(error) => format!("not on {}: {error}", there.display()),
        },
        fix: "keep the data directory on a file system of this machine's own that can do it, such \
              as ext4, XFS or Btrfs: --data-dir",
    };
    let mut needs = vec![tried("id-mapped mounts", trial::id_mapped_mount(there, config.first_id))];
    let nameless = trial::nameless_file(there);
    // Only there is no other way to try without a trace.
    if nameless.is_ok() {
        needs.push(tried("trusted attributes", trial::trusted_attribute(there)));
    }
    if config.disk == DiskKind::Loop {
        needs.push(tried("nameless files", nameless));
    }
    needs
}

/// A limit of memory that leaves out swap is none.
fn swap(meminfo: &str, is_limited: bool) -> Requirement {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
    let is_on = total.is_some_and(|total| !total.trim().starts_with("0 "));
    let (met, found) = match (is_on, is_limited) {
        (false, _) => (true, "off"),
        (true, true) => (true, "on, and stacks get none"),
        (true, false) => (false, "on, and cannot be kept from stacks"),
    };
    Requirement {
        name: "swap",
        met,
        found: found.to_owned(),
        fix: "turn it off: `swapoff -a`; or start the kernel with swapaccount=1",
    }
}

/// Whether groups can be kept from swap, in either version of cgroups. Of version 2 the root itself
/// has no limits.
fn swap_is_limited(root: &Path) -> bool {
    let groups = std::fs::read_dir(root).into_iter().flatten().flatten();
    root.join("memory/memory.memsw.limit_in_bytes").exists()
        || groups.into_iter().any(|group| group.path().join("memory.swap.max").exists())
}

/// Root in a container is not root enough.
fn capabilities(status: &str) -> Requirement {
    const NEEDED: [(&str, u32); 8] = [
        ("CHOWN", 0),
        ("DAC_OVERRIDE", 1),
        ("FOWNER", 3),
        ("KILL", 5),
        ("SETGID", 6),
        ("SETUID", 7),
        ("NET_ADMIN", 12),
        ("SYS_ADMIN", 21),
    ];
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<_> =
        NEEDED.iter().filter(|(_, bit)| held & (1 << bit) == 0).map(|(name, _)| *name).collect();
    Requirement {
        name: "capabilities",
        met: missing.is_empty(),
        found: match missing.is_empty() {
            true => "all that are needed".to_owned(),
            false => format!("without {}", missing.join(", ")),
        },
        fix: "run as root on the machine itself, or in a privileged container",
    }
}

/// Every stack has one of each.
fn namespaces(most: &dyn Fn(&str) -> String) -> Requirement {
    const KINDS: [&str; 6] = ["user", "mnt", "pid", "net", "uts", "ipc"];
    let none = |kind: &&str| most(kind).trim().parse::<u64>().unwrap_or(0) == 0;
    let missing: Vec<_> = KINDS.into_iter().filter(none).collect();
    Requirement {
        name: "namespaces",
        met: missing.is_empty(),
        found: match missing.is_empty() {
            true => "all kinds".to_owned(),
            false => format!("none of kind {}", missing.join(", ")),
        },
        fix: "`sysctl user.max_user_namespaces=63000` and its like for the other kinds",
    }
}

/// The controllers that limits are made of, whichever version of cgroups holds them.
fn cgroups(own: &str, unified: &str, writable: &dyn Fn(&Path) -> bool) -> Requirement {
    const WANTED: [&str; 3] = ["cpu", "memory", "pids"];
    const ROOT: &str = "/sys/fs/cgroup";
    let fix = "mount cgroups with cpu, memory and pids so that they can be written, and have them \
               delegated: Delegate=yes in the service";
    let need = |met, found| Requirement { name: "cgroups", met, found, fix };
    let in_unified = WANTED.iter().all(|name| unified.split_whitespace().any(|c| c == *name));
    if in_unified {
        return match writable(Path::new(ROOT)) {
            true => need(true, "v2, with cpu, memory and pids".to_owned()),
            false => need(false, "v2, and cannot be written".to_owned()),
        };
    }
    let mounted = |name: &str| {
        let controllers = own.lines().filter_map(|line| line.split(':').nth(1));
        controllers.flat_map(|list| list.split(',')).any(|controller| controller == name)
    };
    let missing: Vec<_> = WANTED
        .into_iter()
        .filter(|name| !mounted(name) || !writable(&Path::new(ROOT).join(name)))
        .collect();
    match missing.is_empty() {
        true => need(true, "v1, with cpu, memory and pids".to_owned()),
        false => {
            need(false, format!("no controller that can be written for {}", missing.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_found() {
        for (release, met) in [
            ("6.18.0-1-cloud-amd64\n", true),
            ("5.19.0", true),
            ("5.15.0-13-amd64", false),
            ("", false),
        ] {
            assert_eq!(kernel(release).met, met, "{release}");
        }
    }

    #[test]
    fn swap_that_cannot_be_limited_is_found() {
        assert!(swap("MemTotal: 9 kB\nSwapTotal:             0 kB\n", false).met);
        assert!(swap("SwapTotal:       2097148 kB\n", true).met);
        let bad = swap("SwapTotal:       2097148 kB\n", false);
        assert_eq!((bad.met, bad.found.as_str()), (false, "on, and cannot be kept from stacks"));
        let directory = tempfile::tempdir().unwrap();
        let make = |group: &str, file: Option<&str>| {
            let group = directory.path().join(group);
            std::fs::create_dir_all(&group).unwrap();
            if let Some(file) = file {
                std::fs::write(group.join(file), "max\n").unwrap();
            }
        };
        make("memory", None);
        make("system.slice", Some("memory.max"));
        assert!(!swap_is_limited(directory.path()));
        make("system.slice", Some("memory.swap.max"));
        assert!(swap_is_limited(directory.path()));
        std::fs::remove_dir_all(directory.path().join("system.slice")).unwrap();
        make("memory", Some("memory.memsw.limit_in_bytes"));
        assert!(swap_is_limited(directory.path()));
    }

    #[test]
    fn a_data_directory_that_no_stack_can_be_started_from_is_found() {
        let missing = |data_dir: &str, disk| {
            let config = OciConfig { data_dir: data_dir.into(), disk, ..OciConfig::default() };
            let needs = data_directory(&config).into_iter().filter(|need| !need.met);
            needs.map(|need| need.name).collect::<Vec<_>>()
        };
        let good = tempfile::tempdir().unwrap();
        let not_yet = good.path().join("not/yet");
        assert_eq!(missing(not_yet.to_str().unwrap(), DiskKind::Loop), Vec::<&str>::new());
        assert_eq!(missing("/proc", DiskKind::Loop), ["id-mapped mounts", "nameless files"]);
        assert_eq!(missing("/proc", DiskKind::Memory), ["id-mapped mounts"]);
    }

    #[test]
    fn root_without_its_powers_is_found() {
        assert!(capabilities("CapPrm:\t0\nCapEff:\t000001ffffffffff\n").met);
        let docker = capabilities("CapEff:\t00000000a80425fb\n");
        assert_eq!(docker.found, "without NET_ADMIN, SYS_ADMIN");
        assert!(!capabilities("").met);
    }

    #[test]
    fn namespaces_that_are_turned_off_are_found() {
        assert!(namespaces(&|_| "63000\n".to_owned()).met);
        let off = namespaces(&|kind| if kind == "user" { "0" } else { "9" }.to_owned());
        assert_eq!(off.found, "none of kind user");
    }

    #[test]
    fn controllers_may_be_in_either_version_of_cgroups() {
        let own = "5:pids:/\n4:memory:/\n3:cpu,cpuacct:/\n0::/\n";
        let all = "cpuset cpu io memory pids\n";
        let found = |own, unified, writable| {
            let need = cgroups(own, unified, &|_| writable);
            (need.met, need.found)
        };
        assert_eq!(found("0::/\n", all, true), (true, "v2, with cpu, memory and pids".to_owned()));
        assert!(!found("0::/\n", all, false).0);
        assert_eq!(found(own, "", true), (true, "v1, with cpu, memory and pids".to_owned()));
        assert!(!found(own, "", false).0);
        let (met, text) = found("5:pids:/\n3:cpu:/\n0::/\n", "io\n", true);
        assert_eq!((met, text.as_str()), (false, "no controller that can be written for memory"));
    }
}
