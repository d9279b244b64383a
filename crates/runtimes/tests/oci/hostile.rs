//! What a hostile stack tries: it fails, or hurts only the stack, which says what it has met.

use std::time::{Duration, Instant};

use stackd_core::port::Protocol;
use stackd_core::runtime::{EnsureRequest, Outcome, Runtime, RuntimeState};
use stackd_core::spec::{Container, VolumeMedium};
use stackd_core::stack::{Condition, reason};
use stackd_runtimes::oci::OciRuntime;

use crate::Body;
use crate::life::{mount, volume};
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
    add("a_flood_of_empty_lines_costs_the_machine_little", |bed| Box::pin(empty_lines(bed)));
    add("a_limit_is_told_also_by_one_who_has_ended_of_it", |bed| Box::pin(ended_of_it(bed)));
    add("sockets_are_limited_as_other_memory_is", |bed| Box::pin(sockets(bed)));
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
    // The first process makes one other only, so that it is not itself the one that is refused.
    let bomb = hostile("(bomb() { bomb | bomb & }; bomb) & exec sleep 1000");
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
        ("find /proc/scsi /sys/firmware -mindepth 1 2>/dev/null | wc -l", "0\n"),
        ("echo x > /dev/null; head -c 3 /dev/zero | wc -c", "3\n"),
        ("touch /etc/new /dev/shm/x && chown 5:5 /etc/new && stat -c %u /etc/new", "5\n"),
    ];
    for (text, expected) in facts {
        let (output, _) = exec(&runtime, id, &["sh", "-c", text]).await;
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

/// The CPU time that a process has used, in ticks of a hundredth of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, fields) = text.rsplit_once(')').expect("its name");
    let field = |at: usize| -> u64 {
        let field = fields.split_whitespace().nth(at).and_then(|field| field.parse().ok());
        field.expect("a number")
    };
    field(11) + field(12)
}

async fn empty_lines(mut bed: Bed) {
    use std::os::unix::fs::MetadataExt;
    const MOST: u64 = 1 << 20;
    bed.config.log_file_bytes = MOST;
    let runtime = bed.open().await;
    let began = Instant::now();
    let request = started(&runtime, container("main", &["yes", ""])).await;
    let id = request.id;
    let directory = bed.path().join("stacks").join(id.to_string());
    let mut files = std::collections::BTreeSet::new();
    // More than what a second allows, so that it has to wait.
    while files.len() < 10 {
        assert!(began.elapsed() < PATIENCE, "{} files in all", files.len());
        for name in ["main.log", "main.log.1"] {
            if let Ok(file) = std::fs::metadata(directory.join("logs").join(name)) {
                assert!(file.len() <= MOST, "{name} has {} bytes", file.len());
                files.insert((file.ino(), file.mtime(), file.mtime_nsec()));
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let shim = stackd_shim::read_state(&directory).expect("a state").shim;
    let (used, wall) = (cpu_ticks(shim.pid), began.elapsed().as_millis() / 10);
    assert!(u128::from(used) * 2 < wall, "{used} of {wall} hundredths of a second");
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
}

/// A program that ends of a limit does so before anybody has looked at it.
async fn ended_of_it(bed: Bed) {
    let runtime = bed.open().await;
    let fill = |file: &str| format!("dd if=/dev/zero of={file} bs=64k count=4000");
    let forks = "for n in $(seq 100); do sleep 1000 & done; exit 3".to_owned();
    let mut cases = vec![
        (fill("/full"), None, reason::DISK_FULL, "its disk has no space left"),
        (forks, None, reason::PIDS_LIMIT, "it has reached its limit of 64 processes"),
    ];
    for medium in [VolumeMedium::Disk, VolumeMedium::Memory] {
        let small = Some(volume("v", medium, Some(1 << 20)));
        let text = "its volume \"v\" has no space left";
        cases.push((fill("/v/full"), small, reason::DISK_FULL, text));
    }
    for (text, volume, expected, said) in cases {
        for init in [false, true] {
            let mut program = script("program", &text);
            program.volume_mounts.extend(volume.as_ref().map(|_| mount("v", "/v")));
            let mut spec = spec(vec![script("main", "sleep 1000")], &[(5000, Protocol::Udp)]);
            spec.volumes.extend(volume.clone());
            let list = if init { &mut spec.init_containers } else { &mut spec.containers };
            list.push(program);
            let request = request(spec);
            runtime.claim_ports(request.id, &request.ports).expect("ports");
            runtime.ensure(request.clone()).await.expect("a start");
            let state = until_ended(&runtime, request.id).await;
            let RuntimeState::Ended { condition, .. } = state else { unreachable!() };
            assert_eq!(condition.reason, expected, "{text}, init: {init}: {condition:?}");
            let kind = if init { "init container" } else { "container" };
            assert!(condition.message.starts_with(kind), "{condition:?}");
            assert!(condition.message.ends_with(said), "{condition:?}");
            runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
        }
    }
    // While it runs it is told, too.
    let mut main = script("main", "dd if=/dev/zero of=/v/full bs=64k count=40; sleep 1000");
    main.volume_mounts = vec![mount("v", "/v")];
    let mut spec = spec(vec![main], &[(5000, Protocol::Udp)]);
    spec.volumes = vec![volume("v", VolumeMedium::Disk, Some(1 << 20))];
    let request = request(spec);
    runtime.claim_ports(request.id, &request.ports).expect("ports");
    runtime.ensure(request.clone()).await.expect("a start");
    says(&runtime, &request, reason::DISK_FULL).await;
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

async fn sockets(bed: Bed) {
    // Of version 2 they are part of the other memory.
    if !std::path::Path::new("/sys/fs/cgroup/memory/memory.kmem.tcp.limit_in_bytes").exists() {
        return;
    }
    let runtime = bed.open().await;
    // What is sent is never read.
    let text = "(while :; do nc -l -p 9000 -e sleep 1000; done) & exec sleep 1000";
    let request = started(&runtime, hostile(text)).await;
    let read = |file: &str| format!("cat /sys/fs/cgroup/memory/memory.kmem.tcp.{file}_in_bytes");
    let (limit, _) = exec(&runtime, request.id, &["sh", "-c", &read("limit")]).await;
    assert_eq!(limit.trim(), (64 << 20).to_string());
    let send = "nc 127.0.0.1 9000 < /dev/zero & \
                until grep -q '[1-9]' /sys/fs/cgroup/memory/memory.kmem.tcp.usage_in_bytes; do :; done";
    let send = ["sh", "-c", send];
    let counted = exec(&runtime, request.id, &send);
    assert_eq!(within("what sockets hold is counted", counted).await.1, 0);
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}
