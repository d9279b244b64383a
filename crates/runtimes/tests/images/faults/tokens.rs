//! Names and tokens.

use super::*;

#[tokio::test]
async fn a_name_that_is_nobodys_is_told_as_that() {
    let test = TestStore::new();
    let error = test.store.pull("no-such-registry.invalid/app:1", &no_progress).await.unwrap_err();
    let text = "no-such-registry.invalid cannot be reached for image \
                \"no-such-registry.invalid/app:1\": its name cannot be resolved";
    assert_eq!(error.to_string(), text);
}

#[tokio::test]
async fn a_token_that_runs_out_is_fetched_anew() {
    let (blobs, digest, _) = image();
    let behaviour = Behaviour { token: Some(Token::Anonymous), ..Behaviour::default() };
    let registry = Registry::start(blobs, digest, behaviour).await;
    let test = TestStore::new();
    test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(registry.asked("/token").len(), 1, "it is used for everything");
    registry.good.store(1, Ordering::Relaxed);
    test.store.pull(&registry.name(), &no_progress).await.unwrap();
    assert_eq!(registry.asked("/token").len(), 2);
}

#[tokio::test]
async fn bearer_tokens_are_fetched_with_whatever_credentials_there_are() {
    let dir = tempfile::tempdir().unwrap();
    for (n, (token, entry, right)) in [
        (Token::Anonymous, None, true),
        // user:password
        (Token::Password("dXNlcjpwYXNzd29yZA=="), Some(r#"{"auth":"dXNlcjpwYXNzd29yZA=="}"#), true),
        (Token::Password("dXNlcjpwYXNzd29yZA=="), Some(r#"{"auth":"dXNlcjp4"}"#), false),
        (Token::Refresh("idt"), Some(r#"{"identitytoken":"idt"}"#), true),
        (Token::Refresh("idt"), Some(r#"{"identitytoken":"other"}"#), false),
        (Token::Refresh("idt"), Some(r#"{"registrytoken":"good"}"#), true),
        (Token::Refresh("idt"), Some(r#"{"registrytoken":"bad"}"#), false),
        (Token::Refresh("idt"), None, false),
    ]
    .into_iter()
    .enumerate()
    {
        let (blobs, digest, _) = image();
        let behaviour = Behaviour { token: Some(token), ..Behaviour::default() };
        let registry = Registry::start(blobs, digest, behaviour).await;
        let docker_config = entry.map(|entry| {
            let path = dir.path().join(format!("{n}.json"));
            let json = format!(r#"{{"auths":{{"{}":{entry}}}}}"#, registry.host);
            std::fs::write(&path, json).unwrap();
            path
        });
        let test = TestStore::with(ImageConfig { docker_config, ..ImageConfig::default() });
        let result = test.store.pull(&registry.name(), &no_progress).await;
        match result {
            Ok(_) => assert!(right, "case {n} was let in"),
            Err(error) => {
                assert!(!right, "case {n}: {}", error.operator());
                assert!(matches!(error, ImageError::Denied { .. }), "case {n}: {error}");
            }
        }
    }
}
