//! Limited disks: a file system in a nameless sparse file, attached as a loop device that goes
//! away with its last user. When the shim dies, the kernel takes the mount, the device and the
//! file with it; there is nothing to clean up.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, SeekFrom};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::fault::{At, Fault};
use crate::protocol::Disk;

/// From `linux/loop.h`.
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Between asking for a free device and taking it another process may have taken it.
const ATTEMPTS: usize = 4096;

/// `struct loop_config` of `linux/loop.h`, with its `struct loop_info64` spelled out.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    places: [u64; 5],
    number_and_encryption: [u32; 3],
    flags: u32,
    names_and_key: [u8; 160],
    init: [u64; 2],
    reserved: [u64; 8],
}

/// Makes a disk and returns it as a detached mount. Its template is found below `data`; its
/// nameless file is made in `directory`.
pub(crate) fn mount(
    data: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    disk: &Disk,
) -> Result<OwnedFd, Fault> {
    match disk {
        Disk::Loop { template } => {
            let image = copy(data, directory, template)?;
            let device = attach(&image)?;
            mount_ext4(&device)
        }
        Disk::Memory { bytes } => tmpfs(*bytes, None, "0755", MountAttrFlags::empty()),
    }
}

/// A file system in memory, detached. With a limit of inodes in proportion to its size.
pub(crate) fn tmpfs(
    bytes: u64,
    owner: Option<(u32, u32)>,
    mode: &str,
    more: MountAttrFlags,
) -> Result<OwnedFd, Fault> {
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).at("open a tmpfs")?;
    let set = |key: &str, value: &str| {
        rustix::mount::fsconfig_set_string(&fs, key, value).at("set up a tmpfs")
    };
    set("size", &bytes.max(4096).to_string())?;
    set("nr_inodes", &(bytes / 4096).clamp(64, 1 << 20).to_string())?;
    set("mode", mode)?;
    if let Some((uid, gid)) = owner {
        set("uid", &uid.to_string())?;
        set("gid", &gid.to_string())?;
    }
    rustix::mount::fsconfig_create(&fs).at("create a tmpfs")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | more;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).at("mount a tmpfs")
}

/// Copies a template into a nameless file, holes staying holes.
fn copy(
    data: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    template: &Path,
) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(data, template, flags, Mode::empty())
        .map(File::from)
        .at("open the disk template")?;
    let size = from.metadata().at("read the disk template")?.len();
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let to = rustix::fs::openat(directory, ".", flags, Mode::RUSR | Mode::WUSR)
        .at("make a nameless file in the data directory")?;
    rustix::fs::ftruncate(&to, size).at("size a disk")?;
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(to),
            Err(e) => return Err(Fault::new("find the data of the disk template", e)),
        };
        at = rustix::fs::seek(&from, SeekFrom::Hole(start)).at("find a hole of the template")?;
        let mut read = start;
        rustix::fs::seek(&to, SeekFrom::Start(start)).at("copy the disk template")?;
        while read < at {
            let length = usize::try_from(at - read).unwrap_or(usize::MAX);
            // The two may be on different file systems.
            let n = rustix::fs::sendfile(&to, &from, Some(&mut read), length)
                .at("copy the disk template")?;
            if n == 0 {
                let end = std::io::ErrorKind::UnexpectedEof;
                return Err(Fault::new("copy the disk template", end));
            }
        }
    }
}

/// Attaches a file as a loop device that frees itself once nobody uses it.
fn attach(image: &OwnedFd) -> Result<LoopDevice, Fault> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = rustix::fs::openat(CWD, "/dev/loop-control", flags, Mode::empty())
        .at("open /dev/loop-control")?;
    let mut config = LoopConfig {
        #[expect(clippy::cast_sign_loss, reason = "a descriptor is not negative")]
        fd: image.as_raw_fd() as u32,
        block_size: 0,
        places: [0; 5],
        number_and_encryption: [0; 3],
        flags: LO_FLAGS_AUTOCLEAR,
        names_and_key: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    for _ in 0..ATTEMPTS {
        // SAFETY: this request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0) };
        if number < 0 {
            return Err(Fault::new("find a free loop device", std::io::Error::last_os_error()));
        }
        let path = format!("/dev/loop{number}");
        let fd = match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NXIO | rustix::io::Errno::BUSY) => continue,
            Err(e) => return Err(Fault::new("open a loop device", e)),
        };
        // SAFETY: `config` has the layout that this request reads, and outlives the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) };
        if result == 0 {
            return Ok(LoopDevice { path, _fd: fd });
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(Fault::new("configure a loop device", error));
        }
    }
    Err(Fault::new("find a free loop device", rustix::io::Errno::BUSY))
}

/// An attached device. Held open until it is mounted, or it would free itself.
struct LoopDevice {
    path: String,
    _fd: OwnedFd,
}

fn mount_ext4(device: &LoopDevice) -> Result<OwnedFd, Fault> {
    let fs = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).at("open ext4")?;
    let string = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&fs, key, value);
    string("source", &device.path).at("set up ext4")?;
    // The file is sparse and reads as zeroes: nothing needs to be written to make it so.
    rustix::mount::fsconfig_set_flag(fs.as_fd(), "noinit_itable").at("set up ext4")?;
    // Nothing of it outlives the machine's power, so nothing need be flushed to the machine's disk:
    // not at the end, and not for a tenant who asks for that without end.
    rustix::mount::fsconfig_set_flag(fs.as_fd(), "nobarrier").at("set up ext4")?;
    rustix::mount::fsconfig_create(&fs).at("read the disk's ext4")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).at("mount the disk")
}

const _: () = assert!(size_of::<LoopConfig>() == 304);
