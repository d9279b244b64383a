//! Registries that hold up what they can.

use super::*;

#[tokio::test]
async fn a_registry_that_trickles_holds_up_no_other() {
    let trickling = || Behaviour { trickles: true.into(), ..Behaviour::default() };
    // The hostile image says that its layers are those of the good one, and more.
    let (blobs, digest) = image_of(3);
    let hostile = Registry::start(blobs.clone(), digest, trickling()).await;
    let good = Registry::start(blobs, digest, Behaviour::default()).await;
    let test = TestStore::new();
    let pull = begin(&test, hostile.name(), 3).await;
    let lease = within(test.store.pull(&good.name(), &no_progress)).await.unwrap();
    assert_eq!(lease.digest(), digest);
    assert!(!pull.is_finished());
    pull.abort();
}

#[tokio::test]
async fn what_one_registry_has_sent_of_a_blob_is_not_taken_for_anothers() {
    let (blobs, digest, layer) = image();
    let mut lying = blobs.clone();
    let flipped = lying.by_digest.get_mut(&layer).unwrap();
    flipped[1000] ^= 1;
    let behaviour = Behaviour { breaks: 1.into(), ..Behaviour::default() };
    let hostile = Registry::start(lying, digest, behaviour).await;
    let good = Registry::start(blobs, digest, Behaviour::default()).await;
    let test = TestStore::with(ImageConfig { download_attempts: 0, ..ImageConfig::default() });
    test.store.pull(&hostile.name(), &no_progress).await.unwrap_err();
    assert_eq!(test.names_in("partial").len(), 1, "it was broken off");
    test.store.pull(&good.name(), &no_progress).await.unwrap();
}

#[tokio::test]
async fn a_pull_that_takes_too_long_is_given_up() {
    let (blobs, digest, layer) = image();
    let behaviour = Behaviour { trickles: true.into(), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::with(ImageConfig {
        pull_timeout: Duration::from_secs(1),
        ..ImageConfig::default()
    });
    let error = within(test.store.pull(&registry.name(), &no_progress)).await.unwrap_err();
    assert!(error.to_string().ends_with("it sends too slowly"), "{error}");
    assert!(error.operator().contains("pull_timeout in"), "{}", error.operator());
    assert_eq!(error.kind(), ErrorKind::Retry);

    // What has come is taken up by the next one.
    registry.behaviour.trickles.store(false, Ordering::Relaxed);
    within(test.store.pull(&registry.name(), &no_progress)).await.unwrap();
    let asked = registry.asked(&layer.to_string());
    assert!(asked.last().unwrap().ends_with("bytes=1-"), "{asked:?}");
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_is_given_up() {
    let (blobs, digest, _) = image();
    let behaviour = Behaviour { trickles: true.into(), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test =
        TestStore::with(ImageConfig { abandoned_pull: Duration::ZERO, ..ImageConfig::default() });
    begin(&test, registry.name(), 1).await.abort();
    within(async { registry.given_up.1.lock().await.recv().await }).await.unwrap();

    registry.behaviour.trickles.store(false, Ordering::Relaxed);
    within(test.store.pull(&registry.name(), &no_progress)).await.unwrap();
    assert_eq!(registry.asked("GET /v2/app/manifests/").len(), 2, "it was begun anew");
}

#[tokio::test]
async fn sizes_that_add_up_to_nothing_are_refused() {
    let (mut blobs, digest) = image_of(2);
    let manifest = blobs.by_digest.remove(&digest).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["size"] = (1_u64 << 63).into();
    }
    let (digest, _) = blobs.add(serde_json::to_vec(&manifest).unwrap());
    let registry = Registry::start(blobs, digest, Behaviour::default()).await;
    let test = TestStore::new();
    let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
    assert!(error.to_string().contains("its layers have too many bytes"), "{error}");
    assert_eq!(registry.asked("blobs").len(), 1, "only the configuration was fetched");
}
