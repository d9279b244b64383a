//! What an engine bounds and maps: processes for each container, and users where it remaps them.

use std::time::Duration;

use stackd_core::Runtime;
use stackd_core::admission::RoomPolicy;
use stackd_core::runtime::EnsureRequest;
use stackd_core::spec::{Requested, Volume, VolumeMedium};
use stackd_runtimes::docker::{DockerRuntime, Fit, survey};
use stackd_testkit::docker::Engine;
use stackd_testkit::within;

use crate::Body;
use crate::bed::{self, Bed};

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("limits::processes_are_bounded_in_each_container", |bed| Box::pin(processes(bed)));
    add("limits::what_several_write_to_counts_once", |bed| Box::pin(shared_disk(bed)));
    add("limits::any_number_of_cpus_is_taken", |bed| Box::pin(cpus(bed)));
    add("limits::root_is_nobody_outside_where_users_are_remapped", |_| Box::pin(remapped()));
    add("limits::root_is_root_where_users_are_not_remapped", |bed| Box::pin(not_remapped(bed)));
}

/// Makes processes until it may not, and then waits.
const MANY: &str = "(while :; do sleep 1000 & done) 2>/dev/null; exec sleep 1000";

async fn processes(bed: Bed) {
    let runtime = bed.open().await;
    let mut request = bed::request(bed::serving(vec![
        bed::script("greedy", MANY),
        bed::script("other", "sleep 1000"),
    ]));
    request.pids_limit = 32;
    bed::run(&runtime, &request).await;
    // One of them found no place, and gave up its own.
    within("the container has as many as it may", async {
        loop {
            let count = processes_of(&bed, &format!("{}.greedy", request.id)).await;
            assert!(count <= 32, "{count}");
            if count == 31 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // Its neighbours have their own, and serve.
    let (text, code) = bed::exec(&runtime, request.id, Some("other"), &["echo", "here"]).await;
    assert_eq!((text.as_str(), code), ("here\n", 0));
    let page = bed::get(request.ports[0].node_port, "/").await.expect("an answer");
    assert!(page.ends_with("hello\n"), "{page}");
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn shared_disk(mut bed: Bed) {
    bed.config.disk_look = Duration::from_secs(1);
    let runtime = bed.open().await;
    let mut spec = bed::serving(vec![bed::script("side", "sleep 1000")]);
    let memory = Volume { medium: VolumeMedium::Memory, ..bed::disk("memory") };
    spec.volumes = vec![bed::disk("disk"), memory];
    for container in &mut spec.containers {
        container.volume_mounts =
            vec![bed::mount("disk", "/disk"), bed::mount("memory", "/memory")];
    }
    let mut request = bed::request(spec);
    request.disk_bytes = 20 << 20;
    bed::run(&runtime, &request).await;
    let (id, most) = (request.id, request.disk_bytes);
    // More than half, on disk and in memory.
    for path in ["/disk/much", "/memory/much"] {
        let to = format!("of={path}");
        let words = ["dd", "if=/dev/zero", &to, "bs=1M", "count=12"];
        let (text, code) = bed::exec(&runtime, id, None, &words).await;
        assert_eq!(code, 0, "{text}");
    }
    within("it is looked at", async {
        loop {
            let usage = runtime.usage(id).await.expect("it lives");
            if usage.disk_bytes >= 12 << 20 {
                assert!(usage.disk_bytes < 16 << 20, "{} of {most}", usage.disk_bytes);
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    runtime.remove(id, Duration::ZERO).await.expect("removed");
}

async fn cpus(bed: Bed) {
    let runtime = bed.open().await;
    for milli in [1, 1_000_000] {
        let mut spec = bed::serving(Vec::new());
        spec.containers[0].resources.cpu_milli = milli;
        let request = bed::request(spec);
        runtime.claim_ports(request.id, &request.ports).expect("ports");
        within("a start", runtime.ensure(request.clone())).await.expect("it starts");
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
}

async fn processes_of(bed: &Bed, container: &str) -> u64 {
    let docker = bed.docker().await;
    let options = bollard::query_parameters::TopOptionsBuilder::new().ps_args("-e").build();
    let there = docker.top_processes(container, Some(options)).await.expect("it runs");
    there.processes.unwrap_or_default().len() as u64
}

/// The user outside that a process inside of user 0 is, as the kernel tells it.
async fn root_outside(runtime: &DockerRuntime, request: &EnsureRequest) -> u32 {
    let map = bed::exec(runtime, request.id, None, &["cat", "/proc/self/uid_map"]).await.0;
    let mut words = map.split_whitespace();
    assert_eq!(words.next(), Some("0"), "{map}");
    words.next().and_then(|word| word.parse().ok()).expect("a user")
}

async fn fit_of_users(bed: &Bed) -> Fit {
    let findings = survey(&bed.config, &RoomPolicy::default(), &Requested::default()).await;
    let users = findings.into_iter().find(|finding| finding.name == "user namespaces");
    users.expect("it is looked at").fit
}

async fn remapped() {
    let engine = Engine::remapped();
    engine.load_busybox("busybox:1").await;
    let bed = Bed::new(engine.host());
    let runtime = bed.open().await;
    assert!(runtime.capabilities().enforcement.user_namespace);
    assert_eq!(fit_of_users(&bed).await, Fit::Good);
    let mut spec = bed::serving(vec![bed::script("side", "sleep 1000")]);
    spec.volumes = vec![bed::disk("disk")];
    for container in &mut spec.containers {
        container.volume_mounts = vec![bed::mount("disk", "/disk")];
    }
    let requests = [bed::request(bed::serving(Vec::new())), bed::request(spec)];
    for request in &requests {
        bed::run(&runtime, request).await;
        let page = bed::get(request.ports[0].node_port, "/").await.expect("an answer");
        assert!(page.ends_with("hello\n"), "{page}");
        assert_eq!(root_outside(&runtime, request).await, Engine::FIRST_REMAPPED);
    }
    // What they share they can write, as they can on an engine that does not remap.
    let shared = &requests[1];
    let (text, code) =
        bed::exec(&runtime, shared.id, Some("app"), &["sh", "-c", "echo it > /disk/file"]).await;
    assert_eq!(code, 0, "{text}");
    let (text, _) = bed::exec(&runtime, shared.id, Some("side"), &["cat", "/disk/file"]).await;
    assert_eq!(text, "it\n");
    drop(runtime);
    let runtime = bed.open().await;
    for request in &requests {
        bed::until_ready(&runtime, request.id).await;
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
    assert_eq!(bed.left().await, Vec::<String>::new());
}

async fn not_remapped(bed: Bed) {
    let runtime = bed.open().await;
    assert!(!runtime.capabilities().enforcement.user_namespace, "and it says so");
    assert_eq!(fit_of_users(&bed).await, Fit::Less);
    let request = bed::request(bed::serving(Vec::new()));
    bed::run(&runtime, &request).await;
    assert_eq!(root_outside(&runtime, &request).await, 0);
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}
