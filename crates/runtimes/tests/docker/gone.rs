//! What becomes of keepers when nobody comes back: they end with what they keep, never later.

use std::time::Duration;

use stackd_core::runtime::{EnsureRequest, ErrorKind};
use stackd_core::{Runtime, StackId};
use stackd_runtimes::docker::DockerRuntime;
use stackd_testkit::docker::Engine;
use stackd_testkit::{build, within};

use crate::Body;
use crate::bed::{self, Bed};

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("gone::keepers_outlive_engine_and_server_only_with_their_stacks", |_| {
        Box::pin(engine_and_server())
    });
    add("gone::an_engine_that_is_gone_gets_no_keepers", |_| Box::pin(engine()));
    add("gone::an_engine_elsewhere_has_no_keepers_without_a_server", |_| Box::pin(elsewhere()));
}

async fn two_stacks(engine: &Engine) -> (Bed, DockerRuntime, [EnsureRequest; 2]) {
    engine.load_busybox("busybox:1").await;
    let bed = Bed::new(engine.host());
    let runtime = bed.open().await;
    let several = bed::serving(vec![bed::script("side", "sleep 1000")]);
    let requests = [bed::request(bed::serving(Vec::new())), bed::request(several)];
    for request in &requests {
        bed::run(&runtime, request).await;
    }
    assert_eq!(bed.keepers().len(), 2);
    (bed, runtime, requests)
}

async fn no_keepers(bed: &Bed) {
    within("the keepers end", async {
        while !bed.keepers().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn engine_and_server() {
    let mut engine = Engine::with(&[]);
    let (bed, runtime, requests) = two_stacks(&engine).await;
    drop(runtime);
    engine.abandon();
    // The stacks themselves are there, and so are they.
    for request in &requests {
        let page = bed::get(request.ports[0].node_port, "/").await.expect("an answer");
        assert!(page.ends_with("hello\n"), "{page}");
    }
    engine.bury();
    no_keepers(&bed).await;
}

async fn engine() {
    let mut engine = Engine::with(&[]);
    let (bed, runtime, _) = two_stacks(&engine).await;
    engine.bury();
    no_keepers(&bed).await;
    let late = bed::request(build::spec("busybox:1").build());
    let error = runtime.ensure(late).await.expect_err("nobody is there");
    assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
    drop(runtime);
    no_keepers(&bed).await;
}

async fn elsewhere() {
    let engine = Engine::elsewhere();
    engine.load_sample(&["sample:1"]).await;
    let mut bed = Bed::elsewhere(&engine);
    bed.config.keeper_patience = Duration::ZERO;
    let runtime = bed.open().await;
    let request = bed::request(build::spec("sample:1").build());
    bed::run(&runtime, &request).await;
    let id: StackId = request.id;
    drop(runtime);
    no_keepers(&bed).await;
    // The next server gives it another.
    let runtime = bed.open().await;
    bed::until_ready(&runtime, id).await;
    runtime.remove(id, Duration::ZERO).await.expect("removed");
    assert_eq!(bed.left().await, Vec::<String>::new());
}
