//! What stacks are like on the engine, beyond what every runtime promises.

use std::time::Duration;

use stackd_core::Runtime;
use stackd_core::runtime::{Outcome, RuntimeState};
use stackd_core::spec::{EnvVar, Probe, Volume, VolumeMedium, VolumeMount};
use stackd_core::stack::reason;
use stackd_testkit::{build, within};

use crate::Body;
use crate::bed::{self, Bed};

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("life::a_stack_answers_at_its_port", |bed| Box::pin(a_stack_answers_at_its_port(bed)));
    add("life::what_a_program_sees_of_itself", |bed| Box::pin(what_a_program_sees(bed)));
    add("life::containers_share_a_network_and_volumes", |bed| Box::pin(containers_share(bed)));
    add("life::the_first_container_may_end_first", |bed| Box::pin(the_first_may_end_first(bed)));
    add("life::a_service_on_loopback_stays_private", |bed| Box::pin(loopback_is_private(bed)));
    add("life::a_disk_that_is_overfull_ends_the_stack", |bed| Box::pin(overfull(bed)));
    add("life::an_unhealthy_container_ends_the_stack", |bed| Box::pin(unhealthy(bed)));
}

async fn a_stack_answers_at_its_port(bed: Bed) {
    let runtime = bed.open().await;
    let request = bed::request(build::spec("sample:1").build());
    bed::run(&runtime, &request).await;
    let page = bed::get(request.ports[0].node_port, "/healthz").await.expect("an answer");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn what_a_program_sees(bed: Bed) {
    let runtime = bed.open().await;
    let mut spec = bed::serving(Vec::new());
    let variable = |name: &str, value: &str| EnvVar { name: name.into(), value: value.into() };
    spec.containers[0].env = vec![variable("ONE", "1"), variable("TWO", "$(ONE)2")];
    spec.hostname = Some("box".to_owned());
    let request = bed::request(spec);
    bed::run(&runtime, &request).await;
    let id = request.id;
    let read = async |path: &str| bed::exec(&runtime, id, None, &["cat", path]).await.0;
    let hosts = read("/etc/hosts").await;
    assert!(hosts.contains("10.77.0.2\tbox"), "{hosts}");
    let names = read("/etc/resolv.conf").await;
    assert!(names.contains("nameserver 127.0.0.1"), "the machine's are not shown: {names}");
    let status = read("/proc/self/status").await;
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(line("NoNewPrivs:"), "1");
    assert_eq!(line("Seccomp:"), "2");
    assert_eq!(line("CapEff:"), "00000000000005fb", "{status}");
    assert_eq!(line("CapBnd:"), "00000000000005fb");
    let limits = read("/proc/1/limits").await;
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a limit");
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    let files = stackd_shim::open_files().to_string();
    assert_eq!(limit("Max open files"), [files.as_str(), files.as_str()]);
    assert_eq!(read("/proc/sys/kernel/hostname").await.trim(), "box");
    assert_eq!(read("/proc/sys/net/ipv4/ip_unprivileged_port_start").await.trim(), "0");
    let environment = read("/proc/1/environ").await;
    assert!(environment.split('\0').any(|line| line == "TWO=12"), "{environment}");
    runtime.remove(id, Duration::ZERO).await.expect("removed");
}

fn mount(name: &str, path: &str, sub_path: Option<&str>, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        sub_path: sub_path.map(str::to_owned),
        read_only,
    }
}

async fn containers_share(bed: Bed) {
    let runtime = bed.open().await;
    let volume = |name: &str, medium, size_limit_bytes| Volume {
        name: name.to_owned(),
        medium,
        size_limit_bytes,
        size_limit_written: None,
    };
    let mut init = bed::script("init", "touch /disk/made /memory/made");
    init.volume_mounts =
        vec![mount("disk", "/disk", None, false), mount("memory", "/memory", None, false)];
    let mut side = bed::script("side", "sleep 1000");
    side.volume_mounts =
        vec![mount("disk", "/mine", None, true), mount("disk", "/part", Some("a/b"), false)];
    let mut spec = bed::serving(vec![side]);
    spec.init_containers = vec![init];
    spec.containers[0].volume_mounts =
        vec![mount("disk", "/disk", None, false), mount("memory", "/memory", None, false)];
    spec.volumes = vec![
        volume("disk", VolumeMedium::Disk, None),
        volume("memory", VolumeMedium::Memory, Some(1 << 20)),
    ];
    let request = bed::request(spec);
    bed::run(&runtime, &request).await;
    let id = request.id;
    let exec = async |of: &str, args: &[&str]| bed::exec(&runtime, id, Some(of), args).await;
    // What the init container has written outlives it, on disk and in memory.
    for path in ["/disk/made", "/memory/made"] {
        let (text, code) = exec("app", &["ls", path]).await;
        assert_eq!(code, 0, "{path}: {text}");
    }
    assert_eq!(exec("side", &["ls", "/mine/made"]).await.1, 0);
    assert_ne!(exec("side", &["touch", "/mine/new"]).await.1, 0, "it is read-only there");
    let (text, code) = exec("side", &["touch", "/part/new"]).await;
    assert_eq!(code, 0, "{text}");
    let (text, code) = exec("app", &["ls", "/disk/a/b/new"]).await;
    assert_eq!(code, 0, "a part of a volume is a part of the whole: {text}");
    let (text, _) = exec("app", &["sh", "-c", "df -k /memory | tail -1"]).await;
    assert!(text.contains(" 1024 "), "its size is limited: {text}");
    // One network and one host name for all.
    let (text, code) = exec("side", &["sh", "-c", "nc 127.0.0.1 80 </dev/null"]).await;
    assert_eq!(code, 0, "{text}");
    let name = exec("side", &["hostname"]).await.0;
    assert_eq!(name.trim(), id.to_string());
    runtime.remove(id, Duration::ZERO).await.expect("removed");
}

async fn the_first_may_end_first(bed: Bed) {
    let runtime = bed.open().await;
    let mut spec = bed::serving(vec![bed::script("first", "exit 0")]);
    spec.containers.reverse();
    let request = bed::request(spec);
    bed::run(&runtime, &request).await;
    bed::get(request.ports[0].node_port, "/").await.expect("an answer");
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn loopback_is_private(bed: Bed) {
    let runtime = bed.open().await;
    let mut spec = bed::serving(Vec::new());
    let words = ["/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:80", "-h", "/www"];
    spec.containers[0].command = Some(words.map(str::to_owned).to_vec());
    spec.containers[0].readiness_probe =
        Some(bed::probe(&["sh", "-c", "nc 127.0.0.1 80 </dev/null"]));
    let request = bed::request(spec);
    bed::run(&runtime, &request).await;
    let answer = bed::get(request.ports[0].node_port, "/").await;
    assert!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(String::is_empty), "{answer:?}");
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}

async fn overfull(mut bed: Bed) {
    bed.config.disk_look = Duration::from_secs(1);
    let runtime = bed.open().await;
    let mut request = bed::request(bed::serving(Vec::new()));
    request.disk_bytes = 8 << 20;
    let neighbour = bed::request(build::spec("sample:1").build());
    bed::run(&runtime, &request).await;
    bed::run(&runtime, &neighbour).await;
    let _ = bed::exec(
        &runtime,
        request.id,
        None,
        &["dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=16"],
    )
    .await;
    let state = bed::until_ended(&runtime, request.id).await;
    let RuntimeState::Ended { outcome, condition, .. } = state else { unreachable!() };
    assert_eq!((outcome, condition.reason.as_str()), (Outcome::Failed, reason::DISK_FULL));
    assert!(condition.message.contains("8 MiB"), "{condition:?}");
    bed::get(neighbour.ports[0].node_port, "/healthz").await.expect("the other goes on");
    for id in [request.id, neighbour.id] {
        runtime.remove(id, Duration::ZERO).await.expect("removed");
    }
}

async fn unhealthy(bed: Bed) {
    let runtime = bed.open().await;
    let mut spec = build::spec("sample:1").build();
    spec.containers[0].liveness_probe = Some(Probe {
        initial_delay_seconds: Some(1),
        failure_threshold: Some(2),
        ..bed::probe(&["/sample", "exists", "/tmp/well"])
    });
    spec.termination_grace_seconds = Some(1);
    let request = bed::request(spec);
    runtime.claim_ports(request.id, &request.ports).expect("ports");
    within("a start", runtime.ensure(request.clone())).await.expect("a start");
    let state = bed::until_ended(&runtime, request.id).await;
    let RuntimeState::Ended { condition, .. } = state else { unreachable!() };
    assert_eq!(condition.reason, reason::UNHEALTHY, "{condition:?}");
    assert!(condition.message.contains("liveness probe of container \"app\""), "{condition:?}");
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
}
