//! What a program can find out about where it runs, without any right.

use std::fs;

use stackd_probe::facts::{first_line, status};

use crate::json;

pub(crate) type Pairs = Vec<(String, String)>;

/// All that the page shows beside the request.
pub(crate) struct Facts {
    pub(crate) hostname: String,
    pub(crate) identity: Pairs,
    pub(crate) limits: Pairs,
    pub(crate) environment: Pairs,
    pub(crate) mounts: Pairs,
    pub(crate) interfaces: Pairs,
}

/// Limits by the files that show them, cgroup v2 first.
const LIMITS: &[(&str, &[&str])] = &[
    (
        "memory (bytes)",
        &["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"],
    ),
    ("CPU (µs in a period)", &["/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"]),
    ("processes", &["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"]),
];

pub(crate) fn gather() -> Facts {
    let mut environment: Pairs = std::env::vars_os()
        .map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()))
        .collect();
    environment.sort();
    Facts {
        hostname: first_line("/proc/sys/kernel/hostname").unwrap_or_default(),
        identity: identity(),
        limits: limits(),
        environment,
        mounts: mounts(),
        interfaces: interfaces(),
    }
}

impl Facts {
    /// The facts and a request's headers as a JSON object.
    pub(crate) fn json(&self, headers: &[(String, String)]) -> String {
        let parts = [
            ("hostname", json::string(&self.hostname)),
            ("identity", json::object(&self.identity)),
            ("limits", json::object(&self.limits)),
            ("environment", json::object(&self.environment)),
            ("mounts", json::object(&self.mounts)),
            ("interfaces", json::object(&self.interfaces)),
            ("headers", json::object(headers)),
        ];
        let fields: Vec<_> =
            parts.iter().map(|(k, v)| format!("{}:{v}", json::string(k))).collect();
        format!("{{{}}}", fields.join(","))
    }
}

fn identity() -> Pairs {
    let mut pairs: Pairs = vec![
        ("process".to_owned(), std::process::id().to_string()),
        ("user ids (real, effective, saved, file)".to_owned(), status("Uid").unwrap_or_default()),
        ("group ids".to_owned(), status("Gid").unwrap_or_default()),
        ("capabilities".to_owned(), status("CapEff").unwrap_or_default()),
        ("no new privileges".to_owned(), status("NoNewPrivs").unwrap_or_default()),
        ("system call filter".to_owned(), status("Seccomp").unwrap_or_default()),
    ];
    if let Some(map) = first_line("/proc/self/uid_map") {
        pairs.push(("user namespace (inside, outside, length)".to_owned(), words(&map)));
    }
    pairs
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn limits() -> Pairs {
    let mut pairs = Pairs::new();
    for (name, files) in LIMITS {
        let shown = files.iter().find_map(|file| first_line(file));
        pairs.push(((*name).to_owned(), shown.unwrap_or_else(|| "not shown".to_owned())));
    }
    let table = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    for line in table.lines().skip(1).filter(|line| line.len() > 46) {
        // The columns of this file have fixed widths: name 26, soft limit 21, hard limit 21.
        if let (Some(name), Some(soft)) = (line.get(..26), line.get(26..46)) {
            pairs.push((name.trim().to_owned(), soft.trim().to_owned()));
        }
    }
    pairs
}

fn mounts() -> Pairs {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let read = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let mut fields = head.split(' ').skip(4);
        let (point, options) = (fields.next()?, fields.next()?);
        let kind = tail.split(' ').next()?;
        Some((point.to_owned(), format!("{kind}, {options}")))
    };
    table.lines().filter_map(read).collect()
}

fn interfaces() -> Pairs {
    let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let read = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<_> = numbers.split_whitespace().collect();
        let bytes = format!("{} B in, {} B out", numbers.first()?, numbers.get(8)?);
        Some((name.trim().to_owned(), bytes))
    };
    table.lines().skip(2).filter_map(read).collect()
}
