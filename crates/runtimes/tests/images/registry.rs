//! Pulls from a real registry on loopback.

use std::fs;

use stackd_core::runtime::{ErrorKind, RuntimeError};
use stackd_core::spec::ImagePullPolicy::{Always, IfNotPresent};
use stackd_runtimes::oci::images::{
    Digest, ImageConfig, ImageError, LayerStep, Origin, Progress, no_progress,
};
use stackd_testkit::registry::{PASSWORD, Registry, USER};

use super::support::{Tar, TestStore, config_json, docker_save, gzip, zstd};

/// Pushes an image of these layers: (plain tar, as it is sent, media type).
async fn push(registry: &Registry, name: &str, layers: &[(&[u8], Vec<u8>, &str)]) -> Digest {
    let diff_ids: Vec<_> = layers.iter().map(|(plain, ..)| Digest::of(plain)).collect();
    let layers = layers.iter().map(|(_, sent, kind)| (sent.clone(), *kind)).collect();
    registry.push(name, config_json(&diff_ids), layers).await
}

fn layer(content: &str) -> Vec<u8> {
    Tar::new().directory("bin").file("bin/app", content.as_bytes()).bytes()
}

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

#[tokio::test]
async fn layers_of_every_kind_come_from_a_registry() {
    let registry = Registry::start(false, false);
    let (a, b, c, d) = (layer("a"), layer("b"), layer("c"), layer("d"));
    let layers: [(&[u8], _, _); 4] = [
        (&a, gzip(&a), GZIP),
        (&b, zstd(&b), ZSTD),
        (&c, c.clone(), PLAIN),
        (&d, gzip(&d), DOCKER_GZIP),
    ];
    let digest = push(&registry, "lib/app:1", &layers).await;

    let test = TestStore::new();
    let seen = std::sync::Mutex::new(Progress::default());
    let name = registry.name("lib/app:1");
    let progress = |p: &Progress| *seen.lock().unwrap() = p.clone();
    let lease = test.store.ensure(&name, None, &progress).await.unwrap();
    assert_eq!(lease.digest(), digest);
    for (path, content) in lease.layer_paths().iter().zip(["a", "b", "c", "d"]) {
        assert_eq!(fs::read_to_string(path.join("bin/app")).unwrap(), content);
    }
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.registry, registry.host);
    assert_eq!(seen.layers.len(), 4);
    for layer in &seen.layers {
        assert_eq!((layer.step, layer.downloaded_bytes), (LayerStep::Done, layer.total_bytes));
    }
    assert_eq!(test.store.list()[0].origin, Some(Origin::Pulled));
    for part in ["tmp", "partial"] {
        assert_eq!(test.names_in(part), [""; 0], "{part}");
    }

    // What is here is here: the registry may go.
    let stopped = registry.host.clone();
    drop(registry);
    test.store.ensure(&name, Some(IfNotPresent), &no_progress).await.unwrap();
    let error = test.store.ensure(&name, Some(Always), &no_progress).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{stopped} cannot be reached for image \"{name}\""));
    assert_eq!(RuntimeError::from(error).kind, ErrorKind::Retry);
}

#[tokio::test]
async fn digests_platforms_and_policies_are_honoured() {
    let registry = Registry::start(false, false);
    let (old, new) = (layer("old"), layer("new"));
    let first = push(&registry, "app:latest", &[(&old, gzip(&old), GZIP)]).await;
    let host = stackd_runtimes::oci::images::Platform::host();
    let entry = |digest: Digest, os: &str, architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": 1000,
            "platform": {"os": os, "architecture": architecture},
        })
    };
    let unknown = Digest::of(b"elsewhere");
    let ours = entry(first, &host.os, &host.architecture);
    let index = registry.push_index("app:multi", serde_json::json!([ours])).await;

    let test = TestStore::new();
    let ensure = async |name: String, policy| test.store.ensure(&name, policy, &no_progress).await;
    let latest = registry.name("app:latest");
    assert_eq!(ensure(latest.clone(), None).await.unwrap().digest(), first);
    assert_eq!(ensure(registry.name("app:multi"), None).await.unwrap().aliases(), [index]);
    for pinned in [format!("app@{index}"), format!("app:whatever@{first}")] {
        assert_eq!(ensure(registry.name(&pinned), Some(Always)).await.unwrap().digest(), first);
    }
    let other = TestStore::new();
    let pinned = registry.name(&format!("app:latest@{first}"));
    assert_eq!(other.store.ensure(&pinned, None, &no_progress).await.unwrap().digest(), first);

    // The tag moves.
    let second = push(&registry, "app:latest", &[(&new, gzip(&new), GZIP)]).await;
    assert_eq!(ensure(latest.clone(), Some(IfNotPresent)).await.unwrap().digest(), first);
    assert_eq!(ensure(latest.clone(), None).await.unwrap().digest(), second, "latest is looked up");
    let error = ensure(registry.name(&format!("app@{unknown}")), None).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    let error = ensure(registry.name("nothing:1"), None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("image \"{}\" does not exist in {}", registry.name("nothing:1"), registry.host)
    );

    // Only for another machine.
    let config =
        ImageConfig { platform: Some("linux/riscv64".to_owned()), ..ImageConfig::default() };
    let elsewhere = TestStore::with(config);
    for name in ["app:multi", "app:latest"] {
        let result = elsewhere.store.ensure(&registry.name(name), None, &no_progress).await;
        let error = result.unwrap_err();
        assert!(error.to_string().contains("is not made for linux/riscv64"), "{error}");
    }

    // Loaded under the same name, it needs no registry, whatever the tag.
    let saved = docker_save(&[(&latest, &[&old])]);
    let loaded = test.store.load_reader(std::io::Cursor::new(saved), None).await.unwrap();
    let loaded = loaded[0].lease.digest();
    drop(registry);
    assert_eq!(ensure(latest.clone(), None).await.unwrap().digest(), loaded);
    assert_eq!(ensure(latest, Some(Always)).await.unwrap().digest(), loaded);
}

#[tokio::test]
async fn a_password_and_a_private_authority_are_used_and_needed() {
    let registry = Registry::start(true, true);
    let app = layer("private");
    push(&registry, "private/app:1", &[(&app, gzip(&app), GZIP)]).await;
    let name = registry.name("private/app:1");
    let authority = registry.authority.clone().unwrap();
    let docker_config = registry.dir.path().join("docker.json");
    let write = |password: &str| {
        let json = serde_json::json!({
            "auths": {&registry.host: {"username": USER, "password": password}},
        });
        fs::write(&docker_config, json.to_string()).unwrap();
    };
    write("wrong");

    let untrusting = TestStore::new();
    let error = untrusting.store.ensure(&name, None, &no_progress).await.unwrap_err();
    assert!(error.operator().contains("extra_ca"), "{}", error.operator());

    let trusting = ImageConfig { extra_ca: vec![authority], ..ImageConfig::default() };
    let anonymous = TestStore::with(trusting.clone());
    let error = anonymous.store.ensure(&name, None, &no_progress).await.unwrap_err();
    let denied = format!("{} denies access to image \"{name}\"", registry.host);
    assert_eq!(error.to_string(), denied);

    let knowing = ImageConfig { docker_config: Some(docker_config.clone()), ..trusting };
    let test = TestStore::with(knowing);
    let error = test.store.ensure(&name, None, &no_progress).await.unwrap_err();
    assert_eq!(error.to_string(), denied);
    assert!(!error.operator().contains("wrong"), "{}", error.operator());
    // The file is read again, and the client with the old password is not used again.
    write(PASSWORD);
    test.store.ensure(&name, None, &no_progress).await.unwrap();
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_believed_by_digest_only() {
    let (broken, mirror) = (Registry::start(false, false), Registry::start(false, false));
    let (old, app) = (layer("old"), layer("app"));
    // The first mirror has the manifest and has lost the layer; the second has it all.
    let layers: [(&[u8], _, _); 2] = [(&old, gzip(&old), GZIP), (&app, gzip(&app), GZIP)];
    push(&broken, "library/app:1", &layers).await;
    broken.lose(Digest::of(&gzip(&app)));
    let digest = push(&mirror, "library/app:1", &layers).await;

    let gone = "127.0.0.1:1".to_owned();
    let mirrors = vec![gone.clone(), broken.host.clone(), mirror.host.clone()];
    let config = ImageConfig {
        mirrors: [("docker.io".to_owned(), mirrors)].into(),
        download_attempts: 0,
        ..ImageConfig::default()
    };
    let test = TestStore::with(config.clone());
    let lease = test.store.ensure("app:1", None, &no_progress).await.unwrap();
    assert_eq!(lease.digest(), digest);
    assert_eq!(test.store.list()[0].names, ["app:1"]);

    let allowed = ImageConfig { allowed_registries: vec!["docker.io".to_owned()], ..config };
    let test = TestStore::with(allowed);
    let name = mirror.name("library/app:1");
    let error = test.store.ensure(&name, None, &no_progress).await.unwrap_err();
    assert_eq!(error.to_string(), format!("images of {} may not be pulled here", mirror.host));
    test.store.ensure("app:1", None, &no_progress).await.unwrap();
}

#[tokio::test]
async fn pulls_that_share_layers_bring_each_once() {
    let registry = Registry::start(false, false);
    let base = layer("base");
    let tops: Vec<_> = (0..4).map(|n| Tar::new().file("n", &[n]).bytes()).collect();
    for (n, top) in tops.iter().enumerate() {
        let layers: [(&[u8], _, _); 2] = [(&base, gzip(&base), GZIP), (top, zstd(top), ZSTD)];
        push(&registry, &format!("shared:{n}"), &layers).await;
    }
    let test = TestStore::new();
    let pulls = (0..4).map(|n| {
        let (store, name) = (test.store.clone(), registry.name(&format!("shared:{n}")));
        tokio::spawn(async move { store.pull(&name, &no_progress).await.map(|_| ()) })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(test.names_in("layers").len(), 5);
    test.store.remove(&registry.name("shared:0"), false).await.unwrap();
    assert_eq!(test.names_in("layers").len(), 4, "the others keep what they share");
}
