//! Limits of CPU, memory and processes, by cgroup version 1 or 2. A stack has a group, and each of
//! its containers one below it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use stackd_core::runtime::Usage;

use crate::fault::{At, Fault};
use crate::protocol::CgroupLayout;

/// The accounting period of CPU quotas.
const PERIOD_MICROS: u64 = 100_000;
/// The least quota that the kernel takes.
const LEAST_QUOTA_MICROS: u64 = 1_000;

/// Amounts to limit a group to. 0 does not limit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Thousandths of a CPU.
    pub(crate) cpu_milli: u64,
    /// Bytes of memory, swap included.
    pub(crate) memory_bytes: u64,
    /// Processes and threads.
    pub(crate) pids: u32,
}

/// A group: one directory on version 2, one for each controller on version 1.
#[derive(Debug)]
pub(crate) struct Group {
    unified: bool,
    name: String,
    /// Controller, its parent directory, and the group's own.
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    controller: String,
    parent: OwnedFd,
    directory: OwnedFd,
}

fn directory(at: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn write(at: BorrowedFd<'_>, file: &str, value: &str) -> rustix::io::Result<()> {
    let fd = rustix::fs::openat(at, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&fd, value.as_bytes()).map(drop)
}

fn read(at: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let fd = rustix::fs::openat(at, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0; 2048];
    let n = rustix::io::read(&fd, &mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

/// The number in a file, or behind a word at the start of one of its lines.
fn number(at: BorrowedFd<'_>, file: &str, key: Option<&str>) -> Option<u64> {
    let text = read(at, file).ok()?;
    match key {
        None => text.trim().parse().ok(),
        Some(key) => text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
            .and_then(|value| value.trim().parse().ok()),
    }
}

impl Group {
    /// The group below which all stacks lie; it must exist.
    pub(crate) fn open(layout: &CgroupLayout) -> Result<Self, Fault> {
        let open = |controller: &str, mount: &std::path::Path, parent: &str| {
            let path = mount.join(parent);
            let open = || {
                let text = path.to_str().ok_or(Errno::INVAL)?;
                Ok::<_, Errno>((directory(CWD, text)?, directory(CWD, text)?))
            };
            let (parent, directory) =
                open().at_with(|| format!("open the control group {}", path.display()))?;
            Ok::<_, Fault>(Place { controller: controller.to_owned(), parent, directory })
        };
        let (unified, places) = match layout {
            CgroupLayout::V1 { controllers, parent } => {
                let places = controllers.iter().map(|(name, mount)| open(name, mount, parent));
                (false, places.collect::<Result<_, _>>()?)
            }
            CgroupLayout::V2 { mount, parent } => (true, vec![open("", mount, parent)?]),
        };
        Ok(Self { unified, name: String::new(), places })
    }

    /// Makes a group below this one, or takes over one that is there, and limits it.
    pub(crate) fn child(&self, name: &str, limits: Limits) -> Result<Self, Fault> {
        let group = self.unlimited_child(name)?;
        group.limit(limits)?;
        Ok(group)
    }

    /// Makes a group below this one, or takes over one that is there.
    fn unlimited_child(&self, name: &str) -> Result<Self, Fault> {
        let mut places = Vec::with_capacity(self.places.len());
        for place in &self.places {
            match rustix::fs::mkdirat(&place.directory, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(Fault::new(format!("make the control group {name}"), e)),
            }
            let own = directory(place.directory.as_fd(), name).at("open a control group")?;
            let parent = place.directory.try_clone().at("hold a control group")?;
            let controller = place.controller.clone();
            places.push(Place { controller, parent, directory: own });
        }
        Ok(Self { unified: self.unified, name: name.to_owned(), places })
    }

    /// Moves this process into the group above; version 1 only.
    fn leave(&self) -> rustix::io::Result<()> {
        self.places.iter().try_for_each(|place| write(place.parent.as_fd(), "cgroup.procs", "0"))
    }

    /// Gives the group another name; version 1 only.
    fn rename(&mut self, name: &str) -> Result<(), Fault> {
        for place in &self.places {
            match rustix::fs::renameat(&place.parent, &self.name, &place.parent, name) {
                // Two controllers may share a tree.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(Fault::new("rename a control group", e)),
            }
        }
        name.clone_into(&mut self.name);
        Ok(())
    }

    /// Lets groups below this one be limited. Version 1 needs nothing.
    pub(crate) fn delegate(&self) -> Result<(), Fault> {
        if self.unified {
            for place in &self.places {
                write(place.directory.as_fd(), "cgroup.subtree_control", "+cpu +memory +pids")
                    .at("delegate controllers to a control group")?;
            }
        }
        Ok(())
    }

    fn place(&self, controller: &str) -> Option<BorrowedFd<'_>> {
        let found = self.places.iter().find(|p| self.unified || p.controller == controller);
        found.map(|p| p.directory.as_fd())
    }

    /// Limits the group anew.
    pub(crate) fn limit(&self, limits: Limits) -> Result<(), Fault> {
        let set = |controller: &str, file: &str, value: &str| {
            let place = self.place(controller).ok_or(Errno::NOENT);
            place.and_then(|at| write(at, file, value)).at_with(|| format!("write {file}"))
        };
        // A machine without swap accounting has no such file.
        let set_if_there = |controller: &str, file: &str, value: &str| match self
            .place(controller)
            .map(|at| write(at, file, value))
        {
            Some(Ok(())) | None | Some(Err(Errno::NOENT | Errno::OPNOTSUPP)) => Ok(()),
            Some(Err(e)) => Err(Fault::new(format!("write {file}"), e)),
        };
        if limits.memory_bytes > 0 {
            let bytes = limits.memory_bytes.to_string();
            if self.unified {
                set("memory", "memory.max", &bytes)?;
                set_if_there("memory", "memory.swap.max", "0")?;
            } else {
                set("memory", "memory.limit_in_bytes", &bytes)?;
                set_if_there("memory", "memory.memsw.limit_in_bytes", &bytes)?;
                // What sockets hold counts only where it has a limit, and then beside the other
                // memory. A group without one would have the machine's.
                set_if_there("memory", "memory.kmem.tcp.limit_in_bytes", &bytes)?;
            }
        }
        if limits.cpu_milli > 0 {
            let quota = (limits.cpu_milli * (PERIOD_MICROS / 1000)).max(LEAST_QUOTA_MICROS);
            if self.unified {
                set("cpu", "cpu.max", &format!("{quota} {PERIOD_MICROS}"))?;
                let weight = (limits.cpu_milli / 10).clamp(1, 10_000);
                set("cpu", "cpu.weight", &weight.to_string())?;
            } else {
                set("cpu", "cpu.cfs_quota_us", &quota.to_string())?;
                let shares = (limits.cpu_milli * 1024 / 1000).clamp(2, 262_144);
                set("cpu", "cpu.shares", &shares.to_string())?;
            }
        }
        if limits.pids > 0 {
            set("pids", "pids.max", &limits.pids.to_string())?;
        }
        Ok(())
    }

    /// The group's directory, for a child to be born into; version 2 only.
    pub(crate) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        let place = self.places.first()?;
        self.unified.then(|| place.directory.as_fd())
    }

    /// The files through which a process joins; none on version 2, where it is born inside.
    pub(crate) fn doors(&self) -> Result<Vec<OwnedFd>, Fault> {
        if self.unified {
            return Ok(Vec::new());
        }
        let open = |place: &Place| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&place.directory, "cgroup.procs", flags, Mode::empty())
                .at("open cgroup.procs")
        };
        self.places.iter().map(open).collect()
    }

    /// The controllers whose trees a container is shown; none on version 2, which has one tree.
    pub(crate) fn visible_controllers(&self) -> Vec<String> {
        let shown = |name: &&Place| matches!(name.controller.as_str(), "cpu" | "memory" | "pids");
        let names = self.places.iter().filter(shown).map(|place| place.controller.clone());
        if self.unified { Vec::new() } else { names.collect() }
    }

    /// Something that is readable once a process was killed at the memory limit, and how to wait
    /// for it.
    pub(crate) fn oom_signal(&self) -> Result<Signal, Fault> {
        let place = self.place("memory").ok_or(Errno::NOENT).at("find the memory controller")?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        if self.unified {
            let fd = rustix::fs::openat(place, "memory.events", flags, Mode::empty())
                .at("open memory.events")?;
            return Ok(Signal::Priority(fd));
        }
        let control = rustix::fs::openat(place, "memory.oom_control", flags, Mode::empty())
            .at("open memory.oom_control")?;
        let event = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )
        .at("make an event")?;
        use std::os::fd::AsRawFd;
        let order = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        write(place, "cgroup.event_control", &order).at("wait for memory.oom_control")?;
        Ok(Signal::Event(event))
    }

    /// How many processes were killed at the memory limit.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        self.place("memory").and_then(|at| number(at, file, Some("oom_kill"))).unwrap_or(0)
    }

    /// Something that is readable once a process could not be made at the limit.
    pub(crate) fn pids_signal(&self) -> Option<Signal> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.place("pids")?, "pids.events", flags, Mode::empty());
        fd.ok().map(Signal::Priority)
    }

    /// How often a process could not be made at the limit.
    pub(crate) fn pids_refused(&self) -> u64 {
        self.place("pids").and_then(|at| number(at, "pids.events", Some("max"))).unwrap_or(0)
    }

    /// What the group uses, but for its disk.
    pub(crate) fn usage(&self) -> Usage {
        let of = |controller: &str, file: &str, key: Option<&str>| {
            self.place(controller).and_then(|at| number(at, file, key)).unwrap_or(0)
        };
        let (cpu_nanos, memory_bytes) = if self.unified {
            let micros = of("cpu", "cpu.stat", Some("usage_usec"));
            (micros * 1000, of("memory", "memory.current", None))
        } else {
            let nanos = of("cpuacct", "cpuacct.usage", None);
            (nanos, of("memory", "memory.usage_in_bytes", None))
        };
        Usage {
            cpu_time: std::time::Duration::from_nanos(cpu_nanos),
            memory_bytes,
            pids: of("pids", "pids.current", None),
            disk_bytes: 0,
        }
    }

    /// Removes the group. Its processes have ended; the kernel may need a moment to notice.
    pub(crate) fn remove(&self) {
        for place in &self.places {
            for _ in 0..200 {
                match rustix::fs::unlinkat(&place.parent, &self.name, AtFlags::REMOVEDIR) {
                    Err(Errno::BUSY) => std::thread::sleep(std::time::Duration::from_millis(1)),
                    _ => break,
                }
            }
        }
    }
}

/// The groups of a stack and of its first container, made ahead of need with this process inside.
///
/// On version 1 a process cannot be born into another group than its parent's, and to move one
/// takes the kernel a grace period of its own bookkeeping: 10 ms and more. So the shim waits in the
/// container's group, the container is born there, and then the shim is moved out, by a helper
/// that does the waiting. Version 2 needs none of this.
#[derive(Debug)]
pub(crate) struct Nursery {
    pub(crate) stack: Group,
    pub(crate) container: Group,
    /// Through these this process leaves.
    pub(crate) exits: Vec<OwnedFd>,
}

/// The group of all shims.
const SHIMS: &str = "shims";

impl Nursery {
    /// Makes one and moves this process into it. None on version 2.
    pub(crate) fn enter(parent: &Group, token: &str) -> Result<Unborn, Fault> {
        if parent.unified {
            return Ok(Unborn(None));
        }
        let exits = parent.unlimited_child(SHIMS)?.doors()?;
        let stack = parent.unlimited_child(token)?;
        let container = stack.unlimited_child("c0")?;
        let doors = container.doors()?;
        let unborn = Unborn(Some(Self { stack, container, exits }));
        move_to(&doors, "0").at("enter a control group")?;
        Ok(unborn)
    }

    /// Names it after its stack.
    pub(crate) fn rename(&mut self, name: &str) -> Result<(), Fault> {
        self.stack.rename(name)
    }
}

/// A nursery that nobody has taken. Dropped, it is left and removed.
#[derive(Debug)]
pub(crate) struct Unborn(Option<Nursery>);

impl Unborn {
    /// Takes it; none on version 2.
    pub(crate) fn take(&mut self) -> Option<Nursery> {
        self.0.take()
    }
}

impl Drop for Unborn {
    fn drop(&mut self) {
        let Some(Nursery { stack, container, exits }) = self.take() else { return };
        // Somebody who cleans up may have removed the group of all shims while nobody was in it.
        if move_to(&exits, "0").or_else(|_| stack.leave()).is_ok() {
            container.remove();
            stack.remove();
        }
    }
}

/// Moves a process through doors; `0` is the one that asks.
pub(crate) fn move_to(doors: &[OwnedFd], process: &str) -> rustix::io::Result<()> {
    doors.iter().try_for_each(|door| rustix::io::write(door, process.as_bytes()).map(drop))
}

/// How the kernel tells that something happened in a group.
#[derive(Debug)]
pub(crate) enum Signal {
    /// Readable; reading it waits for the next time.
    Event(OwnedFd),
    /// Has priority data; reading the file from its start waits for the next time.
    Priority(OwnedFd),
}

impl Signal {
    /// The descriptor to wait on.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Event(fd) | Self::Priority(fd) => fd.as_fd(),
        }
    }

    /// Makes ready for the next time.
    pub(crate) fn rearm(&self) {
        let mut buffer = [0; 512];
        // Nothing to read is nothing to do.
        let _ = match self {
            Self::Event(fd) => rustix::io::read(fd, &mut buffer[..8]),
            Self::Priority(fd) => rustix::io::pread(fd, &mut buffer, 0),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A tree with the files that the kernel would make.
    fn tree(root: &Path, files: &[&str]) {
        for group in ["stackd", "stackd/stack-1", "stackd/stack-1/c0"] {
            std::fs::create_dir_all(root.join(group)).unwrap();
            for file in files {
                std::fs::write(root.join(group).join(file), "").unwrap();
            }
        }
    }

    const LIMITS: Limits = Limits { cpu_milli: 250, memory_bytes: 64 << 20, pids: 32 };

    #[test]
    fn version_2_is_limited_by_its_own_files() {
        let directory = tempfile::tempdir().unwrap();
        let files = [
            "memory.max",
            "memory.swap.max",
            "memory.events",
            "memory.current",
            "cpu.max",
            "cpu.weight",
            "cpu.stat",
            "pids.max",
            "pids.current",
            "pids.events",
            "cgroup.subtree_control",
        ];
        tree(directory.path(), &files);
        let layout =
            CgroupLayout::V2 { mount: directory.path().to_owned(), parent: "stackd".to_owned() };
        let parent = Group::open(&layout).unwrap();
        assert!(Nursery::enter(&parent, "blank-1").unwrap().take().is_none(), "none is needed");
        let stack = parent.child("stack-1", LIMITS).unwrap();
        stack.delegate().unwrap();
        let container = stack.child("c0", LIMITS).unwrap();
        assert!(container.birthplace().is_some() && container.doors().unwrap().is_empty());
        let stack_path = directory.path().join("stackd/stack-1");
        let read = |file: &str| std::fs::read_to_string(stack_path.join(file)).unwrap();
        for (file, expected) in [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("cpu.max", "25000 100000"),
            ("cpu.weight", "25"),
            ("pids.max", "32"),
            ("cgroup.subtree_control", "+cpu +memory +pids"),
            ("c0/memory.max", "67108864"),
            ("c0/cpu.max", "25000 100000"),
        ] {
            assert_eq!(read(file), expected, "{file}");
        }
        let write = |file: &str, text: &str| std::fs::write(stack_path.join(file), text).unwrap();
        write("memory.events", "low 0\noom 2\noom_kill 1\n");
        write("pids.events", "max 7\n");
        write("memory.current", "4096\n");
        write("pids.current", "3\n");
        write("cpu.stat", "usage_usec 1500\nuser_usec 1\n");
        assert_eq!((stack.oom_kills(), stack.pids_refused()), (1, 7));
        let usage = stack.usage();
        assert_eq!((usage.memory_bytes, usage.pids), (4096, 3));
        assert_eq!(usage.cpu_time, std::time::Duration::from_micros(1500));
    }

    #[test]
    fn version_1_is_limited_in_each_tree() {
        let directory = tempfile::tempdir().unwrap();
        let trees = [
            (
                "memory",
                &["memory.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes", "memory.oom_control"]
                    [..],
            ),
            ("cpu", &["cpu.cfs_quota_us", "cpu.shares"]),
            ("pids", &["pids.max"]),
        ];
        let mut controllers = Vec::new();
        for (name, files) in trees {
            let mount = directory.path().join(name);
            tree(&mount, files);
            controllers.push((name.to_owned(), mount));
        }
        let parent = Group::open(&CgroupLayout::V1 { controllers, parent: "stackd".to_owned() });
        // A kernel without swap accounting has no memory.memsw.limit_in_bytes.
        let stack = parent.unwrap().child("stack-1", LIMITS).unwrap();
        let read = |path: &str| std::fs::read_to_string(directory.path().join(path)).unwrap();
        assert_eq!(read("memory/stackd/stack-1/memory.limit_in_bytes"), "67108864");
        assert_eq!(read("memory/stackd/stack-1/memory.kmem.tcp.limit_in_bytes"), "67108864");
        assert_eq!(read("cpu/stackd/stack-1/cpu.cfs_quota_us"), "25000");
        assert_eq!(read("cpu/stackd/stack-1/cpu.shares"), "256");
        assert_eq!(read("pids/stackd/stack-1/pids.max"), "32");
        assert!(stack.birthplace().is_none());
        assert_eq!(stack.visible_controllers(), ["memory", "cpu", "pids"]);
        let oom = directory.path().join("memory/stackd/stack-1/memory.oom_control");
        std::fs::write(oom, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").unwrap();
        assert_eq!(stack.oom_kills(), 2);
    }
}
