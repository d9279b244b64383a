//! A container's root: the overlay, what the kernel shows, devices, volumes and a few files. Made
//! by root of the machine in a mount namespace that the container's user namespace does not own,
//! so nothing inside can mount, unmount or reveal anything, whatever it may become.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use stackd_core::isolation::{MASKED_PATHS, READ_ONLY_PATHS};

use super::cell::{place, simple_mount};
use super::disk;
use super::process::Failure;
use crate::fault::{At, Fault};
use crate::sys;

/// Devices that every container has: name, major, minor.
const DEVICES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: &[(&str, &str)] = &[
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// The size of `/dev/shm`, as other engines have it.
const SHM_BYTES: u64 = 64 << 20;

/// What a root is made of.
#[derive(Debug)]
pub(crate) struct Root<'a> {
    /// The layers, lowest first, relative to the data directory.
    pub(crate) layers: &'a [PathBuf],
    /// The directory on the disk that holds this container's `upper` and `work`.
    pub(crate) writable: &'a str,
    /// The user namespace that maps the layers' owners.
    pub(crate) userns: BorrowedFd<'a>,
    /// What 0 is outside.
    pub(crate) root_id: u32,
    /// The terminals' file system.
    pub(crate) terminals: BorrowedFd<'a>,
    /// The control group controllers to show; empty for version 2.
    pub(crate) controllers: &'a [String],
    /// Sources inside the private view and where they appear.
    pub(crate) binds: &'a [Bind],
    /// Whether nothing but what is mounted in it can be written.
    pub(crate) read_only: bool,
    /// The working directory, made where it is missing.
    pub(crate) cwd: &'a str,
}

/// Something of the private view that appears in a container.
#[derive(Debug)]
pub(crate) struct Bind {
    /// The volume that it is of; none for the files that every container sees.
    pub(crate) volume: Option<String>,
    /// Where it is.
    pub(crate) source: String,
    /// A path inside it, which the stack can write.
    pub(crate) sub_path: Option<String>,
    /// Where it appears.
    pub(crate) target: String,
    /// Whether it can only be read there.
    pub(crate) read_only: bool,
}

/// Makes the two directories of a container's writable layer.
pub(crate) fn make_writable(name: &str, root_id: u32) -> Result<(), Fault> {
    let mode = Mode::from_raw_mode(0o755);
    for path in [name.to_owned(), format!("{name}/upper"), format!("{name}/work")] {
        rustix::fs::mkdir(&path, mode).at("make the writable layer")?;
    }
    own(CWD, &format!("{name}/upper"), root_id).at("give the writable layer away")
}

/// The file system of terminals, detached: the shim keeps it to make terminals from outside.
pub(crate) fn terminals(root_id: u32) -> Result<OwnedFd, Fault> {
    /// The group `tty`, by convention.
    const TTY: u32 = 5;
    let make = || {
        let fs = rustix::mount::fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&fs, "ptmxmode", "0666")?;
        rustix::mount::fsconfig_set_string(&fs, "mode", "0620")?;
        rustix::mount::fsconfig_set_string(&fs, "gid", (root_id + TTY).to_string())?;
        rustix::mount::fsconfig_set_string(&fs, "max", "64")?;
        rustix::mount::fsconfig_create(&fs)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().at("mount devpts")
}

impl Bind {
    fn what(&self) -> String {
        match &self.volume {
            Some(volume) => format!("mount volume {volume:?} on {}", self.target),
            None => format!("mount {}", self.target),
        }
    }
}

/// What has become of a step that an image or a Pod can be the reason of: then the caller is told,
/// who alone can do something about it.
fn blame(what: impl FnOnce() -> String, error: Errno) -> Failure {
    let why = match error {
        Errno::NOTDIR => "not a directory",
        Errno::ISDIR => "is a directory",
        Errno::NAMETOOLONG => "file name too long",
        Errno::LOOP => "too many levels of symbolic links",
        // What is missing is made, unless a link stands for it.
        Errno::NOENT | Errno::EXIST => "a symbolic link in the path leads nowhere",
        other => return Fault::new(what(), other).into(),
    };
    Failure::Rejected(format!("cannot {}: {why}", what()))
}

/// Makes the root and enters it. For a child in a mount namespace of its own; what it was in
/// before cannot be reached afterwards.
pub(crate) fn enter(plan: &Root<'_>) -> Result<(), Failure> {
    overlay(plan)?;
    let root = Tree::open(plan.root_id)?;
    kernel_views(&root, plan)?;
    devices(&root, plan)?;
    for bind in plan.binds {
        root.bind(bind)?;
    }
    mask(&root)?;
    root.directory(plan.cwd)
        .map_err(|e| blame(|| format!("make the working directory {}", plan.cwd), e))?;
    drop(root);
    rustix::process::chdir(place::ROOT).at("enter the root")?;
    if plan.read_only {
        // Last: until here directories and files for what appears in it may have been missing.
        let root = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .at("open the root")?;
        let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
        sys::set_mount_attributes(root.as_fd(), attributes).at("lock the root")?;
    }
    rustix::process::pivot_root(".", ".").at("enter the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at("leave the private view")?;
    Ok(rustix::process::chdir("/").at("enter the root")?)
}

fn overlay(plan: &Root<'_>) -> Result<(), Fault> {
    rustix::process::chdir(place::LAYERS).at("enter the layers")?;
    let mut lower = Vec::with_capacity(plan.layers.len());
    for (number, layer) in plan.layers.iter().enumerate() {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let path = Path::new(place::DATA).join(layer);
        let mount = rustix::mount::open_tree(CWD, &path, flags)
            .at_with(|| format!("open the layer {}", layer.display()))?;
        sys::map_ids(mount.as_fd(), plan.userns).at("map the owners of a layer")?;
        let name = number.to_string();
        match rustix::fs::mkdir(&name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Fault::new("make a layer's mount point", e)),
        }
        rustix::mount::move_mount(&mount, "", CWD, &name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .at("attach a layer")?;
        lower.push(name);
    }
    lower.reverse();
    // Short relative names: the kernel takes one page of options, on older kernels in this form
    // only. Nothing of the disk outlives the shim, so nothing needs to be synced.
    let options = format!(
        "lowerdir={},upperdir={w}/upper,workdir={w}/work,volatile",
        lower.join(":"),
        w = plan.writable
    );
    let options = std::ffi::CString::new(options).at("describe the overlay")?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount("overlay", place::ROOT, "overlay", flags, &*options)
        .at("mount the overlay")
}

fn kernel_views(root: &Tree, plan: &Root<'_>) -> Result<(), Failure> {
    let quiet = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    root.mount(&simple_mount("proc", quiet)?, "/proc")?;
    let locked = quiet | MountAttrFlags::MOUNT_ATTR_RDONLY;
    root.mount(&simple_mount("sysfs", locked)?, "/sys")?;
    if plan.controllers.is_empty() {
        return root.mount(&simple_mount("cgroup2", locked)?, "/sys/fs/cgroup");
    }
    let groups = disk::tmpfs(4096, None, "0755", MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    for controller in plan.controllers {
        rustix::fs::mkdirat(&groups, controller, Mode::from_raw_mode(0o755))
            .at("make a controller's mount point")?;
    }
    root.mount(&groups, "/sys/fs/cgroup")?;
    for controller in plan.controllers {
        let make = || {
            let fs = rustix::mount::fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_set_flag(&fs, controller.as_str())?;
            rustix::mount::fsconfig_create(&fs)?;
            rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, locked)
        };
        let mount = make().at_with(|| format!("mount the controller {controller}"))?;
        root.mount(&mount, &format!("/sys/fs/cgroup/{controller}"))?;
    }
    Ok(sys::set_mount_attributes(groups.as_fd(), libc::MOUNT_ATTR_RDONLY)
        .at("lock the list of controllers")?)
}

fn devices(root: &Tree, plan: &Root<'_>) -> Result<(), Failure> {
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let owner = Some((plan.root_id, plan.root_id));
    let fs = {
        // A tmpfs that may hold devices, which no other may.
        let make = || {
            let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_set_string(&fs, "size", "65536")?;
            rustix::mount::fsconfig_set_string(&fs, "nr_inodes", "128")?;
            rustix::mount::fsconfig_set_string(&fs, "mode", "0755")?;
            let id = plan.root_id.to_string();
            rustix::mount::fsconfig_set_string(&fs, "uid", &id)?;
            rustix::mount::fsconfig_set_string(&fs, "gid", &id)?;
            rustix::mount::fsconfig_create(&fs)?;
            rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, quiet)
        };
        make().at("mount /dev")?
    };
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(*major, *minor);
        rustix::fs::mknodat(&fs, *name, FileType::CharacterDevice, mode, device)
            .and_then(|()| rustix::fs::chmodat(&fs, *name, mode, AtFlags::empty()))
            .and_then(|()| own(fs.as_fd(), name, plan.root_id))
            .at_with(|| format!("make /dev/{name}"))?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(*target, &fs, *name).at_with(|| format!("make /dev/{name}"))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&fs, name, Mode::from_raw_mode(0o755))
            .at_with(|| format!("make /dev/{name}"))?;
    }
    root.mount(&fs, "/dev")?;
    let terminals = rustix::mount::open_tree(
        plan.terminals,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    );
    root.mount(&terminals.at("open devpts")?, "/dev/pts")?;
    let noexec = MountAttrFlags::MOUNT_ATTR_NOEXEC;
    root.mount(&disk::tmpfs(SHM_BYTES, owner, "1777", noexec)?, "/dev/shm")?;
    let quiet = quiet | MountAttrFlags::MOUNT_ATTR_NODEV;
    match simple_mount("mqueue", quiet) {
        Ok(mount) => root.mount(&mount, "/dev/mqueue"),
        // A kernel without message queues.
        Err(fault) if fault.errno() == libc::ENODEV => Ok(()),
        Err(fault) => Err(fault.into()),
    }
}

fn mask(root: &Tree) -> Result<(), Fault> {
    let null = root.find("/dev/null").at("open /dev/null")?;
    let mut nothing = None;
    for path in MASKED_PATHS {
        let Some(target) = there(root.find(path)).at_with(|| format!("mask {path}"))? else {
            continue;
        };
        let cover = if is_directory(&target).at("look at a path to mask")? {
            if nothing.is_none() {
                nothing = Some(disk::tmpfs(4096, None, "0555", MountAttrFlags::MOUNT_ATTR_RDONLY)?);
            }
            nothing.as_ref().map_or(null.as_fd(), |fd| fd.as_fd())
        } else {
            null.as_fd()
        };
        let cover = clone(cover).at_with(|| format!("mask {path}"))?;
        put(&cover, &target).at_with(|| format!("mask {path}"))?;
    }
    for path in READ_ONLY_PATHS {
        // It is mounted so.
        if *path == "/sys" {
            continue;
        }
        let Some(target) = there(root.find(path)).at_with(|| format!("lock {path}"))? else {
            continue;
        };
        let mount = clone(target.as_fd()).at_with(|| format!("lock {path}"))?;
        let attributes = libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NOEXEC;
        sys::set_mount_attributes(mount.as_fd(), attributes).at_with(|| format!("lock {path}"))?;
        put(&mount, &target).at_with(|| format!("lock {path}"))?;
    }
    Ok(())
}

fn there(found: rustix::io::Result<OwnedFd>) -> rustix::io::Result<Option<OwnedFd>> {
    match found {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_directory(fd: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

/// A detached mount of what a descriptor names.
fn clone(fd: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(fd, "", flags)
}

/// Puts a detached mount on what a descriptor names.
fn put(mount: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags)
}

/// Gives something to the stack's root.
pub(crate) fn own(at: BorrowedFd<'_>, path: &str, id: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id)));
    rustix::fs::chownat(at, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

/// A tree in which paths are resolved as its own processes would, whatever links it holds.
pub(crate) struct Tree {
    root: OwnedFd,
    root_id: u32,
}

impl Tree {
    fn open(root_id: u32) -> Result<Self, Fault> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::openat(CWD, place::ROOT, flags, Mode::empty()).at("open the root")?;
        Ok(Self { root, root_id })
    }

    /// A tree at a directory that the stack can write.
    pub(crate) fn at(root: OwnedFd, root_id: u32) -> Self {
        Self { root, root_id }
    }

    fn find(&self, path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
        self.open_in(path.as_ref(), OFlags::PATH, Mode::empty())
    }

    fn open_in(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        // A rename in the tree while it is walked makes the kernel give up: then again.
        for _ in 0..32 {
            match rustix::fs::openat2(&self.root, path, flags, mode, resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a directory, and makes it and those above it where they are missing.
    pub(crate) fn directory(&self, path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
        let path = path.as_ref();
        match self.open_in(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut so_far = PathBuf::from("/");
        let mut parent = self.find("/")?;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            so_far.push(name);
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            parent = match self.open_in(&so_far, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let made = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
                    self.give(&made)?;
                    made
                }
                other => other?,
            };
        }
        Ok(parent)
    }

    /// Opens a file, and makes it, empty, where it is missing.
    pub(crate) fn file(&self, path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
        let path = path.as_ref();
        match self.find(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let parent = self.directory(path.parent().unwrap_or(Path::new("/")))?;
        let name = path.file_name().ok_or(Errno::ISDIR)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let made = match rustix::fs::openat(&parent, name, flags | OFlags::NOFOLLOW, mode) {
            // A link to nowhere: it is replaced, in the writable layer only.
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                rustix::fs::openat(&parent, name, flags | OFlags::NOFOLLOW, mode)?
            }
            other => other?,
        };
        self.give(&made)?;
        drop(made);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name, flags, Mode::empty())
    }

    fn give(&self, fd: &OwnedFd) -> rustix::io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(self.root_id)), Some(Gid::from_raw(self.root_id)));
        rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH)
    }

    fn mount(&self, mount: &OwnedFd, target: &str) -> Result<(), Failure> {
        let what = || format!("mount {target}");
        let at = self.directory(target).map_err(|e| blame(what, e))?;
        Ok(put(mount, &at).at_with(what)?)
    }

    fn bind(&self, bind: &Bind) -> Result<(), Failure> {
        let what = || bind.what();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let mut source =
            rustix::fs::openat(CWD, &bind.source, flags, Mode::empty()).at_with(what)?;
        if let Some(path) = &bind.sub_path {
            let inside = Tree::at(source, self.root_id);
            source = match inside.find(path) {
                Err(Errno::NOENT) => inside.directory(path),
                other => other,
            }
            .map_err(|e| blame(|| format!("{} from its subPath {path:?}", what()), e))?;
        }
        let target = if is_directory(&source).at_with(what)? {
            self.directory(&bind.target)
        } else {
            self.file(&bind.target)
        }
        .map_err(|e| blame(what, e))?;
        let mount = clone(source.as_fd()).at_with(what)?;
        let mut attributes = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
        if bind.read_only {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        sys::set_mount_attributes(mount.as_fd(), attributes).at_with(what)?;
        // A volume that is a file cannot cover a directory, nor the other way round.
        put(&mount, &target).map_err(|e| blame(what, e))
    }
}
