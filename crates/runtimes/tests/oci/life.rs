//! From a start to nothing.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use stackd_core::port::Protocol;
use stackd_core::runtime::{ErrorKind, Outcome, Runtime, RuntimeState};
use stackd_core::spec::{Probe, ProbeAction, Volume, VolumeMedium, VolumeMount};
use stackd_core::stack::reason;

use crate::Body;
use crate::support::*;

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("a_stack_is_started_reached_and_removed", |bed| Box::pin(whole_way(bed)));
    add("containers_share_a_network_and_volumes", |bed| Box::pin(several(bed)));
    add("datagrams_reach_a_stack_and_come_back", |bed| Box::pin(udp(bed)));
    add("what_cannot_be_started_is_refused_with_the_reason", |bed| Box::pin(refused(bed)));
    add("the_end_of_containers_is_the_end_of_the_stack", |bed| Box::pin(ends(bed)));
    add("a_workload_may_end_in_its_own_way", |bed| Box::pin(grace(bed)));
    add("an_image_says_by_which_signal_it_ends", |bed| Box::pin(stop_signal(bed)));
    add("connections_wait_until_the_stack_is_ready", |bed| Box::pin(early(bed)));
    add("probes_decide_on_readiness_and_life", |bed| Box::pin(probes(bed)));
    add("many_connections_and_large_bodies_pass", |bed| Box::pin(traffic(bed)));
    add("readers_of_logs_are_in_nobodys_way", |bed| Box::pin(followers(bed)));
}

async fn whole_way(bed: Bed) {
    let runtime = bed.open().await;
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    let (id, port) = (request.id, request.ports[0].node_port);
    run(&runtime, &request).await;
    let answer = get(port, "/").expect("an answer");
    assert!(answer.ends_with("hello\n"), "{answer}");
    runtime.ensure(request.clone()).await.expect("twice is once");
    let usage = runtime.usage(id).await.expect("usage");
    assert!(usage.memory_bytes > 0 && usage.pids >= 1 && usage.disk_bytes > 0, "{usage:?}");
    runtime.stop(id, Duration::from_secs(2)).await.expect("a stop");
    assert!(get(port, "/").is_err(), "a port of a stopped stack answers");
    let state = until_ended(&runtime, id).await;
    let RuntimeState::Ended { outcome, condition, .. } = &state else { unreachable!() };
    assert_eq!((*outcome, condition.reason.as_str()), (Outcome::Failed, reason::ERROR));
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
    runtime.remove(id, Duration::ZERO).await.expect("twice is once");
}

pub(crate) fn volume(name: &str, medium: VolumeMedium, bytes: Option<u64>) -> Volume {
    Volume { name: name.to_owned(), medium, size_limit_bytes: bytes, size_limit_written: None }
}

pub(crate) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        sub_path: None,
        read_only: false,
    }
}

async fn several(bed: Bed) {
    let runtime = bed.open().await;
    let mut first = script("first", "echo -n made > /data/file; ln -s / /data/root");
    first.volume_mounts = vec![mount("shared", "/data")];
    let mut second = script("second", "cat /data/file && echo -n ' twice' >> /data/file");
    second.volume_mounts = vec![mount("shared", "/data")];
    let mut web = web();
    // The link was put there by the stack; it leads to the volume's own root, not to another.
    let shown = VolumeMount {
        sub_path: Some("root".to_owned()),
        read_only: true,
        ..mount("shared", "/www")
    };
    web.volume_mounts = vec![shown, mount("fast", "/fast"), mount("small", "/fast/small")];
    let client = script(
        "client",
        "until wget -q -O - http://127.0.0.1:8080/file; do sleep 0.05; done; hostname; sleep 1000",
    );
    let mut spec = spec(vec![web, client], &[(8080, Protocol::Tcp)]);
    spec.hostname = Some("together".to_owned());
    spec.init_containers = vec![first, second];
    spec.volumes = vec![
        volume("shared", VolumeMedium::Disk, None),
        volume("fast", VolumeMedium::Memory, Some(1 << 20)),
        volume("small", VolumeMedium::Disk, Some(1 << 20)),
    ];
    let request = request(spec);
    run(&runtime, &request).await;
    let id = request.id;
    let page = get(request.ports[0].node_port, "/file").expect("a page");
    assert!(page.ends_with("made twice"), "{page}");
    assert_eq!(logs(&runtime, id, Some("second")).await, "made\n");
    let deadline = Instant::now() + PATIENCE;
    while logs(&runtime, id, Some("client")).await != "made twicetogether\n" {
        assert!(Instant::now() < deadline, "{}", logs(&runtime, id, Some("client")).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (text, code) = exec(&runtime, id, &["touch", "/www/x"]).await;
    assert_ne!(code, 0, "a read-only mount was written: {text}");
    for path in ["/fast/full", "/fast/small/full"] {
        let fill = format!("dd if=/dev/zero of={path} bs=64k count=64");
        let (text, _) = exec(&runtime, id, &["sh", "-c", &fill]).await;
        assert!(text.contains("No space left"), "{path}: {text}");
    }
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
}

async fn udp(bed: Bed) {
    bed.add_own_program();
    let runtime = bed.open().await;
    let echo = container("echo", &["/bin/own", "udp-echo"]);
    let request = request(spec(vec![echo], &[(5000, Protocol::Udp)]));
    run(&runtime, &request).await;
    let port = request.ports[0].node_port;
    for text in [b"one", b"two"] {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(("127.0.0.1", port)).expect("an address");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let mut data = [0; 16];
        // The service may not have bound its port yet, and datagrams may be lost.
        let answered = (0..25).any(|_| {
            socket.send(text).expect("sent");
            socket.recv(&mut data).is_ok_and(|n| data[..n] == *text)
        });
        let written = logs(&runtime, request.id, None).await;
        assert!(answered, "no datagram came back: {written}");
    }
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

async fn refused(bed: Bed) {
    let runtime = bed.open().await;
    let cases: [(&[&str], &str); 4] = [
        (&["/no/such"], "exec: \"/no/such\": no such file or directory"),
        (&["nothing-so-named"], "exec: \"nothing-so-named\": executable file not found in $PATH"),
        (&["/www/index.html"], "exec: \"/www/index.html\": permission denied"),
        (&["/www"], "exec: \"/www\": permission denied"),
    ];
    for (command, text) in cases {
        let request = request(spec(vec![container("web", command)], &[(80, Protocol::Tcp)]));
        runtime.claim_ports(request.id, &request.ports).expect("ports");
        let error = runtime.ensure(request.clone()).await.expect_err("it cannot be started");
        assert_eq!(error.kind, ErrorKind::Rejected, "{error:?}");
        assert_eq!(error.condition.reason, reason::START_ERROR);
        assert_eq!(error.condition.message, text);
        assert!(get(request.ports[0].node_port, "/").is_err(), "its port is held");
        runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
    }
}

async fn ends(bed: Bed) {
    let runtime = bed.open().await;
    for (text, outcome, code) in [
        ("echo bye; exit 0", Outcome::Completed, 0),
        ("echo bye; exit 3", Outcome::Failed, 3),
        // Not by a signal to itself: the first process of a namespace does not see those.
        ("echo bye; sleep 100 & kill -9 $!; wait $!", Outcome::Failed, 137),
    ] {
        let other = script("other", if code == 0 { "true" } else { "sleep 1000" });
        let main = script("main", text);
        let request = request(spec(vec![main, other], &[(80, Protocol::Tcp)]));
        runtime.claim_ports(request.id, &request.ports).expect("ports");
        runtime.ensure(request.clone()).await.expect("a start");
        let state = until_ended(&runtime, request.id).await;
        let RuntimeState::Ended { outcome: got, exit_code, condition, .. } = state else {
            unreachable!()
        };
        assert_eq!((got, exit_code), (outcome, Some(code)), "{condition:?}");
        assert!(logs(&runtime, request.id, None).await.starts_with("bye\n"), "logs stay");
        runtime.claim_ports(request.id, &request.ports).expect("ports come back");
        runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
    }
}

async fn grace(bed: Bed) {
    let runtime = bed.open().await;
    let polite = script("main", "trap 'echo ended; exit 0' TERM; echo ready; sleep 1000 & wait");
    let request = request(spec(vec![polite], &[(5000, Protocol::Udp)]));
    run(&runtime, &request).await;
    let id = request.id;
    let deadline = Instant::now() + PATIENCE;
    while !logs(&runtime, id, None).await.contains("ready") {
        assert!(Instant::now() < deadline, "it does not begin");
    }
    runtime.stop(id, Duration::from_secs(10)).await.expect("a stop");
    assert_eq!(logs(&runtime, id, None).await, "ready\nended\n");
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
    // One that does not listen is not waited for.
    let deaf = container("main", &["sleep", "1000"]);
    let request = crate::support::request(spec(vec![deaf], &[(5000, Protocol::Udp)]));
    run(&runtime, &request).await;
    let removal = runtime.remove(request.id, 10 * PATIENCE);
    within("its end does not wait for the grace", removal).await.expect("a removal");
}

async fn stop_signal(bed: Bed) {
    let runtime = bed.open().await;
    let text = "trap 'echo quit; exit 0' QUIT; trap 'echo term; exit 0' TERM; echo ready; \
                sleep 1000 & wait";
    for (image, said) in [("busybox", "term"), ("busybox-quit", "quit")] {
        let mut main = script("main", text);
        main.image = image.to_owned();
        let request = request(spec(vec![main], &[(5000, Protocol::Udp)]));
        run(&runtime, &request).await;
        let id = request.id;
        until_logged(&runtime, id, "ready").await;
        runtime.stop(id, Duration::from_secs(10)).await.expect("a stop");
        assert_eq!(logs(&runtime, id, None).await, format!("ready\n{said}\n"), "{image}");
        runtime.remove(id, Duration::ZERO).await.expect("a removal");
    }
}

async fn until_logged(
    runtime: &stackd_runtimes::oci::OciRuntime,
    id: stackd_core::StackId,
    what: &str,
) {
    let deadline = Instant::now() + PATIENCE;
    while !logs(runtime, id, None).await.contains(what) {
        assert!(Instant::now() < deadline, "{what:?} was not logged");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn early(bed: Bed) {
    let runtime = bed.open().await;
    let mut slow = script("web", "sleep 0.3; exec httpd -f -p 8080 -h /www");
    slow.ports = web().ports;
    let request = request(spec(vec![slow], &[(8080, Protocol::Tcp)]));
    runtime.claim_ports(request.id, &request.ports).expect("ports");
    let port = request.ports[0].node_port;
    let early = std::thread::spawn(move || get(port, "/"));
    runtime.ensure(request.clone()).await.expect("a start");
    let answer = tokio::task::spawn_blocking(|| early.join()).await.expect("a thread");
    assert!(answer.expect("no panic").expect("an answer").ends_with("hello\n"));
    until_ready(&runtime, request.id).await;
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

fn probe(action: ProbeAction, failures: u32) -> Probe {
    Probe {
        action,
        initial_delay_seconds: None,
        period_seconds: Some(1),
        timeout_seconds: None,
        success_threshold: None,
        failure_threshold: Some(failures),
    }
}

async fn probes(bed: Bed) {
    let runtime = bed.open().await;
    let port = |number| stackd_core::spec::ProbePort { number, name: None };
    let mut web = web();
    let command = ["test", "-e", "/tmp/ready"].map(str::to_owned).to_vec();
    web.readiness_probe = Some(probe(ProbeAction::Exec { command }, 1));
    let path = Some("/alive".to_owned());
    let alive = ProbeAction::HttpGet { path, port: port(8080), https: None, headers: Vec::new() };
    web.startup_probe = Some(probe(ProbeAction::TcpSocket { port: port(8080) }, 30));
    web.liveness_probe = Some(probe(alive, 2));
    web.command = Some(
        ["sh", "-c", "touch /www/alive; exec httpd -f -p 8080 -h /www"].map(str::to_owned).to_vec(),
    );
    let request = request(spec(vec![web], &[(8080, Protocol::Tcp)]));
    let id = request.id;
    runtime.claim_ports(id, &request.ports).expect("ports");
    runtime.ensure(request.clone()).await.expect("a start");
    until(&runtime, id, "a start", |state| matches!(state, RuntimeState::Starting { .. })).await;
    assert_eq!(exec(&runtime, id, &["touch", "/tmp/ready"]).await.1, 0);
    until_ready(&runtime, id).await;
    assert_eq!(exec(&runtime, id, &["rm", "/tmp/ready"]).await.1, 0);
    until(&runtime, id, "the loss of readiness", |state| {
        matches!(state, RuntimeState::Running { ready: false, .. })
    })
    .await;
    assert_eq!(exec(&runtime, id, &["rm", "/www/alive"]).await.1, 0);
    let RuntimeState::Ended { condition, outcome, .. } = until_ended(&runtime, id).await else {
        unreachable!()
    };
    assert_eq!((outcome, condition.reason.as_str()), (Outcome::Failed, reason::UNHEALTHY));
    assert!(condition.message.contains("status 404"), "{condition:?}");
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
}

async fn traffic(bed: Bed) {
    let runtime = bed.open().await;
    let mut web = web();
    web.command = Some(
        ["sh", "-c", "head -c 8000000 /dev/zero > /www/large; exec httpd -f -p 8080 -h /www"]
            .map(str::to_owned)
            .to_vec(),
    );
    let request = request(spec(vec![web], &[(8080, Protocol::Tcp)]));
    run(&runtime, &request).await;
    let port = request.ports[0].node_port;
    let clients: Vec<_> = (0..40)
        .map(|n| {
            std::thread::spawn(move || {
                let path = if n % 8 == 0 { "/large" } else { "/" };
                let ask = || {
                    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
                    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
                    // The client has said all; the answer still comes.
                    stream.shutdown(std::net::Shutdown::Write)?;
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer)?;
                    Ok::<_, std::io::Error>(answer.len())
                };
                (n, ask())
            })
        })
        .collect();
    for client in clients {
        let (n, result) = client.join().expect("no panic");
        let length = result.unwrap_or_else(|e| panic!("client {n}: {e}"));
        let least = if n % 8 == 0 { 8_000_000 } else { 6 };
        assert!(length > least, "client {n} got {length} bytes");
    }
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

/// More readers than a runtime has threads for what may wait, none of whom reads.
async fn followers(bed: Bed) {
    let runtime = bed.open().await;
    let request = request(spec(vec![script("main", "seq 1000; exec sleep 1000")], &[]));
    run(&runtime, &request).await;
    let id = request.id;
    until_logged(&runtime, id, "1000").await;
    let mut readers = Vec::new();
    for _ in 0..600 {
        let options =
            stackd_core::runtime::LogOptions { container: None, tail: None, follow: true };
        readers.push(runtime.logs(id, options).await.expect("logs"));
    }
    for reader in &mut readers {
        let line = within("it is read", futures_util::StreamExt::next(reader)).await;
        line.expect("a line").expect("a line");
    }
    let removal = runtime.remove(id, Duration::ZERO);
    within("the stack is removed", removal).await.expect("a removal");
    drop(readers);
}
