//! The key that lets the operator in at the first start.
//!
//! It is written to the data directory before it is good for anything, so that a crash between the
//! two leaves a file that the next start completes, never a key that nobody knows.

use anyhow::Context;
use stackd_core::Timestamp;
use stackd_engine::Keys;
use stackd_engine::keys::{KeyError, NewKey};
use stackd_store::Permission;

use super::data_dir::{DataDir, write_secret};
use crate::exit::{Exit, Failure};

/// The name of the first key, and of the one that `STACKD_API_KEY` sets.
pub(crate) const NAME: &str = "default";

/// A key shorter than this can be guessed.
const MIN_SECRET_CHARS: usize = 16;

/// What became of the first key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FirstKey {
    /// There were keys already.
    NotNeeded,
    /// There were keys, and none is good any more.
    AllRevoked,
    /// It was made, and is in the data directory.
    Made(String),
    /// `STACKD_API_KEY` is good: it was there already, or has been made the default key.
    FromEnvironment,
    /// The key of `STACKD_API_KEY` was revoked, and stays so.
    Revoked,
}

/// Whether this can be the key that `STACKD_API_KEY` sets.
pub(crate) fn check(secret: &str) -> Result<(), Failure> {
    let secret = secret.trim();
    // What a header can carry.
    if secret.len() >= MIN_SECRET_CHARS && secret.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(());
    }
    let text = format!(
        "STACKD_API_KEY must have at least {MIN_SECRET_CHARS} characters of ASCII and no spaces"
    );
    Err(Failure::new(Exit::Config, text)
        .hint("make one with `openssl rand -hex 32`, or unset it to have one made"))
}

/// Makes sure that there is a way in: the key from the environment, or one made now if the server
/// never had any. A server whose keys were all revoked stays closed.
pub(crate) async fn ensure(
    keys: &Keys,
    data: &DataDir,
    from_environment: Option<&str>,
    now: Timestamp,
) -> anyhow::Result<FirstKey> {
    let new = || NewKey {
        name: NAME.to_owned(),
        permissions: vec![Permission::Exec],
        dialects: Vec::new(),
    };
    let path = data.api_key();
    if let Some(secret) = from_environment.map(str::trim) {
        check(secret)?;
        match keys.of_secret(secret) {
            Some(key) if key.revoked_at.is_some() => return Ok(FirstKey::Revoked),
            Some(_) => return Ok(FirstKey::FromEnvironment),
            None => {}
        }
        match keys.replace(new(), secret, now).await {
            // Another replica was faster; all are given the same key.
            Err(KeyError::Exists(_)) => {
                keys.refresh().await.context("the keys cannot be read")?;
                anyhow::ensure!(
                    keys.authenticate(secret).is_some(),
                    "another server has stored another default key: give all replicas the same \
                     STACKD_API_KEY"
                );
            }
            added => added.context("STACKD_API_KEY cannot be stored")?,
        }
        // The file held the key that has just been replaced.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} cannot be removed", path.display()))?;
            }
            _ => {}
        }
        return Ok(FirstKey::FromEnvironment);
    }
    if !keys.list().is_empty() {
        return Ok(if keys.is_empty() { FirstKey::AllRevoked } else { FirstKey::NotNeeded });
    }
    let secret = match std::fs::read_to_string(&path) {
        Ok(left) if left.trim().len() >= MIN_SECRET_CHARS => left.trim().to_owned(),
        _ => {
            let mut bytes = [0u8; 32];
            getrandom::fill(&mut bytes).context("the kernel gives no random bytes")?;
            let secret = hex::encode(bytes);
            write_secret(&path, &secret)
                .with_context(|| format!("{} cannot be written", path.display()))?;
            secret
        }
    };
    match keys.add(new(), &secret, now).await {
        // Another replica was faster; its file holds the key.
        Err(KeyError::Exists(_)) => {
            keys.refresh().await.context("the keys cannot be read")?;
            std::fs::remove_file(&path)
                .with_context(|| format!("{} cannot be removed", path.display()))?;
            Ok(FirstKey::NotNeeded)
        }
        added => {
            added.context("the first key cannot be stored")?;
            Ok(FirstKey::Made(secret))
        }
    }
}
