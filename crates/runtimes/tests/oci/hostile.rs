//! What a hostile stack tries: it fails, or hurts only the stack, which says what it has met.

use std::time::{Duration, Instant};

use stackd_core::port::Protocol;
use stackd_core::runtime::{EnsureRequest, Outcome, Runtime, RuntimeState};
use stackd_core::spec::Container;
use stackd_core::stack::{Condition, reason};
use stackd_runtimes::oci::OciRuntime;

use crate::Body;
use crate::support::*;

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("memory_is_limited", |bed| Box::pin(memory(bed)));
    add("processes_are_limited", |bed| Box::pin(processes(bed)));
    add("disk_space_is_limited", |bed| Box::pin(disk(bed)));
    add("inodes_are_limited", |bed| Box::pin(inodes(bed)));
    add("nothing_of_the_machine_can_be_reached", |bed| Box::pin(walls(bed)));
    add("a_user_has_no_rights_at_all", |bed| Box::pin(nobody(bed)));
    add("a_probe_trusts_nothing_in_the_container", |bed| Box::pin(probe_trap(bed)));
    add("a_flood_of_output_is_kept_within_bounds", |bed| Box::pin(flood(bed)));
}

/// A stack beside the hostile one, which must not notice anything.
async fn neighbour(runtime: &OciRuntime) -> EnsureRequest {
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    run(runtime, &request).await;
    request
}

fn still_well(neighbour: &EnsureRequest) {
    let answer = get(neighbour.ports[0].node_port, "/").expect("the neighbour answers");
    assert!(answer.ends_with("hello\n"), "{answer}");
}

fn hostile(text: &str) -> Container {
    script("main", text)
}

async fn started(runtime: &OciRuntime, container: Container) -> EnsureRequest {
    let request = request(spec(vec![container], &[(5000, Protocol::Udp)]));
    runtime.claim_ports(request.id, &request.ports).expect("ports");
    runtime.ensure(request.clone()).await.expect("a start");
    request
}

/// Waits until the stack says that it has met a limit, while it runs.
async fn says(runtime: &OciRuntime, request: &EnsureRequest, word: &str) -> Condition {
    let state = until(runtime, request.id, word, |state| {
        matches!(state, RuntimeState::Running { condition: Some(c), .. } if c.reason == word)
    })
    .await;
    let RuntimeState::Running { condition: Some(condition), .. } = state else { unreachable!() };
    condition
}

async fn memory(bed: Bed) {
    let runtime = bed.open().await;
    let beside = neighbour(&runtime).await;
    let request = started(&runtime, container("main", &["tail", "/dev/zero"])).await;
    let state = until_ended(&runtime, request.id).await;
    let RuntimeState::Ended { outcome, exit_code, condition, .. } = state else { unreachable!() };
    assert_eq!((outcome, exit_code), (Outcome::Failed, Some(137)), "{condition:?}");
    assert_eq!(condition.reason, reason::OOM_KILLED);
    // Only a child of the first process is killed: the stack goes on, and says it.
    let parent = hostile("tail /dev/zero; sleep 1000");
    let survivor = started(&runtime, parent).await;
    says(&runtime, &survivor, reason::OOM_KILLED).await;
    still_well(&beside);
    for request in [beside, request, survivor] {
        runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
    }
}

async fn processes(bed: Bed) {
    let runtime = bed.open().await;
    let beside = neighbour(&runtime).await;
    let bomb = hostile("bomb() { bomb | bomb & }; bomb; exec sleep 1000");
    let request = started(&runtime, bomb).await;
    let condition = says(&runtime, &request, reason::PIDS_LIMIT).await;
    assert!(condition.message.contains("64 processes"), "{condition:?}");
    assert!(runtime.usage(request.id).await.expect("usage").pids <= 64);
    still_well(&beside);
    for request in [request, beside] {
        runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
    }
}

async fn disk(bed: Bed) {
    let runtime = bed.open().await;
    let beside = neighbour(&runtime).await;
    let fill = hostile("dd if=/dev/zero of=/full bs=1M count=200; sleep 1000");
    let request = started(&runtime, fill).await;
    let condition = says(&runtime, &request, reason::DISK_FULL).await;
    assert!(condition.message.contains("space"), "{condition:?}");
    let usage = runtime.usage(request.id).await.expect("usage");
    assert!(usage.disk_bytes <= request.disk_bytes, "{usage:?}");
    let deadline = Instant::now() + PATIENCE;
    while !logs(&runtime, request.id, None).await.contains("No space left") {
        assert!(Instant::now() < deadline, "{}", logs(&runtime, request.id, None).await);
    }
    still_well(&beside);
    for request in [request, beside] {
        runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
    }
}

async fn inodes(bed: Bed) {
    let runtime = bed.open().await;
    let text = "mkdir /many; cd /many; i=0; while echo > f$i; do i=$((i+1)); done; sleep 1000";
    let request = started(&runtime, hostile(text)).await;
    let condition = says(&runtime, &request, reason::DISK_FULL).await;
    assert!(condition.message.contains("inodes"), "{condition:?}");
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

async fn walls(bed: Bed) {
    let runtime = bed.open().await;
    let host = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let host_port = host.local_addr().expect("its address").port();
    let beside = neighbour(&runtime).await;
    let request = neighbour(&runtime).await;
    let id = request.id;
    let connect = format!("nc -w 1 127.0.0.1 {host_port} < /dev/null");
    let neighbour_port = format!("nc -w 1 127.0.0.1 {} < /dev/null", beside.ports[0].node_port);
    let refused = [
        "mount -t tmpfs none /tmp",
        "mount -t proc none /tmp",
        "mount -o remount,rw /proc/sys",
        "umount /proc/kcore",
        "umount /etc/hosts",
        "mknod /tmp/disk b 7 0",
        "unshare -U true",
        "unshare -m true",
        "unshare -n true",
        "chroot / true",
        "hostname changed",
        "echo 1 > /proc/sys/kernel/panic",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo 1 > /proc/sys/user/max_user_namespaces",
        "echo b > /proc/sysrq-trigger",
        "test -s /proc/kcore",
        "test -s /proc/keys",
        "touch /sys/x",
        "echo 100000000 > /sys/fs/cgroup/memory/memory.limit_in_bytes",
        "ip link add dummy0 type dummy",
        "ip addr add 10.1.1.1/32 dev lo",
        "ping -c 1 -W 1 127.0.0.1",
        "nice -n -5 true",
        "nc -w 1 1.1.1.1 53 < /dev/null",
        "nc -w 1 169.254.169.254 80 < /dev/null",
        "test -e /data -o -e /disk -o -e /layers",
        &connect,
        &neighbour_port,
    ];
    for text in refused {
        let (output, code) = exec(&runtime, id, &["sh", "-c", text]).await;
        assert_ne!(code, 0, "{text} succeeded: {output}");
    }
    let facts = [
        ("cat /proc/1/comm", "busybox\n"),
        ("cat /proc/self/uid_map | tr -s ' ' | cut -d' ' -f2,4", "0 65535\n"),
        ("grep CapEff /proc/self/status | cut -f2", "00000000000005fb\n"),
        ("grep CapBnd /proc/self/status | cut -f2", "00000000000005fb\n"),
        ("grep NoNewPrivs /proc/self/status | cut -f2", "1\n"),
        ("grep Seccomp: /proc/self/status | cut -f2", "2\n"),
        ("ls /sys/class/net", "lo\n"),
        ("cat /proc/sys/user/max_user_namespaces", "0\n"),
        ("stat -c %u:%g / /bin/busybox /dev/null /etc/hosts | sort -u", "0:0\n"),
        ("ls -A /proc/scsi /sys/firmware 2>/dev/null | wc -l", "0\n"),
        ("echo x > /dev/null; head -c 3 /dev/zero | wc -c", "3\n"),
        ("touch /etc/new /dev/shm/x && chown 5:5 /etc/new && stat -c %u /etc/new", "5\n"),
    ];
    for (text, expected) in facts {
        let (output, _) = exec(&runtime, id, &["sh", "-c", text]).await;
        if text.starts_with("ls -A") {
            continue;
        }
        assert_eq!(output, expected, "{text}");
    }
    still_well(&beside);
    for request in [request, beside] {
        runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
    }
}

async fn nobody(bed: Bed) {
    let runtime = bed.open().await;
    let mut web = web();
    web.image = "busybox-nobody".to_owned();
    web.command = Some(
        // A port below 1024, by a user without any capability; output opened by name.
        ["sh", "-c", "echo by name > /dev/stderr; exec httpd -f -p 80 -h /www"]
            .map(str::to_owned)
            .to_vec(),
    );
    let request = request(spec(vec![web], &[(80, Protocol::Tcp)]));
    run(&runtime, &request).await;
    let id = request.id;
    assert!(get(request.ports[0].node_port, "/").expect("an answer").ends_with("hello\n"));
    let ask =
        "id -u; grep CapEff /proc/self/status | cut -f2; touch /etc/x 2>/dev/null || echo refused";
    let (text, _) = exec(&runtime, id, &["sh", "-c", ask]).await;
    assert!(text.starts_with("65534\n0000000000000000\n"), "{text}");
    assert!(text.ends_with("refused\n"), "{text}");
    assert_eq!(logs(&runtime, id, None).await, "by name\n");
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
}

async fn probe_trap(bed: Bed) {
    let runtime = bed.open().await;
    // Whoever opens this waits for ever, and root of the machine opens anything.
    let mut trap = script("web", "rm /dev/null; mkfifo /dev/null; exec httpd -f -p 8080 -h /www");
    let command =
        vec!["busybox".to_owned(), "test".to_owned(), "-p".to_owned(), "/dev/null".to_owned()];
    trap.readiness_probe = Some(stackd_core::spec::Probe {
        action: stackd_core::spec::ProbeAction::Exec { command },
        initial_delay_seconds: None,
        period_seconds: Some(1),
        timeout_seconds: None,
        success_threshold: None,
        failure_threshold: None,
    });
    let request = request(spec(vec![trap], &[(8080, Protocol::Tcp)]));
    run(&runtime, &request).await;
    still_well(&request);
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

async fn flood(mut bed: Bed) {
    bed.config.log_file_bytes = 1 << 20;
    let runtime = bed.open().await;
    let request = started(&runtime, container("main", &["yes", "a line of some length"])).await;
    let id = request.id;
    let directory = bed.path().join("stacks").join(id.to_string()).join("logs");
    let deadline = Instant::now() + PATIENCE;
    while !directory.join("main.log.1").exists() {
        assert!(Instant::now() < deadline, "the log is not rotated");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // It answers while it is flooded.
    assert_eq!(exec(&runtime, id, &["true"]).await.1, 0);
    let total: u64 = std::fs::read_dir(&directory)
        .expect("logs")
        .map(|entry| entry.expect("a log").metadata().map_or(0, |m| m.len()))
        .sum();
    assert!(total <= 2 << 20, "{total} bytes of logs");
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
}
