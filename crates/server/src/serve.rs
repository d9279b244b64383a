//! From a listener to the router: connections, TLS, limits of time and number, and a graceful end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures_util::FutureExt;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::config::{ConfigError, ServerConfig, is_loopback};
use crate::pinned;

/// The certificate and key of a server.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    fingerprint: String,
}

/// The server could not begin to serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings do not allow it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A listener does not know its address.
    #[error("a listener has no address")]
    Listener(#[source] io::Error),
    /// The certificate chain cannot be read.
    #[error("the certificate {path} cannot be read; it must be a PEM file")]
    Certificate {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The private key cannot be read.
    #[error("the private key {path} cannot be read; it must be an unencrypted PEM file")]
    PrivateKey {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The certificate and the key do not go together, or are of an unknown kind.
    #[error("the certificate and the key cannot be used")]
    Tls(#[from] rustls::Error),
}

impl Tls {
    /// Reads a certificate chain and its private key from PEM files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, ServeError> {
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|source| ServeError::Certificate {
                path: certificate.display().to_string(),
                source,
            })?;
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|source| ServeError::PrivateKey { path: key.display().to_string(), source })?;
        let fingerprint = chain.first().map(pinned::fingerprint).unwrap_or_default();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), fingerprint })
    }

    /// SHA-256 of the certificate, in hexadecimal: what other replicas know it by.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// The connection that a request came by.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// The address that the listener is bound to.
    pub(crate) listener: SocketAddr,
    /// Its place among the connections that are allowed at once. What outlives the exchange of
    /// requests (a WebSocket) keeps a clone of this.
    _place: Arc<OwnedSemaphorePermit>,
}

/// Serves until `stopping` is cancelled, and for as long after that as is configured, then lets
/// requests under way end within the configured time. The same token should be the one of the router's state, so that streams end with it.
pub async fn serve(
    router: Router,
    listeners: Vec<TcpListener>,
    tls: Option<Tls>,
    config: &ServerConfig,
    stopping: CancellationToken,
) -> Result<(), ServeError> {
    let addresses = listeners
        .iter()
        .map(|listener| listener.local_addr())
        .collect::<Result<Vec<_>, _>>()
        .map_err(ServeError::Listener)?;
    config.check_listeners(&addresses)?;
    if let Some(open) = addresses.iter().find(|a| tls.is_none() && !is_loopback(a)) {
        tracing::warn!(address = %open, "keys and answers cross the network unencrypted: set a TLS certificate, or put a TLS proxy in front");
    }

    let server = Server { router, tls, http: http(config), header_timeout: config.header_timeout };
    let room = Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS)));
    let closing = CancellationToken::new();
    let mut accepting = JoinSet::new();
    let mut connections = JoinSet::new();
    let (accepted, mut arrivals) = mpsc::channel(1);
    let closed = {
        let delay = config.shutdown_delay;
        async move {
            stopping.cancelled().await;
            tokio::time::sleep(delay).await;
        }
        .shared()
    };
    for (listener, address) in listeners.into_iter().zip(addresses) {
        let accept = accept(listener, address, Arc::clone(&room), accepted.clone());
        let closed = closed.clone();
        accepting.spawn(async move {
            tokio::select! {
                () = accept => {}
                () = closed => {}
            }
        });
    }
    drop(accepted);
    while let Some((stream, connection)) = arrivals.recv().await {
        connections.spawn(server.clone().connection(stream, connection, closing.clone()));
        while connections.try_join_next().is_some() {}
    }
    // Every listener is closed by now: each held one end of the channel.
    closing.cancel();
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(config.shutdown_timeout, ended).await.is_err() {
        tracing::warn!(left = connections.len(), "requests under way did not end in time");
    }
    connections.shutdown().await;
    Ok(())
}

fn http(config: &ServerConfig) -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(config.header_timeout);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(200)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    http
}

async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    room: Arc<Semaphore>,
    accepted: mpsc::Sender<(TcpStream, Connection)>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, or a peer that went away: neither goes away by hurrying.
            Err(error) => {
                tracing::warn!(%error, %address, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        // The semaphore is never closed, the channel only when the server is gone.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let connection = Connection { listener: address, _place: Arc::new(place) };
        if accepted.send((stream, connection)).await.is_err() {
            return;
        }
    }
}

#[derive(Clone)]
struct Server {
    router: Router,
    tls: Option<Tls>,
    http: Builder<TokioExecutor>,
    header_timeout: Duration,
}

impl Server {
    async fn connection(
        self,
        stream: TcpStream,
        connection: Connection,
        closing: CancellationToken,
    ) {
        let Some(Tls { acceptor: tls, .. }) = &self.tls else {
            return self.exchange(stream, connection, closing).await;
        };
        let handshake = tokio::time::timeout(self.header_timeout, tls.accept(stream));
        match closing.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => self.exchange(stream, connection, closing).await,
            Some(Ok(Err(error))) => tracing::debug!(%error, "a TLS handshake failed"),
            Some(Err(_)) => tracing::debug!("a TLS handshake took too long"),
            None => {}
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        connection: Connection,
        closing: CancellationToken,
    ) {
        let requests = Arc::new(Requests::new());
        let service = hyper::service::service_fn({
            let (router, requests) = (self.router.clone(), Arc::clone(&requests));
            move |mut request: hyper::Request<Incoming>| {
                let counted = UnderWay::new(&requests);
                request.extensions_mut().insert(connection.clone());
                let answer = router.clone().oneshot(request.map(Body::new));
                async move {
                    let answer: Response = answer.await.unwrap_or_else(|e| match e {});
                    Ok::<_, Infallible>(answer.map(|body| Counted { body, _counted: counted }))
                }
            }
        });
        let exchange =
            self.http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let (mut exchange, mut closing) = (pin!(exchange), pin!(closing.cancelled()));
        let mut look = pin!(tokio::time::sleep(self.header_timeout));
        let mut is_ending = false;
        loop {
            tokio::select! {
                ended = exchange.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended early");
                    }
                    return;
                }
                () = closing.as_mut(), if !is_ending => {}
                () = look.as_mut() => {
                    let idle_at = requests.idle_since() + self.header_timeout;
                    if idle_at > Instant::now() {
                        look.as_mut().reset(idle_at);
                        continue;
                    }
                    if is_ending {
                        return tracing::debug!("an idle connection does not end by itself");
                    }
                }
            }
            is_ending = true;
            exchange.as_mut().graceful_shutdown();
            look.as_mut().reset(Instant::now() + self.header_timeout);
        }
    }
}

/// How busy a connection is. Requests only count here, and wake nobody: it is looked at when the
/// connection could have been idle for long enough.
struct Requests {
    begun: Instant,
    under_way: AtomicUsize,
    /// When the last one ended, in microseconds since the beginning.
    ended: AtomicU64,
}

impl Requests {
    fn new() -> Self {
        Self { begun: Instant::now(), under_way: AtomicUsize::new(0), ended: AtomicU64::new(0) }
    }

    /// Since when nothing is under way; now where something is.
    fn idle_since(&self) -> Instant {
        match self.under_way.load(Ordering::Acquire) {
            0 => self.begun + Duration::from_micros(self.ended.load(Ordering::Acquire)),
            _ => Instant::now(),
        }
    }
}

/// A request that counts as under way until its answer is sent.
struct UnderWay(Arc<Requests>);

impl UnderWay {
    fn new(requests: &Arc<Requests>) -> Self {
        requests.under_way.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(requests))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let micros = self.0.begun.elapsed().as_micros();
        self.0.ended.store(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Release);
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The body of an answer to a counted request.
struct Counted {
    body: Body,
    _counted: UnderWay,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
