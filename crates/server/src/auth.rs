//! Who calls: an API key in the `X-API-KEY` header or the `api_key` parameter of the query.
//!
//! It is decided before anything of the request's body is read. The key itself never leaves this
//! module: what goes on is the name of its record.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use stackd_store::{ApiKey, Permission};

use crate::fault::Fault;
use crate::replicas::Form;
use crate::{ServerState, replicas};

/// The header that carries a key.
pub(crate) const KEY_HEADER: &str = "x-api-key";
/// The parameter of the query that carries a key.
pub(crate) const KEY_PARAMETER: &str = "api_key";

/// Who sent a request that was let in.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Option<Arc<ApiKey>>);

impl Caller {
    /// The key's name, for which starts are shared out where a request names no owner.
    pub(crate) fn name(&self) -> &str {
        self.0.as_ref().map_or("anonymous", |key| &key.name)
    }

    /// What tells the caller from every other one that there is or ever was. It gives nothing away.
    pub(crate) fn identity(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |key| hex::encode(key.hash))
    }

    /// Whether the caller may do this. With authentication off, everybody who can connect may.
    pub(crate) fn may(&self, permission: Permission) -> bool {
        self.0.as_ref().is_none_or(|key| key.permissions.contains(&permission))
    }
}

/// Lets a request in whose caller `authenticate` knows, and says who that is. A refusal has this form.
///
/// The order is meant: a replica that is behind knows of no revoked key, and nothing is passed on for
/// somebody who is not let in.
pub(crate) async fn admit(
    state: &ServerState,
    mut request: Request,
    next: Next,
    form: Form,
    authenticate: fn(&ServerState, &Request) -> Result<Caller, Fault>,
) -> Response {
    if let Err(behind) = state.engine().in_step().await {
        return form(Fault::from(behind)).into_response();
    }
    match authenticate(state, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            replicas::forward(state, form, request, next).await
        }
        Err(fault) => form(fault).into_response(),
    }
}

/// Who sent a request with these headers.
pub(crate) fn authenticate(
    state: &ServerState,
    dialect: &'static str,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Caller, Fault> {
    if !state.config().auth {
        return local_only(state, headers, uri).map(|()| Caller(None));
    }
    let key = secret(headers, uri).and_then(|secret| state.engine().keys().authenticate(&secret));
    let good =
        |key: &Arc<ApiKey>| key.dialects.is_empty() || key.dialects.iter().any(|d| d == dialect);
    match key.filter(good) {
        Some(key) => Ok(Caller(Some(key))),
        None => Err(Fault::new(StatusCode::UNAUTHORIZED, "invalid api key")),
    }
}

/// The key of a request; the header wins, and what is blank counts as not there.
pub(crate) fn secret(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let given = |text: &str| Some(text.trim()).filter(|t| !t.is_empty()).map(str::to_owned);
    let header = headers.get(KEY_HEADER).map(|value| {
        // A key in another encoding is a wrong one, not a missing one.
        value.to_str().unwrap_or("\u{fffd}")
    });
    header.and_then(given).or_else(|| {
        form_urlencoded::parse(uri.query()?.as_bytes())
            .filter(|(name, _)| name == KEY_PARAMETER)
            .find_map(|(_, value)| given(&value))
    })
}

/// Without keys, the listeners are on loopback, and yet a web page in a browser on this machine
/// can send requests there: by its own origin, or by a name that it made resolve to loopback.
/// Neither is let in.
pub(crate) fn local_only(state: &ServerState, headers: &HeaderMap, uri: &Uri) -> Result<(), Fault> {
    let host = match headers.get(HOST) {
        Some(value) => value.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        None => uri.authority().cloned(),
    };
    let host_is_local = match (&host, headers.contains_key(HOST)) {
        (Some(authority), _) => is_local(authority.host()),
        (None, given) => !given,
    };
    let origin_is_local = headers.get(ORIGIN).is_none_or(|origin| {
        let authority = origin.to_str().ok().and_then(|origin| {
            origin.split_once("://").and_then(|(_, host)| host.parse::<Authority>().ok())
        });
        let listed = state.config().cors_origins.iter().any(|o| o.as_bytes() == origin.as_bytes());
        listed || authority.is_some_and(|authority| is_local(authority.host()))
    });
    if host_is_local && origin_is_local {
        return Ok(());
    }
    let text = "authentication is off, so only requests from this machine to localhost, 127.0.0.1 \
                or [::1] are answered; use such an address, or turn authentication on";
    Err(Fault::new(StatusCode::FORBIDDEN, text))
}

fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn secret_of(header: Option<&str>, uri: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(KEY_HEADER, HeaderValue::from_str(value).unwrap());
        }
        secret(&headers, &uri.parse().unwrap())
    }

    #[test]
    fn the_header_wins_unless_it_is_blank() {
        assert_eq!(secret_of(Some("h"), "/?api_key=q").as_deref(), Some("h"));
        assert_eq!(secret_of(Some("  h "), "/").as_deref(), Some("h"));
        assert_eq!(secret_of(Some(""), "/?api_key=q").as_deref(), Some("q"));
        assert_eq!(secret_of(Some("   "), "/?api_key=+q%20").as_deref(), Some("q"));
        assert_eq!(secret_of(None, "/?a=1&api%5Fkey=q%2B").as_deref(), Some("q+"));
        assert_eq!(secret_of(None, "/?api_key=%20"), None);
        assert_eq!(secret_of(None, "/"), None);
    }

    #[test]
    fn local_names_are_those_of_this_machine() {
        for host in ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["example.org", "localhost.example.org", "10.0.0.1", "[::2]", ""] {
            assert!(!is_local(host), "{host}");
        }
    }
}
