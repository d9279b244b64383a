//! Talks to one registry or mirror: which scheme, whose credentials, how long, how much, and what an
//! error means, is settled here. Whoever makes a stack may name a registry, so nothing that comes
//! from one is read without a bound.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oci_spec::distribution::Reference;
use parking_lot::Mutex;
use reqwest::header::{ACCEPT, CONTENT_RANGE, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Method, RequestBuilder, Response, StatusCode, Url};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use super::super::config::{ImageConfig, SHORTEST_TIMEOUT};
use super::super::digest::Digest;
use super::super::error::ImageError;
use super::super::load::check_digest;
use super::super::model::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, MAX_DOCUMENT_BYTES, OCI_INDEX, OCI_MANIFEST,
};
use super::super::reference::ImageRef;
use super::auth::{self, Credentials};
use super::reach::{self, Forbidden, Reach, Resolver, is_loopback};
use super::token::{self, Authorization, LoginError};

/// How long a small answer may take.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// By which registries say what they are.
const REGISTRY_HEADER: &str = "docker-distribution-api-version";
/// The most bytes that are read of an answer that says what is wrong.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// How many registries and repositories are remembered; more are begun anew.
const MOST_KEPT: usize = 256;
/// How often one request is sent on.
const MOST_REDIRECTS: usize = 5;

/// Who is asked for an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    pub(super) host: String,
    mirror: bool,
}

impl Endpoint {
    pub(super) fn mirror(host: &str) -> Self {
        Self { host: host.to_owned(), mirror: true }
    }

    pub(super) fn registry(image: &ImageRef) -> Self {
        Self { host: image.oci().resolve_registry().to_owned(), mirror: false }
    }
}

/// Clients that are kept, with their tokens and connections, as long as the credentials stay.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<Endpoint, Kept>>);

#[derive(Clone)]
struct Kept {
    http: Client,
    plain: bool,
    credentials: Credentials,
    reach: Arc<Reach>,
    /// Whether callers may learn what answers there: it is a registry, or nothing that they could
    /// not reach by themselves. Else each of its answers reads as none, so that nobody finds out
    /// by the name of an image which ports of this machine are open.
    is_registry: Arc<AtomicBool>,
    /// What each repository wants to see.
    authorizations: Arc<Mutex<HashMap<String, Authorization>>>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl Sessions {
    pub(super) async fn open(
        &self,
        image: &ImageRef,
        endpoint: &Endpoint,
        config: &ImageConfig,
    ) -> Result<Session, ImageError> {
        let credentials = auth::find(&endpoint.host, config).await?;
        let mut reference = image.oci().clone();
        if endpoint.mirror {
            reference.set_mirror_registry(endpoint.host.clone());
        }
        let kept = self.0.lock().get(endpoint).cloned();
        let kept = match kept.filter(|kept| kept.credentials == credentials) {
            Some(kept) => kept,
            None => {
                let kept = connect(image, endpoint, credentials, config).await?;
                let mut all = self.0.lock();
                if all.len() >= MOST_KEPT {
                    all.clear();
                }
                all.insert(endpoint.clone(), kept.clone());
                kept
            }
        };
        Ok(Session { kept, reference, host: endpoint.host.clone(), what: image.familiar() })
    }

    pub(super) fn forget(&self, endpoint: &Endpoint) {
        self.0.lock().remove(endpoint);
    }
}

/// Makes the process's default TLS provider ring, unless one is set already. Whoever makes a
/// client of `reqwest` without naming a provider needs it.
pub fn install_tls_provider() {
    // An error says that there is one, which is what is wanted.
    let _already = rustls::crypto::ring::default_provider().install_default();
}

async fn connect(
    image: &ImageRef,
    endpoint: &Endpoint,
    credentials: Credentials,
    config: &ImageConfig,
) -> Result<Kept, ImageError> {
    install_tls_provider();
    let authorities = read_authorities(config)?;
    let host = &endpoint.host;
    let configured = credentials != Credentials::Anonymous
        || reach::is_configured(host, config)
        || !endpoint.mirror && reach::is_configured(image.registry(), config);
    let reach = |plain| Arc::new(Reach::new(host, plain, configured, config));
    let insecure = config.insecure_registries.iter().any(|name| name == host);
    let plain = insecure
        || is_loopback(host) && {
            let probe = client(&authorities, reach(false), config)?;
            let limit = config.connect_timeout.max(SHORTEST_TIMEOUT);
            let speaks =
                tokio::time::timeout(limit, speaks_tls(image, host, &probe, configured)).await;
            !speaks.unwrap_or(Ok(false))?
        };
    let reach = reach(plain);
    let http = client(&authorities, Arc::clone(&reach), config)?;
    let is_registry = Arc::new(AtomicBool::new(configured || !is_loopback(host)));
    let authorizations = Arc::default();
    Ok(Kept { http, plain, credentials, reach, is_registry, authorizations })
}

/// A client that goes where it may and follows nobody by itself.
fn client(
    authorities: &[Vec<u8>],
    reach: Arc<Reach>,
    config: &ImageConfig,
) -> Result<Client, ImageError> {
    let mut builder = ClientBuilder::new()
        .read_timeout(config.read_timeout.max(SHORTEST_TIMEOUT))
        .connect_timeout(config.connect_timeout.max(SHORTEST_TIMEOUT))
        .redirect(Policy::none())
        .dns_resolver(Resolver(reach))
        .user_agent(concat!("stackd/", env!("CARGO_PKG_VERSION")));
    for authority in authorities {
        let certificate = reqwest::Certificate::from_der(authority)
            .map_err(|e| ImageError::store(format!("extra_ca in [images]: {}", chain(&e))))?;
        builder = builder.tls_certs_merge([certificate]);
    }
    builder.build().map_err(|e| {
        ImageError::store(format!(
            "no client for registries (are the machine's certificate authorities installed? \
             Debian: apt-get install ca-certificates): {}",
            chain(&e)
        ))
    })
}

fn read_authorities(config: &ImageConfig) -> Result<Vec<Vec<u8>>, ImageError> {
    let mut all = Vec::new();
    for path in &config.extra_ca {
        let wrong = |why: String| {
            ImageError::store(format!("extra_ca in [images]: {}: {why}", path.display()))
        };
        let text = fs::read(path).map_err(|e| wrong(e.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&text) {
            all.push(certificate.map_err(|e| wrong(e.to_string()))?.to_vec());
        }
    }
    Ok(all)
}

/// Tries TLS. A certificate that cannot be trusted is an error and no reason to go on without.
async fn speaks_tls(
    image: &ImageRef,
    host: &str,
    client: &Client,
    configured: bool,
) -> Result<bool, ImageError> {
    match client.get(format!("https://{host}/v2/")).send().await {
        Ok(_) => Ok(true),
        Err(error) => match certificate_fault(&error) {
            Some(fault) => Err(ImageError::Unreachable {
                reference: image.familiar(),
                registry: host.to_owned(),
                // Nobody has said yet that this is a registry.
                why: if configured { UNTRUSTED } else { "" },
                operator: format!(
                    "its certificate is not trusted ({fault}); see extra_ca in [images]"
                ),
            }),
            None => Ok(false),
        },
    }
}

fn certificate_fault(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return match error {
            rustls::Error::InvalidCertificate(fault) => Some(format!("{fault:?}")),
            _ => None,
        };
    }
    // The source of an I/O error is not what it wraps but what is behind that.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    match wrapped {
        Some(inner) => certificate_fault(inner),
        None => certificate_fault(error.source()?),
    }
}

/// What a caller may know of why a registry cannot be reached.
const UNTRUSTED: &str = ": its certificate is not trusted";
const UNKNOWN_NAME: &str = ": its name cannot be resolved";
/// A registry did not send enough, or not in time.
pub(in super::super) const TOO_SLOW: &str = ": it sends too slowly";

/// An error with everything behind it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text.chars().take(2000).collect()
}

/// One image at one registry or mirror.
pub(super) struct Session {
    kept: Kept,
    reference: Reference,
    host: String,
    what: String,
}

/// What a registry says is wrong.
#[derive(Deserialize)]
struct Refusal {
    errors: Vec<RefusalCode>,
}

#[derive(Deserialize)]
struct RefusalCode {
    code: String,
}

/// The start of a blob, or of what is asked for of it.
pub(super) enum Blob {
    /// From the byte that was asked for.
    Rest(Response),
    /// From the start, whatever was asked for.
    Whole(Response),
    /// There is nothing from there on.
    NoSuchRange,
}

impl Session {
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn what(&self) -> &str {
        &self.what
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ImageError>>,
    ) -> Result<T, ImageError> {
        let result = tokio::time::timeout(DOCUMENT_TIMEOUT, work).await;
        result.unwrap_or_else(|_| Err(self.unreachable("it took too long to answer")))
    }

    /// Asks for something of the repository; shows who asks once that is wanted, and anew when a
    /// token has run out.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        dress: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, ImageError> {
        let Kept { http, plain, credentials, reach, authorizations, .. } = &self.kept;
        let repository = self.reference.repository();
        let scheme = if *plain { "http" } else { "https" };
        let mut url = format!("{scheme}://{}/v2/{repository}/{path}", self.host);
        if let Some(namespace) = self.reference.namespace() {
            url = format!("{url}?ns={namespace}");
        }
        let url = Url::parse(&url).map_err(|e| self.unreachable(&format!("{url}: {e}")))?;
        let known = authorizations.lock().get(repository).cloned();
        let mut authorization = known.unwrap_or_else(|| Authorization::unasked(credentials));
        for attempt in 0.. {
            let response = self.send(&method, &url, &authorization, &dress).await?;
            // What somebody else wants to see is none of the registry's.
            let own = response.url().origin() == url.origin();
            if response.status() != StatusCode::UNAUTHORIZED || !own || attempt > 0 {
                return Ok(response);
            }
            let headers = response.headers();
            authorization = token::log_in(http, reach, credentials, repository, headers)
                .await
                .map_err(|error| match error {
                    LoginError::Denied(operator) => self.denied(operator),
                    LoginError::Unreachable(operator) => self.unreachable(&operator),
                })?;
            let mut all = authorizations.lock();
            if all.len() >= MOST_KEPT {
                all.clear();
            }
            all.insert(repository.to_owned(), authorization.clone());
        }
        Err(self.denied("it asks again and again".to_owned()))
    }

    /// Sends a request and goes where the answer leads, as far as that may be. Only the registry
    /// itself is shown who asks.
    async fn send(
        &self,
        method: &Method,
        url: &Url,
        authorization: &Authorization,
        dress: &impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, ImageError> {
        let Kept { http, reach, .. } = &self.kept;
        let mut at = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            reach.check(&at).map_err(|forbidden| self.out_of_reach(&forbidden))?;
            let own = at.origin() == url.origin();
            let request = dress(http.request(method.clone(), at.clone()));
            let request = if own { authorization.show(request) } else { request };
            let response = request.send().await.map_err(|e| self.network(&e))?;
            if own && response.headers().contains_key(REGISTRY_HEADER) {
                self.note_registry();
            }
            let next =
                response.headers().get(LOCATION).filter(|_| response.status().is_redirection());
            let Some(next) = next else { return Ok(response) };
            let next = next.to_str().ok().and_then(|next| at.join(next).ok());
            at = next.ok_or_else(|| self.unreachable("it redirects to what is no address"))?;
        }
        Err(self.unreachable("it redirects again and again"))
    }

    /// Notes that a registry answers there.
    pub(super) fn note_registry(&self) {
        self.kept.is_registry.store(true, Ordering::Relaxed);
    }

    /// An error as callers may learn it: of what is no registry, nothing.
    pub(super) fn told(&self, error: ImageError) -> ImageError {
        match error {
            ImageError::Store { .. } | ImageError::NoRoom { .. } => error,
            _ if self.kept.is_registry.load(Ordering::Relaxed) => error,
            ImageError::Unreachable { operator, .. } => self.unreachable(&operator),
            _ => self.unreachable(&error.operator()),
        }
    }

    /// The answer, where it is one; else what its refusal means for the image.
    async fn accepted(&self, response: Response) -> Result<Response, ImageError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = read(response, MAX_ERROR_BYTES).await.unwrap_or_default();
        let refusal = serde_json::from_slice::<Refusal>(&body).ok();
        if refusal.is_some() {
            self.note_registry();
        }
        let code = refusal.and_then(|refusal| Some(refusal.errors.into_iter().next()?.code));
        let code = code.unwrap_or_default();
        let operator = format!("it answered {status} {}", code.escape_default());
        Err(match (status, code.as_str()) {
            (_, "UNAUTHORIZED" | "DENIED")
            | (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => self.denied(operator),
            (_, "MANIFEST_UNKNOWN" | "NAME_UNKNOWN" | "BLOB_UNKNOWN" | "MANIFEST_BLOB_UNKNOWN")
            | (StatusCode::NOT_FOUND, _) => {
                ImageError::NotFound { reference: self.what.clone(), registry: self.host.clone() }
            }
            (_, "NAME_INVALID") => {
                ImageError::refused(&self.what, "its registry does not accept the name")
            }
            _ => self.unreachable(operator.trim_end()),
        })
    }

    /// What the reference stands for now.
    pub(super) async fn digest(&self) -> Result<Digest, ImageError> {
        let work = async {
            let path = self.manifest_path(None);
            let response = self.ask(Method::HEAD, &path, accepting).await?;
            let response = self.accepted(response).await?;
            let told = response.headers().get("docker-content-digest");
            told.and_then(|value| value.to_str().ok())
                .map(|digest| digest.parse().map_err(|e| ImageError::invalid_digest(&self.what, e)))
                .transpose()
        };
        match self.in_time(work).await? {
            Some(digest) => Ok(digest),
            None => self.manifest(None).await.map(|text| Digest::of(&text)),
        }
    }

    fn manifest_path(&self, pinned: Option<Digest>) -> String {
        let own =
            || self.reference.digest().or(self.reference.tag()).unwrap_or("latest").to_owned();
        format!("manifests/{}", pinned.map_or_else(own, |digest| digest.to_string()))
    }

    /// The manifest or index of the reference, or of a digest in the same repository.
    pub(super) async fn manifest(&self, pinned: Option<Digest>) -> Result<Vec<u8>, ImageError> {
        let work = async {
            let response = self.ask(Method::GET, &self.manifest_path(pinned), accepting).await?;
            let response = self.accepted(response).await?;
            let text = read(response, MAX_DOCUMENT_BYTES + 1).await;
            text.map_err(|error| self.network(&error))
        };
        let text = self.in_time(work).await?;
        if text.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(ImageError::refused(&self.what, "its manifest is too large"));
        }
        if let Some(expected) = pinned {
            check_digest(&format!("the manifest of {}", self.what), &text, expected)?;
        }
        Ok(text)
    }

    /// A small blob, whole.
    pub(super) async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let what = format!("the configuration of {}", self.what);
        if descriptor.size > MAX_DOCUMENT_BYTES {
            return Err(ImageError::refused(what, "it is too large"));
        }
        let work = async {
            match self.blob_from(descriptor.digest, 0).await? {
                Blob::Whole(response) | Blob::Rest(response) => {
                    read(response, descriptor.size + 1).await.map_err(|e| self.network(&e))
                }
                Blob::NoSuchRange => Ok(Vec::new()),
            }
        };
        let text = self.in_time(work).await?;
        check_digest(&what, &text, descriptor.digest)?;
        Ok(text)
    }

    /// A blob, from some byte on where the registry can do that.
    pub(super) async fn blob_from(&self, blob: Digest, offset: u64) -> Result<Blob, ImageError> {
        let from = |request: RequestBuilder| match offset {
            0 => request,
            offset => request.header(RANGE, format!("bytes={offset}-")),
        };
        let response = self.ask(Method::GET, &format!("blobs/{blob}"), from).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(Blob::NoSuchRange);
        }
        let response = self.accepted(response).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(Blob::Whole(response));
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        match range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-"))) {
            true => Ok(Blob::Rest(response)),
            false => Err(self.unreachable("it sent another range than was asked for")),
        }
    }

    fn denied(&self, operator: String) -> ImageError {
        ImageError::Denied { reference: self.what.clone(), registry: self.host.clone(), operator }
    }

    pub(super) fn unreachable(&self, operator: &str) -> ImageError {
        self.not_reached("", operator.to_owned())
    }

    pub(super) fn not_reached(&self, why: &'static str, operator: String) -> ImageError {
        let (reference, registry) = (self.what.clone(), self.host.clone());
        ImageError::Unreachable { reference, registry, why, operator }
    }

    fn out_of_reach(&self, forbidden: &Forbidden) -> ImageError {
        let (reference, registry) = (self.what.clone(), self.host.clone());
        let why = match forbidden {
            Forbidden::Inner(_) => "it leads to an address that is not public",
            Forbidden::Plain(_) => "it leads to where there is no TLS",
        };
        ImageError::OutOfReach { reference, registry, why, operator: forbidden.to_string() }
    }

    /// What became of a connection.
    pub(super) fn network(&self, error: &reqwest::Error) -> ImageError {
        if let Some(forbidden) = reach::forbidden(error) {
            return self.out_of_reach(forbidden);
        }
        let text = chain(error);
        let why = match certificate_fault(error) {
            Some(_) => UNTRUSTED,
            None if text.contains("dns error") => UNKNOWN_NAME,
            None => "",
        };
        self.not_reached(why, text)
    }
}

fn accepting(request: RequestBuilder) -> RequestBuilder {
    request.header(ACCEPT, [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", "))
}

/// Reads an answer, but no more than this.
pub(super) async fn read(mut response: Response, most: u64) -> Result<Vec<u8>, reqwest::Error> {
    let mut text = Vec::new();
    let left = |text: &Vec<u8>| usize::try_from(most).unwrap_or(usize::MAX) - text.len();
    while left(&text) > 0 {
        let Some(chunk) = response.chunk().await? else { break };
        text.extend_from_slice(&chunk[..chunk.len().min(left(&text))]);
    }
    Ok(text)
}
