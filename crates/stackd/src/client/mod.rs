//! The API, called over HTTP, with its refusals turned into exit codes and hints.

pub(crate) mod challenge;
pub(crate) mod stack;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;

use crate::config::{self, Environment, Given};
use crate::exit::{Exit, Failure};
use crate::local::data_dir::DataDir;

/// TLS is by `ring` throughout; the libraries want that said once for a process.
pub(crate) fn use_ring() {
    // A second call finds the first one's provider, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Which server, and who asks.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server's address
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "STACKD_SERVER",
        default_value = "http://127.0.0.1:8080"
    )]
    server: String,
    /// The API key. Without it, and with a server on this machine, the one in the data directory
    /// is used where it can be read
    #[arg(long, global = true, value_name = "KEY", env = "STACKD_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// A file with certificate authorities (PEM) to trust besides the machine's own
    #[arg(long, global = true, value_name = "FILE", env = "STACKD_CACERT")]
    cacert: Option<PathBuf>,
}

/// A server's API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: Url,
    key: Option<String>,
}

/// How long an answer may take that does not wait for anything.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

impl Api {
    pub(crate) fn new(args: &ServerArgs, environment: &Environment) -> anyhow::Result<Self> {
        use_ring();
        let base = Url::parse(&args.server)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| {
                Failure::new(Exit::Usage, format!("{:?} is not a server's address", args.server))
                    .hint("write it as http://127.0.0.1:8080 (--server or STACKD_SERVER)")
            })?;
        let given = args.api_key.as_deref().map(str::trim).filter(|key| !key.is_empty());
        let key = given.map(str::to_owned).or_else(|| local_key(&base, environment));
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            // WebSockets begin as HTTP/1.1.
            .http1_only()
            .user_agent(concat!("stackd/", env!("CARGO_PKG_VERSION")));
        let authorities = match &args.cacert {
            Some(path) => authorities(path)?,
            None => Vec::new(),
        };
        let http = match base.scheme() {
            // Where the system has no authorities, as in an image from scratch, none are missed.
            "http" => http.tls_certs_only(authorities),
            _ => http.tls_certs_merge(authorities),
        };
        let http = http.build().context("the HTTP client cannot start")?;
        Ok(Self { http, base, key })
    }

    /// A call of a path below the server's address, the parts of which are escaped.
    pub(crate) fn request(&self, method: Method, parts: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.header("X-API-KEY", key),
            None => request,
        }
    }

    /// Sends a call; the answer's body is still to come.
    pub(crate) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let body = response.text().await.unwrap_or_default();
        let text = serde_json::from_str::<Value>(&body)
            .ok()
            .and_then(|body| said(&body))
            .unwrap_or_else(|| format!("{} answered {status}", self.base));
        Err(refused(status, text, self.key.is_some()).into())
    }

    /// Sends a call and reads the answer.
    pub(crate) async fn json(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        self.read(response).await
    }

    /// Reads an answer.
    pub(crate) async fn read(&self, response: Response) -> anyhow::Result<Value> {
        let text = response.text().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_str(&text).map_err(|_| {
            Failure::new(Exit::Unreachable, format!("{} did not answer with JSON", self.base))
                .hint("is that a stackd server? --server or STACKD_SERVER names another")
                .into()
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let what = if error.is_timeout() { "does not answer in time" } else { "cannot be reached" };
        let failure = Failure::new(Exit::Unreachable, format!("{} {what}: {cause}", self.base));
        let cause = cause.to_string();
        let hint = if cause.contains("CaUsedAsEndEntity") {
            "its certificate says that it is an authority, and no client may take such a one: make it \
             anew with `openssl req -x509 -addext basicConstraints=critical,CA:FALSE …`"
        } else if cause.contains("certificate") {
            "a certificate authority of your own is named with --cacert or STACKD_CACERT, or with \
             SSL_CERT_FILE in place of the machine's"
        } else if self.base.scheme() == "http" && cause.contains("invalid HTTP version") {
            "it may speak HTTPS: write https:// in --server or STACKD_SERVER"
        } else if error.is_connect() {
            "start it with `stackd serve`, or name another with --server or STACKD_SERVER"
        } else {
            "the server's log says more"
        };
        failure.hint(hint).into()
    }
}

/// The certificates in a PEM file.
fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, Failure> {
    let failure = |why: String| {
        Failure::new(Exit::Config, format!("{}: {why}", path.display()))
            .hint("--cacert or STACKD_CACERT names a PEM file of certificate authorities")
    };
    let pem = std::fs::read(path).map_err(|error| failure(error.to_string()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem)
        .map_err(|_| failure("a certificate in it cannot be read".to_owned()))?;
    if found.is_empty() {
        return Err(failure("there is no certificate in it".to_owned()));
    }
    Ok(found)
}

/// The key in this machine's data directory, which goes to a server of this machine only.
fn local_key(base: &Url, environment: &Environment) -> Option<String> {
    let host = base.host_str()?.trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if !local {
        return None;
    }
    let default_file = Path::new(config::DEFAULT_FILE);
    let config = config::load(&Given::default(), environment, default_file).ok()?;
    let data = DataDir::existing(&config.data_dir).ok()?;
    let key = std::fs::read_to_string(data.api_key()).ok()?;
    Some(key.trim().to_owned()).filter(|key| !key.is_empty())
}

/// What a refusal says: `error`, or `detail`, which may be a list of all that is wrong.
fn said(body: &Value) -> Option<String> {
    if let Some(text) = body.get("error").or(body.get("detail")).and_then(Value::as_str) {
        return Some(text.to_owned());
    }
    let problems = body.get("detail")?.as_array()?;
    let texts: Vec<_> = problems.iter().filter_map(|one| one.get("msg")?.as_str()).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// What a refusal means for the exit code, and what to do about it.
fn refused(status: StatusCode, text: String, has_key: bool) -> Failure {
    let exit = match status.as_u16() {
        401 | 403 => Exit::Denied,
        404 => Exit::NotFound,
        400..500 => Exit::Rejected,
        503 => Exit::Saturated,
        _ => Exit::Failed,
    };
    let failure = Failure::new(exit, text.clone());
    match status.as_u16() {
        401 if has_key => failure.hint(
            "the key is not good here: `stackd key list` on the server shows which ones are",
        ),
        401 => failure
            .hint("give a key with --api-key or STACKD_API_KEY")
            .hint("on the server's machine it is in <data-dir>/api-key; `stackd key create` makes another"),
        403 if text.contains("invalid api key") => failure.hint(
            "the key is not good here: `stackd key list` on the server shows which ones are",
        ),
        403 => failure.hint("`stackd key create NAME --allow exec` makes a key that may"),
        404 if text.starts_with("stack ") => {
            failure.hint("`stackd stack list` shows the stacks that are there")
        }
        404 if text.starts_with("challenge ") => {
            failure.hint("`stackd challenge list` shows the challenges that are there")
        }
        503 if text.contains("nodeport") => {
            failure.hint("delete stacks, or widen --node-port-range on the server")
        }
        503 if text.contains("saturated") => failure.hint(
            "delete stacks, ask for less CPU, memory or disk, or try again later",
        ),
        500.. => failure.hint("the server's log says more"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_code() {
        for (status, text, exit) in [
            (401, "invalid api key", Exit::Denied),
            (403, "this api key may not", Exit::Denied),
            (404, "stack not found", Exit::NotFound),
            (400, "invalid pod spec: kind must be Pod", Exit::Rejected),
            (422, "another body", Exit::Rejected),
            (503, "no available nodeport", Exit::Saturated),
            (500, "internal server error", Exit::Failed),
        ] {
            let failure = refused(StatusCode::from_u16(status).unwrap(), text.to_owned(), true);
            assert_eq!((failure.exit(), failure.to_string()), (exit, text.to_owned()));
        }
    }

    #[test]
    fn a_local_key_goes_to_this_machine_only() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("api-key"), "secret\n").unwrap();
        let path = dir.path().to_str().unwrap();
        let environment = Environment::from([("STACKD_DATA_DIR", path)]);
        let key = |url: &str| local_key(&Url::parse(url).unwrap(), &environment);
        for url in ["http://127.0.0.1:8080", "http://[::1]:1", "https://localhost"] {
            assert_eq!(key(url).as_deref(), Some("secret"), "{url}");
        }
        for url in ["http://10.0.0.1", "https://stackd.example", "http://localhost.example"] {
            assert_eq!(key(url), None, "{url}");
        }
    }
}
