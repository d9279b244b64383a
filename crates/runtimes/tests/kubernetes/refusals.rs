//! What a cluster refuses, and whose move it then is.

use stackd_core::Protocol;
use stackd_core::isolation::Profile;
use stackd_core::port::PortMapping;
use stackd_core::runtime::{ErrorKind, Runtime, RuntimeState};
use stackd_core::spec::ImagePullPolicy;
use stackd_core::stack::reason;
use stackd_runtimes::kubernetes::{ConnectError, KubernetesConfig, KubernetesRuntime};
use stackd_testkit::{build, sample};

use crate::support::{Bed, IMAGE, Stack, is_ready};

pub(crate) async fn limits_and_quotas(bed: Bed) {
    let namespace = &bed.namespace.name;
    bed.cluster.apply(&format!(
        "apiVersion: v1\nkind: LimitRange\nmetadata: {{name: limits, namespace: {namespace}}}\n\
         spec: {{limits: [{{type: Container, max: {{cpu: '2'}}}}]}}\n---\n\
         apiVersion: v1\nkind: ResourceQuota\nmetadata: {{name: quota, namespace: {namespace}}}\n\
         spec: {{hard: {{pods: '1'}}}}\n"
    ));
    let runtime = bed.open().await;
    let large = Stack::new(&runtime, build::spec(IMAGE).cpu(3000).build());
    let error = large.begin(&runtime).await.expect_err("it is too large");
    assert_eq!(error.kind, ErrorKind::Rejected, "{error:?}");
    assert!(error.condition.message.starts_with("maximum cpu usage per Container is 2"), "{error}");
    large.remove(&runtime).await;
    let first = Stack::running(&runtime).await;
    let second = Stack::new(&runtime, build::spec(IMAGE).build());
    let error = second.begin(&runtime).await.expect_err("one is the quota");
    let word = error.condition.reason.as_str();
    assert_eq!((error.kind, word), (ErrorKind::Saturated, reason::EXCEEDED_QUOTA), "{error:?}");
    assert!(error.condition.message.starts_with("exceeded quota: quota"), "{error}");
    second.remove(&runtime).await;
    first.remove(&runtime).await;
}

/// A service of somebody else holds a node port: it is left alone from then on.
pub(crate) async fn node_ports(bed: Bed) {
    let runtime = bed.open().await;
    let stack = Stack::new(&runtime, build::spec(IMAGE).build());
    let port = stack.request.ports[0].node_port;
    bed.cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: other, namespace: {}}}\n\
         spec: {{type: NodePort, ports: [{{port: 80, nodePort: {port}}}]}}\n",
        bed.namespace.name
    ));
    let error = stack.begin(&runtime).await.expect_err("its port is taken");
    assert_eq!(error.condition.reason, reason::NODE_PORT_TAKEN, "{error:?}");
    stack.remove(&runtime).await;
    let mapping = PortMapping { container_port: 80, protocol: Protocol::Tcp, node_port: port };
    let taken = runtime.claim_ports(build::stack_id(), &[mapping]).expect_err("it is known");
    assert_eq!(taken.0, [(Protocol::Tcp, port)]);
}

/// What is not ours is not taken over, and not removed either.
pub(crate) async fn objects_of_others(bed: Bed) {
    let runtime = bed.open().await;
    let kinds = [
        ("v1", "Service", "service/", "ports: [{port: 80}]"),
        ("v1", "Pod", "pod/", "containers: [{name: c, image: test.invalid/none}]"),
        (
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "networkpolicy.networking.k8s.io/",
            "podSelector: {}",
        ),
    ];
    for (version, kind, prefix, spec) in kinds {
        let stack = Stack::new(&runtime, build::spec(IMAGE).build());
        let id = stack.id();
        let name = if kind == "Service" { id.service_name() } else { id.to_string() };
        bed.cluster.apply(&format!(
            "apiVersion: {version}\nkind: {kind}\n\
             metadata: {{name: {name}, namespace: {}}}\nspec: {{{spec}}}\n",
            bed.namespace.name
        ));
        let error = stack.begin(&runtime).await.expect_err("the name is taken");
        assert_eq!(error.kind, ErrorKind::Failed, "{kind}: {error:?}");
        stack.remove(&runtime).await;
        let left = bed.kubectl(&["get", "services,pods,networkpolicies", "--output=name"]);
        assert_eq!(left.trim(), format!("{prefix}{name}"));
        bed.kubectl(&["delete", kind, &name, "--wait=true", "--grace-period=1"]);
    }
}

pub(crate) async fn no_room(bed: Bed) {
    let runtime = bed.open().await;
    let mut stack = Stack::new(&runtime, build::spec(IMAGE).cpu(1_000_000).build());
    stack.begin(&runtime).await.expect("it is accepted");
    let seen = stack
        .until(|state| {
            matches!(state, RuntimeState::Starting { condition: Some(condition) }
                if condition.reason == reason::UNSCHEDULABLE)
        })
        .await;
    assert_eq!(seen.placement, None);
    // As the engine does when it has waited long enough.
    runtime.stop(stack.id(), std::time::Duration::ZERO).await.expect("stopped");
    stack.remove(&runtime).await;
}

/// A registry that is not named is never asked, and of one that is, the caller learns no more than
/// that an image cannot be had.
pub(crate) async fn registries(bed: Bed) {
    let allowed_registries = vec!["test.invalid".to_owned(), "127.0.0.1:9".to_owned()];
    let config = KubernetesConfig { allowed_registries, ..bed.config() };
    let runtime = KubernetesRuntime::open(config).await.expect("a runtime");
    runtime.prepare(IMAGE, None).await.expect("its registry is named");
    let error = runtime.prepare("10.0.0.5:5000/app", None).await.expect_err("it is not named");
    assert_eq!(
        (error.kind, error.condition.reason.as_str()),
        (ErrorKind::Rejected, reason::IMAGE_PULL)
    );
    assert_eq!(error.condition.message, "images of 10.0.0.5:5000 may not be pulled here");

    // Nothing listens there, which the kubelet says in many words.
    let mut spec = build::spec("127.0.0.1:9/app:1").build();
    for container in &mut spec.containers {
        container.image_pull_policy = Some(ImagePullPolicy::IfNotPresent);
    }
    let mut stack = Stack::new(&runtime, spec);
    stack.begin(&runtime).await.expect("it is accepted");
    let seen = stack
        .until(|state| {
            matches!(state, RuntimeState::Starting { condition: Some(condition) }
                if condition.reason == reason::IMAGE_PULL)
        })
        .await;
    let RuntimeState::Starting { condition: Some(condition) } = seen.state else { unreachable!() };
    let text = "image \"127.0.0.1:9/app:1\" cannot be pulled from 127.0.0.1:9; it is tried again";
    assert_eq!(condition.message, text);
    stack.remove(&runtime).await;
}

/// What the kubelet would try until the start is given up.
pub(crate) async fn no_command(bed: Bed) {
    let image = "test.invalid/no-command:1";
    bed.cluster.load(&sample::docker_archive_without_command(image));
    let runtime = bed.open().await;
    let mut stack = Stack::new(&runtime, build::spec(image).build());
    stack.begin(&runtime).await.expect("it is accepted");
    let seen = stack.until(|state| matches!(state, RuntimeState::Ended { .. })).await;
    let RuntimeState::Ended { condition, .. } = seen.state else { unreachable!() };
    assert_eq!(condition.reason, reason::START_ERROR);
    assert!(condition.message.contains("the image names no command"), "{condition:?}");
    stack.remove(&runtime).await;
}

/// What the profiles ask for is what the standards of pod security let in.
pub(crate) async fn pod_security(bed: Bed) {
    let namespace = bed.namespace.name.clone();
    let enforce = |level: &str| {
        let label = format!("pod-security.kubernetes.io/enforce={level}");
        bed.cluster.kubectl(&["label", "namespace", &namespace, "--overwrite", &label]);
    };
    enforce("baseline");
    let runtime = bed.open().await;
    let stack = Stack::running(&runtime).await;
    stack.remove(&runtime).await;
    enforce("restricted");
    let refused = Stack::new(&runtime, build::spec(IMAGE).build());
    let error = refused.begin(&runtime).await.expect_err("its profile is too wide");
    assert_eq!(error.kind, ErrorKind::Failed, "{error:?}");
    refused.remove(&runtime).await;
    drop(runtime);
    let config = KubernetesConfig { run_as_non_root: true, ..bed.config() };
    let runtime = KubernetesRuntime::open(config).await.expect("a runtime");
    let mut strict = Stack::new(&runtime, build::spec(IMAGE).build());
    strict.request.profile = Profile::Strict;
    strict.begin(&runtime).await.expect("it is let in");
    // The sample image runs as root, which the node then finds.
    assert_eq!(strict.ended().await.1, reason::START_ERROR);
    strict.remove(&runtime).await;
}

pub(crate) async fn runtime_classes(bed: Bed) {
    bed.cluster.apply(
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: other}\nhandler: second\n",
    );
    let class = |object: &str| KubernetesConfig {
        runtime_classes: [("other".to_owned(), object.to_owned())].into(),
        ..bed.config()
    };
    match KubernetesRuntime::open(class("missing")).await {
        Err(ConnectError::NoRuntimeClass { class, object }) => {
            assert_eq!((class.as_str(), object.as_str()), ("other", "missing"));
        }
        other => panic!("{:?}", other.err()),
    }
    let runtime = KubernetesRuntime::open(class("other")).await.expect("a runtime");
    assert_eq!(runtime.capabilities().runtime_classes, ["default", "other"]);
    let mut stack = Stack::new(&runtime, build::spec(IMAGE).build());
    stack.request.runtime_class = "other".to_owned();
    stack.begin(&runtime).await.expect("it starts");
    stack.until(is_ready).await;
    let id = stack.id().to_string();
    let class = bed.kubectl(&["get", "pod", &id, "--output=jsonpath={.spec.runtimeClassName}"]);
    assert_eq!(class.trim(), "other");
    stack.remove(&runtime).await;
}
