//! Archives that mean harm, one a line: each is refused with its reason and leaves nothing.

use std::io::Cursor;

use stackd_runtimes::oci::images::{ImageConfig, ImageError, ImportOptions};

use super::support::{Tar, TestStore, gzip};

fn limits() -> ImageConfig {
    ImageConfig {
        max_unpacked_bytes: 200 << 20,
        max_layer_entries: 50,
        max_expansion: 100,
        ..ImageConfig::default()
    }
}

fn options() -> ImportOptions {
    ImportOptions { name: "hostile".to_owned(), ..ImportOptions::default() }
}

fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let long_name = "n".repeat(256);
    let long_path = "d/".repeat(1800) + "f";
    let many = (0..60).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b""));
    let whole = Tar::new().file("a", &[7; 2000]).bytes();
    let mut wrong_sum = whole.clone();
    wrong_sum[0] ^= 1;
    let plain = |_: &mut tar::Header| {};
    vec![
        ("dots", Tar::new().raw(b"../evil", b'0', b"x", plain).bytes(), "has \"..\" in its path"),
        (
            "dots inside",
            Tar::new().raw(b"a/../../evil", b'0', b"x", plain).bytes(),
            "has \"..\" in its path",
        ),
        (
            "absolute",
            Tar::new().raw(b"/etc/evil", b'0', b"x", plain).bytes(),
            "has an absolute path",
        ),
        (
            "long name, absolute",
            Tar::new()
                .raw(b"././@LongLink", b'L', b"/etc/evil", plain)
                .raw(b"x", b'0', b"x", plain)
                .bytes(),
            "has an absolute path",
        ),
        (
            "pax name with dots",
            Tar::new().pax(&[("path", b"../evil")]).raw(b"x", b'0', b"x", plain).bytes(),
            "has \"..\" in its path",
        ),
        (
            "link out",
            Tar::new().symlink("a", "../etc").bytes(),
            "is a symbolic link out of the root",
        ),
        (
            "link out from below",
            Tar::new().symlink("a/b", "../c/../../x").bytes(),
            "is a symbolic link out of the root",
        ),
        (
            "file through an absolute link",
            Tar::new().symlink("a", "/etc").file("a/evil", b"x").bytes(),
            "leads through the symbolic link \"a\"",
        ),
        (
            "file through a link that stays inside",
            Tar::new().directory("d").symlink("a", "d").file("a/evil", b"x").bytes(),
            "leads through the symbolic link \"a\"",
        ),
        (
            "directory through a link",
            Tar::new().symlink("a", "/tmp").directory("a/b/c").bytes(),
            "leads through the symbolic link \"a\"",
        ),
        (
            "whiteout through a link",
            Tar::new().symlink("a", "/tmp").file("a/.wh.x", b"").bytes(),
            "leads through the symbolic link \"a\"",
        ),
        (
            "opaque through a link",
            Tar::new().symlink("a", "/tmp").file("a/.wh..wh..opq", b"").bytes(),
            "leads through the symbolic link \"a\"",
        ),
        (
            "below a file",
            Tar::new().file("a", b"x").file("a/b", b"x").bytes(),
            "which is not a directory",
        ),
        (
            "hard link out",
            Tar::new().raw(b"a", b'1', b"", |h| h.set_link_name_literal("../x").unwrap()).bytes(),
            "which has \"..\" in its path",
        ),
        (
            "hard link to an absolute path",
            Tar::new()
                .raw(b"a", b'1', b"", |h| h.set_link_name_literal("/etc/passwd").unwrap())
                .bytes(),
            "which has an absolute path",
        ),
        (
            "hard link behind a link",
            Tar::new().symlink("a", "/etc").hard_link("b", "a/passwd").bytes(),
            "which lies behind what is not a directory",
        ),
        (
            "hard link to nothing",
            Tar::new().hard_link("a", "b").bytes(),
            "which is not in this layer",
        ),
        (
            "hard link to itself",
            Tar::new().hard_link("a", "a").bytes(),
            "is a link to \"a\", itself",
        ),
        (
            "hard link to a directory",
            Tar::new().directory("d").hard_link("a", "d").bytes(),
            "a directory",
        ),
        (
            "hard link to a whiteout",
            Tar::new().file(".wh.x", b"").hard_link("a", "x").bytes(),
            "which is not in this layer",
        ),
        (
            "hard link that replaces what holds it",
            Tar::new().file("d/f", b"x").hard_link("d", "d/f").bytes(),
            "which it replaces",
        ),
        ("character device", Tar::new().raw(b"dev/x", b'3', b"", plain).bytes(), "is a device"),
        ("block device", Tar::new().raw(b"dev/x", b'4', b"", plain).bytes(), "is a device"),
        ("unknown kind", Tar::new().raw(b"x", b'9', b"", plain).bytes(), "is of an unknown kind"),
        (
            "user out of range",
            Tar::new().raw(b"x", b'0', b"", |h| h.set_uid(65_535)).bytes(),
            "belongs to user 65535; ids must be below 65535",
        ),
        (
            "group out of range",
            Tar::new().pax(&[("gid", b"70000")]).raw(b"x", b'0', b"", plain).bytes(),
            "belongs to group 70000; ids must be below 65535",
        ),
        (
            "long component",
            Tar::new().file(&long_name, b"x").bytes(),
            "has a name that is too long",
        ),
        ("long path", Tar::new().file(&long_path, b"x").bytes(), "has a path that is too long"),
        ("whiteout of nothing", Tar::new().file(".wh.", b"").bytes(), "is not a valid whiteout"),
        (
            "whiteout of the parent",
            Tar::new().file("a/.wh...", b"").bytes(),
            "is not a valid whiteout",
        ),
        ("below a whiteout", Tar::new().file(".wh.a/b", b"").bytes(), "lies in a whiteout"),
        ("root as a file", Tar::new().raw(b"./", b'2', b"", plain).bytes(), "is the root"),
        ("cut off", whole[..1000].to_vec(), "ends before its declared size"),
        ("wrong checksum", wrong_sum, "the archive is damaged"),
        ("garbage", vec![b'g'; 4096], "the archive is damaged"),
        ("broken gzip", gzip(&whole)[..60].to_vec(), "the archive is damaged"),
        ("empty", Tar::new().bytes(), "it is empty"),
        ("too many entries", many.bytes(), "it has more than 50 entries"),
        (
            "declared too large",
            Tar::new().raw(b"x", b'0', b"", |h| h.set_size(1 << 40)).bytes(),
            "larger than allowed",
        ),
        (
            "sparse without end",
            Tar::new()
                .raw(b"x", b'S', b"", |h| {
                    let gnu = h.as_gnu_mut().unwrap();
                    gnu.sparse[0].offset.copy_from_slice(b"77777777777\0");
                    gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
                    gnu.realsize.copy_from_slice(b"77777777777\0");
                })
                .bytes(),
            "larger than allowed",
        ),
        (
            "sparse in a way that is not read",
            Tar::new()
                .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.name", b"x")])
                .raw(b"x", b'0', b"", plain)
                .bytes(),
            "is a sparse file of a kind that is not supported",
        ),
        (
            "name of megabytes",
            gzip(&Tar::new().raw(b"././@LongLink", b'L', &vec![b'x'; 4 << 20], plain).bytes()),
            "the header of an entry is too large",
        ),
        (
            "decompression bomb",
            gzip(&Tar::new().file("zeros", &vec![0; 70 << 20]).bytes()),
            "it unpacks to more than 100 times its size",
        ),
    ]
}

#[tokio::test]
async fn each_is_refused_with_its_reason_and_leaves_nothing() {
    let test = TestStore::with(limits());
    for (name, archive, expected) in cases() {
        let result = test.store.import_reader(Cursor::new(archive), options()).await;
        match result {
            Err(ImageError::Refused { reason, .. }) => {
                assert!(reason.contains(expected), "{name}: {reason}");
            }
            other => panic!("{name}: {other:?}"),
        }
        for part in ["tmp", "layers", "images", "partial"] {
            assert_eq!(test.names_in(part), [""; 0], "{name} left something in {part}");
        }
    }
    assert!(test.store.list().is_empty());
}

#[tokio::test]
async fn an_archive_that_unpacks_to_more_than_the_image_may_have_is_refused() {
    let config = ImageConfig { max_unpacked_bytes: 1 << 20, ..limits() };
    let test = TestStore::with(config);
    let content = vec![1; 600 << 10];
    let tar = Tar::new().file("a", &content).file("b", &content).bytes();
    let error = test.store.import_reader(Cursor::new(gzip(&tar)), options()).await.unwrap_err();
    assert!(error.to_string().contains("larger than allowed"), "{error}");
}
