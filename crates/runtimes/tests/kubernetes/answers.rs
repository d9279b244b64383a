//! An API server that answers what one would rather not hear. Before it stands a front of the test's
//! own that passes all on, but for what the test refuses.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use stackd_core::runtime::{ErrorKind, Outcome, Runtime};
use stackd_core::stack::reason;
use stackd_runtimes::kubernetes::{
    ConnectError, KubernetesConfig, KubernetesRuntime, UserNamespaces,
};
use stackd_testkit::{build, within};
use tokio::sync::watch;

use crate::support::{Bed, IMAGE, Stack, is_ready};

/// What the front answers by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refuse {
    Nothing,
    /// A watch goes on from a version that is no longer known: of pods as the status of the
    /// answer, of other kinds as an event inside of it. Watches that are open end.
    Watches,
    /// Too many requests: every other call that changes something is to come again later.
    Changes,
    /// What was made was made, and the answer is lost; and there is no watch that would tell.
    Answers,
    /// Nothing is removed.
    Removals,
    /// What asks for a user namespace is dropped from pods without a word.
    UserNamespaces,
}

/// The front. It ends with the executor that it was made on.
pub(crate) struct Front {
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    refuse: watch::Sender<Refuse>,
    /// Raised when all watches that are open fall silent.
    silences: watch::Sender<usize>,
    refused: AtomicUsize,
    asked: AtomicUsize,
}

impl Front {
    pub(crate) async fn of(bed: &Bed) -> Self {
        let file = Kubeconfig::read_from(bed.cluster.kubeconfig()).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await;
        let client = Client::try_from(config.expect("settings")).expect("a client");
        let shared = Arc::new(Shared {
            client,
            refuse: watch::Sender::new(Refuse::Nothing),
            silences: watch::Sender::new(0),
            refused: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, shared }
    }

    /// A kubeconfig that leads to the front, in this directory.
    fn kubeconfig(&self, directory: &tempfile::TempDir) -> PathBuf {
        let path = directory.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: front\nclusters:\n- name: front\n  \
             cluster: {{server: 'http://{}'}}\nusers:\n- name: nobody\n  user: {{}}\ncontexts:\n\
             - name: front\n  context: {{cluster: front, user: nobody}}\n",
            self.address
        );
        std::fs::write(&path, text).expect("a file");
        path
    }

    fn refuse(&self, what: Refuse) {
        self.shared.refuse.send_replace(what);
    }

    /// The watches that are open say nothing more, and stay open: as when what is between has
    /// forgotten the connection.
    pub(crate) fn silence(&self) {
        self.shared.silences.send_modify(|silences| *silences += 1);
    }

    fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

/// What an API server says of a failure.
fn status(code: u16, reason: &str) -> String {
    format!(
        "{{\"kind\": \"Status\", \"apiVersion\": \"v1\", \"metadata\": {{}}, \"status\": \"Failure\", \
         \"message\": \"a test refuses this\", \"reason\": \"{reason}\", \"code\": {code}}}"
    )
}

fn json(code: u16, body: String) -> Response {
    let code = StatusCode::from_u16(code).expect("a status");
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn is_watch(request: &Request) -> bool {
    request.uri().query().is_some_and(|query| query.contains("watch=true"))
}

impl Shared {
    /// The answer to what is refused.
    fn refusal(&self, request: &Request) -> Option<Response> {
        match *self.refuse.borrow() {
            Refuse::Watches if is_watch(request) => {
                let body = status(410, "Expired");
                self.refused.fetch_add(1, Ordering::Relaxed);
                Some(if request.uri().path().ends_with("/pods") {
                    json(410, body)
                } else {
                    json(200, format!("{{\"type\": \"ERROR\", \"object\": {body}}}\n"))
                })
            }
            Refuse::Answers if is_watch(request) => Some(StatusCode::BAD_GATEWAY.into_response()),
            Refuse::Removals if request.method() == Method::DELETE => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Some(json(503, status(503, "ServiceUnavailable")))
            }
            Refuse::Changes if request.method() != Method::GET => {
                if self.asked.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
                    return None;
                }
                self.refused.fetch_add(1, Ordering::Relaxed);
                let mut answer = json(429, status(429, "TooManyRequests"));
                let later = axum::http::HeaderValue::from_static("1");
                answer.headers_mut().insert(header::RETRY_AFTER, later);
                Some(answer)
            }
            _ => None,
        }
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    if let Some(refusal) = shared.refusal(&request) {
        return refusal;
    }
    let is_watch = is_watch(&request);
    let makes = request.method() == Method::POST;
    let (mut head, body) = request.into_parts();
    let mut body = to_bytes(body, usize::MAX).await.expect("a body");
    let of_pods = head.uri.path().ends_with("/pods");
    if makes && of_pods && *shared.refuse.borrow() == Refuse::UserNamespaces {
        let mut pod: serde_json::Value = serde_json::from_slice(&body).expect("a pod");
        pod["spec"].as_object_mut().expect("a spec").remove("hostUsers");
        body = pod.to_string().into();
        shared.refused.fetch_add(1, Ordering::Relaxed);
    }
    for name in [header::HOST, header::CONTENT_LENGTH, header::CONNECTION] {
        head.headers.remove(name);
    }
    let request = axum::http::Request::from_parts(head, kube::client::Body::from(body.to_vec()));
    let Ok(answer) = shared.client.send(request).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let (head, body) = answer.into_parts();
    let body = Body::new(body);
    if makes && head.status.is_success() && *shared.refuse.borrow() == Refuse::Answers {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        return StatusCode::BAD_GATEWAY.into_response();
    }
    if !is_watch {
        return Response::from_parts(head, body);
    }
    let mut refuse = shared.refuse.subscribe();
    let cut = async move {
        // The front may end before anything is refused.
        let cuts = |refuse: &Refuse| matches!(refuse, Refuse::Watches | Refuse::Answers);
        if refuse.wait_for(cuts).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let parts = body.into_data_stream().take_until(Box::pin(cut));
    let (silences, begun) = (shared.silences.subscribe(), *shared.silences.borrow());
    let heard =
        futures_util::stream::unfold((parts, silences), move |(mut parts, mut silences)| {
            Box::pin(async move {
                let silence = async {
                    let _ = silences.wait_for(|silences| *silences > begun).await.map(drop);
                };
                let part = tokio::select! {
                    biased;
                    () = silence => None,
                    part = parts.next() => Some(part),
                };
                let Some(part) = part else { return std::future::pending().await };
                part.map(|part| (part, (parts, silences)))
            })
        });
    Response::from_parts(head, Body::from_stream(heard))
}

pub(crate) async fn runtime(
    bed: &Bed,
    front: &Front,
    directory: &tempfile::TempDir,
) -> KubernetesRuntime {
    KubernetesRuntime::open(config(bed, front, directory)).await.expect("a runtime")
}

fn config(bed: &Bed, front: &Front, directory: &tempfile::TempDir) -> KubernetesConfig {
    let kubeconfig = Some(front.kubeconfig(directory));
    // What falls silent does so for longer than a test takes.
    KubernetesConfig { kubeconfig, watch_timeout: Duration::from_secs(280), ..bed.config() }
}

/// A watch whose connection is dead without a word is given up, and the next one tells.
pub(crate) async fn silence(bed: Bed) {
    let front = Front::of(&bed).await;
    let directory = tempfile::tempdir().expect("a directory");
    let config = KubernetesConfig {
        watch_timeout: Duration::from_secs(1),
        ..config(&bed, &front, &directory)
    };
    let runtime = KubernetesRuntime::open(config).await.expect("a runtime");
    let mut stack = Stack::running(&runtime).await;
    front.silence();
    bed.kubectl(&["delete", "pod", &stack.id().to_string(), "--wait=false", "--grace-period=1"]);
    let ended = within("it is told", stack.ended()).await;
    assert_eq!(ended, (Outcome::Failed, reason::LOST.to_owned()));
    stack.remove(&runtime).await;
}

/// An API server that does not know user namespaces says nothing of that: nobody is told that there
/// is one, and where there must be one, no stack runs without.
pub(crate) async fn no_user_namespaces(bed: Bed) {
    let front = Front::of(&bed).await;
    let directory = tempfile::tempdir().expect("a directory");
    let config =
        |user_namespaces| KubernetesConfig { user_namespaces, ..config(&bed, &front, &directory) };
    front.refuse(Refuse::UserNamespaces);
    let error = KubernetesRuntime::open(config(UserNamespaces::Always)).await.err();
    assert!(matches!(error, Some(ConnectError::NoUserNamespaces)), "{error:?}");
    let runtime = KubernetesRuntime::open(config(UserNamespaces::Auto)).await.expect("a runtime");
    assert!(!runtime.capabilities().enforcement.user_namespace);
    let stack = Stack::running(&runtime).await;
    stack.remove(&runtime).await;

    // One that is put back to an older version meanwhile.
    front.refuse(Refuse::Nothing);
    let runtime = KubernetesRuntime::open(config(UserNamespaces::Auto)).await.expect("a runtime");
    assert!(runtime.capabilities().enforcement.user_namespace);
    front.refuse(Refuse::UserNamespaces);
    let stack = Stack::new(&runtime, build::spec(IMAGE).build());
    let error = stack.begin(&runtime).await.expect_err("it would be isolated less than is told");
    assert_eq!(error.kind, ErrorKind::Failed, "{error:?}");
    assert!(error.operator.contains("UserNamespacesSupport"), "{error:?}");
    stack.remove(&runtime).await;
}

/// What happened while no watch could be had is learned from a new listing.
pub(crate) async fn too_old_to_watch(bed: Bed) {
    let front = Front::of(&bed).await;
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = runtime(&bed, &front, &directory).await;
    let mut taken = Stack::running(&runtime).await;
    let mut left = Stack::running(&runtime).await;
    front.refuse(Refuse::Watches);
    bed.kubectl(&["delete", "pod", &taken.id().to_string(), "--wait=false", "--grace-period=1"]);
    within("watches are refused in both ways", async {
        while front.refused() < 8 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(taken.ended().await, (Outcome::Failed, reason::LOST.to_owned()));
    front.refuse(Refuse::Nothing);
    left.until(is_ready).await;
    let mut next = Stack::running(&runtime).await;
    next.until(is_ready).await;
    for stack in [&taken, &left, &next] {
        stack.remove(&runtime).await;
    }
}

/// What is refused for the moment is asked for again, by the engine or by the runtime itself.
pub(crate) async fn too_many_requests(bed: Bed) {
    let front = Front::of(&bed).await;
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = runtime(&bed, &front, &directory).await;
    let mut ends = Stack::new(&runtime, build::spec(IMAGE).args(&["exit", "3"]).build());
    front.refuse(Refuse::Changes);
    let mut tries = 0;
    while let Err(error) = ends.begin(&runtime).await {
        assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
        tries += 1;
        assert!(tries < 20, "{error:?}");
    }
    assert!(front.refused() > 0);
    // Its service goes by itself.
    assert_eq!(ends.ended().await, (Outcome::Failed, reason::ERROR.to_owned()));
    let mut tries = 0;
    while let Err(error) = runtime.remove(ends.id(), Duration::ZERO).await {
        assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
        tries += 1;
        assert!(tries < 20, "{error:?}");
    }
    let objects = bed.kubectl(&["get", "services,pods,networkpolicies", "--output=name"]);
    assert_eq!(objects.trim(), "");
}

/// What was made although its answer was lost is found and taken over, also where no watch tells
/// of it: until then the engine is asked to come again, and the stack has not failed.
pub(crate) async fn lost(bed: Bed) {
    let front = Front::of(&bed).await;
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = runtime(&bed, &front, &directory).await;
    let other = Stack::running(&runtime).await;
    let mut stack = Stack::new(&runtime, build::spec(IMAGE).build());
    front.refuse(Refuse::Answers);
    let mut tries = 0;
    while let Err(error) = stack.begin(&runtime).await {
        assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
        tries += 1;
        assert!(tries < 20, "{error:?}");
    }
    // The policy by itself, then the other two at once.
    assert_eq!((front.refused(), tries), (3, 2));
    front.refuse(Refuse::Nothing);
    stack.until(is_ready).await;
    let made = |kind: &str| bed.kubectl(&["get", kind, "--output=name"]).lines().count();
    assert_eq!((made("pods"), made("services"), made("networkpolicies")), (2, 2, 2));
    for stack in [&stack, &other] {
        stack.remove(&runtime).await;
    }
}

/// An object under the name of a stack's that was not made for this start of it is not taken over.
pub(crate) async fn of_another_generation(bed: Bed) {
    let front = Front::of(&bed).await;
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = runtime(&bed, &front, &directory).await;
    let other = Stack::running(&runtime).await;
    let stack = Stack::new(&runtime, build::spec(IMAGE).build());
    let id = stack.id();
    front.refuse(Refuse::Answers);
    bed.cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: {}\n  labels:\n    \
         app.kubernetes.io/managed-by: stackd\n    app.kubernetes.io/part-of: stackd\n    \
         app.kubernetes.io/instance: {id}\n  annotations: {{stackd.dev/generation: '7'}}\n\
         spec: {{ports: [{{port: 80}}]}}\n",
        id.service_name(),
        bed.namespace.name
    ));
    let mut error = stack.begin(&runtime).await.expect_err("the answer is lost");
    assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
    error = stack.begin(&runtime).await.expect_err("a name is taken");
    assert_eq!(error.kind, ErrorKind::Failed, "{error:?}");
    assert!(error.operator.contains("is not of this stack"), "{error:?}");
    front.refuse(Refuse::Nothing);
    for stack in [&stack, &other] {
        stack.remove(&runtime).await;
    }
}

/// A removal that the API server refuses for the moment leaves nobody in the dark.
pub(crate) async fn removals(bed: Bed) {
    let front = Front::of(&bed).await;
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = runtime(&bed, &front, &directory).await;
    let mut stack = Stack::running(&runtime).await;
    front.refuse(Refuse::Removals);
    let removal = runtime.remove(stack.id(), Duration::ZERO);
    let error = within("a removal is refused", removal).await.expect_err("it is refused");
    assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
    front.refuse(Refuse::Nothing);
    bed.kubectl(&["delete", "pod", &stack.id().to_string(), "--wait=false", "--grace-period=1"]);
    assert_eq!(stack.ended().await, (Outcome::Failed, reason::LOST.to_owned()));
    stack.remove(&runtime).await;
}
