//! Which system calls a stack may make: a list of those that programs need, everything else is
//! refused. Compiled here, to a tree of comparisons: the kernel tries a new filter on every number
//! it knows, so a filter that is a long list would slow each start.
//!
//! What is refused on purpose, though some programs try it: making namespaces and mounting, kernel
//! keys, BPF, performance events, `userfaultfd`, `io_uring`, modules, `kexec`, clocks, swap, and
//! sockets that reach past the network namespace (`AF_VSOCK` and all rare families). Calls are
//! refused with `EPERM`, those newer than this list with `ENOSYS`, on which programs fall back.
//! So is `clone3`, whose arguments a filter cannot see, and `io_setup`: what it takes is counted in
//! one number for the whole machine (`fs.aio-max-nr`), which one stack could use up.

use libc::sock_filter;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Allow,
    Refuse(u32),
    /// Refused where the first argument has one of these bits.
    WithoutBits(u32),
    /// Refused unless the argument of that place is one of these.
    Only(u32, &'static [u32]),
    /// Refused where the argument of that place is one of these.
    Not(u32, &'static [u32]),
}

/// No call has a greater number on the kernels that this list was written for.
const LAST_KNOWN: u32 = 467;
const EPERM: u32 = libc::EPERM as u32;
const ENOSYS: u32 = libc::ENOSYS as u32;

/// `CLONE_NEW…`, all but the one for time, which shares its bit with a signal number in `clone`.
const NEW_NAMESPACES: u32 = 0x7e02_0000;
const NEW_TIME_NAMESPACE: u32 = 0x80;

const SOCKET_FAMILIES: &[u32] =
    &[libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32, libc::AF_NETLINK as u32];

/// Linux, its 32-bit form, and both without address randomisation (which debuggers ask for).
const PERSONALITIES: &[u32] = &[0, 0x0008, 0x0004_0000, 0x0004_0008, 0x0002_0000, 0xffff_ffff];

/// Typing into a terminal that somebody else reads: `TIOCSTI`, `TIOCLINUX`.
const TERMINAL_INJECTION: &[u32] = &[0x5412, 0x541c];

/// A call: `SYS_` and its name, and its number here.
type Call = (&'static str, u32);

macro_rules! calls {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name as u32)),*] };
}

/// Calls that every program may make, on every architecture.
#[rustfmt::skip]
const ALLOWED: &[Call] = calls![
    // Files, by descriptor and by path.
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev
    SYS_preadv2 SYS_pwritev2 SYS_lseek SYS_close SYS_close_range SYS_dup SYS_dup3 SYS_fcntl
    SYS_flock SYS_fsync SYS_fdatasync SYS_sync SYS_syncfs SYS_sync_file_range SYS_ftruncate
    SYS_truncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_copy_file_range SYS_sendfile
    SYS_splice SYS_tee SYS_vmsplice SYS_openat SYS_openat2 SYS_faccessat SYS_faccessat2
    SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fstat SYS_newfstatat SYS_statx SYS_statfs
    SYS_fstatfs SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_mkdirat SYS_mknodat
    SYS_unlinkat SYS_symlinkat SYS_linkat SYS_renameat SYS_renameat2 SYS_readlinkat SYS_utimensat
    SYS_umask SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_setxattr SYS_lsetxattr SYS_fsetxattr
    SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr
    SYS_fremovexattr SYS_name_to_handle_at SYS_inotify_init1 SYS_inotify_add_watch
    SYS_inotify_rm_watch SYS_memfd_create SYS_io_destroy SYS_io_submit SYS_io_cancel
    SYS_io_getevents
    // Memory.
    SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_mincore SYS_msync
    SYS_mlock SYS_mlock2 SYS_munlock SYS_mlockall SYS_munlockall SYS_membarrier
    SYS_remap_file_pages SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_get_mempolicy
    // Processes and threads.
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_kill SYS_tkill
    SYS_tgkill SYS_pidfd_open SYS_pidfd_send_signal SYS_getpid SYS_getppid SYS_gettid
    SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid SYS_set_tid_address SYS_set_robust_list
    SYS_get_robust_list SYS_futex SYS_restart_syscall SYS_rseq SYS_prctl SYS_ptrace
    SYS_process_vm_readv SYS_process_vm_writev SYS_getpriority SYS_setpriority SYS_ioprio_get
    SYS_ioprio_set SYS_sched_yield SYS_sched_getparam SYS_sched_setparam SYS_sched_getscheduler
    SYS_sched_setscheduler SYS_sched_getattr SYS_sched_setattr SYS_sched_get_priority_max
    SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_sched_getaffinity
    SYS_sched_setaffinity SYS_getcpu SYS_getrlimit SYS_setrlimit SYS_prlimit64 SYS_getrusage
    SYS_times SYS_uname SYS_sysinfo SYS_getrandom SYS_capget SYS_capset SYS_seccomp
    // Who a process is.
    SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups
    SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups
    SYS_setfsuid SYS_setfsgid
    // Signals and time.
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigpending SYS_rt_sigreturn SYS_rt_sigsuspend
    SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_sigaltstack SYS_signalfd4
    SYS_nanosleep SYS_clock_nanosleep SYS_clock_gettime SYS_clock_getres SYS_gettimeofday
    SYS_getitimer SYS_setitimer SYS_timer_create SYS_timer_delete SYS_timer_gettime
    SYS_timer_settime SYS_timer_getoverrun SYS_timerfd_create SYS_timerfd_gettime
    SYS_timerfd_settime
    // Waiting and talking.
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_ppoll SYS_pselect6 SYS_eventfd2
    SYS_pipe2 SYS_socketpair SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect
    SYS_getsockname SYS_getpeername SYS_getsockopt SYS_setsockopt SYS_sendto SYS_sendmsg
    SYS_sendmmsg SYS_recvfrom SYS_recvmsg SYS_recvmmsg SYS_shutdown SYS_mq_open SYS_mq_unlink
    SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify SYS_mq_getsetattr SYS_msgget SYS_msgsnd
    SYS_msgrcv SYS_msgctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_shmget SYS_shmat
    SYS_shmdt SYS_shmctl
];

/// Calls newer than the C library's list, whose numbers are the same everywhere; among them those
/// of Landlock, by which programs confine themselves.
const ALLOWED_BY_NUMBER: &[Call] = &[
    ("SYS_epoll_pwait2", 441),
    ("SYS_landlock_create_ruleset", 444),
    ("SYS_landlock_add_rule", 445),
    ("SYS_landlock_restrict_self", 446),
    ("SYS_process_mrelease", 448),
    ("SYS_futex_waitv", 449),
    ("SYS_cachestat", 451),
    ("SYS_fchmodat2", 452),
    ("SYS_map_shadow_stack", 453),
    ("SYS_futex_wake", 454),
    ("SYS_futex_wait", 455),
    ("SYS_futex_requeue", 456),
    ("SYS_mseal", 462),
];

/// What older programs on this architecture call instead.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[Call] = calls![
    SYS_open SYS_creat SYS_access SYS_stat SYS_lstat SYS_chmod SYS_chown SYS_lchown SYS_mkdir
    SYS_rmdir SYS_mknod SYS_link SYS_symlink SYS_unlink SYS_rename SYS_readlink SYS_getdents
    SYS_utime SYS_utimes SYS_futimesat SYS_dup2 SYS_pipe SYS_fork SYS_vfork SYS_getpgrp SYS_alarm
    SYS_pause SYS_time SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_eventfd
    SYS_signalfd SYS_inotify_init SYS_arch_prctl SYS_modify_ldt SYS_getrlimit
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[Call] = &[];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Every call that is allowed whatever its arguments.
pub(super) fn always_allowed() -> impl Iterator<Item = &'static Call> {
    ALLOWED.iter().chain(ALLOWED_HERE).chain(ALLOWED_BY_NUMBER)
}

/// Every call that is looked at more closely.
pub(super) const LOOKED_AT: &[Call] =
    calls![SYS_clone SYS_clone3 SYS_unshare SYS_socket SYS_personality SYS_ioctl SYS_io_setup];

/// What becomes of the call of this number.
pub(super) fn rule(number: u32) -> Rule {
    const CLONE: u32 = libc::SYS_clone as u32;
    const CLONE3: u32 = libc::SYS_clone3 as u32;
    const UNSHARE: u32 = libc::SYS_unshare as u32;
    const SOCKET: u32 = libc::SYS_socket as u32;
    const PERSONALITY: u32 = libc::SYS_personality as u32;
    const IOCTL: u32 = libc::SYS_ioctl as u32;
    const IO_SETUP: u32 = libc::SYS_io_setup as u32;
    match number {
        CLONE => Rule::WithoutBits(NEW_NAMESPACES),
        CLONE3 | IO_SETUP => Rule::Refuse(ENOSYS),
        UNSHARE => Rule::WithoutBits(NEW_NAMESPACES | NEW_TIME_NAMESPACE),
        SOCKET => Rule::Only(0, SOCKET_FAMILIES),
        PERSONALITY => Rule::Only(0, PERSONALITIES),
        IOCTL => Rule::Not(1, TERMINAL_INJECTION),
        _ if always_allowed().any(|(_, allowed)| *allowed == number) => Rule::Allow,
        _ if number > LAST_KNOWN => Rule::Refuse(ENOSYS),
        _ => Rule::Refuse(EPERM),
    }
}

// Offsets in `struct seccomp_data`. Only the low halves of arguments are read: those tested are
// 32 bits wide for the kernel too. Both architectures are little endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(place: u32) -> u32 {
    16 + 8 * place
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_KILL: u32 = 0x8000_0000;

const fn op(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

const fn test(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Compiles the filter.
pub(crate) fn program() -> Vec<sock_filter> {
    let mut out = vec![
        op(LOAD, ARCH),
        test(EQUAL, ARCHITECTURE, 1, 0),
        op(RETURN, RET_KILL),
        op(LOAD, NUMBER),
    ];
    // The first number of each run of equal rules. Numbers of other conventions (x32) lie above
    // the last known one.
    let mut runs: Vec<(u32, Rule)> = Vec::new();
    for number in 0..=LAST_KNOWN + 1 {
        let rule = rule(number);
        if runs.last().is_none_or(|(_, last)| *last != rule) {
            runs.push((number, rule));
        }
    }
    out.extend(tree(&runs));
    out
}

fn tree(runs: &[(u32, Rule)]) -> Vec<sock_filter> {
    if let [(_, rule)] = runs {
        return leaf(*rule);
    }
    let (left, right) = runs.split_at(runs.len() / 2);
    let first_right = right[0].0;
    let (left, right) = (tree(left), tree(right));
    let skip = u32::try_from(left.len()).unwrap_or(u32::MAX);
    let mut out = match u8::try_from(skip) {
        Ok(skip) => vec![test(AT_LEAST, first_right, skip, 0)],
        Err(_) => vec![test(AT_LEAST, first_right, 0, 1), op(JUMP, skip)],
    };
    out.extend(left);
    out.extend(right);
    out
}

fn leaf(rule: Rule) -> Vec<sock_filter> {
    let refuse = op(RETURN, RET_ERRNO | EPERM);
    let allow = op(RETURN, RET_ALLOW);
    match rule {
        Rule::Allow => vec![allow],
        Rule::Refuse(errno) => vec![op(RETURN, RET_ERRNO | errno)],
        Rule::WithoutBits(bits) => {
            vec![op(LOAD, argument(0)), test(ANY_BIT, bits, 0, 1), refuse, allow]
        }
        Rule::Only(place, values) => listed(place, values, allow, refuse),
        Rule::Not(place, values) => listed(place, values, refuse, allow),
    }
}

fn listed(
    place: u32,
    values: &[u32],
    among: sock_filter,
    otherwise: sock_filter,
) -> Vec<sock_filter> {
    let mut out = vec![op(LOAD, argument(place))];
    for (i, value) in values.iter().enumerate() {
        let skip = u8::try_from(values.len() - i).unwrap_or(u8::MAX);
        out.push(test(EQUAL, *value, skip, 0));
    }
    out.push(otherwise);
    out.push(among);
    out
}

/// Puts the filter on this process, for good. Wants `no_new_privs`.
pub(crate) fn load(program: &[sock_filter]) -> std::io::Result<()> {
    const SET_MODE_FILTER: libc::c_long = 1;
    let header = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the header and the program it points to outlive the call, which only reads them.
    crate::sys::check(unsafe {
        libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const header)
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn verdict(program: &[sock_filter], arch: u32, number: i64, args: [u32; 2]) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let i = program[at];
            at += 1;
            let branch = |yes| usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                LOAD => {
                    a = match i.k {
                        NUMBER => u32::try_from(number).unwrap(),
                        ARCH => arch,
                        16 => args[0],
                        24 => args[1],
                        other => panic!("reads at {other}"),
                    }
                }
                JUMP => at += i.k as usize,
                EQUAL => at += branch(a == i.k),
                AT_LEAST => at += branch(a >= i.k),
                ANY_BIT => at += branch(a & i.k != 0),
                RETURN => return i.k,
                other => panic!("unknown instruction {other}"),
            }
        }
    }

    #[test]
    fn the_tree_says_what_the_rules_say() {
        let program = program();
        assert!(program.len() < 4096);
        for number in 0..LAST_KNOWN + 50 {
            let got = verdict(&program, ARCHITECTURE, number.into(), [0, 0]);
            let expected = match rule(number) {
                Rule::Refuse(errno) => RET_ERRNO | errno,
                Rule::Only(_, values) if !values.contains(&0) => RET_ERRNO | EPERM,
                _ => RET_ALLOW,
            };
            assert_eq!(got, expected, "call {number}");
        }
        assert_eq!(verdict(&program, ARCHITECTURE ^ 1, 0, [0, 0]), RET_KILL);
    }

    #[test]
    fn arguments_decide_where_they_must() {
        let program = program();
        let ask = |number, args| verdict(&program, ARCHITECTURE, number, args);
        let (refused, allowed) = (RET_ERRNO | EPERM, RET_ALLOW);
        let cases = [
            (libc::SYS_clone, [libc::CLONE_NEWUSER as u32 | 17, 0], refused),
            (libc::SYS_clone, [0x003d_0f00, 0], allowed),
            (libc::SYS_clone3, [0, 0], RET_ERRNO | ENOSYS),
            (libc::SYS_unshare, [libc::CLONE_FILES as u32, 0], allowed),
            (libc::SYS_unshare, [0x80, 0], refused),
            (libc::SYS_socket, [libc::AF_INET6 as u32, 0], allowed),
            (libc::SYS_socket, [libc::AF_VSOCK as u32, 0], refused),
            (libc::SYS_socket, [libc::AF_PACKET as u32, 0], refused),
            (libc::SYS_ioctl, [0, 0x5412], refused),
            (libc::SYS_ioctl, [0, 0x5401], allowed),
            (libc::SYS_personality, [0x0040_0000, 0], refused),
            (libc::SYS_mount, [0, 0], refused),
            (libc::SYS_bpf, [0, 0], refused),
            (libc::SYS_keyctl, [0, 0], refused),
            (libc::SYS_io_uring_setup, [0, 0], refused),
            (libc::SYS_io_setup, [128, 0], RET_ERRNO | ENOSYS),
            (libc::SYS_userfaultfd, [0, 0], refused),
            (0x4000_0000 + 1, [0, 0], RET_ERRNO | ENOSYS),
        ];
        for (number, args, expected) in cases {
            assert_eq!(ask(number, args), expected, "call {number} with {args:x?}");
        }
    }
}
