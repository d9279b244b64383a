//! The keys that verify tokens: from the settings, and from where the platform publishes them.
//!
//! Published keys are fetched ahead of need, and once more when a token names a key that is not
//! known: that is how keys are rotated. When they cannot be fetched for too long, no token is good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use parking_lot::RwLock;
use reqwest::Url;
use tokio::sync::Semaphore;

use super::config::PlayerConfig;
use crate::config::ConfigError;

/// A fetch takes no longer than this.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Tokens with made-up keys must not make this server a nuisance to the platform.
const BETWEEN_FETCHES: Duration = Duration::from_secs(2);
/// Shorter keys of RSA verify nothing here.
const MIN_RSA_BYTES: usize = 2048 / 8;
/// What the name of a key in a file contains that is no public one.
const PRIVATE: &[u8] = b"PRIVATE KEY";
/// How many requests wait for a fetch at once.
const MAX_WAITING: usize = 256;
/// A set of keys is small.
const MAX_BYTES: usize = 256 << 10;

/// A key, and the one algorithm that it is good for.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
    /// As it is published, where it is.
    jwk: Option<Jwk>,
}

/// All keys.
pub(super) struct Keys {
    /// From the settings; they do not change.
    own: Vec<Arc<Key>>,
    published: Option<Arc<Published>>,
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
    /// How many requests may wait for one: whoever sends made-up tokens waits for nothing.
    waiting: Arc<Semaphore>,
}

struct Fetched {
    keys: Arc<Vec<Arc<Key>>>,
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
            own.push(Arc::new(Key { id: None, algorithm: Algorithm::HS256, key, jwk: None }));
        }
        if let Some(path) = &config.jwt_public_key {
            let wrong = |why: String| {
                ConfigError::Player(format!("jwt_public_key: {}: {why}", path.display()))
            };
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let key = public_key(&pem).ok_or_else(|| {
                let kinds = "of RSA with at least 2048 bits, of P-256 or of Ed25519";
                wrong(format!("is no public key (PEM) {kinds}"))
            })?;
            own.push(Arc::new(key));
        }
        let published = config.jwks_url.as_ref().map(|url| Published::new(config, url));
        Ok(Self { own, published: published.transpose()?.map(Arc::new) })
    }

    /// Whether there is anything that could verify a token.
    pub(super) fn are_configured(&self) -> bool {
        !self.own.is_empty() || self.published.is_some()
    }

    /// Whether this very key is among those of now.
    pub(super) fn has(&self, key: &Arc<Key>) -> bool {
        let is_it = |other: &Arc<Key>| Arc::ptr_eq(other, key);
        let published = || self.published.as_ref().and_then(|published| published.keys().ok());
        self.own.iter().any(is_it) || published().is_some_and(|keys| keys.iter().any(is_it))
    }

    /// The keys known here that may have signed a token with this header.
    pub(super) fn known(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<Arc<Key>> {
        let own = self.own.iter().filter(|key| key.algorithm == algorithm).cloned();
        let published = self.published.as_ref().and_then(|published| published.keys().ok());
        own.chain(published.into_iter().flat_map(|keys| signers(&keys, id, algorithm))).collect()
    }

    /// The same among what the platform publishes by now: that is for a token which no known key has
    /// signed.
    pub(super) async fn fetched(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Arc<Key>>, NoKeys> {
        // A secret is never published, so a token that needs one asks nobody.
        let Some(published) = self.published.as_ref().filter(|_| algorithm != Algorithm::HS256)
        else {
            return Ok(Vec::new());
        };
        let is_known = |keys: Arc<Vec<Arc<Key>>>| !signers(&keys, id, algorithm).is_empty();
        // A key that is named and not known may be new, which is worth a wait. A known one may have been
        // put in the place of another; but most tokens that it has not signed are just bad.
        let patient = !published.keys().is_ok_and(is_known);
        published.fetch(patient).await;
        Ok(signers(&published.keys()?, id, algorithm))
    }

    /// Fetches published keys again and again, until it is aborted.
    pub(super) async fn keep_fresh(self: Arc<Self>, every: Duration) {
        let Some(published) = &self.published else { return };
        loop {
            published.fetch(true).await;
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
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        })
    }

    fn keys(&self) -> Result<Arc<Vec<Arc<Key>>>, NoKeys> {
        let state = self.state.read();
        let fresh = state.as_ref().filter(|fetched| fetched.at.elapsed() <= self.max_age);
        let fresh = fresh.filter(|fetched| !fetched.keys.is_empty());
        fresh.map(|fetched| Arc::clone(&fetched.keys)).ok_or(NoKeys)
    }

    /// Fetches once, for all who wait for it; not again too soon, which is waited for by who is patient.
    /// It goes on also when the request that wants it is gone.
    async fn fetch(self: &Arc<Self>, patient: bool) {
        let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else { return };
        let this = Arc::clone(self);
        let fetch = tokio::spawn(async move {
            this.fetch_in_turn(patient).await;
            drop(place);
        });
        // It does not panic, and nobody aborts it.
        let _ = fetch.await;
    }

    async fn fetch_in_turn(&self, patient: bool) {
        let asked = Instant::now();
        let last = if patient { Ok(self.fetching.lock().await) } else { self.fetching.try_lock() };
        let Ok(mut last) = last else { return };
        if let Some(last) = *last {
            let due = last + self.between;
            // Somebody has fetched while this one waited.
            if last >= asked || !patient && due > asked {
                return;
            }
            tokio::time::sleep_until(due.into()).await;
        }
        *last = Some(Instant::now());
        match self.fetched().await {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "the platform's keys are fetched");
                let keys = Arc::new(keys);
                *self.state.write() = Some(Fetched { keys, at: Instant::now() });
            }
            Err(error) => {
                tracing::warn!(url = %shown(&self.url), error, "the platform's keys cannot be fetched");
            }
        }
    }

    async fn fetched(&self) -> Result<Vec<Arc<Key>>, String> {
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
        // One that is published still is the same, so that what it has verified stays so.
        let before = self.state.read().as_ref().map(|fetched| Arc::clone(&fetched.keys));
        let same =
            |key: &Key| before.iter().flat_map(|b| b.iter()).find(|b| b.jwk == key.jwk).cloned();
        let keys = set.keys.iter().filter_map(published_key);
        let keys: Vec<_> = keys.map(|key| same(&key).unwrap_or_else(|| Arc::new(key))).collect();
        if keys.is_empty() {
            // Keys that are taken back are good for nothing from now on.
            tracing::warn!(url = %shown(&self.url), "the platform publishes no key for RS256, ES256 or EdDSA");
        }
        Ok(keys)
    }
}

/// The published keys that may have signed a token with this header.
fn signers(keys: &[Arc<Key>], id: Option<&str>, algorithm: Algorithm) -> Vec<Arc<Key>> {
    let named = |key: &Key| id.is_none() || key.id.is_none() || key.id.as_deref() == id;
    keys.iter().filter(|key| key.algorithm == algorithm && named(key)).cloned().collect()
}

/// An address without what may be a secret in it.
fn shown(url: &Url) -> Url {
    let mut shown = url.clone();
    // Neither fails for an address of http.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown
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
    if let DecodingKeyKind::RsaModulusExponent { n, .. } = key.kind()
        && n.len() < MIN_RSA_BYTES
    {
        tracing::warn!(
            kid = common.key_id,
            "a published key has less than 2048 bits; it is left out"
        );
        return None;
    }
    Some(Key { id: common.key_id.clone(), algorithm, key, jwk: Some(jwk.clone()) })
}

fn public_key(pem: &[u8]) -> Option<Key> {
    if pem.windows(PRIVATE.len()).any(|part| part == PRIVATE) {
        return None;
    }
    let key = |algorithm, key| Key { id: None, algorithm, key, jwk: None };
    if let Ok(rsa) = DecodingKey::from_rsa_pem(pem) {
        // Around the modulus there are some bytes more.
        let is_long = rsa.try_get_as_bytes().is_ok_and(|der| der.len() > MIN_RSA_BYTES);
        return is_long.then(|| key(Algorithm::RS256, rsa));
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
