//! What is made ahead of need: the namespaces that all containers of a stack share, and a private
//! view of the machine with nothing in it but what a start needs.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::cgroup::{Group, Nursery, Unborn};
use super::{disk, netlink};
use crate::fault::{At, Fault};
use crate::protocol::{BLANK_PREFIX, Disk, IDS_PER_STACK, Prepare};
use crate::sys::{self, Side};
use crate::trace::Trace;

/// Where things are in the private view.
pub(crate) mod place {
    /// The data directory.
    pub(crate) const DATA: &str = "/data";
    /// The writable layers and disk volumes.
    pub(crate) const DISK: &str = "/disk";
    /// Mount points of image layers, relative to which overlays are described.
    pub(crate) const LAYERS: &str = "/layers";
    /// The mount point of a container's root; each container mounts there, in a namespace of its
    /// own.
    pub(crate) const ROOT: &str = "/root";
    /// Files that are shown to containers.
    pub(crate) const FILES: &str = "/files";
    /// Volumes that are mounts of their own.
    pub(crate) const VOLUMES: &str = "/volumes";
}

/// Namespaces below this one's user namespace that a stack may not make, and watches that it may
/// only have some of. Whatever the capabilities of a process are, these hold.
const USER_LIMITS: &[(&str, u32)] = &[
    ("max_user_namespaces", 0),
    ("max_mnt_namespaces", 0),
    ("max_net_namespaces", 0),
    ("max_pid_namespaces", 0),
    ("max_ipc_namespaces", 0),
    ("max_uts_namespaces", 0),
    ("max_cgroup_namespaces", 0),
    ("max_time_namespaces", 0),
    ("max_inotify_instances", 64),
    ("max_inotify_watches", 16384),
    ("max_fanotify_groups", 0),
    ("max_fanotify_marks", 0),
];

/// A prepared, empty stack.
#[derive(Debug)]
pub(crate) struct Cell {
    /// The user namespace of its containers.
    pub(crate) userns: OwnedFd,
    /// The first of its ids.
    pub(crate) id_base: u32,
    /// The group below which its own goes.
    pub(crate) groups: Group,
    /// The stack's groups, where they had to be made ahead.
    pub(crate) nursery: Unborn,
    /// What its disk is.
    pub(crate) disk: Disk,
    /// The process file system of this process's namespace.
    pub(crate) proc: OwnedFd,
}

impl Cell {
    /// Makes a cell around this process, which stays in its network, IPC and UTS namespaces.
    pub(crate) fn new(prepare: &Prepare, trace: &mut Trace) -> Result<Self, Fault> {
        let groups = Group::open(&prepare.cgroups)?;
        let nursery = Nursery::enter(&groups, &format!("{BLANK_PREFIX}{}", prepare.id_base))?;
        trace.step("control groups");
        sys::unshare(libc::CLONE_NEWNS).at("make a mount namespace")?;
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .at("make mounts private")?;
        trace.step("mount namespace");
        let disk = {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let data = rustix::fs::openat(CWD, &prepare.data_dir, flags, Mode::empty())
                .at("open the data directory")?;
            disk::mount(data.as_fd(), data.as_fd(), &prepare.disk)?
        };
        trace.step("disk");
        let proc = private_view(prepare, &disk)?;
        trace.step("private view");
        let userns = namespaces(&proc, prepare.id_base)?;
        trace.step("user, network, IPC and UTS namespaces");
        netlink::set_up(prepare.network)?;
        write(&proc, "sys/net/ipv4/ip_unprivileged_port_start", "0")?;
        // A service whose backlog is short is to be tried again, not answered for with a cookie
        // that it will not know. Only the relay can connect here.
        write(&proc, "sys/net/ipv4/tcp_syncookies", "0")?;
        trace.step("network");
        let (id_base, disk) = (prepare.id_base, prepare.disk.clone());
        Ok(Self { userns, id_base, groups, nursery, disk, proc })
    }

    /// Replaces the disk by another, before anything was put on it.
    pub(crate) fn replace_disk(&mut self, disk: &Disk) -> Result<(), Fault> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let data = rustix::fs::openat(CWD, place::DATA, flags, Mode::empty())
            .at("open the data directory")?;
        let mount = disk::mount(data.as_fd(), data.as_fd(), disk)?;
        rustix::mount::unmount(place::DISK, UnmountFlags::DETACH).at("unmount the disk")?;
        attach(&mount, place::DISK)?;
        self.disk = disk.clone();
        Ok(())
    }
}

/// Puts a detached mount on a directory of this process's own view.
pub(crate) fn attach(mount: &OwnedFd, target: &str) -> Result<(), Fault> {
    rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .at_with(|| format!("attach a mount at {target}"))
}

/// A file system without options, detached.
pub(crate) fn simple_mount(kind: &str, attributes: MountAttrFlags) -> Result<OwnedFd, Fault> {
    let make = || {
        let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&fs)?;
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().at_with(|| format!("mount {kind}"))
}

/// Leaves the machine's tree for one that holds the data directory, the disk, the loop devices and
/// this namespace's processes, so that a start copies few mounts, and a mistake finds nothing.
fn private_view(prepare: &Prepare, disk: &OwnedFd) -> Result<OwnedFd, Fault> {
    let clone = |path: &std::path::Path, what: &str| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(CWD, path, flags).at(what)
    };
    let data = clone(&prepare.data_dir, "open the data directory")?;
    let devices = clone("/dev".as_ref(), "open /dev")?;
    let root = disk::tmpfs(4 << 20, None, "0755", MountAttrFlags::empty())?;
    // Any directory will do: it is covered for a moment, in this namespace only.
    attach(&root, "/dev")?;
    rustix::process::chdir("/dev").at("enter the private view")?;
    let directories = ["data", "disk", "layers", "root", "files", "volumes", "dev", "proc"];
    for name in directories {
        rustix::fs::mkdir(name, Mode::from_raw_mode(0o755)).at("furnish the private view")?;
    }
    rustix::process::pivot_root(".", ".").at("enter the private view")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at("leave the machine's tree")?;
    rustix::process::chdir("/").at("enter the private view")?;
    attach(&data, place::DATA)?;
    attach(&devices, "/dev")?;
    attach(disk, place::DISK)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = simple_mount("proc", attributes)?;
    attach(&proc, "/proc")?;
    Ok(proc)
}

/// Makes the namespaces and joins all but the user namespace.
///
/// The kernel counts what a user namespace uses against the user that made it, in the namespace
/// above. Made by root, all stacks would share one count (128 inotify instances). So each is made
/// by an id of its own, the last of the stack's range, which is mapped in no namespace.
fn namespaces(proc: &OwnedFd, id_base: u32) -> Result<OwnedFd, Fault> {
    let (mut mapped, tell_mapped) = std::io::pipe().at("make a pipe")?;
    let (mut made, tell_made) = std::io::pipe().at("make a pipe")?;
    let owner = id_base + IDS_PER_STACK - 1;
    // SAFETY: this process has one thread, and the child leaves by `exit`.
    let holder = match unsafe { sys::fork(0, None) }.at("make the holder of namespaces")? {
        Side::Child => {
            drop((tell_mapped, made));
            let done = hold(proc, owner, &mut mapped, tell_made);
            if let Err(fault) = &done {
                eprintln!("shim: {fault}");
            }
            sys::exit(i32::from(done.is_err()))
        }
        Side::Parent(child) => child,
    };
    drop((mapped, tell_made));
    let wait = |made: &mut std::io::PipeReader| made.read_exact(&mut [0]);
    let result = (|| {
        wait(&mut made).at("make the user namespace")?;
        let map = format!("0 {id_base} {}", IDS_PER_STACK - 1);
        write(proc, &format!("{}/uid_map", holder.pid), &map)?;
        write(proc, &format!("{}/gid_map", holder.pid), &map)?;
        (&tell_mapped).write_all(b"m").at("go on")?;
        wait(&mut made).at("limit the user namespace")?;
        let open = |kind: &str| {
            let path = format!("{}/ns/{kind}", holder.pid);
            rustix::fs::openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .at("open a namespace")
        };
        let userns = open("user")?;
        sys::setns(open("net")?.as_fd(), libc::CLONE_NEWNET).at("join the network namespace")?;
        sys::setns(open("ipc")?.as_fd(), libc::CLONE_NEWIPC).at("join the IPC namespace")?;
        sys::setns(open("uts")?.as_fd(), libc::CLONE_NEWUTS).at("join the UTS namespace")?;
        Ok(userns)
    })();
    drop((tell_mapped, made));
    sys::wait(&holder).at("collect the holder of namespaces")?;
    result
}

/// The holder's side.
fn hold(
    proc: &OwnedFd,
    owner: u32,
    mapped: &mut std::io::PipeReader,
    mut made: std::io::PipeWriter,
) -> Result<(), Fault> {
    // Changing ids must not cost the capabilities that making namespaces needs.
    const NO_SETUID_FIXUP: u64 = 4;
    sys::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0).at("keep capabilities")?;
    let (uid, gid) = (rustix::process::Uid::from_raw(owner), rustix::process::Gid::from_raw(owner));
    rustix::thread::set_thread_res_gid(gid, gid, gid).at("take the owner's group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).at("take the owner's id")?;
    sys::unshare(
        libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS,
    )
    .at("make namespaces")?;
    made.write_all(b"n").at("go on")?;
    mapped.read_exact(&mut [0]).at("wait for the id map")?;
    for (name, limit) in USER_LIMITS {
        let path = format!("sys/user/{name}");
        match rustix::fs::openat(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => {
                rustix::io::write(&fd, limit.to_string().as_bytes())
                    .at_with(|| format!("lower {name}"))?;
            }
            // A kernel without that kind of thing needs no limit of it.
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(Fault::new(format!("lower {name}"), e)),
        }
    }
    made.write_all(b"l").at("go on")?;
    // The parent opens the namespaces while this process is still there.
    let _ = mapped.read(&mut [0]);
    Ok(())
}

fn write(proc: &OwnedFd, path: &str, value: &str) -> Result<(), Fault> {
    let open = rustix::fs::openat(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    open.map(File::from)
        .map_err(std::io::Error::from)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .at_with(|| format!("write /proc/{path}"))
}
