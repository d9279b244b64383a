//! What goes on inside the containers. The sample image's program plays every part.

use std::time::Duration;

use stackd_core::Protocol;
use stackd_core::runtime::{ErrorKind, ExecRequest, Outcome, RuntimeState};
use stackd_core::spec::{ImagePullPolicy, Probe, ProbeAction, ProbePort};
use stackd_core::stack::reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::{Subject, Watch, assert_kind};
use crate::{build, within};

/// The code of a command is told, as what it wrote.
pub async fn a_command_ends_with_its_code(subject: &Subject) {
    let (id, _) = subject.running(subject.spec().build()).await;
    let Some(real) = &subject.real else {
        assert_eq!(subject.exec(id, &["exit", "7"], None).await.1, 7);
        assert_eq!(subject.exec(id, &["hello"], None).await, ("hello\n".to_owned(), 0));
        return subject.remove(id).await;
    };
    let sample = real.sample.as_str();
    assert_eq!(subject.exec(id, &[sample, "exit", "7"], None).await.1, 7);
    let (text, code) = subject.exec(id, &[sample, "print", "2"], None).await;
    assert_eq!((text.as_str(), code), ("line 1\nline 2\n", 0));
    subject.remove(id).await;
}

/// What is written to a command reaches it, and so does the end.
pub async fn a_command_reads_its_input(subject: &Subject) {
    let (id, _) = subject.running(subject.spec().build()).await;
    let sample = subject.real.as_ref().map_or("sample", |real| real.sample.as_str());
    let (text, code) = subject.exec(id, &[sample, "cat"], Some("what is said")).await;
    assert!(text.ends_with("what is said"), "{text:?}");
    assert_eq!(code, 0);
    subject.remove(id).await;
}

/// A command needs something that runs.
pub async fn nothing_can_be_run_in_what_has_ended(subject: &Subject) {
    let (id, _) = subject.running(subject.spec().build()).await;
    subject.runtime.stop(id, Duration::ZERO).await.expect("stopped");
    let request =
        ExecRequest { container: None, command: vec!["x".into()], terminal: None, stdin: false };
    assert_kind(subject.runtime.exec(id, request).await, ErrorKind::Rejected, "a command");
    subject.remove(id).await;
}

/// A container that ends by itself ends the stack, and its code is told.
pub async fn the_end_of_a_container_is_told_with_its_code(subject: &Subject) {
    if subject.real.is_none() {
        return;
    }
    for (code, expected) in [(0, Outcome::Completed), (3, Outcome::Failed)] {
        let mut watch = Watch::of(subject).await;
        let spec = subject.spec().args(&["exit", &code.to_string()]).build();
        let (id, ports) = subject.begin(spec).await;
        let stack = watch.ended(id).await;
        let RuntimeState::Ended { outcome, exit_code, condition, .. } = stack.state else {
            unreachable!("it has ended")
        };
        assert_eq!((outcome, exit_code), (expected, Some(code)), "{condition:?}");
        let word = if code == 0 { reason::COMPLETED } else { reason::ERROR };
        assert_eq!(condition.reason, word);
        let other = build::stack_id();
        assert_eq!(subject.runtime.claim_ports(other, &ports), Ok(()), "ports come back");
        subject.runtime.unclaim_ports(other);
        subject.remove(id).await;
    }
}

/// What cannot be started is the caller's to mend, and nothing is left of the attempt.
pub async fn a_command_that_does_not_exist_is_refused(subject: &Subject) {
    if subject.real.is_none() {
        return;
    }
    let spec = subject.spec().command(&["/no/such/command"]).build();
    let (id, _, result) = subject.try_begin(spec).await;
    match result {
        Err(error) => {
            assert!(matches!(error.kind, ErrorKind::Rejected | ErrorKind::Failed), "{error:?}");
            assert_eq!(error.condition.reason, reason::START_ERROR);
            assert!(error.condition.message.contains("/no/such/command"), "{error}");
        }
        // A runtime that learns of it only later says so there.
        Ok(()) => {
            let stack = Watch::of(subject).await.ended(id).await;
            let RuntimeState::Ended { condition, .. } = stack.state else { unreachable!() };
            assert_eq!(condition.reason, reason::START_ERROR);
        }
    }
    subject.remove(id).await;
    assert!(subject.inventory().await.is_empty());
}

/// An image that may not be pulled and is not here is named.
pub async fn an_image_that_is_not_here_is_refused(subject: &Subject) {
    if subject.real.is_none() {
        return;
    }
    let image = "no-such-image:1";
    let condition = match subject.runtime.prepare(image, Some(ImagePullPolicy::Never)).await {
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Rejected);
            error.condition
        }
        // A runtime that learns of it only later says so there.
        Ok(()) => {
            let mut watch = Watch::of(subject).await;
            let (id, _) = subject.begin(build::spec(image).build()).await;
            let stack = watch.ended(id).await;
            subject.remove(id).await;
            let RuntimeState::Ended { condition, .. } = stack.state else { unreachable!() };
            condition
        }
    };
    assert_eq!(condition.reason, reason::IMAGE_NEVER_PULL);
    assert!(condition.message.contains(image), "{condition:?}");
}

/// Both protocols reach the stack by its node ports, and nothing answers there after a stop.
pub async fn traffic_reaches_the_ports(subject: &Subject) {
    let Some(real) = &subject.real else { return };
    let spec = subject.spec().port(7, Protocol::Udp).args(&["serve", "--udp", "7"]).build();
    let (id, ports) = subject.running(spec).await;
    let taken = (real.address, ports[0].node_port);
    let page = get(real.address, ports[0].node_port, "/healthz").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    // The address may be another machine's.
    let socket = UdpSocket::bind(("0.0.0.0", 0)).await.expect("a socket");
    socket.connect((real.address, ports[1].node_port)).await.expect("an address");
    within("a datagram comes back", async {
        let mut data = [0; 64];
        let length = loop {
            // One that is lost is sent again, as datagrams are.
            let sent = socket.send(b"ping").await.is_ok();
            let answer = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut data));
            if sent && let Ok(Ok(length)) = answer.await {
                break length;
            }
        };
        assert_eq!(&data[..length], b"ping");
    })
    .await;
    subject.runtime.stop(id, Duration::ZERO).await.expect("stopped");
    subject.heard(&ports, false).await;
    let refused = TcpStream::connect(taken).await;
    assert!(refused.is_err(), "nothing answers after a stop");
    subject.remove(id).await;
}

pub(super) async fn get(address: std::net::IpAddr, port: u16, path: &str) -> String {
    within("an answer by HTTP", async {
        let mut stream = TcpStream::connect((address, port)).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    })
    .await
}

/// The end at the memory limit has its own word.
pub async fn a_stack_at_its_memory_limit_is_told_so(subject: &Subject) {
    if subject.real.is_none() {
        return;
    }
    let mut watch = Watch::of(subject).await;
    let spec = subject.spec().memory(16 << 20).args(&["probe", "memory-hog"]).build();
    let (id, _) = subject.begin(spec).await;
    let stack = watch.ended(id).await;
    let RuntimeState::Ended { outcome, condition, .. } = stack.state else { unreachable!() };
    assert_eq!((outcome, condition.reason.as_str()), (Outcome::Failed, reason::OOM_KILLED));
    subject.remove(id).await;
}

/// An init container that fails keeps the others from starting; one that succeeds lets them.
pub async fn init_containers_come_first(subject: &Subject) {
    if subject.real.is_none() {
        return;
    }
    for (code, starts) in [("0", true), ("4", false)] {
        let mut watch = Watch::of(subject).await;
        let mut init = build::container(&subject.image);
        init.name = "init".to_owned();
        init.args = Some(vec!["exit".to_owned(), code.to_owned()]);
        let (id, _) = subject.begin(subject.spec().first(init).build()).await;
        if starts {
            watch.ready(id).await;
        } else {
            let stack = watch.ended(id).await;
            let RuntimeState::Ended { exit_code, .. } = stack.state else { unreachable!() };
            assert_eq!(exit_code, Some(4));
        }
        subject.remove(id).await;
    }
}

/// A stack is ready when its probe says so, and not before.
pub async fn a_probe_decides_on_readiness(subject: &Subject) {
    let Some(real) = &subject.real else { return };
    let mut watch = Watch::of(subject).await;
    let action = ProbeAction::Exec {
        command: vec![real.sample.clone(), "exists".to_owned(), "/tmp/ready".to_owned()],
    };
    let (id, _) = subject.begin(subject.spec().ready_when(action).build()).await;
    watch
        .until(id, |state| {
            !matches!(state, RuntimeState::Starting { .. })
                || matches!(state, RuntimeState::Starting { condition: Some(c) }
                    if c.reason == reason::NOT_READY)
        })
        .await;
    let ready = matches!(watch.seen[&id].state, RuntimeState::Running { ready: true, .. });
    assert!(!ready, "it was ready before its probe held");
    let (text, code) = subject.exec(id, &[&real.sample, "touch", "/tmp/ready"], None).await;
    assert_eq!(code, 0, "{text}");
    watch.ready(id).await;
    subject.remove(id).await;
}

/// Probes end with their container: one that ended with 0 while others go on is well.
pub async fn a_container_that_ended_well_is_probed_no_more(subject: &Subject) {
    let Some(real) = &subject.real else { return };
    let mut watch = Watch::of(subject).await;
    let probe = |action, initial_delay_seconds| Probe {
        action,
        initial_delay_seconds: Some(initial_delay_seconds),
        period_seconds: Some(1),
        timeout_seconds: None,
        success_threshold: None,
        failure_threshold: Some(1),
    };
    let mut side = build::container(&subject.image);
    side.name = "side".to_owned();
    side.args = Some(vec!["exit".to_owned(), "0".to_owned()]);
    let port = ProbePort { number: 81, name: None };
    side.liveness_probe = Some(probe(ProbeAction::TcpSocket { port }, 2));
    let mut spec = subject.spec().and(side).build();
    // What ends the stack, after the other would have. It does not end well when it is told to,
    // which a cluster would take for the end of its work.
    spec.containers[0].args = Some(vec!["ignore-term".to_owned()]);
    let never = vec![real.sample.clone(), "exists".to_owned(), "/nowhere".to_owned()];
    spec.containers[0].liveness_probe = Some(probe(ProbeAction::Exec { command: never }, 5));
    spec.termination_grace_seconds = Some(1);
    let (id, _) = subject.begin(spec).await;
    let stack = watch.ended(id).await;
    let RuntimeState::Ended { condition, .. } = stack.state else { unreachable!() };
    assert!(condition.message.contains("\"app\""), "{condition:?}");
    subject.remove(id).await;
}
