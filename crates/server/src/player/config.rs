//! What an operator may set about players: whose tokens are good, and what their claims mean.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderValue;
use serde::{Deserialize, Serialize};
use stackd_core::Secret;

use crate::config::{ConfigError, origins};

/// The settings of the player dialect. It is off while no key verifies tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlayerConfig {
    /// Whose a stack is: the user's, or the team's.
    pub owner: OwnerKind,
    /// The secret that HS256 tokens are signed with.
    pub jwt_secret: Option<Secret>,
    /// A file with a public key (PEM) that verifies RS256, ES256 or EdDSA tokens, by its kind.
    pub jwt_public_key: Option<PathBuf>,
    /// Where the platform publishes its public keys (a JWK set).
    pub jwks_url: Option<String>,
    /// How often they are fetched anew.
    #[serde(with = "stackd_core::duration")]
    pub jwks_refresh: Duration,
    /// How old they may be when they cannot be fetched; then no token is good.
    #[serde(with = "stackd_core::duration")]
    pub jwks_max_age: Duration,
    /// Who may have issued a token (`iss`); anybody who can sign where empty.
    pub issuers: Vec<String>,
    /// Whom a token may be for (`aud`); anybody where empty.
    pub audiences: Vec<String>,
    /// How far the platform's clock may be from this one's.
    #[serde(with = "stackd_core::duration")]
    pub leeway: Duration,
    /// The claims that name the user; the first that is there counts.
    pub user_claims: Vec<String>,
    /// The claim that names the user's team.
    pub team_claim: String,
    /// The claims that say what a token is for; each that is there must say `purpose`.
    pub purpose_claims: Vec<String>,
    /// What a token must be for.
    pub purpose: String,
    /// The claim that names the user's role.
    pub role_claim: String,
    /// The roles that may play; all where empty.
    pub roles: Vec<String>,
    /// Origins whose pages may show `/play/…` in a frame, and hand it a token.
    pub page_origins: Vec<String>,
}

/// Whose a player's stack is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnerKind {
    /// Each user has stacks of their own.
    #[default]
    User,
    /// A team shares its stacks.
    Team,
}

impl Default for PlayerConfig {
    fn default() -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            owner: OwnerKind::User,
            jwt_secret: None,
            jwt_public_key: None,
            jwks_url: None,
            jwks_refresh: Duration::from_secs(10 * 60),
            jwks_max_age: Duration::from_secs(60 * 60),
            issuers: Vec::new(),
            audiences: Vec::new(),
            leeway: Duration::ZERO,
            user_claims: texts(&["uid", "sub"]),
            team_claim: "team".to_owned(),
            purpose_claims: texts(&["typ", "type"]),
            purpose: "access".to_owned(),
            role_claim: "role".to_owned(),
            roles: Vec::new(),
            page_origins: Vec::new(),
        }
    }
}

impl PlayerConfig {
    /// Whether some key verifies tokens.
    pub fn is_on(&self) -> bool {
        self.jwt_secret.is_some() || self.jwt_public_key.is_some() || self.jwks_url.is_some()
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: &str| Err(ConfigError::Player(text.to_owned()));
        if self.jwt_secret.as_ref().is_some_and(|secret| secret.expose().is_empty()) {
            return wrong("jwt_secret must not be empty");
        }
        if self.user_claims.is_empty() {
            return wrong("user_claims must name at least one claim");
        }
        if self.jwks_refresh < Duration::from_secs(1) || self.jwks_max_age < self.jwks_refresh {
            return wrong("jwks_refresh must be at least 1 s, and jwks_max_age not less than it");
        }
        if let Some(url) = &self.jwks_url {
            self.jwks(url)?;
        }
        self.page_origins().map(drop)
    }

    /// Keys that come by plain HTTP could be anybody's, but for those of this machine.
    pub(crate) fn jwks(&self, url: &str) -> Result<reqwest::Url, ConfigError> {
        let wrong = |text: String| ConfigError::Player(text);
        let parsed = reqwest::Url::parse(url)
            .map_err(|error| wrong(format!("jwks_url: {url:?} is not a URL: {error}")))?;
        let local = parsed.host_str().is_some_and(|host| {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            bare == "localhost"
                || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        });
        match parsed.scheme() {
            "https" => Ok(parsed),
            "http" if local => Ok(parsed),
            _ => {
                Err(wrong("jwks_url must begin with https:// (http:// on this machine)".to_owned()))
            }
        }
    }

    /// The origins, as headers carry them.
    pub(crate) fn page_origins(&self) -> Result<Vec<HeaderValue>, ConfigError> {
        origins("player.page_origins", &self.page_origins)
    }
}
