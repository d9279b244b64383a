//! Real faults, in a cluster of the test's own.

use std::time::Duration;

use stackd_core::runtime::{Outcome, Runtime, RuntimeState};
use stackd_core::stack::reason;
use stackd_runtimes::kubernetes::{KubernetesConfig, KubernetesRuntime};
use stackd_testkit::kubernetes::{Cluster, Options};
use stackd_testkit::{build, sample, within};

use crate::support::{IMAGE, Stack, is_ready};

/// Stacks on both nodes: their names, by number.
async fn on_both_nodes(runtime: &KubernetesRuntime) -> [Stack; 2] {
    let (mut one, mut two) = (None, None);
    while one.is_none() || two.is_none() {
        let mut stack = Stack::running(runtime).await;
        let seen = stack.until(is_ready).await;
        let place = match seen.placement.expect("a node").node.as_str() {
            "node1" => &mut one,
            _ => &mut two,
        };
        match place {
            None => *place = Some(stack),
            Some(_) => stack.remove(runtime).await,
        }
    }
    [one, two].map(|stack| stack.expect("one on each"))
}

/// A node that boots again starts no stack anew: it has ended, and says of what.
async fn boots_again(cluster: &Cluster, config: KubernetesConfig) {
    let config = KubernetesConfig {
        installation: "patient".to_owned(),
        // However long that takes, its node is not given up.
        node_lost_after: Duration::from_secs(600),
        ..config
    };
    let runtime = KubernetesRuntime::open(config).await.expect("a runtime");
    let [other, mut stack] = on_both_nodes(&runtime).await;
    other.remove(&runtime).await;
    cluster.crash_node(2);
    cluster.start_node(2);
    assert_eq!(stack.ended().await, (Outcome::Failed, reason::NODE_REBOOTED.to_owned()));
    let next = build::stack_id();
    within("its node ports are given back", async {
        while runtime.claim_ports(next, &stack.request.ports).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    runtime.unclaim_ports(next);
    stack.remove(&runtime).await;
    assert_eq!(left(cluster), "");
}

/// What is left of all stacks.
fn left(cluster: &Cluster) -> String {
    let kinds = "services,pods,networkpolicies";
    cluster.kubectl(&["--namespace=stacks", "get", kinds, "--output=name"])
}

pub(crate) async fn control_plane_and_nodes() {
    let options = Options { node_grace: Duration::from_secs(10), ..Options::default() };
    let Some(cluster) = Cluster::start(options) else { return };
    cluster.load(&sample::docker_archive(&[IMAGE]));
    cluster.kubectl(&["create", "namespace", "stacks"]);
    let config = KubernetesConfig {
        kubeconfig: Some(cluster.kubeconfig()),
        node_lost_after: Duration::from_secs(1),
        api_timeout: Duration::from_secs(3),
        default_disk_bytes: 64 << 20,
        ..KubernetesConfig::default()
    };
    let runtime = KubernetesRuntime::open(config.clone()).await.expect("a runtime");
    let [mut first, mut second] = on_both_nodes(&runtime).await;

    // The API server is killed: nothing ends, a start is tried again, and all goes on when it is back.
    cluster.signal("kube-apiserver", "KILL");
    let mut late = Stack::new(&runtime, build::spec(IMAGE).build());
    let error = late.begin(&runtime).await.expect_err("nobody answers");
    assert_eq!(error.kind, stackd_core::runtime::ErrorKind::Retry, "{error:?}");
    let error = runtime.remove(first.id(), Duration::ZERO).await.expect_err("nobody answers");
    assert_eq!(error.kind, stackd_core::runtime::ErrorKind::Retry, "{error:?}");
    cluster.start_again("kube-apiserver");
    while let Err(error) = late.begin(&runtime).await {
        assert_eq!(error.kind, stackd_core::runtime::ErrorKind::Retry, "{error:?}");
    }
    late.until(is_ready).await;
    late.remove(&runtime).await;
    first.remove(&runtime).await;
    second.remove(&runtime).await;

    boots_again(&cluster, config).await;
    [first, second] = on_both_nodes(&runtime).await;

    // It stops answering for a while, without closing anything.
    cluster.signal("kube-apiserver", "STOP");
    let stuck = Stack::new(&runtime, build::spec(IMAGE).build());
    let error = stuck.begin(&runtime).await.expect_err("nobody answers");
    assert_eq!(error.kind, stackd_core::runtime::ErrorKind::Retry, "{error:?}");
    cluster.signal("kube-apiserver", "CONT");

    // Whatever takes away what a policy owned stops answering: it is taken away all the same.
    let owned = Stack::running(&runtime).await;
    cluster.signal("kube-controller-manager", "STOP");
    owned.remove(&runtime).await;
    assert!(!left(&cluster).contains(&owned.id().to_string()), "nothing of it is left");
    cluster.signal("kube-controller-manager", "CONT");

    // A container killed behind our back is told as any other end.
    let name = first.id().to_string();
    let kill = "kill -9 $(pgrep -f '^/sample serve' | head -1)";
    cluster.on_node(1, &["sh", "-c", kill]);
    assert_eq!(first.ended().await, (Outcome::Failed, reason::ERROR.to_owned()), "{name}");
    first.remove(&runtime).await;
    let [mut first, spare] = on_both_nodes(&runtime).await;
    spare.remove(&runtime).await;

    // A kubelet that dies: the stack is not ready, then its node counts as lost. What is to end there
    // has ended then too, though nobody confirms it, and keeps its reason.
    let [mut stopped, spare] = on_both_nodes(&runtime).await;
    spare.remove(&runtime).await;
    cluster.kill_kubelet(1);
    while let Err(error) = runtime.stop(stopped.id(), Duration::ZERO).await {
        assert_eq!(error.kind, stackd_core::runtime::ErrorKind::Retry, "{error:?}");
    }
    assert_eq!(stopped.ended().await, (Outcome::Failed, reason::STOPPED.to_owned()));
    first
        .until(|state| {
            matches!(state, RuntimeState::Running { ready: false, condition: Some(condition) }
                if condition.reason == "NodeNotReady")
                || matches!(state, RuntimeState::Ended { .. })
        })
        .await;
    assert_eq!(first.ended().await.0, Outcome::NodeLost);
    // Nobody there confirms the end of the pod, so that it is taken from the API.
    first.remove(&runtime).await;
    stopped.remove(&runtime).await;
    cluster.start_kubelet(1);

    // A node that goes without a word, and that nobody takes out of the cluster.
    cluster.crash_node(2);
    assert_eq!(second.ended().await.0, Outcome::NodeLost);
    second.remove(&runtime).await;

    // The last one too. The cluster takes nothing away any more, since it may be itself that is cut
    // off.
    let mut last = Stack::running(&runtime).await;
    cluster.crash_node(1);
    assert_eq!(last.ended().await.0, Outcome::NodeLost);
    last.remove(&runtime).await;

    // One that is taken out.
    cluster.start_node(1);
    let mut last = Stack::running(&runtime).await;
    cluster.crash_node(1);
    cluster.kubectl(&["delete", "node", "node1", "--wait=false"]);
    assert_eq!(last.ended().await.0, Outcome::NodeLost);
    last.remove(&runtime).await;
    // What nobody waited for any more may have come about after all; the engine would find it.
    stuck.remove(&runtime).await;
    assert_eq!(left(&cluster), "");
    drop(runtime);
    assert_eq!(cluster.stop(), Vec::<String>::new());
}
