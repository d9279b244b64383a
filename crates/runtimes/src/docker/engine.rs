//! The connection to the engine, and what its failures mean.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use stackd_core::RuntimeError;
use stackd_core::runtime::ErrorKind;
use stackd_core::stack::{Condition, reason};

use super::config::DockerConfig;
use crate::images;

/// How long the engine may take to answer. A container that ends slowly is asked for in the call
/// itself, so this is more than the longest grace.
const PATIENCE_SECONDS: u64 = 90;

/// The engine cannot be used. The texts are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The settings do not name one.
    #[error("{0}")]
    Settings(String),
    /// It does not answer.
    #[error("the Docker engine at {host} cannot be reached: {cause}")]
    Unreachable {
        /// Where it was looked for.
        host: String,
        /// What happened.
        cause: String,
    },
    /// It lacks what is needed.
    #[error("the Docker engine at {host} {lack}")]
    Unfit {
        /// Which.
        host: String,
        /// What it lacks.
        lack: String,
    },
    /// Something on this machine.
    #[error("{0}")]
    Machine(#[from] std::io::Error),
}

impl EngineError {
    /// What is to become of a server whose engine did not do something at its start.
    pub(super) fn of(host: &str, lack: &str, error: &RuntimeError) -> Self {
        let host = host.to_owned();
        match error.kind {
            ErrorKind::Retry => Self::Unreachable { host, cause: error.operator.clone() },
            _ => Self::Unfit { host, lack: format!("{lack}: {}", error.operator) },
        }
    }
}

/// Connects, and agrees on a version of the API.
pub(super) async fn connect(config: &DockerConfig) -> Result<Docker, EngineError> {
    let host = config.host.as_str();
    let unreachable =
        |e: Error| EngineError::Unreachable { host: host.to_owned(), cause: chain(&e) };
    let tls = match (config.socket(), &config.tls_ca, &config.tls_cert, &config.tls_key) {
        (Some(_), ..) | (None, None, None, None) => None,
        (None, Some(ca), Some(cert), Some(key)) => Some(tls(ca, cert, key)?),
        // Whoever has set one of them does not mean clear text.
        _ => {
            let text = "--docker-tls-ca, --docker-tls-cert and --docker-tls-key go together: set \
                        all of them to speak to the engine by TLS, or none to do so in clear text";
            return Err(EngineError::Settings(text.to_owned()));
        }
    };
    let docker = match (config.socket(), tls) {
        (Some(path), _) => Docker::connect_with_unix(path, PATIENCE_SECONDS, API_DEFAULT_VERSION),
        (None, Some(tls)) => {
            let mut tcp = HttpConnector::new();
            tcp.enforce_http(false);
            // As the library does it by its other ways: no connection outlives its call.
            let client = Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(HttpsConnector::from((tcp, tls)));
            let transport = move |request: BollardRequest| {
                let answer = client.request(request);
                async move { answer.await.map_err(Error::from) }
            };
            let place = host.split_once("://").map_or(host, |(_, place)| place);
            let url = Some(format!("https://{}", place.trim_end_matches('/')));
            Docker::connect_with_custom_transport(
                transport,
                url,
                PATIENCE_SECONDS,
                API_DEFAULT_VERSION,
            )
        }
        (None, None) if host.starts_with("tcp://") || host.starts_with("http://") => {
            Docker::connect_with_http(host, PATIENCE_SECONDS, API_DEFAULT_VERSION)
        }
        _ => {
            let text = format!(
                "{host:?} does not name a Docker engine: unix:///path/docker.sock or \
                 tcp://host:port is expected"
            );
            return Err(EngineError::Settings(text));
        }
    };
    let docker = docker.map_err(unreachable)?.with_request_modifier(url_safe_credentials);
    let negotiated = tokio::time::timeout(Duration::from_secs(10), docker.negotiate_version());
    match negotiated.await {
        Ok(result) => result.map_err(unreachable),
        Err(_) => Err(EngineError::Unreachable {
            host: host.to_owned(),
            cause: "it does not answer".to_owned(),
        }),
    }
}

/// What an engine elsewhere is spoken to with. It trusts the authority that is named and no other, not
/// those of this machine: whoever any of them has certified would be told the secrets of stacks.
fn tls(ca: &Path, cert: &Path, key: &Path) -> Result<ClientConfig, EngineError> {
    let wrong = |path: &Path, why: &dyn std::fmt::Display| {
        EngineError::Settings(format!("{}: {why}", path.display()))
    };
    let certificates = |path: &Path| -> Result<Vec<_>, EngineError> {
        CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| wrong(path, &error))
    };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(ca)?);
    if added == 0 {
        return Err(wrong(ca, &"there is no certificate in it"));
    }
    let shown = certificates(cert)?;
    let own = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(roots))
        .and_then(|builder| builder.with_client_auth_cert(shown, own))
        .map_err(|error| wrong(cert, &error))
}

/// The engine reads credentials in the alphabet for addresses, and takes those that it cannot read
/// for none.
fn url_safe_credentials(mut request: BollardRequest) -> BollardRequest {
    const HEADER: &str = "x-registry-auth";
    let safe = request.headers().get(HEADER).and_then(|value| {
        let text = value.to_str().ok()?.replace('+', "-").replace('/', "_");
        text.parse().ok()
    });
    if let Some(safe) = safe {
        request.headers_mut().insert(HEADER, safe);
    }
    request
}

/// The address of an engine elsewhere, at which the ports that it publishes are reached.
pub(super) async fn address(config: &DockerConfig) -> Result<Option<IpAddr>, EngineError> {
    if config.is_here() {
        return Ok(None);
    }
    let rest = config.host.split_once("://").map_or(config.host.as_str(), |(_, rest)| rest);
    let rest = rest.trim_end_matches('/');
    let looked_up = tokio::net::lookup_host(rest).await.map(|mut found| found.next());
    match looked_up {
        Ok(Some(address)) => Ok(Some(address.ip())),
        _ => Err(EngineError::Settings(format!("{rest:?} is not a host and port"))),
    }
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The status and words of an answer that refuses.
pub(super) fn answer(error: &Error) -> Option<(u16, &str)> {
    match error {
        Error::DockerResponseServerError { status_code, message } => Some((*status_code, message)),
        _ => None,
    }
}

/// Whether it says that there is no such thing.
pub(super) fn is_absent(error: &Error) -> bool {
    matches!(answer(error), Some((404, _)))
}

/// A result in which what is not there counts as done.
pub(super) fn unless_absent(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(e) if is_absent(&e) => Ok(()),
        other => other,
    }
}

/// Whether an engine that answers says that it cannot work now: it is being stopped, or what it
/// runs containers with is.
fn is_passing(status: u16, message: &str) -> bool {
    let words = [
        "shutdown",
        "shutting down",
        "context canceled",
        "code = unavailable",
        "connection is closing",
        "connection error",
        "connection refused",
        "ttrpc: closed",
    ];
    let message = message.to_ascii_lowercase();
    matches!(status, 500 | 503) && words.iter().any(|word| message.contains(word))
}

/// A failure that is not about what the caller asked for.
pub(super) fn fault(doing: &str, error: &Error) -> RuntimeError {
    let operator = format!("{doing}: {}", chain(error));
    match answer(error) {
        Some((status, message)) if is_passing(status, message) => away(operator),
        Some(_) => {
            let text = "the Docker engine could not start the containers";
            RuntimeError::new(
                ErrorKind::Failed,
                Condition::new(reason::START_ERROR, text),
                operator,
            )
        }
        None => away(operator),
    }
}

/// The engine does not answer.
pub(super) fn away(operator: impl Into<String>) -> RuntimeError {
    let text = "the Docker engine cannot be reached; it is tried again";
    RuntimeError::new(ErrorKind::Retry, Condition::new(reason::RETRYING, text), operator)
}

/// A failure of this machine.
pub(super) fn failed(operator: impl Into<String>) -> RuntimeError {
    let text = "the machine could not start the containers";
    RuntimeError::new(ErrorKind::Failed, Condition::new(reason::START_ERROR, text), operator)
}

/// What a start was refused for, in words for the caller.
pub(super) fn refused_start(container: &str, doing: &str, error: &Error) -> RuntimeError {
    let Some((status, message)) = answer(error) else { return fault(doing, error) };
    let operator = format!("{doing}: {}", chain(error));
    if message.contains("No command specified") || message.contains("no command specified") {
        let text = images::no_command(container);
        return RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text);
    }
    // What the container's own program, user or directory is wrong in comes after these words.
    let own = ["exec: ", "unable to find user", "unable to find group", "no matching entries in"];
    let cut = |at: usize| message[at..].trim_end_matches(": unknown").to_owned();
    if let Some(at) = own.iter().find_map(|words| message.find(words)) {
        let text = format!("container \"{container}\" could not be started: {}", cut(at));
        return RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text);
    }
    if status == 400 {
        let text = format!("container \"{container}\" was refused by the Docker engine: {message}");
        return RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text);
    }
    fault(doing, &Error::DockerResponseServerError { status_code: status, message: operator })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_of_tls_is_never_taken_for_none() {
        // The worst first: all that a client shows, and nothing to know the engine by.
        for given in (1..7_u8).rev() {
            let file = |bit: u8| (given & bit != 0).then(|| "file.pem".into());
            let config = DockerConfig {
                // Nobody is there.
                host: "tcp://127.0.0.1:1".to_owned(),
                tls_ca: file(1),
                tls_cert: file(2),
                tls_key: file(4),
                ..DockerConfig::default()
            };
            let refused = connect(&config).await.unwrap_err();
            assert!(matches!(refused, EngineError::Settings(_)), "{given}: {refused}");
            for name in ["--docker-tls-ca", "--docker-tls-cert", "--docker-tls-key"] {
                assert!(refused.to_string().contains(name), "{given}: {refused}");
            }
        }
    }

    #[test]
    fn an_engine_that_cannot_work_now_is_asked_again() {
        let kind = |status_code, message: &str| {
            let message = message.to_owned();
            fault("try", &Error::DockerResponseServerError { status_code, message }).kind
        };
        for message in [
            "transport: Error while dialing dial unix /run/containerd.sock: connect: connection \
             refused: unknown",
            "rpc error: code = Unavailable desc = transport is closing",
            "the server is shutting down",
        ] {
            assert_eq!(kind(500, message), ErrorKind::Retry, "{message}");
        }
        assert_eq!(kind(503, "Engine shutdown in progress"), ErrorKind::Retry);
        assert_eq!(kind(500, "failed to create task for container: no space"), ErrorKind::Failed);
        assert_eq!(kind(409, "connection refused"), ErrorKind::Failed);
    }
}
