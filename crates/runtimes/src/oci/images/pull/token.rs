//! What a registry wants to see, as it says itself: nothing, a password, or a token of its token
//! server. Whoever that is, no more is read of its answer than a token needs.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde::Deserialize;

use super::auth::Credentials;
use super::client::{chain, read};
use super::reach::Reach;

/// The most bytes of a token server's answer.
const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// What is sent with each request.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Authorization {
    Nobody,
    Password { user: String, password: String },
    Token(String),
}

impl Authorization {
    /// What is sent before the registry has asked for anything.
    pub(super) fn unasked(credentials: &Credentials) -> Self {
        match credentials {
            Credentials::RegistryToken(token) => Self::Token(token.clone()),
            _ => Self::Nobody,
        }
    }

    pub(super) fn show(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nobody => request,
            Self::Password { user, password } => request.basic_auth(user, Some(password)),
            Self::Token(token) => request.bearer_auth(token),
        }
    }
}

/// Why there is nothing to show. The texts are for the operator.
pub(super) enum LoginError {
    Denied(String),
    Unreachable(String),
}

/// What the registry wants to see of somebody with these credentials who pulls a repository, by
/// the headers of its refusal.
pub(super) async fn log_in(
    http: &Client,
    reach: &Reach,
    credentials: &Credentials,
    repository: &str,
    refusal: &HeaderMap,
) -> Result<Authorization, LoginError> {
    let denied = |why: &str| LoginError::Denied(why.to_owned());
    let wanted =
        || refusal.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let Some(challenge) = wanted().find_map(Challenge::parse) else {
        let basic = |value: &str| value.get(..5).is_some_and(|s| s.eq_ignore_ascii_case("basic"));
        return match credentials {
            Credentials::Password { user, password } if wanted().any(basic) => {
                Ok(Authorization::Password { user: user.clone(), password: password.clone() })
            }
            Credentials::IdentityToken(_) => {
                Err(denied("it does not ask for a token, so that an identity token is of no use"))
            }
            _ => Err(denied("it wants to know who asks")),
        };
    };
    let realm = Url::parse(&challenge.realm).map_err(|_| denied("its token server has no address"));
    let realm = realm.and_then(|realm| match reach.check(&realm) {
        Ok(()) => Ok(realm),
        Err(forbidden) => Err(denied(&format!("its token server: {forbidden}"))),
    })?;
    let scope = format!("repository:{repository}:pull");
    let about = [("service", challenge.service.as_str()), ("scope", scope.as_str())];
    let request = match credentials {
        Credentials::RegistryToken(_) => return Err(denied("it does not take the token")),
        Credentials::IdentityToken(token) => {
            let form = [
                ("grant_type", "refresh_token"),
                ("client_id", "stackd"),
                ("refresh_token", token.as_str()),
            ];
            let mut body = realm.clone();
            body.set_query(None);
            body.query_pairs_mut().extend_pairs(form).extend_pairs(about);
            http.post(realm)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body.query().unwrap_or_default().to_owned())
        }
        Credentials::Anonymous => http.get(realm).query(&about),
        Credentials::Password { user, password } => {
            http.get(realm).query(&about).basic_auth(user, Some(password))
        }
    };
    let fault = |e: reqwest::Error| LoginError::Unreachable(chain(&e.without_url()));
    let answer = request.send().await.map_err(fault)?;
    let status = answer.status();
    if !status.is_success() {
        let text = format!("its token server answered {status}");
        let later = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        return Err(if later { LoginError::Unreachable(text) } else { LoginError::Denied(text) });
    }
    let text = read(answer, MAX_TOKEN_BYTES).await.map_err(fault)?;
    // Too long is cut off, and then not JSON.
    let token: Option<TokenAnswer> = serde_json::from_slice(&text).ok();
    token
        .and_then(|answer| answer.token.or(answer.access_token))
        .map(Authorization::Token)
        .ok_or_else(|| denied("its token server gave no token"))
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    token: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: String,
}

impl Challenge {
    fn parse(header: &str) -> Option<Self> {
        let (scheme, parameters) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |wanted: &str| {
            parameters.split(',').find_map(|pair| {
                let (name, value) = pair.trim().split_once('=')?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim_matches('"').to_owned())
            })
        };
        Some(Self { realm: value("realm")?, service: value("service").unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let challenge = Challenge::parse(r#"Bearer realm="https://t/x",service="s",scope="a:b""#);
        let expected = Challenge { realm: "https://t/x".to_owned(), service: "s".to_owned() };
        assert_eq!(challenge, Some(expected));
        assert_eq!(Challenge::parse(r#"Basic realm="x""#), None);
    }
}
