//! The keys that verify tokens: from the settings, and from where the platform publishes them.
//!
//! Published keys are fetched ahead of need, and once more when a token names a key that is not
//! known: that is how keys are rotated. When they cannot be fetched for too long, no token is good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use reqwest::Url;

use super::config::PlayerConfig;
use crate::config::ConfigError;

/// A fetch takes no longer than this.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Tokens with made-up keys must not make this server a nuisance to the platform.
const BETWEEN_FETCHES: Duration = Duration::from_secs(5);
/// A set of keys is small.
const MAX_BYTES: usize = 256 << 10;

/// A key, and the one algorithm that it is good for.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// All keys.
pub(super) struct Keys {
    /// From the settings; they do not change.
    own: Vec<Key>,
    published: Option<Published>,
}

struct Published {
    url: Url,
    http: reqwest::Client,
    max_age: Duration,
    /// The least time between two fetches.
    between: Duration,
    state: RwLock<Option<Fetched>>,
    /// When the last fetch began; held while one is under way.
    fetching: tokio::sync::Mutex<Option<Instant>>,
}

struct Fetched {
    keys: Arc<Vec<Key>>,
    at: Instant,
}

/// No key can be had now that could verify anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoKeys;

impl Keys {
    pub(super) fn new(config: &PlayerConfig) -> Result<Self, ConfigError> {
        let mut own = Vec::new();
        if let Some(secret) = &config.jwt_secret {
            if secret.expose().len() < 32 {
                tracing::warn!("player.jwt_secret has less than 32 bytes: it may be guessed");
            }
            let key = DecodingKey::from_secret(secret.expose().as_bytes());
            own.push(Key { id: None, algorithm: Algorithm::HS256, key });
        }
        if let Some(path) = &config.jwt_public_key {
            let wrong = |why: String| {
                ConfigError::Player(format!("jwt_public_key: {}: {why}", path.display()))
            };
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let key = public_key(&pem).ok_or_else(|| {
                wrong("is no public key (PEM) of RSA, of P-256 or of Ed25519".to_owned())
            })?;
            own.push(key);
        }
        let published = config.jwks_url.as_ref().map(|url| Published::new(config, url));
        Ok(Self { own, published: published.transpose()? })
    }

    /// Whether there is anything that could verify a token.
    pub(super) fn are_configured(&self) -> bool {
        !self.own.is_empty() || self.published.is_some()
    }

    /// The keys known here that may have signed a token with this header.
    pub(super) fn known(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<Key> {
        let own = self.own.iter().filter(|key| key.algorithm == algorithm).cloned();
        let published = self.published.as_ref().and_then(|published| published.keys().ok());
        own.chain(published.into_iter().flat_map(|keys| signers(&keys, id, algorithm))).collect()
    }

    /// The same among what the platform publishes by now, where a key of the token's name was not
    /// known yet: that is for a token which no known key has signed.
    pub(super) async fn fetched(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Key>, NoKeys> {
        // A secret is never published, so a token that needs one asks nobody.
        let Some(published) = self.published.as_ref().filter(|_| algorithm != Algorithm::HS256)
        else {
            return Ok(Vec::new());
        };
        let is_known = |keys: Arc<Vec<Key>>| !signers(&keys, id, algorithm).is_empty();
        if published.keys().is_ok_and(is_known) {
            return Ok(Vec::new());
        }
        published.fetch().await;
        Ok(signers(&published.keys()?, id, algorithm))
    }

    /// Fetches published keys again and again, until it is aborted.
    pub(super) async fn keep_fresh(self: Arc<Self>, every: Duration) {
        let Some(published) = &self.published else { return };
        loop {
            published.fetch().await;
            // While there are none, their coming is waited for.
            let pause = if published.keys().is_ok() { every } else { published.between };
            tokio::time::sleep(pause).await;
        }
    }
}

impl Published {
    fn new(config: &PlayerConfig, url: &str) -> Result<Self, ConfigError> {
        // TLS is by `ring`; a second call finds the first one's provider, which is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            // Whoever could redirect could name other keys.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("stackd/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ConfigError::Player(format!("jwks_url: {error}")))?;
        Ok(Self {
            url: config.jwks(url)?,
            http,
            max_age: config.jwks_max_age,
            // Whoever sets a shorter refresh means it.
            between: BETWEEN_FETCHES.min(config.jwks_refresh),
            state: RwLock::default(),
            fetching: Default::default(),
        })
    }

    fn keys(&self) -> Result<Arc<Vec<Key>>, NoKeys> {
        let state = self.state.read();
        let fresh = state.as_ref().filter(|fetched| fetched.at.elapsed() <= self.max_age);
        fresh.map(|fetched| Arc::clone(&fetched.keys)).ok_or(NoKeys)
    }

    /// Fetches once, for all who wait for it; not again too soon.
    async fn fetch(&self) {
        let asked = Instant::now();
        let mut last = self.fetching.lock().await;
        // Somebody has fetched while this one waited, or a moment ago.
        if last.is_some_and(|last| last >= asked || last.elapsed() < self.between) {
            return;
        }
        *last = Some(Instant::now());
        match self.fetched().await {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "the platform's keys are fetched");
                let keys = Arc::new(keys);
                *self.state.write() = Some(Fetched { keys, at: Instant::now() });
            }
            Err(error) => {
                tracing::warn!(url = %self.url, error, "the platform's keys cannot be fetched");
            }
        }
    }

    async fn fetched(&self) -> Result<Vec<Key>, String> {
        let told = |error: reqwest::Error| error.to_string();
        let mut answer = self.http.get(self.url.clone()).send().await.map_err(told)?;
        if !answer.status().is_success() {
            return Err(format!("the answer is {}", answer.status()));
        }
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(told)? {
            if body.len() + part.len() > MAX_BYTES {
                return Err("the answer is too large".to_owned());
            }
            body.extend_from_slice(&part);
        }
        let set: JwkSet = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let keys: Vec<Key> = set.keys.iter().filter_map(published_key).collect();
        if keys.is_empty() {
            return Err("there is no key for RS256, ES256 or EdDSA in it".to_owned());
        }
        Ok(keys)
    }
}

/// The published keys that may have signed a token with this header.
fn signers(keys: &[Key], id: Option<&str>, algorithm: Algorithm) -> Vec<Key> {
    let named = |key: &Key| id.is_none() || key.id.is_none() || key.id.as_deref() == id;
    keys.iter().filter(|key| key.algorithm == algorithm && named(key)).cloned().collect()
}

/// A published key that is for signatures, and of a kind that is verified here. A symmetric one
/// is none: everybody could read it.
fn published_key(jwk: &Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let common = &jwk.common;
    let signs = common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature);
    let said = common.key_algorithm.map(|said| said.to_string());
    let fits = said.is_none_or(|said| said == format!("{algorithm:?}"));
    let key = DecodingKey::from_jwk(jwk).ok().filter(|_| signs && fits)?;
    Some(Key { id: common.key_id.clone(), algorithm, key })
}

fn public_key(pem: &[u8]) -> Option<Key> {
    let key = |algorithm, key| Key { id: None, algorithm, key };
    if let Ok(rsa) = DecodingKey::from_rsa_pem(pem) {
        return Some(key(Algorithm::RS256, rsa));
    }
    if let Ok(ec) = DecodingKey::from_ec_pem(pem) {
        // Of another curve the point has another length.
        return ec
            .try_get_as_bytes()
            .is_ok_and(|p| p.len() == 65)
            .then(|| key(Algorithm::ES256, ec));
    }
    DecodingKey::from_ed_pem(pem).ok().map(|ed| key(Algorithm::EdDSA, ed))
}
