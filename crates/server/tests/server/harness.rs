//! One server for one test: engine, database and runtime, all of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use stackd_engine::keys::NewKey;
use stackd_engine::{Engine, EngineConfig, SystemClock};
use stackd_runtimes::simulated::{Handle, SimulatedConfig, SimulatedRuntime};
use stackd_server::{ServerConfig, ServerState, serve};
use stackd_store::{Permission, Store, StoreConfig};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// The key that everything in these tests may do with.
pub(crate) const KEY: &str = "right-key";

/// The Pod that the documents send.
pub(crate) const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: challenge\nspec:\n  containers:\n    - name: app\n      image: nginx:stable\n      ports:\n        - containerPort: 80\n          protocol: TCP\n      resources:\n        requests:\n          cpu: \"100m\"\n          memory: \"128Mi\"\n        limits:\n          cpu: \"100m\"\n          memory: \"128Mi\"";

pub(crate) struct App {
    pub(crate) router: Router,
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    pub(crate) runtime: Handle,
    pub(crate) config: ServerConfig,
    pub(crate) stopping: CancellationToken,
    _directory: tempfile::TempDir,
}

/// What differs from the defaults.
#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) engine: Option<Value>,
    pub(crate) server: ServerConfig,
    pub(crate) runtime: Option<SimulatedConfig>,
    pub(crate) database: Option<StoreConfig>,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }

    /// Is a refusal in the dialect's form, and nothing but it.
    #[track_caller]
    pub(crate) fn refuses(self, status: u16, error: &str) {
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert_eq!(self.json(), json!({ "error": error }));
        self.is(status);
    }
}

impl Answer {
    /// Is a refusal in the catalogue's form, and nothing but it.
    #[track_caller]
    pub(crate) fn details(self, status: u16, detail: &str) {
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert_eq!(self.json(), json!({ "detail": detail }));
        self.is(status);
    }
}

impl App {
    pub(crate) async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stackd.db");
        let file = StoreConfig::Sqlite { path, ballast_bytes: 0 };
        let store = Store::open(setup.database.unwrap_or(file)).await.unwrap();
        let runtime = SimulatedRuntime::new(setup.runtime.unwrap_or_else(SimulatedConfig::instant));
        let handle = runtime.handle();
        let settings: EngineConfig =
            setup.engine.map_or_else(EngineConfig::default, |s| serde_json::from_value(s).unwrap());
        let defaults = settings.limit_range.pod_defaults();
        let clock = Arc::new(SystemClock);
        let engine =
            Engine::start(settings, store.clone(), Arc::new(runtime), clock).await.unwrap();
        let stopping = CancellationToken::new();
        let config = setup.server;
        let state = ServerState::new(engine.clone(), config.clone(), defaults, stopping.clone());
        let router = stackd_server::router(state).unwrap();
        let app = Self {
            router,
            engine,
            store,
            runtime: handle,
            config,
            stopping,
            _directory: directory,
        };
        app.add_key("main", KEY, &[Permission::Exec], &[]).await;
        app
    }

    pub(crate) async fn add_key(
        &self,
        name: &str,
        secret: &str,
        permissions: &[Permission],
        dialects: &[&str],
    ) {
        let new = NewKey {
            name: name.to_owned(),
            permissions: permissions.to_vec(),
            dialects: dialects.iter().map(|d| (*d).to_owned()).collect(),
        };
        self.engine.keys().add(new, secret, stackd_core::Timestamp::now()).await.unwrap();
    }

    /// Sends a request as it is, and reads the answer to its end.
    pub(crate) async fn raw(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// Sends a request with the right key and these further headers.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("x-api-key", KEY);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.raw(request.body(body.into()).unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Body::empty()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, &[], body.to_string()).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, &[], body.to_string()).await
    }

    /// Makes a stack with one TCP port and gives its JSON.
    pub(crate) async fn create(&self, more: Value) -> Value {
        self.post("/stacks", &body(more)).await.is(201).json()
    }

    /// Makes a stack, waits until it runs, and gives its id.
    pub(crate) async fn running(&self) -> String {
        let id = id(&self.create(json!({})).await);
        let stack = self.get(&format!("/stacks/{id}?wait=running")).await.is(200).json();
        assert_eq!(stack["status"], "running", "{stack}");
        id
    }

    /// Waits for an event of this kind and stack, which must come after the call began.
    pub(crate) async fn next_event(&self, kind: &str) {
        let mut events = self.engine.events(None);
        while let Some(message) = events.next().await {
            if let stackd_engine::EventMessage::Event(event) = message
                && event.event.kind.as_str() == kind
            {
                return;
            }
        }
        panic!("the engine ended");
    }

    /// Serves on loopback, by real connections.
    pub(crate) async fn listen(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (router, config) = (self.router.clone(), self.config.clone());
        let stopping = self.stopping.clone();
        tokio::spawn(async move { serve(router, vec![listener], None, &config, stopping).await });
        address
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

/// The body of a create with the documents' Pod, changed by `more`.
pub(crate) fn body(more: Value) -> Value {
    let port = json!([{"container_port": 80, "protocol": "TCP"}]);
    let mut body = json!({ "target_port": port, "pod_spec": POD });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub(crate) fn id(stack: &Value) -> String {
    stack["stack_id"].as_str().unwrap().to_owned()
}

/// Fails a test that waits for something that does not come.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    stackd_testkit::within("it comes", what).await
}
