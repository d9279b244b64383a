//! Makes the files of a layer below one directory and nowhere else.
//!
//! No path is ever resolved by the kernel from the outside: parents are opened with `openat2`
//! beneath the root and never through a symbolic link, and everything else is done by a single
//! name in such a parent.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::{Fault, Overseer};

/// The longest name of a file, as of the kernel.
const MAX_NAME_BYTES: usize = 255;
/// The longest path, below the kernel's by what may be put in front of it.
const MAX_PATH_BYTES: usize = 3500;
/// The most bytes of the paths of all directories, which are remembered until the end.
const MAX_REMEMBERED_BYTES: usize = 16 << 20;
/// How overlayfs marks a directory that hides those below it.
const OPAQUE: &str = "trusted.overlay.opaque";

const NO_ESCAPE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What an entry says about itself, besides its content.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    pub(super) xattrs: &'a [(CString, Vec<u8>)],
}

/// Splits the name of an entry; the empty list is the root. The error says what the name does.
pub(super) fn components(name: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if name.starts_with(b"/") && name != b"/" {
        return Err("has an absolute path");
    }
    if name.contains(&0) {
        return Err("has a NUL byte in its name");
    }
    if name.len() > MAX_PATH_BYTES {
        return Err("has a path that is too long");
    }
    let mut parts = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("has \"..\" in its path"),
            _ if part.len() > MAX_NAME_BYTES => return Err("has a name that is too long"),
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

/// Refuses a relative link that climbs above the root. An absolute one is relative to the root of
/// whoever follows it.
pub(super) fn check_symlink(path: &[&[u8]], target: &[u8]) -> Result<(), String> {
    if target.is_empty() || target.contains(&0) || target.len() > 4095 {
        return Err("is a symbolic link without a valid target".to_owned());
    }
    let mut depth = if target.starts_with(b"/") { 0 } else { path.len() - 1 };
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            // The root's own parent is the root, for whoever starts there.
            b".." if target.starts_with(b"/") => depth = depth.saturating_sub(1),
            b".." if depth == 0 => {
                let target = super::shown(target);
                return Err(format!("is a symbolic link out of the root, to \"{target}\""));
            }
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    Ok(())
}

fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

fn owner(node: &Node<'_>) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)))
}

/// The root of a layer in the making.
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory that was used last: archives are sorted by it.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Times of directories are set at the end, since every file made in one changes them.
    directory_times: Vec<(Vec<u8>, Timespec)>,
    /// Bytes of the paths in it.
    remembered_bytes: usize,
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, Fault> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty()).map_err(write_fault(b"/"))?;
        Ok(Self { root, parent: None, directory_times: Vec::new(), remembered_bytes: 0 })
    }

    fn open_beneath(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), NO_ESCAPE) {
                // The kernel gives up when something, anywhere, is renamed meanwhile.
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
    }

    /// The directory of an entry, made with what it needs above it.
    fn parent(&mut self, name: &[u8], parents: &[&[u8]]) -> Result<&OwnedFd, Fault> {
        if parents.is_empty() {
            return Ok(&self.root);
        }
        let path = parents.join(&b'/');
        if self.parent.as_ref().is_none_or(|(known, _)| *known != path) {
            self.parent = None;
            let fd = match self.open_beneath(&path, OFlags::PATH) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    self.make_parents(name, parents)?
                }
                Err(error) => return Err(write_fault(name)(error)),
            };
            self.parent = Some((path, fd));
        }
        // Set just above where it was not.
        Ok(self.parent.as_ref().map_or(&self.root, |(_, fd)| fd))
    }

    fn make_parents(&self, name: &[u8], parents: &[&[u8]]) -> Result<OwnedFd, Fault> {
        let fault = write_fault(name);
        let mut at = self.open_beneath(b".", OFlags::PATH).map_err(&fault)?;
        for part in parents {
            let hidden = match kind_of(&at, part).map_err(&fault)? {
                None => Some(false),
                Some(FileType::Directory) => None,
                Some(FileType::Symlink) => {
                    let part = super::shown(part);
                    return Err(Fault::entry(
                        name,
                        format!("leads through the symbolic link \"{part}\""),
                    ));
                }
                Some(FileType::CharacterDevice) => {
                    rustix::fs::unlinkat(&at, *part, AtFlags::empty()).map_err(&fault)?;
                    Some(true)
                }
                Some(_) => {
                    let part = super::shown(part);
                    return Err(Fault::entry(
                        name,
                        format!("lies below \"{part}\", which is not a directory"),
                    ));
                }
            };
            if let Some(hides) = hidden {
                rustix::fs::mkdirat(&at, *part, mode(0o755)).map_err(&fault)?;
                // What the process's umask took away.
                rustix::fs::chmodat(&at, *part, mode(0o755), AtFlags::empty()).map_err(&fault)?;
                if hides {
                    set_opaque(&at, part).map_err(&fault)?;
                }
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, *part, flags, Mode::empty()).map_err(&fault)?;
        }
        Ok(at)
    }

    /// Takes away what stands where an entry goes; tells whether it was a whiteout.
    fn clear(&mut self, name: &[u8], parents: &[&[u8]], last: &[u8]) -> Result<bool, Fault> {
        let fault = write_fault(name);
        let parent = self.parent(name, parents)?;
        match kind_of(parent, last).map_err(&fault)? {
            None => Ok(false),
            Some(FileType::Directory) => {
                let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string());
                let path = path.join(os(last));
                std::fs::remove_dir_all(path)
                    .map_err(|error| Fault::Write(super::shown(name), error))?;
                // It may have been the directory itself, or one above it.
                self.parent = None;
                Ok(false)
            }
            Some(kind) => {
                rustix::fs::unlinkat(parent, last, AtFlags::empty()).map_err(&fault)?;
                Ok(kind == FileType::CharacterDevice)
            }
        }
    }

    pub(super) fn set_root(&mut self, node: &Node<'_>) -> Result<(), Fault> {
        set_directory(self.root.as_fd(), node).map_err(write_fault(b"/"))?;
        self.directory_times.push((b".".to_vec(), node.mtime));
        Ok(())
    }

    pub(super) fn directory(
        &mut self,
        name: &[u8],
        parents: &[&[u8]],
        last: &[u8],
        node: Node<'_>,
    ) -> Result<(), Fault> {
        let fault = write_fault(name);
        let existing = kind_of(self.parent(name, parents)?, last).map_err(&fault)?;
        if existing != Some(FileType::Directory) {
            let hides = self.clear(name, parents, last)?;
            let parent = self.parent(name, parents)?;
            rustix::fs::mkdirat(parent, last, mode(0o700)).map_err(&fault)?;
            if hides {
                set_opaque(parent, last).map_err(&fault)?;
            }
        }
        let parent = self.parent(name, parents)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, last, flags, Mode::empty()).map_err(&fault)?;
        set_directory(fd.as_fd(), &node).map_err(&fault)?;
        let path = parents.iter().chain([&last]).copied().collect::<Vec<_>>().join(&b'/');
        self.remembered_bytes += path.len();
        if self.remembered_bytes > MAX_REMEMBERED_BYTES {
            return Err(Fault::Refused("its directories have too many long names".to_owned()));
        }
        self.directory_times.push((path, node.mtime));
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one entry, used once")]
    pub(super) fn file(
        &mut self,
        name: &[u8],
        parents: &[&[u8]],
        last: &[u8],
        node: Node<'_>,
        content: &mut impl Read,
        size: u64,
        sparse: bool,
        overseer: &Overseer<'_>,
    ) -> Result<(), Fault> {
        let fault = write_fault(name);
        self.clear(name, parents, last)?;
        let parent = self.parent(name, parents)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, last, flags, mode(0o600)).map_err(&fault)?;
        let mut file = File::from(fd);
        copy(name, content, &mut file, size, sparse, overseer)?;
        let (uid, gid) = owner(&node);
        // Changing the owner clears set-id bits, so the mode comes after it.
        rustix::fs::fchown(&file, uid, gid).map_err(&fault)?;
        rustix::fs::fchmod(&file, mode(node.mode)).map_err(&fault)?;
        set_xattrs(file.as_fd(), &node).map_err(&fault)?;
        rustix::fs::futimens(&file, &times(node.mtime)).map_err(&fault)
    }

    pub(super) fn symlink(
        &mut self,
        name: &[u8],
        parents: &[&[u8]],
        last: &[u8],
        node: Node<'_>,
        target: &[u8],
    ) -> Result<(), Fault> {
        self.clear(name, parents, last)?;
        let parent = self.parent(name, parents)?;
        let (uid, gid) = owner(&node);
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::symlinkat(target, parent, last)
            .and_then(|()| rustix::fs::chownat(parent, last, uid, gid, no_follow))
            .and_then(|()| rustix::fs::utimensat(parent, last, &times(node.mtime), no_follow))
            .map_err(write_fault(name))
    }

    pub(super) fn hard_link(
        &mut self,
        name: &[u8],
        parents: &[&[u8]],
        last: &[u8],
        target: &[&[u8]],
    ) -> Result<(), Fault> {
        let shown = super::shown(&target.join(&b'/'));
        let refused = |why: &str| Fault::entry(name, format!("is a link to \"{shown}\", {why}"));
        let Some((target_last, target_parents)) = target.split_last() else {
            return Err(refused("the root"));
        };
        if target_parents == parents && *target_last == last {
            return Err(refused("itself"));
        }
        let path = target_parents.join(&b'/');
        let path = if path.is_empty() { b".".to_vec() } else { path };
        let open_target = |tree: &Self| match tree.open_beneath(&path, OFlags::PATH) {
            Err(Errno::NOENT) => Err(refused("which is not in this layer")),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(refused("which lies behind what is not a directory"))
            }
            other => other.map_err(write_fault(name)),
        };
        let target_parent = open_target(self)?;
        match kind_of(&target_parent, target_last).map_err(write_fault(name))? {
            Some(FileType::RegularFile | FileType::Symlink | FileType::Fifo) => {}
            Some(FileType::Directory) => return Err(refused("a directory")),
            _ => return Err(refused("which is not in this layer")),
        }
        self.clear(name, parents, last)?;
        let parent = self.parent(name, parents)?;
        match rustix::fs::linkat(&target_parent, *target_last, parent, last, AtFlags::empty()) {
            // Clearing the place has removed the target with it.
            Err(Errno::NOENT) => Err(refused("which it replaces")),
            Err(Errno::MLINK) => Err(refused("which has too many links")),
            other => other.map_err(write_fault(name)),
        }
    }

    pub(super) fn fifo(
        &mut self,
        name: &[u8],
        parents: &[&[u8]],
        last: &[u8],
        node: Node<'_>,
    ) -> Result<(), Fault> {
        self.clear(name, parents, last)?;
        let parent = self.parent(name, parents)?;
        let (uid, gid) = owner(&node);
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::mkfifoat(parent, last, mode(0o600))
            .and_then(|()| rustix::fs::chownat(parent, last, uid, gid, no_follow))
            .and_then(|()| rustix::fs::chmodat(parent, last, mode(node.mode), AtFlags::empty()))
            .and_then(|()| rustix::fs::utimensat(parent, last, &times(node.mtime), no_follow))
            .map_err(write_fault(name))
    }

    /// Hides `hidden` of the layers below: a device 0/0, for overlayfs.
    pub(super) fn whiteout(
        &mut self,
        name: &[u8],
        parents: &[&[u8]],
        hidden: &[u8],
    ) -> Result<(), Fault> {
        let fault = write_fault(name);
        let parent = self.parent(name, parents)?;
        match kind_of(parent, hidden).map_err(&fault)? {
            None => {
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(parent, hidden, kind, Mode::empty(), 0).map_err(&fault)
            }
            // A whiteout never concerns its own layer: what is new here stays, alone.
            Some(FileType::Directory) => set_opaque(parent, hidden).map_err(&fault),
            Some(_) => Ok(()),
        }
    }

    /// Hides everything that the layers below have in this directory.
    pub(super) fn opaque(&mut self, name: &[u8], parents: &[&[u8]]) -> Result<(), Fault> {
        let parent = self.parent(name, parents)?;
        set_opaque(parent, b".").map_err(write_fault(name))
    }

    /// Sets the times of directories.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        for (path, mtime) in std::mem::take(&mut self.directory_times) {
            match self.open_beneath(&path, OFlags::RDONLY) {
                Ok(fd) => rustix::fs::futimens(&fd, &times(mtime)).map_err(write_fault(&path))?,
                // Something later has taken its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(write_fault(&path)(error)),
            }
        }
        Ok(())
    }
}

fn write_fault(name: &[u8]) -> impl Fn(Errno) -> Fault {
    let name = super::shown(name);
    move |error| Fault::Write(name.clone(), error.into())
}

fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

fn kind_of(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn set_opaque(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::fsetxattr(&fd, OPAQUE, b"y", XattrFlags::empty())
}

fn set_directory(fd: impl AsFd + Copy, node: &Node<'_>) -> rustix::io::Result<()> {
    let (uid, gid) = owner(node);
    rustix::fs::fchown(fd, uid, gid)?;
    rustix::fs::fchmod(fd, mode(node.mode))?;
    set_xattrs(fd, node)
}

fn set_xattrs(fd: impl AsFd + Copy, node: &Node<'_>) -> rustix::io::Result<()> {
    for (name, value) in node.xattrs {
        match rustix::fs::fsetxattr(fd, name.as_c_str(), value, XattrFlags::empty()) {
            // A file system without them, or without room for them: nothing depends on these.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy(
    name: &[u8],
    content: &mut impl Read,
    file: &mut File,
    size: u64,
    sparse: bool,
    overseer: &Overseer<'_>,
) -> Result<(), Fault> {
    let write_error = |error: io::Error| Fault::Write(super::shown(name), error);
    let mut buffer = vec![0; usize::try_from(size.clamp(1, 64 << 10)).unwrap_or(64 << 10)];
    let mut left = size;
    while left > 0 {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = match content.read(&mut buffer[..wanted]) {
            Ok(0) => return Err(Fault::entry(name, "ends before its declared size")),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Fault::of_read(error)),
        };
        let chunk = &buffer[..n];
        if sparse && chunk.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(n as i64)).map_err(write_error)?;
        } else {
            file.write_all(chunk).map_err(write_error)?;
        }
        left -= n as u64;
        overseer.wrote(n as u64)?;
    }
    if sparse {
        file.set_len(size).map_err(write_error)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_directories_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::open(dir.path()).unwrap();
        let long = "d".repeat(250);
        let parents: Vec<&[u8]> = vec![long.as_bytes(); 12];
        let mtime = Timespec { tv_sec: 0, tv_nsec: 0 };
        let node = Node { mode: 0o755, uid: 0, gid: 0, mtime, xattrs: &[] };
        // An archive of this compresses to next to nothing.
        let refused = (0..MAX_REMEMBERED_BYTES / 3000)
            .find_map(|_| tree.directory(b"d", &parents, long.as_bytes(), node).err());
        assert!(matches!(refused, Some(Fault::Refused(_))), "{refused:?}");
    }
}
