//! Facts of this machine that a start relies on.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use stackd_shim::protocol::{CgroupLayout, ProcessName};

/// The controllers that stacks are limited by or measured with on version 1. The last is measured
/// with only.
const CONTROLLERS: &[&str] = &["memory", "cpu", "pids", "cpuacct"];

/// The name of this boot; another one after every reboot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// This program as an executable that nobody can change, to be run again as a shim.
pub(crate) fn own_program() -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let sealing = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and make every such file executable.
    let memory = memfd_create("stackd", sealing | MemfdFlags::EXEC)
        .or_else(|_| memfd_create("stackd", sealing))?;
    let mut program = std::fs::File::open("/proc/self/exe")?;
    let mut copy = std::fs::File::from(memory);
    io::copy(&mut program, &mut copy)?;
    seal(&copy, || std::thread::sleep(BETWEEN_SEALS))?;
    // An executable that is open for writing cannot be run: it is opened again for reading.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(std::fs::File::open(path)?.into())
}

/// How often and how far apart a file in memory is sealed before it is given up.
const SEALS: usize = 100;
const BETWEEN_SEALS: std::time::Duration = std::time::Duration::from_millis(20);

/// Lets nobody change a file in memory any more. The kernel refuses it while a page is held by
/// anybody, which its own reclaim and migration of memory do for moments.
fn seal(file: impl AsFd, mut wait: impl FnMut()) -> io::Result<()> {
    use rustix::fs::{SealFlags, fcntl_add_seals};
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    for _ in 1..SEALS {
        match fcntl_add_seals(&file, seals) {
            Err(rustix::io::Errno::BUSY) => wait(),
            done => return Ok(done?),
        }
    }
    let done = fcntl_add_seals(&file, seals);
    done.map_err(|e| io::Error::new(e.kind(), format!("seal this program's own copy: {e}")))
}

/// Names a process of this machine.
pub(crate) fn process_name(pid: u32) -> io::Result<ProcessName> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, which may hold anything.
    let start_time = text
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(ProcessName { pid, start_time })
}

/// Kills a process unless it has ended already; another one with its number is left alone.
pub(crate) fn kill(name: ProcessName) {
    let Some(pid) = i32::try_from(name.pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return;
    };
    let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    if process_name(name.pid).is_ok_and(|now| now == name) {
        let _ = rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL);
        let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let soon = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut fds, Some(&soon));
    }
}

/// Waits until a process has ended, and collects it if it is this process's own. One that does not
/// end within some seconds is killed.
pub(crate) fn collect(name: ProcessName) {
    let Some(pid) = i32::try_from(name.pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return;
    };
    if let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        && process_name(name.pid).is_ok_and(|now| now == name)
    {
        let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let soon = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&soon)) == Ok(0) {
            kill(name);
        }
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(process.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
    }
}

/// Finds out how this machine limits groups of processes, and makes the parent of all stacks. A
/// parent that begins with `/` is below the mount point, another one in the part of the tree that
/// is this server's, where version 2 gives it one.
pub(crate) fn cgroups(parent: &str) -> io::Result<CgroupLayout> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let layout = find_cgroups(&mounts, parent.trim_start_matches('/')).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "neither cgroup version 1 (memory, cpu, pids) nor version 2 is mounted",
        )
    })?;
    match layout {
        CgroupLayout::V1 { controllers, parent } => {
            for (_, mount) in &controllers {
                std::fs::create_dir_all(mount.join(&parent))?;
            }
            Ok(CgroupLayout::V1 { controllers, parent })
        }
        CgroupLayout::V2 { mount, parent: below } => {
            let own = std::fs::read_to_string("/proc/self/cgroup")?;
            let base = match parent.starts_with('/') {
                true => PathBuf::new(),
                false => delegated(&mount, &own, &is_delegated),
            };
            delegate_down(&mount.join(&base), Path::new(&below))?;
            let parent = base.join(below).to_str().map(str::to_owned);
            let parent = parent.ok_or(io::ErrorKind::InvalidData)?;
            Ok(CgroupLayout::V2 { mount, parent })
        }
    }
}

/// The group of a server whose own group holds those of stacks, too: on version 2 a group that
/// limits others has no processes of its own.
const SERVER: &str = "server";
const CONTROL: &str = "+cpu +memory +pids";

/// The part of the tree of version 2 that was delegated to this process, below the mount point: the
/// nearest group around it that is marked so; all of it where none is. Who manages the rest of the
/// tree does not expect anybody else to change it.
fn delegated(mount: &Path, own: &str, is_marked: &dyn Fn(&Path) -> bool) -> PathBuf {
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let marked = Path::new(own).ancestors().find(|group| is_marked(&mount.join(group)));
    marked.map(Path::to_owned).unwrap_or_default()
}

/// Whether systemd has marked a group as delegated (`Delegate=` of a unit).
fn is_delegated(group: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].into_iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::getxattr(group, name, &mut value) == Ok(1) && value == *b"1"
    })
}

/// Makes the groups of `below` in `base`, and lets each of them, and `base`, limit those below it.
fn delegate_down(base: &Path, below: &Path) -> io::Result<()> {
    std::fs::create_dir_all(base.join(below))?;
    let mut group = base.to_owned();
    for part in std::iter::once("".as_ref()).chain(below) {
        group.push(part);
        let control = group.join("cgroup.subtree_control");
        let mut done = std::fs::write(&control, CONTROL);
        if done.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy) {
            // This process is in there.
            let aside = group.join(SERVER);
            std::fs::create_dir_all(&aside)?;
            std::fs::write(aside.join("cgroup.procs"), "0")?;
            done = std::fs::write(&control, CONTROL);
        }
        done.map_err(|e| io::Error::new(e.kind(), format!("write {}: {e}", control.display())))?;
    }
    Ok(())
}

/// Reads the layout from `/proc/self/mountinfo`. Version 1 counts where it has the controllers,
/// since they are then not available to version 2.
fn find_cgroups(mountinfo: &str, parent: &str) -> Option<CgroupLayout> {
    let mut controllers: Vec<(String, PathBuf)> = Vec::new();
    let mut unified = None;
    for line in mountinfo.lines() {
        let (left, right) = line.split_once(" - ")?;
        let target = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        let (kind, _source, options) = (right.next()?, right.next()?, right.next()?);
        match kind {
            "cgroup" => {
                for controller in CONTROLLERS {
                    let known = controllers.iter().any(|(name, _)| name == controller);
                    if !known && options.split(',').any(|option| option == *controller) {
                        controllers.push(((*controller).to_owned(), target.into()));
                    }
                }
            }
            "cgroup2" => unified = Some(PathBuf::from(target)),
            _ => {}
        }
    }
    let has = |name: &str| controllers.iter().any(|(known, _)| known == name);
    if has("memory") && has("cpu") && has("pids") {
        return Some(CgroupLayout::V1 { controllers, parent: parent.to_owned() });
    }
    unified.map(|mount| CgroupLayout::V2 { mount, parent: parent.to_owned() })
}

/// The directories of all groups named `name` below the parent.
pub(crate) fn group_paths(layout: &CgroupLayout, name: &str) -> Vec<PathBuf> {
    match layout {
        CgroupLayout::V1 { controllers, parent } => {
            let mut paths: Vec<_> =
                controllers.iter().map(|(_, mount)| mount.join(parent).join(name)).collect();
            paths.dedup();
            paths
        }
        CgroupLayout::V2 { mount, parent } => vec![mount.join(parent).join(name)],
    }
}

/// Ends every process in the groups of this name and removes them. Blocks until they are gone, or
/// for some seconds.
pub(crate) fn remove_groups(layout: &CgroupLayout, name: &str) -> io::Result<()> {
    for path in group_paths(layout, name) {
        let mut tries = 0;
        while let Err(e) = remove_tree(&path) {
            tries += 1;
            if tries > 2000 {
                return Err(e);
            }
            std::thread::sleep(std::time::Duration::from_millis(if tries < 20 { 1 } else { 5 }));
        }
    }
    Ok(())
}

/// Removes the groups of a name if no process is in them. False when there is one: then they are
/// another server's on this machine, since no process of a stack outlives its shim.
pub(crate) fn remove_unused_groups(layout: &CgroupLayout, name: &str) -> bool {
    fn remove(path: &Path) -> bool {
        let Ok(children) = std::fs::read_dir(path) else { return true };
        for child in children.flatten().filter(|c| c.file_type().is_ok_and(|t| t.is_dir())) {
            remove(&child.path());
        }
        // The kernel refuses it while a process or another group is inside.
        std::fs::remove_dir(path).is_ok()
    }
    let removed: Vec<bool> = group_paths(layout, name).iter().map(|path| remove(path)).collect();
    removed.into_iter().all(|removed| removed)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let children = match std::fs::read_dir(path) {
        Ok(children) => children,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for child in children {
        let child = child?;
        if child.file_type()?.is_dir() {
            remove_tree(&child.path())?;
        }
    }
    for pid in std::fs::read_to_string(path.join("cgroup.procs"))?.lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The names of the groups below the parent.
pub(crate) fn group_names(layout: &CgroupLayout) -> Vec<String> {
    let mut names: Vec<String> = group_paths(layout, "")
        .iter()
        .filter_map(|path| std::fs::read_dir(path).ok())
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// What this machine has in all.
pub(crate) fn totals(data_dir: &Path) -> stackd_core::runtime::Machine {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory_bytes = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        })
        .map_or(0, |kib| kib << 10);
    let disk_bytes =
        rustix::fs::statvfs(data_dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    stackd_core::runtime::Machine { cpu_milli: cpus as u64 * 1000, memory_bytes, disk_bytes }
}

/// The name of this machine.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_str().ok().filter(|name| !name.is_empty()).unwrap_or("localhost").to_owned()
}

/// A path to a file of this process's open directory: any directory, however long its own path is
/// (the address of a Unix socket has 108 bytes).
pub(crate) fn short_path(directory: impl AsFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_found() {
        let v1 = "\
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate";
        let CgroupLayout::V1 { controllers, parent } = find_cgroups(v1, "stackd").unwrap() else {
            panic!("version 1 has the controllers");
        };
        assert_eq!(parent, "stackd");
        let names: Vec<_> = controllers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpu", "cpuacct", "memory", "pids"]);
        let v2 = "29 23 0:25 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        let unified = CgroupLayout::V2 { mount: "/sys/fs/cgroup".into(), parent: "a/b".to_owned() };
        assert_eq!(find_cgroups(v2, "a/b"), Some(unified));
        assert_eq!(find_cgroups("22 1 0:1 / / rw - ext4 /dev/vda rw", "x"), None);
    }

    #[test]
    fn a_server_stays_in_the_part_of_version_2_that_was_delegated_to_it() {
        let mount = Path::new("/m");
        let unit = |group: &Path| group == Path::new("/m/system.slice/stackd.service");
        for own in ["0::/system.slice/stackd.service\n", "0::/system.slice/stackd.service/server"] {
            let base = delegated(mount, own, &unit);
            assert_eq!(base, Path::new("system.slice/stackd.service"), "{own}");
        }
        for own in ["0::/\n", "0::/user.slice/session-1.scope\n", "4:memory:/\n"] {
            assert_eq!(delegated(mount, own, &unit), Path::new(""), "{own}");
        }
    }

    #[test]
    fn controllers_are_handed_down_from_there_and_not_from_above() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("system.slice/stackd.service");
        std::fs::create_dir_all(&base).unwrap();
        delegate_down(&base, Path::new("a/b")).unwrap();
        let written = |group: &Path| std::fs::read_to_string(group.join("cgroup.subtree_control"));
        for group in [&base, &base.join("a"), &base.join("a/b")] {
            assert_eq!(written(group).unwrap(), CONTROL);
        }
        assert!(written(&directory.path().join("system.slice")).is_err());
        assert!(written(directory.path()).is_err());
    }

    #[test]
    fn a_copy_whose_pages_are_held_for_a_moment_is_sealed_all_the_same() {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_get_seals, memfd_create};
        use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("test", flags).unwrap();
        rustix::io::write(&file, b"program").unwrap();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping of its own, which nobody reads or writes and which goes below.
        let map = unsafe {
            mmap(std::ptr::null_mut(), 4096, access, MapFlags::SHARED, &file, 0).unwrap()
        };
        let mut refused = 0;
        seal(&file, || {
            refused += 1;
            if refused == 3 {
                // SAFETY: the mapping above, once.
                unsafe { munmap(map, 4096).unwrap() };
            }
        })
        .unwrap();
        assert_eq!(refused, 3);
        assert!(fcntl_get_seals(&file).unwrap().contains(SealFlags::WRITE));
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let me = process_name(std::process::id()).unwrap();
        assert!(me.start_time > 0);
        kill(ProcessName { start_time: me.start_time + 1, ..me });
    }
}
