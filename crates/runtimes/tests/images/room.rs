//! How much of the disk images take, on small disks.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

use stackd_core::runtime::{ErrorKind, RuntimeError};
use stackd_runtimes::oci::images::{
    ImageConfig, ImageError, ImageStore, ImportOptions, no_progress,
};
use stackd_testkit::small_disk::SmallDisk;

use super::faults::{Behaviour, Registry, noise};
use super::support::{Blobs, Tar, gzip};

const MIB: u64 = 1 << 20;

/// A registry with an image of one file of so many bytes for each tag.
async fn registry(images: &[(&str, usize)]) -> std::sync::Arc<Registry> {
    let mut blobs = Blobs::default();
    let mut tags = HashMap::new();
    for (tag, bytes) in images {
        let tar = Tar::new().file(tag, &vec![b'x'; *bytes]).bytes();
        let digest = blobs.image(&[(&tar, gzip(&tar), "+gzip")]);
        tags.insert((*tag).to_owned(), digest);
    }
    Registry::with_tags(blobs, tags, Behaviour::default()).await
}

fn without_budget() -> ImageConfig {
    ImageConfig { max_pulled_bytes: Some(u64::MAX), ..ImageConfig::default() }
}

/// A store whose users have all taken their leases.
fn open(root: &Path, config: ImageConfig) -> ImageStore {
    let store = ImageStore::open(&root.join("images"), config).unwrap();
    store.collect_garbage().unwrap();
    store
}

fn names(store: &ImageStore) -> Vec<String> {
    let names = store.list().into_iter().flat_map(|image| image.names);
    let tag = |name: String| name.rsplit_once(':').map_or_else(String::new, |(_, t)| t.to_owned());
    names.map(tag).collect()
}

fn left_over(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for part in ["tmp", "layers", "images", "partial"] {
        for entry in std::fs::read_dir(root.join("images").join(part)).unwrap() {
            names.push(format!("{part}/{}", entry.unwrap().file_name().display()));
        }
    }
    names
}

fn free_bytes(root: &Path) -> u64 {
    let usage = rustix::fs::statvfs(root).unwrap();
    usage.f_bavail * usage.f_frsize
}

#[tokio::test]
async fn an_image_leaves_the_reserve_free_and_nothing_behind() {
    let disk = SmallDisk::new(64 * MIB);
    // More than a tenth of the disk is never asked for.
    let store = open(disk.path(), ImageConfig { free_bytes: u64::MAX, ..without_budget() });
    let registry = registry(&[("small", 4 << 20), ("large", 30 << 20)]).await;
    store.pull(&registry.tagged("small"), &no_progress).await.unwrap();
    let neighbour = disk.path().join("neighbour");
    std::fs::write(&neighbour, vec![1; 32 << 20]).unwrap();
    let _used = store.lease(&registry.tagged("small")).unwrap();

    let error = store.pull(&registry.tagged("large"), &no_progress).await.unwrap_err();
    assert!(error.operator().contains("free_bytes"), "{}", error.operator());
    let error = RuntimeError::from(error);
    assert_eq!(error.kind, ErrorKind::Saturated);
    let message = "there is no room for further images on this machine now";
    assert_eq!(error.condition.message, message);
    assert!(free_bytes(disk.path()) > 20 * MIB);
    assert_eq!(names(&store), ["small"]);
    assert_eq!(left_over(disk.path()).len(), 2, "one layer, one image");

    // The same for what an operator brings.
    let tar = Tar::new().file("large", &vec![b'x'; 30 << 20]).bytes();
    let options = ImportOptions { name: "large".to_owned(), ..ImportOptions::default() };
    let error = store.import_reader(Cursor::new(tar.clone()), options.clone()).await.unwrap_err();
    assert!(matches!(error, ImageError::NoRoom { .. }), "{error:?}");
    let error = store.load_reader(Cursor::new(tar), None).await.unwrap_err();
    assert!(matches!(error, ImageError::NoRoom { .. }), "{error:?}");
    assert_eq!(left_over(disk.path()).len(), 2);

    std::fs::remove_file(neighbour).unwrap();
    store.pull(&registry.tagged("large"), &no_progress).await.unwrap();
}

#[tokio::test]
async fn idle_pulled_images_go_when_the_disk_is_short() {
    let disk = SmallDisk::new(64 * MIB);
    let store = open(disk.path(), without_budget());
    let registry = registry(&[("a", 20 << 20), ("b", 24 << 20), ("c", 28 << 20)]).await;
    let a = store.pull(&registry.tagged("a"), &no_progress).await.unwrap();
    store.pull(&registry.tagged("b"), &no_progress).await.unwrap();
    drop(a);
    // `a` was used last; there is room for two.
    store.pull(&registry.tagged("c"), &no_progress).await.unwrap();
    assert_eq!(names(&store), ["a", "c"]);
}

#[tokio::test]
async fn over_the_budget_the_image_that_was_used_longest_ago_goes() {
    let dir = tempfile::tempdir().unwrap();
    let most = Some(10 * MIB);
    let config = ImageConfig { max_pulled_bytes: most, ..ImageConfig::default() };
    let store = open(dir.path(), config.clone());
    let tags = [("a", 4 << 20), ("b", 4 << 20), ("c", 4 << 20), ("d", 4 << 20), ("e", 11 << 20)];
    let registry = registry(&tags).await;
    let pull = async |tag: &str| store.pull(&registry.tagged(tag), &no_progress).await;
    let options = ImportOptions { name: "own:imported".to_owned(), ..ImportOptions::default() };
    let own = Tar::new().file("own", &vec![b'o'; 12 << 20]).bytes();
    store.import_reader(Cursor::new(own), options).await.unwrap();

    pull("a").await.unwrap();
    pull("b").await.unwrap();
    // A start from it, as a stack does.
    store.ensure(&registry.tagged("a"), None, &no_progress).await.unwrap();
    let c = pull("c").await.unwrap();
    assert_eq!(names(&store), ["a", "c", "imported"]);

    // What stacks use stays, and a name of one's own keeps an image for good.
    store.tag("own:imported", "own:again").await.unwrap();
    let d = pull("d").await.unwrap();
    assert_eq!(names(&store), ["c", "d", "again", "imported"]);
    let error = pull("a").await.unwrap_err();
    assert!(error.operator().contains("max_pulled_bytes"), "{}", error.operator());
    assert_eq!(error.kind(), ErrorKind::Saturated);
    assert_eq!(names(&store), ["c", "d", "again", "imported"]);
    drop((c, d));
    pull("a").await.unwrap();

    // More than there can ever be is the image's fault.
    let error = pull("e").await.unwrap_err();
    assert!(error.to_string().contains("max_pulled_bytes"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let partials = left_over(dir.path()).into_iter().filter(|name| name.starts_with("partial"));
    assert_eq!(partials.count(), 0);

    // Whoever does not know what stacks run from removes nothing.
    drop(store);
    let store = ImageStore::open(&dir.path().join("images"), config).unwrap();
    let before = names(&store);
    let missing = ["a", "b", "c", "d"].into_iter().find(|tag| !before.contains(&(*tag).to_owned()));
    let error = store.pull(&registry.tagged(missing.unwrap()), &no_progress).await.unwrap_err();
    assert!(matches!(error, ImageError::NoRoom { .. }), "{error:?}");
    assert_eq!(names(&store), before);
}

#[tokio::test]
async fn broken_downloads_go_before_images_do() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        ImageConfig { max_pulled_bytes: Some(MIB), download_attempts: 0, ..ImageConfig::default() };
    let store = open(dir.path(), config);
    let good = registry(&[("a", 400 << 10), ("b", 400 << 10)]).await;
    store.pull(&good.tagged("a"), &no_progress).await.unwrap();

    let mut blobs = Blobs::default();
    let tar = Tar::new().file("noise", &noise(500 << 10)).bytes();
    let digest = blobs.image(&[(&tar, gzip(&tar), "+gzip")]);
    let behaviour = Behaviour { breaks: 1.into(), break_after: 400 << 10, ..Behaviour::default() };
    let broken = Registry::start(blobs, digest, behaviour).await;
    let error = store.pull(&broken.tagged("1"), &no_progress).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error:?}");
    let partial = |name: &String| name.starts_with("partial/");
    assert_eq!(left_over(dir.path()).iter().filter(|name| partial(name)).count(), 1);

    store.pull(&good.tagged("b"), &no_progress).await.unwrap();
    assert_eq!(names(&store), ["a", "b"]);
    assert_eq!(left_over(dir.path()).iter().filter(|name| partial(name)).count(), 0);
}

/// Each layer by itself is small; what a refused image has brought must not stay.
#[tokio::test]
async fn the_good_layers_of_a_bad_image_do_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), ImageConfig::default());
    let (fine, wrong) = (Tar::new().file("a", b"a").bytes(), Tar::new().file("b", b"b").bytes());
    let mut blobs = Blobs::default();
    let digest = blobs.image(&[(&fine, gzip(&fine), "+gzip"), (&wrong, gzip(&fine), "+gzip")]);
    let registry = Registry::start(blobs, digest, Behaviour::default()).await;
    let error = store.pull(&registry.tagged("1"), &no_progress).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error:?}");
    assert_eq!(left_over(dir.path()), [""; 0]);
}
