//! Who plays: a bearer token of the platform's own, verified on every request.
//!
//! A signature can cost more than all the rest of a request, so it is remembered by a digest of the
//! token which key has verified it and who it names. That outlives neither the token nor the key: the
//! time and the keys of the moment are looked at for every request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::RwLock;
use serde_json::{Map, Value};
use stackd_core::challenge::{Player, Subject};
use tokio::task::AbortHandle;

use super::config::{OwnerKind, PlayerConfig};
use super::errors;
use super::jws::Jws;
use super::keys::{Key, Keys, NoKeys};
use crate::config::ConfigError;
use crate::fault::{Fault, Said};
use crate::{ServerState, replicas};

/// The bytes of a digest.
const DIGEST: usize = ring::digest::SHA256_OUTPUT_LEN;

/// How often it is looked for a key that was taken back under a request that lasts.
const KEY_LOOK: Duration = Duration::from_secs(2);

/// How many tokens are remembered at once.
const MAX_VERIFIED: usize = 10_000;

/// Who sent a request, and until when that is so.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) player: Player,
    /// Seconds since 1970, the leeway included.
    ends: u64,
    /// What has verified the token.
    by: Arc<Key>,
}

impl Session {
    /// How long it still lasts by its own time.
    fn left(&self) -> Duration {
        Duration::from_secs(self.ends).saturating_sub(now())
    }
}

/// Verifies tokens.
pub(crate) struct Tokens {
    config: PlayerConfig,
    keys: Arc<Keys>,
    verified: RwLock<HashMap<[u8; DIGEST], Session>>,
    refresh: Option<AbortHandle>,
}

impl Drop for Tokens {
    fn drop(&mut self) {
        if let Some(refresh) = &self.refresh {
            refresh.abort();
        }
    }
}

/// Nobody is let in, for this reason: one word for the meters. Who made a token need not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// There is no `Authorization`.
    Missing,
    /// It is no bearer token.
    Malformed,
    /// No key is configured that could verify one.
    Disabled,
    /// None of the platform's keys can be had now.
    NoKeys,
    /// The token is not good.
    Invalid(&'static str),
}

impl Refused {
    const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Disabled => "disabled",
            Self::NoKeys => "no_keys",
            Self::Invalid(reason) => reason,
        }
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Missing => errors::missing_authorization(),
            Refused::Malformed => errors::invalid_authorization(),
            Refused::Disabled | Refused::NoKeys => errors::disabled(),
            Refused::Invalid(_) => Self::new(StatusCode::UNAUTHORIZED, "invalid token"),
        }
    }
}

impl Tokens {
    /// Must be called inside a tokio runtime where keys are to be fetched.
    pub(crate) fn new(config: &PlayerConfig) -> Result<Self, ConfigError> {
        let keys = Arc::new(Keys::new(config)?);
        let refresh = config.jwks_url.is_some().then(|| {
            let fresh = Arc::clone(&keys).keep_fresh(config.jwks_refresh);
            tokio::spawn(fresh).abort_handle()
        });
        Ok(Self { config: config.clone(), keys, verified: RwLock::default(), refresh })
    }

    /// Who sent a request with these headers.
    async fn session(&self, headers: &HeaderMap) -> Result<Session, Refused> {
        let header = headers.get(AUTHORIZATION).ok_or(Refused::Missing)?;
        let token = header.to_str().ok().and_then(bearer).ok_or(Refused::Malformed)?;
        if !self.keys.are_configured() {
            return Err(Refused::Disabled);
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let Ok(digest) = digest.as_ref().try_into() else { return Err(Refused::Malformed) };
        if let Some(session) = self.remembered(&digest) {
            return Ok(session);
        }
        let session = self.verify(token).await?;
        self.remember(digest, &session);
        Ok(session)
    }

    /// Who a token names that was good before and is so now.
    fn remembered(&self, digest: &[u8; DIGEST]) -> Option<Session> {
        let all = self.verified.read();
        all.get(digest).filter(|found| self.is_good(found)).cloned()
    }

    fn remember(&self, digest: [u8; DIGEST], session: &Session) {
        // Whoever would have to wait for that verifies once more, which is the same.
        let Some(mut all) = self.verified.try_write() else { return };
        if all.len() >= MAX_VERIFIED {
            all.retain(|_, one| self.is_good(one));
        }
        if all.len() >= MAX_VERIFIED {
            all.clear();
        }
        all.insert(digest, session.clone());
    }

    fn is_good(&self, session: &Session) -> bool {
        !session.left().is_zero() && self.keys.has(&session.by)
    }

    /// Waits until a token is good no longer: its time is over, or its key is taken back.
    pub(super) async fn ends(&self, session: &Session) {
        while self.is_good(session) {
            tokio::time::sleep(session.left().min(KEY_LOOK)).await;
        }
    }

    async fn verify(&self, token: &str) -> Result<Session, Refused> {
        let jws = Jws::parse(token).ok_or(Refused::Invalid("unreadable"))?;
        // Nothing of what must be understood is understood here.
        if jws.header.is_critical {
            return Err(Refused::Invalid("critical"));
        }
        let (id, algorithm) = (jws.header.id.as_deref(), jws.header.algorithm);
        let known = self.keys.known(id, algorithm);
        if let Some(session) = self.signed(&jws, &known)? {
            return Ok(session);
        }
        let new = self.keys.fetched(id, algorithm).await.map_err(|NoKeys| Refused::NoKeys)?;
        match self.signed(&jws, &new)? {
            Some(session) => Ok(session),
            None if known.is_empty() && new.is_empty() => Err(Refused::Invalid("unknown_key")),
            None => Err(Refused::Invalid("signature")),
        }
    }

    /// Who a token names, by which of these keys; nothing where none of them has signed it.
    fn signed(&self, jws: &Jws<'_>, keys: &[Arc<Key>]) -> Result<Option<Session>, Refused> {
        let Some(by) = keys.iter().find(|key| jws.is_signed_by(key)) else { return Ok(None) };
        let claims = jws.claims().ok_or(Refused::Invalid("unreadable"))?;
        let ends = self.end(&claims)?;
        let player = self.player(&claims)?;
        Ok(Some(Session { player, ends, by: Arc::clone(by) }))
    }

    /// Until when claims hold that hold now, and for this server (RFC 7519, 4.1).
    fn end(&self, claims: &Map<String, Value>) -> Result<u64, Refused> {
        let PlayerConfig { issuers, audiences, leeway, .. } = &self.config;
        let missing = Refused::Invalid("missing_claim");
        let time = |name| match claim(claims, name) {
            None => Ok(None),
            Some(time) => time.as_f64().map(Some).ok_or(Refused::Invalid("unreadable")),
        };
        let (now, leeway) = (now().as_secs_f64(), leeway.as_secs_f64());
        let expires = time("exp")?.ok_or(missing)? + leeway;
        if expires <= now {
            return Err(Refused::Invalid("expired"));
        }
        if time("nbf")?.is_some_and(|begins| begins > now + leeway) {
            return Err(Refused::Invalid("not_yet_valid"));
        }
        let is_one = |of: &[String], value: &Value| of.iter().any(|one| value == one.as_str());
        if !issuers.is_empty() && !is_one(issuers, claim(claims, "iss").ok_or(missing)?) {
            return Err(Refused::Invalid("issuer"));
        }
        if !audiences.is_empty() {
            let meant = match claim(claims, "aud").ok_or(missing)? {
                Value::Array(several) => several.iter().any(|one| is_one(audiences, one)),
                one => is_one(audiences, one),
            };
            if !meant {
                return Err(Refused::Invalid("audience"));
            }
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time")]
        Ok(expires as u64)
    }

    fn player(&self, claims: &Map<String, Value>) -> Result<Player, Refused> {
        let config = &self.config;
        let there = |name: &String| claim(claims, name);
        for claim in &config.purpose_claims {
            if there(claim).is_some_and(|purpose| *purpose != config.purpose.as_str()) {
                return Err(Refused::Invalid("purpose"));
            }
        }
        if !config.roles.is_empty() {
            let role = there(&config.role_claim).and_then(Value::as_str);
            if !role.is_some_and(|role| config.roles.iter().any(|may| may == role)) {
                return Err(Refused::Invalid("role"));
            }
        }
        let user = config.user_claims.iter().find_map(there);
        let user = user.and_then(Subject::name_of).ok_or(Refused::Invalid("user"))?;
        let team = match there(&config.team_claim).filter(|team| *team != "") {
            None => None,
            Some(team) => Some(Subject::name_of(team).ok_or(Refused::Invalid("team"))?),
        };
        let owner = match (config.owner, &team) {
            (OwnerKind::User, _) => Subject::User(user.clone()),
            (OwnerKind::Team, Some(team)) => Subject::Team(team.clone()),
            (OwnerKind::Team, None) => return Err(Refused::Invalid("team")),
        };
        Ok(Player { user, team, owner })
    }
}

/// A claim; one that is null is none.
fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).filter(|value| !value.is_null())
}

/// The time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The token of `Bearer <token>`, the word in any case.
fn bearer(value: &str) -> Option<&str> {
    let (word, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    let whole = !token.is_empty() && !token.contains(char::is_whitespace);
    (word.eq_ignore_ascii_case("bearer") && whole).then_some(token)
}

/// What a request asks for, in a word.
fn operation(request: &Request) -> &'static str {
    let path = request.uri().path();
    let stack = !path.ends_with("/stacks");
    match *request.method() {
        Method::POST if path.ends_with("/renew") => "renew",
        Method::POST => "create",
        Method::DELETE => "delete",
        _ if path.ends_with("/events") => "follow",
        _ if stack => "get",
        _ => "list",
    }
}

/// Lets a request in whose token is good, and says who sent it.
pub(crate) async fn admit(
    State(state): State<ServerState>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Err(behind) = state.engine().in_step().await {
        return errors::unavailable_form(Fault::from(behind)).into_response();
    }
    let session = match state.tokens() {
        Some(tokens) => tokens.session(request.headers()).await,
        None => Err(Refused::Disabled),
    };
    let meters = &state.metrics().players;
    match session {
        Ok(session) => {
            state.engine().players().seen(&session.player);
            request.extensions_mut().insert(session);
            let operation = operation(&request);
            let form = errors::unavailable_form;
            let response = replicas::forward(&state, form, request, next).await;
            let said = response.extensions().get::<Said>().map(|Said(text)| text.as_ref());
            meters.answered(operation, errors::outcome(response.status(), said));
            response
        }
        Err(refused) => {
            tracing::debug!(reason = refused.reason(), "a token was refused");
            meters.refused(refused.reason());
            Fault::from(refused).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_is_one_word_after_another() {
        for good in ["Bearer x.y.z", "bearer x.y.z", "BEARER   x.y.z "] {
            assert_eq!(bearer(good), Some("x.y.z"), "{good:?}");
        }
        for bad in ["", "Bearer", "Bearer ", "x.y.z", "Basic x", "Bearer a b", "Bearerx y"] {
            assert_eq!(bearer(bad), None, "{bad:?}");
        }
    }
}
