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
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use parking_lot::RwLock;
use serde_json::{Map, Value};
use stackd_core::challenge::{Player, Subject};
use tokio::task::AbortHandle;

use super::config::{OwnerKind, PlayerConfig};
use super::keys::{Key, Keys, NoKeys};
use super::{crypto, errors};
use crate::config::ConfigError;
use crate::fault::{Fault, Said};
use crate::{ServerState, replicas};

/// The most characters of a user's or a team's name.
const MAX_NAME: usize = 255;

/// The bytes of a digest.
const DIGEST: usize = ring::digest::SHA256_OUTPUT_LEN;

/// How many tokens are remembered at once.
const MAX_VERIFIED: usize = 10_000;

/// Who sent a request, and until when that is so.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) player: Player,
    /// Seconds since 1970, the leeway included.
    pub(crate) ends: u64,
}

/// Verifies tokens.
pub(crate) struct Tokens {
    config: PlayerConfig,
    /// What a token must fulfil, by the one algorithm that each is for.
    rules: [(Algorithm, Validation); 4],
    keys: Arc<Keys>,
    verified: RwLock<HashMap<[u8; DIGEST], Verified>>,
    refresh: Option<AbortHandle>,
}

/// A token that was good.
struct Verified {
    by: Arc<Key>,
    session: Session,
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

/// What is wrong with a token that a key does not verify, in a word.
fn fault_of(error: &jsonwebtoken::errors::Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidSignature => "signature",
        ErrorKind::ExpiredSignature => "expired",
        ErrorKind::ImmatureSignature => "not_yet_valid",
        ErrorKind::InvalidIssuer => "issuer",
        ErrorKind::InvalidAudience => "audience",
        ErrorKind::MissingRequiredClaim(_) => "missing_claim",
        _ => "unreadable",
    }
}

impl Tokens {
    /// Must be called inside a tokio runtime where keys are to be fetched.
    pub(crate) fn new(config: &PlayerConfig) -> Result<Self, ConfigError> {
        crypto::install();
        let keys = Arc::new(Keys::new(config)?);
        let refresh = config.jwks_url.is_some().then(|| {
            let fresh = Arc::clone(&keys).keep_fresh(config.jwks_refresh);
            tokio::spawn(fresh).abort_handle()
        });
        let rules = crypto::ALGORITHMS.map(|algorithm| (algorithm, rules(config, algorithm)));
        Ok(Self { config: config.clone(), rules, keys, verified: RwLock::default(), refresh })
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
        let verified = self.verify(token).await?;
        let session = verified.session.clone();
        let mut all = self.verified.write();
        if all.len() >= MAX_VERIFIED {
            all.retain(|_, one| self.is_good(one));
        }
        if all.len() >= MAX_VERIFIED {
            all.clear();
        }
        all.insert(digest, verified);
        Ok(session)
    }

    /// Who a token names that was good before and is so now.
    fn remembered(&self, digest: &[u8; DIGEST]) -> Option<Session> {
        let all = self.verified.read();
        let found = all.get(digest).filter(|found| self.is_good(found))?;
        Some(found.session.clone())
    }

    fn is_good(&self, verified: &Verified) -> bool {
        now() < Duration::from_secs(verified.session.ends) && self.keys.has(&verified.by)
    }

    async fn verify(&self, token: &str) -> Result<Verified, Refused> {
        let header = decode_header(token).map_err(|_| Refused::Invalid("unreadable"))?;
        // What must be understood and is not (RFC 7515, 4.1.11); here nothing of it is.
        if header.crit.is_some() {
            return Err(Refused::Invalid("critical"));
        }
        let (id, algorithm) = (header.kid.as_deref(), header.alg);
        let known = self.keys.known(id, algorithm);
        if let Some(verified) = self.signed(token, &known)? {
            return Ok(verified);
        }
        let new = self.keys.fetched(id, algorithm).await.map_err(|NoKeys| Refused::NoKeys)?;
        match self.signed(token, &new)? {
            Some(verified) => Ok(verified),
            None if known.is_empty() && new.is_empty() => Err(Refused::Invalid("unknown_key")),
            None => Err(Refused::Invalid("signature")),
        }
    }

    /// Who a token names, by which of these keys; nothing where none of them has signed it.
    fn signed(&self, token: &str, keys: &[Arc<Key>]) -> Result<Option<Verified>, Refused> {
        for key in keys {
            match self.claims(token, key) {
                Ok(claims) => {
                    let session = self.read(&claims)?;
                    return Ok(Some(Verified { by: Arc::clone(key), session }));
                }
                Err("signature") => {}
                Err(reason) => return Err(Refused::Invalid(reason)),
            }
        }
        Ok(None)
    }

    fn claims(&self, token: &str, key: &Key) -> Result<Map<String, Value>, &'static str> {
        // One algorithm, the key's: what the token says of itself chooses nothing.
        let rules = self.rules.iter().find(|(algorithm, _)| *algorithm == key.algorithm);
        let (_, rules) = rules.ok_or("algorithm")?;
        match decode::<Map<String, Value>>(token, &key.key, rules) {
            Ok(data) => Ok(data.claims),
            Err(error) => {
                tracing::debug!(%error, "a key did not verify a token");
                Err(fault_of(&error))
            }
        }
    }

    fn read(&self, claims: &Map<String, Value>) -> Result<Session, Refused> {
        let config = &self.config;
        let there = |claim: &String| claims.get(claim).filter(|value| !value.is_null());
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
        let user = user.and_then(name).ok_or(Refused::Invalid("user"))?;
        let team = match there(&config.team_claim).filter(|team| *team != "") {
            None => None,
            Some(team) => Some(name(team).ok_or(Refused::Invalid("team"))?),
        };
        let owner = match (config.owner, &team) {
            (OwnerKind::User, _) => Subject::User(user.clone()),
            (OwnerKind::Team, Some(team)) => Subject::Team(team.clone()),
            (OwnerKind::Team, None) => return Err(Refused::Invalid("team")),
        };
        // The library takes one of several issuers, and a token up to the end of its last second.
        if !config.issuers.is_empty() && !claims.get("iss").is_some_and(Value::is_string) {
            return Err(Refused::Invalid("issuer"));
        }
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default();
        if expires + config.leeway.as_secs_f64() <= now().as_secs_f64() {
            return Err(Refused::Invalid("expired"));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time")]
        let ends = (expires as u64).saturating_add(config.leeway.as_secs());
        Ok(Session { player: Player { user, team, owner }, ends })
    }
}

/// What a token must fulfil that a key of this algorithm has signed.
fn rules(config: &PlayerConfig, algorithm: Algorithm) -> Validation {
    let mut rules = Validation::new(algorithm);
    rules.leeway = config.leeway.as_secs();
    rules.validate_nbf = true;
    rules.validate_aud = !config.audiences.is_empty();
    rules.set_audience(&config.audiences);
    let mut required = vec!["exp"];
    if !config.audiences.is_empty() {
        required.push("aud");
    }
    if !config.issuers.is_empty() {
        rules.set_issuer(&config.issuers);
        required.push("iss");
    }
    rules.set_required_spec_claims(&required);
    rules
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

/// The name of somebody: a number and its text are the same.
fn name(value: &Value) -> Option<String> {
    let name = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
        Value::Number(number) => {
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15)?;
            format!("{whole:.0}")
        }
        _ => return None,
    };
    let fits =
        (1..=MAX_NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    fits.then_some(name)
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
    use serde_json::json;

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

    #[test]
    fn a_number_and_its_text_are_the_same() {
        for value in [json!(7), json!("7"), json!(7.0)] {
            assert_eq!(name(&value).as_deref(), Some("7"), "{value}");
        }
        for value in [json!(""), json!(7.5), json!(true), json!(["7"]), json!("a\0b")] {
            assert_eq!(name(&value), None, "{value}");
        }
    }
}
