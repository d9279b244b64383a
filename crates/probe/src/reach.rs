//! Attempts to reach what is not the stack's own.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use super::{Outcome, any, outcome_of};
use crate::facts;

const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn connect(addresses: &[&str]) -> Outcome {
    any(addresses.iter().map(|address| {
        let result = match address.parse() {
            Ok(to) => TcpStream::connect_timeout(&to, PATIENCE).map(drop),
            // Nothing was tried, which must not look like a wall.
            Err(_) => return (format!("{address:?} is no address"), Ok(())),
        };
        ((*address).to_owned(), result)
    }))
}

pub(super) fn udp(address: &str) -> Outcome {
    let attempt = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(address)?;
        socket.send(b"anybody there?")?;
        socket.recv(&mut [0; 64]).map(drop)
    };
    any([(address.to_owned(), attempt())])
}

pub(super) fn read(path: &str) -> Outcome {
    let mut start = String::new();
    let result =
        fs::File::open(path).and_then(|file| file.take(80).read_to_string(&mut start).map(drop));
    match result {
        Ok(()) if start.is_empty() => Outcome::Denied(format!("{path} is empty")),
        result => any([(format!("{path}: {start}"), result)]),
    }
}

pub(super) fn write(path: &str, value: &str) -> Outcome {
    let file = OpenOptions::new().write(true).open(path);
    let result = file.and_then(|mut file| file.write_all(value.as_bytes()));
    any([(path.to_owned(), result)])
}

/// Other tenants' and the host's processes would be seen as more than the stack's own few.
pub(super) fn processes() -> Outcome {
    let own = facts::first_line("/proc/self/comm").unwrap_or_default();
    let is_process = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    let seen: Vec<_> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| is_process(name))
        .filter_map(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some(command.trim().to_owned())
        })
        .collect();
    let foreign = seen.iter().filter(|name| **name != own).count();
    // The sandbox's own pause or init process may be seen.
    if foreign <= 1 { Outcome::Denied(seen.join(", ")) } else { Outcome::Allowed(seen.join(", ")) }
}

pub(super) fn devices() -> Outcome {
    const DEVICES: &[&str] = &[
        "mem",
        "kmem",
        "port",
        "kmsg",
        "sda",
        "vda",
        "nvme0n1",
        "loop0",
        "loop-control",
        "kvm",
        "fuse",
        "net/tun",
        "mapper/control",
        "vhost-net",
        "uinput",
        "cpu_dma_latency",
    ];
    let open = |name: &&str| {
        let path = format!("/dev/{name}");
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        (path, file.map(drop))
    };
    any(DEVICES.iter().map(open))
}

pub(super) fn kernel_knobs() -> Outcome {
    // What is written is what stands there, so that a hole does no harm.
    const KNOBS: &[&str] = &[
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/panic",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/fs/inotify/max_user_instances",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/net/ipv4/ip_forward",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ];
    let rewrite = |path: &&str| {
        let result = fs::read(path).and_then(|value| {
            OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(&value))
        });
        ((*path).to_owned(), result)
    };
    let sysrq = OpenOptions::new().write(true).open("/proc/sysrq-trigger").map(drop);
    any(KNOBS.iter().map(rewrite).chain([("/proc/sysrq-trigger".to_owned(), sysrq)]))
}

/// With `names`, the names of the kernel's functions may show, as long as their addresses do not: so
/// it is where nothing but the kernel hides them.
pub(super) fn masked(names: bool) -> Outcome {
    const MASKED: &[&str] = &[
        "/proc/kcore",
        "/proc/keys",
        "/proc/kallsyms",
        "/proc/interrupts",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/latency_stats",
        "/proc/1/mem",
        "/sys/kernel/debug/tracing",
    ];
    const NO_ADDRESS: &[u8] = b"0000000000000000 ";
    let shows = |path: &&str| {
        let mut data = [0; 64];
        let result = match fs::File::open(path).and_then(|mut file| file.read(&mut data)) {
            Ok(0) => Err(std::io::Error::other("empty")),
            Ok(_) if names && *path == "/proc/kallsyms" && data.starts_with(NO_ADDRESS) => {
                Err(std::io::Error::other("no addresses"))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        ((*path).to_owned(), result)
    };
    any(MASKED.iter().map(shows))
}

/// A writable cgroup would let a stack raise its limits or leave a program for the host to run.
pub(super) fn cgroup() -> Outcome {
    let mut attempts = Vec::new();
    for base in ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/rdma"] {
        let own = format!("{base}/escape");
        let made = fs::create_dir(&own).and_then(|()| {
            let is_group = is_on_cgroups(&own);
            fs::remove_dir(&own)?;
            // With version 1 the directory that holds the hierarchies may be a mere directory.
            if is_group { Ok(()) } else { Err(std::io::Error::other("not a control group")) }
        });
        attempts.push((own, made));
        for file in ["release_agent", "notify_on_release", "cgroup.procs", "memory.limit_in_bytes"]
        {
            let path = format!("{base}/{file}");
            attempts.push((path.clone(), OpenOptions::new().write(true).open(&path).map(drop)));
        }
    }
    any(attempts)
}

fn is_on_cgroups(path: &str) -> bool {
    const MAGIC: [libc::c_long; 2] = [libc::CGROUP_SUPER_MAGIC, libc::CGROUP2_SUPER_MAGIC];
    // SAFETY: all zeros are a value of it.
    let mut of: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, and there is room for the answer.
    let result = unsafe { libc::statfs(text(path).as_ptr(), &raw mut of) };
    // What cannot be told is taken for a hole.
    result < 0 || MAGIC.contains(&of.f_type)
}

fn text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

pub(super) fn mount() -> Outcome {
    let try_mount = |source: &str, target: &str, kind: &str, flags: libc::c_ulong| {
        let what = format!("{kind}{source} on {target}");
        let (source, target, kind) = (text(source), text(target), text(kind));
        // SAFETY: all strings end with a zero byte and live until the call is over.
        let result = unsafe {
            libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null())
        };
        outcome_of(&what, result.into())
    };
    any([
        try_mount("none", "/tmp", "tmpfs", 0),
        try_mount("proc", "/proc", "proc", 0),
        try_mount("/", "/tmp", "", libc::MS_BIND),
        try_mount("none", "/", "", libc::MS_REMOUNT | libc::MS_BIND),
        try_mount("none", "/proc/sys", "", libc::MS_REMOUNT | libc::MS_BIND),
        // SAFETY: the path ends with a zero byte.
        outcome_of("umount /proc", unsafe { libc::umount2(c"/proc".as_ptr(), 0) }.into()),
    ])
}

pub(super) fn unshare() -> Outcome {
    const KINDS: &[(&str, libc::c_int)] = &[
        ("mount", libc::CLONE_NEWNS),
        ("network", libc::CLONE_NEWNET),
        ("process", libc::CLONE_NEWPID),
        ("user", libc::CLONE_NEWUSER),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ];
    // SAFETY: `unshare` takes flags only.
    any(KINDS.iter().map(|(name, flag)| outcome_of(name, unsafe { libc::unshare(*flag) }.into())))
}

pub(super) fn raw_socket() -> Outcome {
    // SAFETY: `socket` takes numbers only.
    let open = |what: &str, domain, kind, protocol| {
        outcome_of(what, unsafe { libc::socket(domain, kind, protocol) }.into())
    };
    any([
        open("raw IPv4", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        open("raw IPv6", libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        open("packets", libc::AF_PACKET, libc::SOCK_RAW, 0),
        open("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        open("kernel crypto", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
    ])
}

/// A device that can be made must at least not open.
pub(super) fn mknod() -> Outcome {
    let make = |name: &str, kind: libc::mode_t, major, minor| {
        let path = format!("/tmp/device-{name}");
        let file = text(&path);
        // SAFETY: the path ends with a zero byte.
        let made = unsafe { libc::mknod(file.as_ptr(), kind | 0o666, libc::makedev(major, minor)) };
        let made = outcome_of(name, made.into());
        let opened = made.1.and_then(|()| fs::File::open(&path).map(drop));
        let _ = fs::remove_file(&path);
        (made.0, opened)
    };
    any([
        make("mem", libc::S_IFCHR, 1, 1),
        make("kmsg", libc::S_IFCHR, 1, 11),
        make("sda", libc::S_IFBLK, 8, 0),
        make("vda", libc::S_IFBLK, 254, 0),
        make("loop0", libc::S_IFBLK, 7, 0),
    ])
}

pub(super) fn keyctl() -> Outcome {
    // SAFETY: the strings end with a zero byte, and the payload has the length that is given.
    unsafe {
        any([
            outcome_of(
                "add_key",
                libc::syscall(
                    libc::SYS_add_key,
                    c"user".as_ptr(),
                    c"sample".as_ptr(),
                    c"x".as_ptr(),
                    1usize,
                    -3,
                ),
            ),
            outcome_of("keyctl", libc::syscall(libc::SYS_keyctl, 0, -3, 1)),
            outcome_of(
                "request_key",
                libc::syscall(libc::SYS_request_key, c"user".as_ptr(), c"x".as_ptr(), 0usize, -3),
            ),
        ])
    }
}

/// Calls that no stack needs, with arguments that do nothing even where they are allowed.
pub(super) fn system_calls() -> Outcome {
    const CALLS: &[(&str, libc::c_long)] = &[
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("kexec_load", libc::SYS_kexec_load),
        ("init_module", libc::SYS_init_module),
        ("delete_module", libc::SYS_delete_module),
        ("swapon", libc::SYS_swapon),
        ("settimeofday", libc::SYS_settimeofday),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("setns", libc::SYS_setns),
        ("pivot_root", libc::SYS_pivot_root),
        ("reboot", libc::SYS_reboot),
        ("quotactl", libc::SYS_quotactl),
        ("acct", libc::SYS_acct),
    ];
    // Bad arguments that the kernel looks at only after the rights: EPERM and ENOSYS are refusals,
    // anything else means that the call was let in.
    any(CALLS.iter().map(|(name, number)| {
        // SAFETY: null and invalid arguments are answered with an error by every one of them.
        let result = unsafe { libc::syscall(*number, -1, 0, 0, 0, 0) };
        let error = std::io::Error::last_os_error();
        let refused = matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
        ((*name).to_owned(), if result < 0 && refused { Err(error) } else { Ok(()) })
    }))
}

/// Capabilities that would reach beyond the stack even inside a user namespace.
pub(super) fn capabilities() -> Outcome {
    const DANGEROUS: &[(&str, u32)] = &[
        ("DAC_READ_SEARCH", 2),
        ("NET_ADMIN", 12),
        ("NET_RAW", 13),
        ("SYS_MODULE", 16),
        ("SYS_RAWIO", 17),
        ("SYS_CHROOT", 18),
        ("SYS_PTRACE", 19),
        ("SYS_ADMIN", 21),
        ("SYS_BOOT", 22),
        ("SYS_RESOURCE", 24),
        ("MKNOD", 27),
        ("BPF", 39),
    ];
    let shown = facts::status("CapBnd").unwrap_or_default();
    let Ok(held) = u64::from_str_radix(&shown, 16) else {
        return Outcome::Allowed(format!("the set cannot be read: {shown:?}"));
    };
    let held: Vec<_> =
        DANGEROUS.iter().filter(|(_, bit)| held >> bit & 1 == 1).map(|(name, _)| *name).collect();
    if held.is_empty() {
        Outcome::Denied(format!("bounding set {shown}"))
    } else {
        Outcome::Allowed(held.join(", "))
    }
}

/// No program gains rights by being run, and root inside is nobody outside.
pub(super) fn set_user_id() -> Outcome {
    let no_new = facts::status("NoNewPrivs").unwrap_or_default();
    let map = facts::first_line("/proc/self/uid_map").unwrap_or_default();
    let outside = map.split_whitespace().nth(1).unwrap_or("0").to_owned();
    if no_new == "1" && outside != "0" {
        Outcome::Denied(format!("no new privileges, and root here is user {outside} outside"))
    } else {
        Outcome::Allowed(format!("NoNewPrivs {no_new}, root here is user {outside} outside"))
    }
}
