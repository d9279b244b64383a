//! Where a registry may lead the server, and what it tells of that.

use super::*;

#[tokio::test]
async fn redirects_lead_nowhere_inside_and_take_no_credentials_along() {
    let (blobs, digest, layer) = image();
    let storage = Registry::start(blobs.clone(), digest, Behaviour::default()).await;
    let place = Some(("/blobs/", format!("http://{}", storage.host)));
    let token = Some(Token::Anonymous);
    let behaviour = Behaviour { redirect: place, token, ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;

    let test = TestStore::new();
    let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
    assert!(matches!(error, ImageError::OutOfReach { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert_eq!(storage.asked("").len(), 0, "nobody was sent there");

    // The operator knows this registry, and so where it keeps its blobs.
    let config =
        ImageConfig { internal_registries: vec![registry.host.clone()], ..ImageConfig::default() };
    let test = TestStore::with(config);
    test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(storage.asked(&layer.to_string()).len(), 1);
    assert!(storage.authorizations.lock().iter().all(String::is_empty));
    assert!(registry.authorizations.lock().iter().any(|shown| shown.starts_with("Bearer ")));
}

#[tokio::test]
async fn a_registry_that_redirects_for_ever_is_left() {
    let (blobs, digest, _) = image();
    let behaviour =
        Behaviour { redirect: Some(("/manifests/", String::new())), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    let error = test.store.pull(&registry.name(), &no_progress).await.unwrap_err();
    assert!(error.operator().contains("redirects again and again"), "{}", error.operator());
    assert_eq!(registry.asked("/manifests/").len(), 6);
}

/// The answer of a token server is sent to the registry: it must come from nowhere else.
#[tokio::test]
async fn tokens_come_from_where_they_are_said_to_be_and_from_nowhere_inside() {
    let (blobs, digest, _) = image();
    let page = Some((StatusCode::OK, r#"{"token":"secret"}"#));
    let secret = Behaviour { page, ..Behaviour::default() };
    let secret = Registry::start(Blobs::default(), digest, secret).await;
    let inside = format!("http://{}", secret.host);
    for (redirect, realm) in [
        (Some(("/token", inside.clone())), None),
        (None, Some(format!("{inside}/latest"))),
        (None, Some("http://169.254.169.254/latest".to_owned())),
    ] {
        let token = Some(Token::Anonymous);
        let behaviour = Behaviour { token, redirect, realm, ..Behaviour::default() };
        let registry = Registry::start(blobs.clone(), digest, behaviour).await;
        let test = TestStore::new();
        let error = within(test.store.pull(&registry.name(), &no_progress)).await.unwrap_err();
        assert!(matches!(error, ImageError::Denied { .. }), "{error:?}");
        assert!(registry.authorizations.lock().iter().all(String::is_empty));
    }
}

/// Whoever makes a stack must not find out by the names of images which ports are open here.
#[tokio::test]
async fn what_is_no_registry_looks_like_a_closed_port() {
    let test = TestStore::new();
    // Nobody listens there; a port that was just let go may be the next registry's.
    let mut hosts = vec!["127.0.0.1:1".to_owned()];
    for page in [
        (StatusCode::OK, "<html>"),
        (StatusCode::OK, "{}"),
        (StatusCode::NOT_FOUND, "no"),
        (StatusCode::UNAUTHORIZED, "who?"),
        (StatusCode::INTERNAL_SERVER_ERROR, ""),
    ] {
        let behaviour = Behaviour { page: Some(page), ..Behaviour::default() };
        let digest = Digest::of(b"");
        hosts.push(Registry::start(Blobs::default(), digest, behaviour).await.host.clone());
    }
    for host in hosts {
        let name = format!("{host}/app:1");
        let error = within(test.store.pull(&name, &no_progress)).await.unwrap_err();
        let error = RuntimeError::from(error);
        let expected = format!("{host} cannot be reached for image \"{name}\"");
        assert_eq!((error.kind, error.condition.message), (ErrorKind::Retry, expected));
    }
}

#[tokio::test]
async fn a_private_address_is_asked_only_where_it_is_configured() {
    let test = TestStore::new();
    for host in ["10.255.255.1:5000", "169.254.169.254", "192.168.255.254:80", "0x7f.1:5000"] {
        let name = format!("{host}/app:1");
        let error = within(test.store.pull(&name, &no_progress)).await.unwrap_err();
        assert!(matches!(error, ImageError::OutOfReach { .. }), "{host}: {error:?}");
    }
}
