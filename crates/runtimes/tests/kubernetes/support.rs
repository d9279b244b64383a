//! What the tests share.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use stackd_core::port::{PortMapping, TargetPort};
use stackd_core::runtime::{
    BoxStream, EnsureRequest, ErrorKind, Observation, ObservedStack, Outcome, Runtime, RuntimeState,
};
use stackd_core::{RuntimeError, StackId, StackSpec};
use stackd_runtimes::kubernetes::{KubernetesConfig, KubernetesRuntime};
use stackd_testkit::kubernetes::{Cluster, Namespace};
use stackd_testkit::{build, sample, within};

/// The sample image's name in the cluster.
pub(crate) const IMAGE: &str = "test.invalid/sample:1";

/// A namespace for a test alone, of a cluster that has the sample image.
pub(crate) struct Bed {
    pub(crate) cluster: &'static Cluster,
    pub(crate) namespace: Namespace<'static>,
}

impl Bed {
    /// In the cluster that the tests share.
    pub(crate) fn shared() -> Self {
        static LOADED: OnceLock<()> = OnceLock::new();
        let cluster = Cluster::shared().expect("a cluster");
        LOADED.get_or_init(|| cluster.load(&sample::docker_archive(&[IMAGE])));
        Self { cluster, namespace: cluster.namespace() }
    }

    /// Runs `kubectl` in the namespace.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let mut all = vec!["--namespace", &self.namespace.name];
        all.extend(args);
        self.cluster.kubectl(&all)
    }

    /// The settings that a test begins with.
    pub(crate) fn config(&self) -> KubernetesConfig {
        KubernetesConfig {
            kubeconfig: Some(self.cluster.kubeconfig()),
            namespace: self.namespace.name.clone(),
            internal_address_is_public: true,
            node_lost_after: Duration::from_secs(1),
            default_disk_bytes: 64 << 20,
            ..KubernetesConfig::default()
        }
    }

    /// A runtime of its stacks.
    pub(crate) async fn open(&self) -> KubernetesRuntime {
        KubernetesRuntime::open(self.config()).await.expect("a runtime")
    }
}

/// Keeps a namespace as long as its runtime.
pub(crate) fn keep(bed: Bed) -> Box<dyn std::any::Any + Send + Sync> {
    Box::new(Arc::new(bed.namespace))
}

/// A stack of the sample image, and what its runtime says of it.
pub(crate) struct Stack {
    pub(crate) request: EnsureRequest,
    seen: BoxStream<'static, Observation>,
    state: Option<ObservedStack>,
}

impl Stack {
    /// One that was not asked for yet, with free node ports.
    pub(crate) fn new(runtime: &KubernetesRuntime, spec: StackSpec) -> Self {
        let mut stack = Self::unobserved(runtime, spec);
        stack.observe(runtime);
        stack
    }

    /// Hears from now on what this runtime says of it, which then also acts for it.
    pub(crate) fn observe(&mut self, runtime: &KubernetesRuntime) {
        self.seen = runtime.observe();
    }

    /// The same as [`Stack::new`], of a runtime that nobody observes for it.
    pub(crate) fn unobserved(runtime: &KubernetesRuntime, spec: StackSpec) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let id = build::stack_id();
        let port = |target: &TargetPort| PortMapping {
            container_port: target.container_port,
            protocol: target.protocol,
            // The contract takes from the lower end.
            node_port: 32_767 - NEXT.fetch_add(1, Ordering::Relaxed),
        };
        let ports: Vec<_> = spec.target_ports.iter().map(port).collect();
        runtime.claim_ports(id, &ports).expect("free ports");
        let request = build::ensure(id, spec, ports, "default");
        Self { request, seen: Box::pin(futures_util::stream::pending()), state: None }
    }

    pub(crate) fn id(&self) -> StackId {
        self.request.id
    }

    /// Asks for its start.
    pub(crate) async fn begin(&self, runtime: &KubernetesRuntime) -> Result<(), RuntimeError> {
        within("a start is answered", runtime.ensure(self.request.clone())).await
    }

    /// One that takes traffic.
    pub(crate) async fn running(runtime: &KubernetesRuntime) -> Self {
        let mut stack = Self::new(runtime, build::spec(IMAGE).build());
        stack.begin(runtime).await.expect("it starts");
        stack.until(is_ready).await;
        stack
    }

    /// Waits until its state is as asked.
    pub(crate) async fn until(&mut self, what: fn(&RuntimeState) -> bool) -> ObservedStack {
        let patience = tokio::time::timeout(Duration::from_secs(90), async {
            loop {
                if let Some(stack) = self.state.as_ref().filter(|stack| what(&stack.state)) {
                    return stack.clone();
                }
                if let Observation::Stack(stack) = self.seen.next().await.expect("observations")
                    && stack.id == self.request.id
                {
                    self.state = Some(stack);
                }
            }
        });
        match patience.await {
            Ok(stack) => stack,
            Err(_) => panic!("it stays {:?}", self.state),
        }
    }

    /// Waits until nothing is left of it, though nobody here asked for that.
    pub(crate) async fn until_gone(&mut self) {
        let gone = Observation::Gone(self.id());
        within("it is gone", async {
            while self.seen.next().await.expect("observations") != gone {}
        })
        .await;
    }

    /// How it ended.
    pub(crate) async fn ended(&mut self) -> (Outcome, String) {
        let stack = self.until(|state| matches!(state, RuntimeState::Ended { .. })).await;
        let RuntimeState::Ended { outcome, condition, .. } = stack.state else { unreachable!() };
        (outcome, condition.reason)
    }

    /// Removes it, as the engine does: what is to be asked again is asked again.
    pub(crate) async fn remove(&self, runtime: &KubernetesRuntime) {
        let removed = async {
            while let Err(error) = runtime.remove(self.id(), Duration::ZERO).await {
                assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
            }
        };
        within("a removal", removed).await;
    }
}

pub(crate) fn is_ready(state: &RuntimeState) -> bool {
    matches!(state, RuntimeState::Running { ready: true, .. })
}
