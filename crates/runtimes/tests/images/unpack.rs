//! What an honest layer becomes on disk, and what overlayfs makes of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};
use stackd_runtimes::oci::images::ImportOptions;

use super::support::{Tar, TestStore, docker_save, zstd};

fn options() -> ImportOptions {
    ImportOptions { name: "x".to_owned(), ..ImportOptions::default() }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}

#[tokio::test]
async fn files_keep_what_matters() {
    let test = TestStore::new();
    let long = "dir/".to_owned() + &"long".repeat(50);
    let mut sparse_content = b"data".to_vec();
    sparse_content.resize(512, 0);
    let tar = Tar::new()
        .raw(b"./", b'5', b"", |h| h.set_mode(0o750))
        .raw(b"./bin/su", b'0', b"setuid", |h| {
            h.set_mode(0o4755);
            h.set_uid(1234);
            h.set_gid(65_534);
        })
        .pax(&[
            ("mtime", b"1234567890.123456789"),
            ("SCHILY.xattr.user.kept", b"yes"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
        ])
        .raw(b"attributes", b'0', b"", |_| {})
        .hard_link("bin/su2", "bin/su")
        .symlink("bin/sh", "/bin/busybox")
        .symlink("bin/up", "../etc")
        .raw(b"pipe", b'6', b"", |h| h.set_mode(0o622))
        .file(&long, b"long")
        .pax(&[("path", b"pax-\xc3\xa9")])
        .raw(b"short", b'0', b"pax", |_| {})
        .raw(b"old/", b'0', b"", |_| {})
        .file("replaced", b"first")
        .directory("replaced")
        .file("replaced/inside", b"second")
        .raw(b"sparse", b'S', &sparse_content, |h| {
            let gnu = h.as_gnu_mut().unwrap();
            gnu.sparse[0].offset.copy_from_slice(b"00001000000\0");
            gnu.sparse[0].numbytes.copy_from_slice(b"00000001000\0");
            gnu.realsize.copy_from_slice(b"00001001000\0");
        })
        .bytes();
    let added = test.store.import_reader(Cursor::new(zstd(&tar)), options()).await.unwrap();
    let root = &added.lease.layer_paths()[0];

    assert_eq!(fs::metadata(root).unwrap().permissions().mode() & 0o7777, 0o750);
    let su = fs::metadata(root.join("bin/su")).unwrap();
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()),
        (0o4755, 1234, 65_534, 1_000_000_000)
    );
    assert_eq!(su.ino(), fs::metadata(root.join("bin/su2")).unwrap().ino());
    assert_eq!(fs::read_link(root.join("bin/sh")).unwrap(), Path::new("/bin/busybox"));
    assert!(fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read(root.join(&long)).unwrap(), b"long");
    assert_eq!(fs::read(root.join("pax-é")).unwrap(), b"pax");
    assert!(root.join("old").is_dir());
    assert_eq!(fs::read(root.join("replaced/inside")).unwrap(), b"second");

    let attributes = root.join("attributes");
    let metadata = fs::metadata(&attributes).unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(xattr(&attributes, "user.kept").as_deref(), Some(&b"yes"[..]));
    for dropped in ["user.overlay.opaque", "trusted.overlay.opaque", "security.capability"] {
        assert_eq!(xattr(&attributes, dropped), None, "{dropped}");
    }

    let sparse = fs::metadata(root.join("sparse")).unwrap();
    assert_eq!(sparse.len(), 0o1001000);
    assert!(sparse.blocks() * 512 < sparse.len(), "the hole takes room");
    assert_eq!(&fs::read(root.join("sparse")).unwrap()[0o1000000..][..4], b"data");
}

#[tokio::test]
async fn overlayfs_shows_the_image_also_through_id_mapped_mounts() {
    let test = TestStore::new();
    let lower = Tar::new()
        .directory("gone")
        .file("gone/x", b"lower")
        .file("kept", b"lower")
        .file("removed", b"lower")
        .directory("opaque")
        .file("opaque/old", b"lower")
        .directory("again")
        .file("again/old", b"lower")
        .directory("again2")
        .file("again2/old", b"lower")
        .directory("implied")
        .file("implied/old", b"lower")
        .directory("merged")
        .file("merged/old", b"lower")
        .bytes();
    let upper = Tar::new()
        .file(".wh.gone", b"")
        .file(".wh.removed", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"upper")
        // Hidden first, then there again: what was below must not shine through.
        .file(".wh.again", b"")
        .directory("again")
        .file("again/new", b"upper")
        .directory("again2")
        .file("again2/new", b"upper")
        .file(".wh.again2", b"")
        .file(".wh.implied", b"")
        .file("implied/new", b"upper")
        .file("merged/new", b"upper")
        .file("merged/.wh.nothing", b"")
        .file(".wh..wh.plnk", b"")
        .bytes();
    let archive = docker_save(&[("layered:1", &[&lower, &upper])]);
    let added = test.store.load_reader(Cursor::new(archive), None).await.unwrap();
    let layers = added[0].lease.layer_paths().to_vec();

    let work = test.dir.path().join("mount");
    for name in ["upper", "work", "merged"] {
        fs::create_dir_all(work.join(name)).unwrap();
    }
    // The mount namespace is this thread's own, and ends with it.
    let seen = std::thread::spawn(move || show(&layers, &work)).join().unwrap();
    let expected = [
        ("again/new", "upper"),
        ("again2/new", "upper"),
        ("implied/new", "upper"),
        ("kept", "lower"),
        ("merged/new", "upper"),
        ("merged/old", "lower"),
        ("opaque/new", "upper"),
    ];
    let expected: BTreeMap<_, _> = expected
        .into_iter()
        .map(|(path, content)| (PathBuf::from(path), (content.to_owned(), MAPPED_ROOT)))
        .collect();
    assert_eq!(seen, expected);
}

/// What root of the image is on the host, in this test.
const MAPPED_ROOT: u32 = 300_000;

/// Mounts the layers as the runtime does, and reads every file with its owner.
fn show(layers: &[PathBuf], work: &Path) -> BTreeMap<PathBuf, (String, u32)> {
    // SAFETY: the call takes no pointers; it concerns this thread alone.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "needs root");
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).unwrap();

    let mut holder = std::process::Command::new("sleep");
    holder.arg("600");
    // SAFETY: one system call between fork and exec.
    unsafe {
        holder.pre_exec(|| match libc::unshare(libc::CLONE_NEWUSER) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut holder = holder.spawn().unwrap();
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{map}", holder.id());
        fs::write(path, format!("0 {MAPPED_ROOT} 65536")).unwrap();
    }
    let namespace = fs::File::open(format!("/proc/{}/ns/user", holder.id())).unwrap();

    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let mut mapped = Vec::new();
    for layer in layers.iter().rev() {
        let tree = map_ids(layer, namespace.as_fd());
        let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
        // Only a mount that is somewhere can be a lower one.
        let at = work.join(format!("lower{}", mapped.len()));
        fs::create_dir(&at).unwrap();
        rustix::mount::move_mount(
            &tree,
            "",
            rustix::fs::CWD,
            &at,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .unwrap_or_else(|e| panic!("{path}: {e}"));
        rustix::mount::fsconfig_set_string(&overlay, "lowerdir+", at.to_str().unwrap()).unwrap();
        mapped.push(tree);
    }
    for (key, name) in [("upperdir", "upper"), ("workdir", "work")] {
        let path = work.join(name);
        rustix::mount::fsconfig_set_string(&overlay, key, path.to_str().unwrap()).unwrap();
    }
    rustix::mount::fsconfig_create(&overlay).unwrap();
    let mount =
        rustix::mount::fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .unwrap();
    let merged = work.join("merged");
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", rustix::fs::CWD, &merged, flags).unwrap();

    let mut seen = BTreeMap::new();
    let mut pending = vec![merged.clone()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                // overlayfs lists a whiteout in a directory that only one layer has.
                continue;
            };
            if metadata.is_dir() {
                pending.push(path);
            } else {
                let relative = path.strip_prefix(&merged).unwrap().to_owned();
                seen.insert(relative, (fs::read_to_string(&path).unwrap(), metadata.uid()));
            }
        }
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    seen
}

/// A copy of the mount at `path` whose ids are those of a user namespace.
fn map_ids(path: &Path, namespace: impl AsFd) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, path, flags).unwrap();
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_fd().as_raw_fd() as u64,
    };
    // SAFETY: both pointers live through the call, and the size is that of what is pointed to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    tree
}
