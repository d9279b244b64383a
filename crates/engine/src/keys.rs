//! API keys: made, checked, revoked. The check reads memory only, and a revocation holds from the
//! next request on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use stackd_store::{ApiKey, Change, Permission, Store, StoreError};
use subtle::ConstantTimeEq;

/// Between two looks at whether the replica that leads knows of a change.
const CONFIRMED_POLL: Duration = Duration::from_millis(20);
/// How long that may take; longer than any failover.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(15);

/// The keys of this server; clones share them.
#[derive(Clone)]
pub struct Keys {
    store: Store,
    keys: Arc<RwLock<Vec<Arc<ApiKey>>>>,
    /// Whether other servers use the same keys.
    shared: bool,
}

/// What a new key may do.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// What it is called.
    pub name: String,
    /// What it may do beyond the documented calls.
    pub permissions: Vec<Permission>,
    /// The dialects it is good for; all where empty.
    pub dialects: Vec<String>,
}

/// A key could not be made or revoked.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A name has 1–64 characters: letters, digits, `-`, `_`, `.`.
    #[error("a key's name has 1 to 64 characters: letters, digits, '-', '_' and '.'")]
    Name,
    /// There is no such key.
    #[error("there is no key {0:?}")]
    NotFound(String),
    /// It was revoked before.
    #[error("the key {0:?} is revoked already")]
    Revoked(String),
    /// A key of this name exists.
    #[error("a key {0:?} exists already")]
    Exists(String),
    /// The database refused.
    #[error("the key could not be stored")]
    Store(#[source] StoreError),
    /// It is stored, and the replica that leads has not said that it knows.
    #[error("the change is stored, but the replica that leads has not confirmed it yet")]
    Unconfirmed,
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn is_good(key: &ApiKey, name: &str) -> bool {
    key.name == name && key.revoked_at.is_none()
}

fn revoke(keys: &mut [Arc<ApiKey>], name: &str, at: Timestamp) {
    for key in keys.iter_mut().filter(|key| is_good(key, name)) {
        *key = Arc::new(ApiKey { revoked_at: Some(at), ..ApiKey::clone(key) });
    }
}

impl Keys {
    /// The keys that the database holds, with the database that new ones go to.
    pub fn new(store: Store, keys: Vec<ApiKey>) -> Self {
        let keys = keys.into_iter().map(Arc::new).collect();
        Self { store, keys: Arc::new(RwLock::new(keys)), shared: false }
    }

    /// The same, where several replicas use them: a change is made when all of them know of it.
    pub fn of_replicas(store: Store, keys: Vec<ApiKey>) -> Self {
        Self { shared: true, ..Self::new(store, keys) }
    }

    /// Takes over what the database holds.
    pub(crate) fn reset(&self, keys: Vec<ApiKey>) {
        *self.keys.write() = keys.into_iter().map(Arc::new).collect();
    }

    /// Reads the keys from the database: another server may have changed them.
    pub async fn refresh(&self) -> Result<(), KeyError> {
        self.reset(self.store.api_keys().await.map_err(KeyError::Store)?);
        Ok(())
    }

    /// Waits until the replica that leads knows of a commit. Those that follow look before they
    /// let anybody in.
    async fn known_everywhere(&self, commit: u64) -> Result<(), KeyError> {
        if !self.shared {
            return Ok(());
        }
        let wait = async {
            loop {
                match self.store.changes_after(commit).await.map_err(KeyError::Store)?.leader {
                    Some(leader) if leader.applied < commit => {
                        tokio::time::sleep(CONFIRMED_POLL).await;
                    }
                    _ => return Ok(()),
                }
            }
        };
        tokio::time::timeout(CONFIRMED_WITHIN, wait).await.unwrap_or(Err(KeyError::Unconfirmed))
    }

    /// Who a secret belongs to. Takes as long for a wrong one as for a right one.
    pub fn authenticate(&self, secret: &str) -> Option<Arc<ApiKey>> {
        let hash = hash(secret);
        let mut found = None;
        for key in self.keys.read().iter() {
            let same = bool::from(key.hash.ct_eq(&hash));
            if same && key.revoked_at.is_none() {
                found = Some(Arc::clone(key));
            }
        }
        found
    }

    /// The key that has this secret, good or revoked.
    pub fn of_secret(&self, secret: &str) -> Option<Arc<ApiKey>> {
        let hash = hash(secret);
        self.keys.read().iter().find(|key| bool::from(key.hash.ct_eq(&hash))).cloned()
    }

    /// All keys, also revoked ones.
    pub fn list(&self) -> Vec<Arc<ApiKey>> {
        self.keys.read().clone()
    }

    /// Whether no key is left that would let anybody in.
    pub fn is_empty(&self) -> bool {
        self.keys.read().iter().all(|key| key.revoked_at.is_some())
    }

    /// Makes a key of 256 random bits and returns it: 64 hexadecimal digits, nowhere kept.
    pub async fn create(&self, new: NewKey, at: Timestamp) -> Result<String, KeyError> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes).map_err(|e| {
            KeyError::Store(StoreError::Unavailable {
                reason: "no randomness".to_owned(),
                operator: e.to_string(),
            })
        })?;
        let secret = hex::encode(bytes);
        self.add(new, &secret, at).await?;
        Ok(secret)
    }

    /// Adds a key whose secret the operator chose.
    pub async fn add(&self, new: NewKey, secret: &str, at: Timestamp) -> Result<(), KeyError> {
        self.insert(new, secret, at, false).await
    }

    /// The same, and revokes the good key of this name where there is one: both or neither.
    pub async fn replace(&self, new: NewKey, secret: &str, at: Timestamp) -> Result<(), KeyError> {
        self.insert(new, secret, at, true).await
    }

    async fn insert(
        &self,
        new: NewKey,
        secret: &str,
        at: Timestamp,
        replace: bool,
    ) -> Result<(), KeyError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if new.name.is_empty() || new.name.len() > 64 || !new.name.chars().all(fits) {
            return Err(KeyError::Name);
        }
        let key = ApiKey {
            name: new.name,
            hash: hash(secret),
            permissions: new.permissions,
            dialects: new.dialects,
            created_at: at,
            revoked_at: None,
        };
        let replaced = replace && self.keys.read().iter().any(|old| is_good(old, &key.name));
        let mut changes = Vec::new();
        if replaced {
            changes.push(Change::RevokeApiKey { name: key.name.clone(), at });
        }
        changes.push(Change::InsertApiKey(key.clone()));
        let written = self.store.write(changes).await;
        let commit = written.map_err(|e| match e {
            StoreError::Duplicate(_) => KeyError::Exists(key.name.clone()),
            other => KeyError::Store(other),
        })?;
        {
            let mut keys = self.keys.write();
            // The news of it may have come first.
            if !keys.iter().any(|known| known.hash == key.hash) {
                if replaced {
                    revoke(&mut keys, &key.name, at);
                }
                keys.push(Arc::new(key));
            }
        }
        self.known_everywhere(commit.commit).await
    }

    /// Revokes a key, from the next request on.
    pub async fn revoke(&self, name: &str, at: Timestamp) -> Result<(), KeyError> {
        if self.shared {
            self.refresh().await?;
        }
        let known = |good: bool| {
            let keys = self.keys.read();
            keys.iter().any(|key| key.name == name && (!good || key.revoked_at.is_none()))
        };
        if !known(true) {
            let error = if known(false) { KeyError::Revoked } else { KeyError::NotFound };
            return Err(error(name.to_owned()));
        }
        let change = Change::RevokeApiKey { name: name.to_owned(), at };
        let commit = self.store.write(vec![change]).await.map_err(KeyError::Store)?.commit;
        revoke(&mut self.keys.write(), name, at);
        self.known_everywhere(commit).await
    }
}
