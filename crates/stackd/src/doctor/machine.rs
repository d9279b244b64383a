//! What the machine gives: limits, disk, ports, and what the runtime needs of the kernel.

use std::ops::RangeInclusive;

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use stackd_runtimes::oci::{OciConfig, Requirement, requirements};

use super::Check;
use super::settings::nearest;
use crate::config::{Config, Driver};

const GIB: u64 = 1 << 30;
/// A stack holds several descriptors and processes; below these, hundreds of stacks do not fit.
const GOOD_FILES: u64 = 65_536;
const FEWEST_FILES: u64 = 1024;
const GOOD_PROCESSES: u64 = 32_768;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![user(config), open_files(), disk(config)];
    if config.runtime.driver == Driver::Oci {
        checks.push(processes());
    }
    let ports_are_here = config.runtime.driver == Driver::Docker && config.runtime.docker.is_here();
    if ports_are_here || config.runtime.driver == Driver::Oci {
        checks.push(node_ports(config));
    }
    checks
}

fn user(config: &Config) -> Check {
    let is_root = rustix::process::geteuid().is_root();
    match crate::serve::check_user(config, is_root) {
        Ok(()) if is_root => Check::ok("user", "root"),
        Ok(()) => Check::ok("user", "not root, and need not be"),
        Err(failure) => Check::failed("user", failure.to_string(), failure.hints().join("; ")),
    }
}

fn open_files() -> Check {
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let detail = format!("up to {most} at once");
    let fix = "raise it: LimitNOFILE=1048576 in the service, or `ulimit -Hn 1048576`";
    match most {
        GOOD_FILES.. => Check::ok("open files", detail),
        FEWEST_FILES.. => Check::warning("open files", detail, fix),
        _ => Check::failed("open files", detail, fix),
    }
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn processes() -> Check {
    let kernel = |name: &str| number(&format!("/proc/sys/kernel/{name}"));
    let limits = [
        ("ulimit -Hu", getrlimit(Resource::Nproc).maximum),
        ("kernel.pid_max", kernel("pid_max")),
        ("kernel.threads-max", kernel("threads-max")),
    ];
    let least =
        limits.iter().filter_map(|(name, most)| Some((*name, (*most)?))).min_by_key(|l| l.1);
    match least {
        Some((name, most)) if most < GOOD_PROCESSES => Check::warning(
            "processes",
            format!("{name} allows {most}"),
            "raise it: TasksMax=infinity in the service, `sysctl kernel.pid_max=4194304`",
        ),
        Some((name, most)) => Check::ok("processes", format!("{name} allows {most}")),
        None => Check::ok("processes", "no limit"),
    }
}

fn disk(config: &Config) -> Check {
    let path = nearest(&config.data_dir);
    let Ok(stat) = statvfs(&path) else {
        return Check::warning(
            "disk",
            format!("{} is unknown", path.display()),
            "check --data-dir",
        );
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let inodes = stat.f_favail;
    let detail = format!("{} GiB and {inodes} inodes free in {}", free / GIB, path.display());
    let reserve = config.engine.room.disk_reserve.units();
    let fix = "make room, or name a larger file system with --data-dir";
    // File systems that have no fixed number of inodes say 0 of 0.
    if free < 64 << 20 || (stat.f_files > 0 && inodes < 1000) {
        Check::failed("disk", detail, fix)
    } else if config.runtime.driver == Driver::Oci && free < reserve.saturating_add(GIB) {
        let fix =
            format!("{fix}; {} GiB of it stay with the machine (--disk-reserve)", reserve / GIB);
        Check::warning("disk", detail, fix)
    } else {
        Check::ok("disk", detail)
    }
}

fn node_ports(config: &Config) -> Check {
    let wanted = &config.engine.node_ports;
    let read = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default()
    };
    judged(wanted, &read("ip_local_port_range"), &read("ip_local_reserved_ports"))
}

/// The kernel takes ports of its own range for outgoing connections, and a node port that is in use
/// that way cannot be given out. Reserved ones it leaves alone.
fn judged(wanted: &RangeInclusive<u16>, ephemeral: &str, reserved: &str) -> Check {
    let (first, last) = (*wanted.start(), *wanted.end());
    let name = "node ports";
    let range = format!("{first}-{last}");
    let mut ends = ephemeral.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else {
        return Check::ok(name, range);
    };
    if last < low || first > high {
        return Check::ok(name, format!("{range}, outside of the ephemeral ports {low}-{high}"));
    }
    let reserved: Vec<_> =
        reserved.trim().split(',').filter_map(stackd_core::port::range::parse).collect();
    let overlap = first.max(low)..=last.min(high);
    if overlap.clone().all(|port| reserved.iter().any(|range| range.contains(&port))) {
        return Check::ok(name, format!("{range}, reserved from the ephemeral ports"));
    }
    Check::warning(
        name,
        format!("{range} overlaps the ephemeral ports {low}-{high}"),
        format!("`sysctl net.ipv4.ip_local_reserved_ports={range}`, or another --node-port-range"),
    )
}

/// What the oci runtime needs, in its own words.
pub(super) fn of_runtime(config: &Config) -> Vec<Check> {
    let check = |need: Requirement| match need.met {
        true => Check::ok(need.name, need.found),
        false => Check::failed(need.name, need.found, need.fix),
    };
    let data_dir = config.data_dir.clone();
    let oci = OciConfig { data_dir, ..config.runtime.oci.clone() };
    let mut checks: Vec<_> = requirements(&oci).into_iter().map(check).collect();
    checks.push(huge_pages(&read_all("/sys/kernel/mm/hugepages")));
    checks
}

/// How many pages of each size the machine has set apart, or would on demand.
fn read_all(directory: &str) -> Vec<(String, u64)> {
    let sizes = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let pages = |size: &std::path::Path, name: &str| number(&size.join(name).to_string_lossy());
    let of = |entry: std::fs::DirEntry| {
        let path = entry.path();
        let pages = ["nr_hugepages", "nr_overcommit_hugepages"].map(|name| pages(&path, name));
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, pages.into_iter().flatten().sum())
    };
    sizes.map(of).collect()
}

/// They count towards no limit of a stack, and any program may ask for them.
fn huge_pages(sizes: &[(String, u64)]) -> Check {
    let name = "huge pages";
    match sizes.iter().find(|(_, pages)| *pages > 0) {
        None => Check::ok(name, "none"),
        Some((size, pages)) => Check::warning(
            name,
            format!("{pages} of {size}, which any stack could take"),
            "`sysctl vm.nr_hugepages=0 vm.nr_overcommit_hugepages=0`, unless something else on this \
             machine needs them and no stranger's stacks run on it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn huge_pages_that_stacks_could_take_are_found() {
        let sizes = |pages| vec![("hugepages-1048576kB".to_owned(), 0), ("2M".to_owned(), pages)];
        assert_eq!(huge_pages(&sizes(0)).status, Status::Ok);
        assert_eq!(huge_pages(&sizes(16)).status, Status::Warning);
        assert_eq!(huge_pages(&[]).status, Status::Ok);
    }

    #[test]
    fn ports_that_the_kernel_may_take_are_found() {
        let judge = |ephemeral, reserved| judged(&(31001..=32767), ephemeral, reserved).status;
        assert_eq!(judge("32768\t60999\n", "\n"), Status::Ok);
        assert_eq!(judge("32767\t60999\n", "\n"), Status::Warning);
        assert_eq!(judge("1024 65535", ""), Status::Warning);
        assert_eq!(judge("1024 65535", "8080,31001-32767\n"), Status::Ok);
        assert_eq!(judge("1024 65535", "31001-32000,32002-32767"), Status::Warning);
        assert_eq!(judge("", ""), Status::Ok);
    }
}
