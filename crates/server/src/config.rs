//! What an operator may set about the API as such.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::HeaderValue;
use serde::{Deserialize, Serialize};

use crate::player::PlayerConfig;

/// The settings of the API server, read once at the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Whether callers need an API key. Can be turned off only while every listener is on a
    /// loopback address.
    pub auth: bool,
    /// The `namespace` that stacks show.
    pub namespace: String,
    /// Origins (for example `https://ctf.example.org`) whose pages may call the API from a
    /// browser. None unless named; `*` is not taken, since a key would be for everybody's page.
    pub cors_origins: Vec<String>,
    /// The most bytes that a request's body may have.
    pub body_limit_bytes: usize,
    /// How long a request's body may take to arrive.
    #[serde(with = "stackd_core::duration")]
    pub body_timeout: Duration,
    /// How long a connection may take for its TLS handshake and for the headers of each request;
    /// an idle connection is closed after it, too.
    #[serde(with = "stackd_core::duration")]
    pub header_timeout: Duration,
    /// The most connections at once, over all listeners. Further ones wait to be accepted.
    pub max_connections: usize,
    /// How long the server goes on to take connections when it is told to stop; it is not ready any
    /// more from then on. For a load balancer in front, which hears of that a moment later.
    #[serde(with = "stackd_core::duration")]
    pub shutdown_delay: Duration,
    /// How long requests under way may take to end when the server stops.
    #[serde(with = "stackd_core::duration")]
    pub shutdown_timeout: Duration,
    /// The player dialect.
    pub player: PlayerConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            auth: true,
            namespace: "stacks".to_owned(),
            cors_origins: Vec::new(),
            body_limit_bytes: 1 << 20,
            body_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(30),
            max_connections: 4096,
            shutdown_delay: Duration::ZERO,
            shutdown_timeout: Duration::from_secs(10),
            player: PlayerConfig::default(),
        }
    }
}

/// The settings contradict each other or the listeners.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Authentication is off while others can reach the server.
    #[error(
        "authentication is off, but {0} is not a loopback address; turn authentication on or \
         listen on 127.0.0.1 or [::1] only"
    )]
    AuthOff(SocketAddr),
    /// A text is not an origin. The last is one.
    #[error("{setting}: {given:?} is not an origin as browsers send it; write {instead}")]
    Origin {
        /// The setting.
        setting: &'static str,
        /// What it says.
        given: String,
        /// What it should say, or an example.
        instead: String,
    },
    /// A setting of the player dialect is wrong.
    #[error("player: {0}")]
    Player(String),
    /// A limit of nothing lets nobody in.
    #[error("{0} must be greater than 0")]
    Zero(&'static str),
}

impl ServerConfig {
    /// Checks the settings by themselves.
    pub fn check(&self) -> Result<(), ConfigError> {
        let zero = [
            ("body_limit_bytes", self.body_limit_bytes == 0),
            ("body_timeout", self.body_timeout.is_zero()),
            ("header_timeout", self.header_timeout.is_zero()),
            ("max_connections", self.max_connections == 0),
        ];
        if let Some((name, _)) = zero.into_iter().find(|(_, zero)| *zero) {
            return Err(ConfigError::Zero(name));
        }
        self.player.check()?;
        self.cors_origins().map(drop)
    }

    /// Checks the settings against the addresses that are listened on.
    pub fn check_listeners(&self, listeners: &[SocketAddr]) -> Result<(), ConfigError> {
        self.check()?;
        match listeners.iter().find(|address| !is_loopback(address)) {
            Some(open) if !self.auth => Err(ConfigError::AuthOff(*open)),
            _ => Ok(()),
        }
    }

    /// The allowed origins, as headers carry them.
    pub(crate) fn cors_origins(&self) -> Result<Vec<HeaderValue>, ConfigError> {
        origins("cors_origins", &self.cors_origins)
    }
}

/// Whether only this machine reaches a listener at this address, in whichever form it is written.
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Origins as headers carry them; `setting` names them in errors.
pub(crate) fn origins(
    setting: &'static str,
    origins: &[String],
) -> Result<Vec<HeaderValue>, ConfigError> {
    let read = |given: &String| {
        let url = reqwest::Url::parse(given).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
        // In lower case, without the scheme's own port and without a path: nothing else is ever
        // equal to what a browser sends.
        let sent = url.map(|url| url.origin().ascii_serialization());
        if sent.as_ref() == Some(given)
            && !given.contains('*')
            && let Ok(value) = HeaderValue::from_str(given)
        {
            return Ok(value);
        }
        let instead = sent
            .filter(|sent| !sent.contains('*'))
            .unwrap_or_else(|| "for example https://ctf.example.org".to_owned());
        Err(ConfigError::Origin { setting, given: given.clone(), instead })
    };
    origins.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authentication_can_be_off_on_loopback_only() {
        let config = ServerConfig { auth: false, ..ServerConfig::default() };
        let local = SocketAddr::from(([127, 0, 0, 1], 8080));
        let open = SocketAddr::from(([0, 0, 0, 0], 8080));
        assert_eq!(config.check_listeners(&[local]), Ok(()));
        assert_eq!(config.check_listeners(&[local, open]), Err(ConfigError::AuthOff(open)));
        assert_eq!(ServerConfig::default().check_listeners(&[open]), Ok(()));
    }

    #[test]
    fn an_origin_is_what_browsers_send() {
        const EXAMPLE: &str = "for example https://ctf.example.org";
        for (bad, instead) in [
            ("*", EXAMPLE),
            ("https://*.a.example", EXAMPLE),
            ("ctf.example.org", EXAMPLE),
            ("https://", EXAMPLE),
            ("ftp://a.example", EXAMPLE),
            ("https://a.example/", "https://a.example"),
            ("https://a.example:443", "https://a.example"),
            ("http://a.example:80", "http://a.example"),
            ("https://A.example", "https://a.example"),
            ("https://a.example/x?y", "https://a.example"),
            ("https://user@a.example", "https://a.example"),
        ] {
            let config = ServerConfig { cors_origins: vec![bad.to_owned()], ..Default::default() };
            let wrong = ConfigError::Origin {
                setting: "cors_origins",
                given: bad.to_owned(),
                instead: instead.to_owned(),
            };
            assert_eq!(config.check(), Err(wrong), "{bad}");
        }
        let good = ["http://localhost:5173", "https://a.example:80", "http://[::1]:8080"];
        let good = good.map(str::to_owned).to_vec();
        assert_eq!(ServerConfig { cors_origins: good, ..Default::default() }.check(), Ok(()));
    }

    #[test]
    fn times_may_be_numbers_or_words_and_unknown_settings_are_errors() {
        let read = |json| serde_json::from_str::<ServerConfig>(json);
        let config = read(r#"{"header_timeout": 5, "body_timeout": "1m"}"#).unwrap();
        assert_eq!(config.header_timeout, Duration::from_secs(5));
        assert_eq!(config.body_timeout, Duration::from_secs(60));
        assert!(read(r#"{"headers_timeout": 5}"#).is_err());
    }
}
