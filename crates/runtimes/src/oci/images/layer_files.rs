//! Reads single files of an image before any container of it exists, from its layers as overlayfs
//! would show them. The layers are hostile: no symbolic link is followed, and only so much is read.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use super::users::UserDatabase;

/// More than any image's user files have.
const MAX_USER_FILE_BYTES: u64 = 1 << 20;

/// Reads `/etc/passwd` and `/etc/group` of an image with these layers, the lowest first.
pub(super) fn read_users(layers: &[PathBuf]) -> UserDatabase {
    UserDatabase { passwd: read(layers, "passwd"), group: read(layers, "group") }
}

/// The text of `/etc/<name>`; empty where there is none that can be read.
fn read(layers: &[PathBuf], name: &str) -> String {
    layers.iter().rev().find_map(|layer| look_into(layer, name)).unwrap_or_default()
}

/// What one layer says: nothing, so that the next one below is asked, or a text, empty where the
/// layer hides what is below.
fn look_into(layer: &PathBuf, name: &str) -> Option<String> {
    let hidden = Some(String::new());
    let root = rustix::fs::open(layer, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = rustix::fs::statat(&root, "etc", AtFlags::SYMLINK_NOFOLLOW).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return hidden;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let open = |path: &str, more: OFlags| {
        rustix::fs::openat2(&root, path, flags | more, Mode::empty(), resolve)
    };
    let etc = open("etc", OFlags::DIRECTORY).ok()?;
    match rustix::fs::statat(&etc, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
            // Non-blocking: it is a regular file now, and nobody writes to layers.
            let file = File::from(open(&format!("etc/{name}"), OFlags::NONBLOCK).ok()?);
            let mut text = Vec::new();
            file.take(MAX_USER_FILE_BYTES).read_to_end(&mut text).ok()?;
            Some(String::from_utf8_lossy(&text).into_owned())
        }
        Ok(_) => hidden,
        Err(_) => {
            let mut value = [0; 4];
            let opaque = rustix::fs::fgetxattr(&etc, "trusted.overlay.opaque", &mut value);
            matches!(opaque, Ok(1) if value[0] == b'y').then(String::new)
        }
    }
}
