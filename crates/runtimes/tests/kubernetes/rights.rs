//! The rights that are asked for are those that are used: with them alone all works, and the API
//! server's own log shows that each of them was needed.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use futures_util::StreamExt;
use stackd_core::runtime::{ExecOutput, ExecRequest, LogOptions, Runtime};
use stackd_core::spec::Requested;
use stackd_runtimes::kubernetes::{
    KubernetesConfig, KubernetesRuntime, PERMISSIONS, Rating, inspect,
};
use stackd_testkit::{build, sample, within};

use crate::support::{Bed, IMAGE, Stack, is_ready};

/// The rules of a role with these rights.
fn rules(of_cluster: bool) -> String {
    let mut text = String::new();
    for one in PERMISSIONS.iter().filter(|one| one.of_cluster == of_cluster) {
        let (group, resource, verbs) = (one.group, one.resource, one.verbs.join(", "));
        let _ = writeln!(
            text,
            "- {{apiGroups: ['{group}'], resources: [{resource}], verbs: [{verbs}]}}"
        );
    }
    text
}

pub(crate) async fn each_is_used_and_no_other(bed: Bed) {
    let namespace = &bed.namespace.name;
    let role = |kind: &str, name: &str, rules: String| {
        let kind_of_binding = format!("{kind}Binding");
        format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nrules:\n{rules}---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind_of_binding}\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: {name}}}\n\
             subjects: [{{kind: ServiceAccount, name: server, namespace: {namespace}}}]\n---\n"
        )
    };
    bed.cluster.apply(&format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: server, namespace: {namespace}}}\n\
         ---\n{}{}apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: of-rights}}\n\
         handler: second\n",
        role("Role", "server", rules(false)),
        role("ClusterRole", namespace, rules(true)),
    ));
    let config = KubernetesConfig {
        kubeconfig: Some(bed.cluster.kubeconfig_of(namespace, "server")),
        runtime_classes: [("other".to_owned(), "of-rights".to_owned())].into(),
        ..bed.config()
    };
    let mark = bed.cluster.audit_mark();
    let size = Requested { cpu_milli: 100, memory_bytes: 1 << 20, disk_bytes: 0 };
    let found = inspect(&config, &size).await;
    assert!(found.iter().all(|finding| finding.rating != Rating::Bad), "{found:?}");
    let runtime = KubernetesRuntime::open(config).await.expect("a runtime");
    let mut stack = Stack::running(&runtime).await;
    let id = stack.id();
    let logs = runtime.logs(id, LogOptions::default()).await.expect("logs");
    assert!(!within("logs", logs.collect::<Vec<_>>()).await.is_empty());
    let command = vec![sample::PROGRAM.to_owned(), "exit".to_owned(), "3".to_owned()];
    let request = ExecRequest { container: None, command, terminal: None, stdin: false };
    let session = runtime.exec(id, request).await.expect("a command");
    let output: Vec<_> = within("a command", session.output.collect()).await;
    assert!(matches!(output.last(), Some(Ok(ExecOutput::Exit(3)))), "{output:?}");
    assert!(runtime.usage(id).await.is_err(), "this cluster has no metrics");
    stack.until(is_ready).await;
    runtime.stop(id, Duration::ZERO).await.expect("stopped");
    stack.remove(&runtime).await;
    // One that is removed while it runs.
    Stack::running(&runtime).await.remove(&runtime).await;
    // And a node that goes.
    let ghost = format!("ghost-{namespace}");
    bed.cluster.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {ghost}}}\n"));
    let stranger = Stack::new(&runtime, build::spec(IMAGE).build());
    runtime.unclaim_ports(stranger.id());
    bed.cluster.kubectl(&["delete", "node", &ghost]);

    let user = format!("system:serviceaccount:{namespace}:server");
    let used = || {
        let calls = bed.cluster.calls_since(mark).into_iter();
        let ours: Vec<_> = calls.filter(|call| call.user == user).collect();
        let refused: Vec<_> = ours.iter().filter(|call| call.status == 403).collect();
        assert!(refused.is_empty(), "{refused:?}");
        let used = ours.iter().map(|call| format!("{} {}", call.verb, call.resource));
        used.collect::<BTreeSet<_>>()
    };
    within("the node is looked for", async { while !used().contains("get nodes") {} }).await;
    let used = used();
    for permission in PERMISSIONS {
        for verb in permission.verbs {
            let right = format!("{verb} {}", permission.resource);
            // Later API servers ask for this one instead of `get`.
            let later = right == "create pods/exec";
            assert!(used.contains(&right) || later, "{right} is not used: {used:?}");
        }
    }
}
