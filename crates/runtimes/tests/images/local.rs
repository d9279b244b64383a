//! Without a registry: load, import, list, name, lease, remove.

use std::fs;
use std::io::Cursor;

use serde_json::json;
use stackd_core::runtime::{ErrorKind, RuntimeError};
use stackd_core::spec::ImagePullPolicy;
use stackd_runtimes::oci::images::{
    Digest, ImageConfig, ImageError, ImportOptions, Origin, no_progress,
};

use super::support::{Blobs, OCI_INDEX, Tar, TestStore, archive, docker_save, file_in, gzip, zstd};

fn options(name: &str) -> ImportOptions {
    ImportOptions {
        name: name.to_owned(),
        command: vec!["/bin/app".to_owned()],
        env: vec!["A=1".to_owned()],
        user: "web".to_owned(),
        ..ImportOptions::default()
    }
}

fn layer(content: &str) -> Vec<u8> {
    Tar::new().directory("bin").file("bin/app", content.as_bytes()).bytes()
}

#[tokio::test]
async fn an_imported_image_is_leased_without_a_registry() {
    let test = TestStore::new();
    let passwd = b"root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n";
    let tar = Tar::new().file("bin/app", b"program").file("etc/passwd", passwd).bytes();
    let path = file_in(test.dir.path(), "root.tar", &tar);
    let added = test.store.import(&path, options("sample")).await.unwrap();
    assert_eq!(added.names, ["docker.io/library/sample:latest"]);
    drop(added);

    let lease = test.store.ensure("sample:latest", None, &no_progress).await.unwrap();
    let [layer] = lease.layer_paths() else { panic!("one layer") };
    assert_eq!(fs::read(layer.join("bin/app")).unwrap(), b"program");
    assert_eq!(lease.config().cmd, ["/bin/app"]);
    assert_eq!(lease.users().resolve(&lease.config().user).unwrap().uid, 33);

    let error = test.store.ensure("other", Some(ImagePullPolicy::Never), &no_progress).await;
    let error = RuntimeError::from(error.unwrap_err());
    assert_eq!((error.kind, &*error.condition.reason), (ErrorKind::Rejected, "ErrImageNeverPull"));
}

#[tokio::test]
async fn a_directory_is_imported_with_its_links() {
    let test = TestStore::new();
    let root = test.dir.path().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/app"), "program").unwrap();
    fs::hard_link(root.join("bin/app"), root.join("bin/same")).unwrap();
    std::os::unix::fs::symlink("/bin/app", root.join("link")).unwrap();
    let added = test.store.import(&root, options("dir:1")).await.unwrap();
    let made = &added.lease.layer_paths()[0];
    assert_eq!(fs::read(made.join("bin/same")).unwrap(), b"program");
    assert_eq!(fs::read_link(made.join("link")).unwrap().to_str(), Some("/bin/app"));
    let again = test.store.import(&root, options("dir:2")).await.unwrap();
    assert_eq!(again.lease.digest(), added.lease.digest(), "the same files are another image");

    let error = test.store.import(&root, options("No Name")).await.unwrap_err();
    assert!(matches!(error, ImageError::InvalidReference { .. }), "{error}");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("device"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let error = test.store.import(&root, options("dir:3")).await.unwrap_err();
    assert!(error.to_string().contains("device: it is a device"), "{error}");
    assert_eq!(test.names_in("tmp"), [""; 0]);
}

#[tokio::test]
async fn docker_save_archives_are_loaded_in_their_old_form() {
    let test = TestStore::new();
    let (base, top) = (layer("base"), Tar::new().file("top", b"top").bytes());
    let saved = docker_save(&[("nginx:stable", &[&base, &top]), ("127.0.0.1:5000/x:1", &[&base])]);
    let path = file_in(test.dir.path(), "saved.tar", &saved);
    let mut added = test.store.load(&path, None).await.unwrap();
    added.sort_by(|a, b| a.names.cmp(&b.names));
    assert_eq!(added[0].names, ["127.0.0.1:5000/x:1"]);
    assert_eq!(added[1].names, ["docker.io/library/nginx:stable"]);
    assert_eq!(added[1].lease.layers()[0], added[0].lease.layers()[0]);
    assert_eq!(test.names_in("layers").len(), 2);
    drop(added);

    let lease = test.store.ensure("nginx:stable", None, &no_progress).await.unwrap();
    assert_eq!(fs::read(lease.layer_paths()[1].join("top")).unwrap(), b"top");

    // Compressed as a whole, layers compressed, and the same layer twice as a link.
    let compressed = {
        let gz = gzip(&base);
        let config = super::support::config_json(&[Digest::of(&base), Digest::of(&base)]);
        let manifest = json!([{"Config": "c.json", "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar"]}]);
        let tar = Tar::new()
            .file("./a/layer.tar", &gz)
            .symlink("./b/layer.tar", "../a/layer.tar")
            .file("./c.json", &config)
            .file("./manifest.json", manifest.to_string().as_bytes())
            .bytes();
        zstd(&tar)
    };
    let reader = Cursor::new(compressed.clone());
    let added = test.store.load_reader(reader, Some("named:1")).await.unwrap();
    assert_eq!(added[0].names, ["docker.io/library/named:1"]);
    let added = test.store.load_reader(Cursor::new(compressed), None).await.unwrap();
    assert_eq!(added[0].names, [added[0].lease.digest().to_string()]);
}

#[tokio::test]
async fn oci_layouts_are_loaded_from_archives_and_directories() {
    let test = TestStore::new();
    let mut blobs = Blobs::default();
    let (a, b, c) =
        (layer("a"), Tar::new().file("b", b"b").bytes(), Tar::new().file("c", b"c").bytes());
    let image =
        blobs.image(&[(&a, gzip(&a), "+gzip"), (&b, zstd(&b), "+zstd"), (&c, c.clone(), "")]);
    let foreign = json!({"platform": {"os": "plan9", "architecture": "mips"}});
    let ours = {
        let host = stackd_runtimes::oci::images::Platform::host();
        json!({"platform": {"os": host.os, "architecture": host.architecture}})
    };
    let index = Blobs::index(&[blobs.entry(image, foreign), blobs.entry(image, ours)]);
    let (index, index_size) = blobs.add(index);
    let entry = json!({
        "mediaType": OCI_INDEX,
        "digest": index,
        "size": index_size,
        "annotations": {
            "io.containerd.image.name": "docker.io/library/multi:1",
            "org.opencontainers.image.ref.name": "1",
        },
    });
    let members = blobs.layout(std::slice::from_ref(&entry));
    let added = test.store.load_reader(Cursor::new(archive(&members)), None).await.unwrap();
    assert_eq!(added[0].names, ["docker.io/library/multi:1"]);
    assert_eq!(added[0].lease.digest(), image);
    for (path, name) in added[0].lease.layer_paths().iter().zip(["bin/app", "b", "c"]) {
        assert!(path.join(name).exists(), "{name}");
    }
    // By the digest of the index too, since that is what people pin.
    let pinned = format!("multi@{index}");
    let lease = test.store.ensure(&pinned, None, &no_progress).await.unwrap();
    assert_eq!(lease.digest(), image);

    let dir = test.dir.path().join("layout");
    for (name, content) in &members {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let added = test.store.load(&dir, None).await.unwrap();
    assert_eq!(added[0].lease.digest(), image);

    // docker save's new form: a layout, with the names in manifest.json.
    let config = added[0].lease.config_digest().hex();
    let manifest = json!([{
        "Config": format!("blobs/sha256/{config}"),
        "RepoTags": ["new:form", "new:again"],
        "Layers": [],
    }]);
    let mut members = blobs.layout(&[blobs.entry(image, json!({}))]);
    members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    let added = test.store.load_reader(Cursor::new(archive(&members)), None).await.unwrap();
    assert_eq!(added[0].names, ["docker.io/library/new:again", "docker.io/library/new:form"]);
}

#[tokio::test]
async fn archives_that_are_not_what_they_say_are_refused() {
    let test = TestStore::new();
    let (good, other) = (layer("good"), layer("other"));
    let mut blobs = Blobs::default();
    let image = blobs.image(&[(&good, gzip(&good), "+gzip")]);
    let members = |blobs: &Blobs| blobs.layout(&[blobs.entry(image, json!({}))]);
    let changed = |digest: Digest, content: Vec<u8>| {
        let mut blobs = blobs.clone();
        blobs.by_digest.insert(digest, content);
        archive(&members(&blobs))
    };
    let without = |digest: Digest| {
        let gone = format!("blobs/sha256/{}", digest.hex());
        let kept: Vec<_> = members(&blobs).into_iter().filter(|(name, _)| *name != gone).collect();
        archive(&kept)
    };
    // Says one diff id, is another.
    let mut lying = Blobs::default();
    let liar = lying.image(&[(&other, gzip(&good), "+gzip")]);
    let mut foreign = Blobs::default();
    let alien = foreign.image(&[(&good, good.clone(), "")]);
    let alien = foreign.entry(alien, json!({"platform": {"os": "linux", "architecture": "vax"}}));
    let mut strange = Blobs::default();
    let kind = strange.image(&[(&good, good.clone(), "+brotli")]);

    for (name, bytes, expected) in [
        ("manifest changed", changed(image, b"{}".to_vec()), "is damaged: its digest should be"),
        (
            "layer changed",
            changed(Digest::of(&gzip(&good)), gzip(&other)),
            "is damaged: its digest should be",
        ),
        (
            "layer no archive at all",
            changed(Digest::of(&gzip(&good)), b"garbage".to_vec()),
            "is damaged: its digest should be",
        ),
        ("layer gone", without(Digest::of(&gzip(&good))), "is missing"),
        ("manifest gone", without(image), "it is missing in the archive"),
        (
            "wrong diff id",
            archive(&lying.layout(&[lying.entry(liar, json!({}))])),
            "unpacked, is damaged: its digest should be",
        ),
        ("for another machine", archive(&foreign.layout(&[alien])), "is not made for"),
        (
            "unknown compression",
            archive(&strange.layout(&[strange.entry(kind, json!({}))])),
            "is not supported",
        ),
        ("not an image archive", layer("x"), "it is neither a docker save archive"),
        ("cut off", docker_save(&[("x:1", &[&good])])[..2000].to_vec(), "the archive"),
    ] {
        let error = test.store.load_reader(Cursor::new(bytes), None).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(test.names_in("tmp"), [""; 0], "{name}");
        assert!(test.store.list().is_empty(), "{name}");
    }
}

#[tokio::test]
async fn images_go_with_their_last_name_and_layers_with_their_last_use() {
    let test = TestStore::new();
    let (base, top) = (layer("base"), Tar::new().file("top", b"top").bytes());
    let saved = docker_save(&[("a:1", &[&base, &top]), ("b:1", &[&base])]);
    drop(test.store.load_reader(Cursor::new(saved), None).await.unwrap());
    test.store.tag("a:1", "a:2").await.unwrap();

    let listed = test.store.list();
    assert_eq!(listed[0].names, ["a:1", "a:2"]);
    assert_eq!(
        (listed[1].names.clone(), listed[1].origin),
        (vec!["b:1".to_owned()], Some(Origin::Loaded))
    );
    let details = test.store.inspect(&listed[0].id.hex()[..12]).unwrap();
    assert_eq!((details.layers.len(), details.config.env.len(), details.ports.len()), (2, 1, 1));

    let lease = test.store.lease("a:2").unwrap();
    assert_eq!(test.store.remove("a:1", false).await.unwrap().untagged, ["a:1"]);
    let error = test.store.remove("a:2", false).await.unwrap_err();
    assert_eq!(error.to_string(), "image \"a:2\" is used by 1 running stacks; delete them first");
    let removed = test.store.remove("a:2", true).await.unwrap();
    assert!(removed.deleted.is_empty(), "it is still used");
    assert!(lease.layer_paths().iter().all(|path| path.join("").exists()));
    let digest = lease.digest();
    assert_eq!(test.store.prune(true).await.unwrap().untagged, ["b:1"]);
    assert_eq!(test.names_in("layers").len(), 2, "a lease keeps its layers");

    // A restart: what ran takes its lease again, and only then may the rest go.
    drop(lease);
    let kept = layers_after_last_lease(&test, 0);
    assert_eq!(kept, 0);
    assert!(test.store.lease_by_digest(digest).is_none());
    assert!(test.store.list().is_empty());
}

/// Waits for the thread that the last lease has left behind.
fn layers_after_last_lease(test: &TestStore, expected: usize) -> usize {
    let deadline = std::time::Instant::now() + stackd_testkit::PATIENCE;
    loop {
        let count = test.names_in("layers").len();
        if count == expected || std::time::Instant::now() > deadline {
            return count;
        }
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_restart_finds_what_was_whole_and_removes_what_was_not() {
    let test = TestStore::new();
    let saved = docker_save(&[("a:1", &[&layer("a")]), ("b:1", &[&layer("b")])]);
    let added = test.store.load_reader(Cursor::new(saved), None).await.unwrap();
    let b = added[1].lease.digest();
    // Forced out of its names while it runs; the process is killed before it ends.
    test.store.remove("b:1", true).await.unwrap();
    std::mem::forget(added);
    let root = test.dir.path().join("images");
    fs::create_dir_all(root.join("tmp/abc/fs/etc")).unwrap();
    fs::write(root.join("tmp/half.json"), "{").unwrap();
    fs::write(root.join("images/damaged.json"), "{").unwrap();

    let test = test.reopen(ImageConfig::default());
    assert_eq!(test.names_in("tmp"), [""; 0]);
    let lease = test.store.lease_by_digest(b).expect("it waits for its stack");
    test.store.collect_garbage().unwrap();
    assert!(lease.layer_paths()[0].exists());
    assert!(test.store.lease("a:1").is_ok());
    drop(lease);
    assert_eq!(layers_after_last_lease(&test, 1), 1);

    // A layer that somebody removed by hand takes its image along, and can be brought again.
    let a = test.store.lease("a:1").unwrap();
    fs::remove_dir_all(a.layer_paths()[0].parent().unwrap()).unwrap();
    drop(a);
    let test = test.reopen(ImageConfig::default());
    assert!(matches!(test.store.lease("a:1"), Err(ImageError::NotHere { .. })));
    let saved = docker_save(&[("a:1", &[&layer("a")])]);
    test.store.load_reader(Cursor::new(saved), None).await.unwrap();
    assert!(test.store.lease("a:1").unwrap().layer_paths()[0].exists());
}

#[tokio::test]
async fn a_name_that_moves_takes_the_old_image_along() {
    let test = TestStore::new();
    for content in ["old", "new"] {
        let saved = docker_save(&[("a:1", &[&layer(content)])]);
        drop(test.store.load_reader(Cursor::new(saved), None).await.unwrap());
    }
    test.store.collect_garbage().unwrap();
    assert_eq!(test.store.list().len(), 1);
    assert_eq!(test.names_in("layers").len(), 1);
    let lease = test.store.lease("a:1").unwrap();
    assert_eq!(fs::read(lease.layer_paths()[0].join("bin/app")).unwrap(), b"new");
}

#[tokio::test]
async fn many_loads_of_shared_layers_at_once_agree() {
    let test = TestStore::new();
    let base = layer("base");
    let tasks: Vec<_> = (0..6)
        .map(|n| {
            let top = Tar::new().file("n", n.to_string().as_bytes()).bytes();
            let saved = docker_save(&[(&format!("n:{n}"), &[&base, &top])]);
            let store = test.store.clone();
            tokio::spawn(async move { store.load_reader(Cursor::new(saved), None).await })
        })
        .collect();
    for task in tasks {
        drop(task.await.unwrap().unwrap());
    }
    assert_eq!(test.names_in("layers").len(), 7);
    assert_eq!(test.names_in("tmp"), [""; 0]);
    test.store.prune(true).await.unwrap();
    assert_eq!(test.names_in("layers"), [""; 0]);
}

#[tokio::test]
async fn an_image_that_is_here_costs_a_start_next_to_nothing() {
    let test = TestStore::new();
    let saved = docker_save(&[("nginx:stable", &[&layer("x")])]);
    test.store.load_reader(Cursor::new(saved), None).await.unwrap();
    let times = 2_000;
    let start = std::time::Instant::now();
    for _ in 0..times {
        test.store.ensure("nginx:stable", None, &no_progress).await.unwrap();
    }
    let each = start.elapsed() / times;
    println!("ensure of an image that is here: {each:?}");
    // Generous: a debug build on a busy machine. The disk or a registry would cost far more.
    assert!(each < std::time::Duration::from_millis(1), "{each:?}");
}
