//! Downloads that break off, and content that is not what it should be.

use super::*;

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let (blobs, digest, layer) = image();
    let behaviour = Behaviour { breaks: 2.into(), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    let lease = test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(std::fs::read(lease.layer_paths()[0].join("noise")).unwrap(), noise(350_000));
    let asked = registry.asked(&layer.to_string());
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(!asked[0].contains("bytes="), "{asked:?}");
    assert!(asked[1].contains("bytes=") && asked[2].contains("bytes="), "{asked:?}");
    assert_ne!(asked[1], asked[2], "it did not advance");
}

#[tokio::test]
async fn a_registry_without_ranges_is_asked_from_the_start() {
    let (blobs, digest, _) = image();
    let behaviour = Behaviour { breaks: 1.into(), ranges: false, ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    let lease = test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(std::fs::read(lease.layer_paths()[0].join("noise")).unwrap(), noise(350_000));
}

#[tokio::test]
async fn a_download_goes_on_after_a_restart() {
    let (blobs, digest, layer) = image();
    let behaviour = Behaviour { breaks: 1.into(), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let config = ImageConfig { download_attempts: 0, ..ImageConfig::default() };
    let test = TestStore::with(config.clone());
    let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    assert_eq!(test.names_in("partial").len(), 1);
    assert!(test.store.list().is_empty());

    let test = test.reopen(config);
    test.store.pull(&registry.name(), &no_progress).await.unwrap();
    let asked = registry.asked(&layer.to_string());
    assert!(asked.len() == 2 && asked[1].contains("bytes="), "{asked:?}");
    assert_eq!(test.names_in("partial"), [""; 0]);
}

#[tokio::test]
async fn any_number_of_waiters_share_one_pull() {
    let (blobs, digest, layer) = image();
    let behaviour = Behaviour { gate: Some(Semaphore::new(1)), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    // The configuration has passed the gate, the layer waits there until all have joined.
    let (sender, mut joined) = mpsc::unbounded_channel();
    let waiters: Vec<_> = (0..5)
        .map(|n| {
            let (store, name, sender) = (test.store.clone(), registry.name(), sender.clone());
            tokio::spawn(async move {
                let tell = move |progress: &Progress| {
                    if !progress.layers.is_empty() {
                        let _ = sender.send(n);
                    }
                };
                store.ensure(&name, None, &tell).await
            })
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 5 {
        seen.insert(joined.recv().await.unwrap());
    }
    registry.behaviour.gate.as_ref().unwrap().add_permits(100);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap().digest(), digest);
    }
    assert_eq!(registry.asked("GET /v2/app/manifests/").len(), 1);
    assert_eq!(registry.asked(&layer.to_string()).len(), 1);
}

#[tokio::test]
async fn a_pull_goes_on_when_its_waiter_leaves() {
    let (blobs, digest, _) = image();
    let behaviour = Behaviour { gate: Some(Semaphore::new(1)), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    let (sender, mut joined) = mpsc::unbounded_channel();
    let (store, name) = (test.store.clone(), registry.name());
    let waiter = tokio::spawn(async move {
        let tell = move |progress: &Progress| {
            if !progress.layers.is_empty() {
                let _ = sender.send(());
            }
        };
        store.ensure(&name, None, &tell).await
    });
    joined.recv().await.unwrap();
    waiter.abort();
    registry.behaviour.gate.as_ref().unwrap().add_permits(100);
    test.store.ensure(&registry.name(), None, &no_progress).await.unwrap();
    assert_eq!(registry.asked("GET /v2/app/manifests/").len(), 1);
}

#[tokio::test]
async fn content_that_is_not_what_was_promised_is_refused() {
    let (blobs, digest, layer) = image();
    let sent = blobs.by_digest[&layer].clone();
    let mut flipped = sent.clone();
    flipped[200_000] ^= 1;
    let mut longer = sent.clone();
    longer.push(0);
    for (content, expected) in
        [(flipped, "is damaged: its digest should be"), (longer, "sends more for")]
    {
        let mut lying = blobs.clone();
        lying.by_digest.insert(layer, content);
        let registry = Registry::start(lying, digest, Behaviour::default()).await;
        let test = TestStore::new();
        let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(test.store.list().is_empty());
        for part in ["tmp", "layers", "images"] {
            assert_eq!(test.names_in(part), [""; 0], "{part}");
        }
        // What was wrong is not taken up again.
        for left in test.names_in("partial") {
            let path = test.dir.path().join("images/partial").join(left);
            assert_eq!(std::fs::metadata(path).unwrap().len(), 0);
        }
    }

    // Another manifest under a pinned digest, and another configuration.
    let config = *blobs.by_digest.keys().find(|key| **key != digest && **key != layer).unwrap();
    for changed in [digest, config] {
        let mut lying = blobs.clone();
        lying.by_digest.get_mut(&changed).unwrap().push(b' ');
        let registry = Registry::start(lying, digest, Behaviour::default()).await;
        let test = TestStore::new();
        let pinned = format!("{}/app@{digest}", registry.host);
        let error = test.store.pull(&pinned, &no_progress).await.unwrap_err();
        let refused =
            matches!(error, ImageError::DigestMismatch { .. } | ImageError::Refused { .. });
        assert!(refused, "{error:?}");
    }
}

/// Whoever makes a stack may name a registry: it must not fill the memory of the server.
#[tokio::test]
async fn answers_that_never_end_are_not_read_to_the_end() {
    for (place, most, expected) in
        [("manifests", 4 << 20, "its manifest is too large"), ("token", 1 << 20, "gave no token")]
    {
        let (blobs, digest, _) = image();
        let token = (place == "token").then_some(Token::Anonymous);
        let behaviour = Behaviour { token, endless: Some(place), ..Behaviour::default() };
        let registry = Registry::start(blobs, digest, behaviour).await;
        let test = TestStore::new();
        let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
        assert!(error.operator().contains(expected), "{place}: {}", error.operator());
        let sent = registry.sent.load(Ordering::Relaxed);
        // What the kernel holds of a connection comes on top.
        assert!((most..most + (16 << 20)).contains(&sent), "{place}: {sent} bytes");
    }
}
