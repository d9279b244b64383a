//! The harness itself: a stack comes, survives a restart, and goes.

use stackd_testkit::{TestEngine, build};

#[tokio::test]
async fn a_stack_runs_survives_a_restart_and_leaves_nothing() {
    let kit = TestEngine::start().await;
    let live = kit.running(build::spec("nginx:stable").build()).await;
    let id = live.stack.id;
    let kit = kit.restart(true).await;
    assert_eq!(kit.engine.get(id).expect("adopted").stack.ports, live.stack.ports);
    kit.engine.delete(id).await.expect("deleted");
    kit.removed(id).await;
    kit.finish().await;
}
