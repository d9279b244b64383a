//! An engine on another machine, by TCP with TLS: networks of the engine's, ports that it publishes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::query_parameters::{
    KillContainerOptions, ListNetworksOptions, RemoveContainerOptionsBuilder,
};
use stackd_core::port::Protocol;
use stackd_core::runtime::{EnsureRequest, ErrorKind, Outcome};
use stackd_core::spec::{Probe, ProbeAction, ProbePort};
use stackd_core::stack::reason;
use stackd_core::{Runtime, StackSpec};
use stackd_runtimes::docker::DockerRuntime;
use stackd_testkit::docker::Engine;
use stackd_testkit::{build, within};

use crate::Body;
use crate::bed::{self, Bed};
use crate::faults::ending;

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("elsewhere::stacks_run_on_an_engine_of_another_machine", |_| Box::pin(stacks_run()));
    add("elsewhere::networks_that_were_removed_are_made_again", |_| Box::pin(pruned()));
    add("elsewhere::a_keeper_that_dies_is_replaced", |_| Box::pin(keeper_dies()));
    add("elsewhere::an_engine_that_restarts_ends_stacks", |_| Box::pin(engine_restarts()));
    add("elsewhere::what_somebody_ends_by_hand_is_told", |_| Box::pin(ended_by_hand()));
    add("elsewhere::a_machine_that_is_away_for_a_while", |_| Box::pin(machine_away()));
}

async fn networks(bed: &Bed) -> usize {
    let networks = bed.docker().await.list_networks(None::<ListNetworksOptions>).await;
    let names = networks.expect("networks").into_iter().filter_map(|network| network.name);
    names.filter(|name| name.starts_with("stackd-")).count()
}

fn page_of(port: u16) -> ProbeAction {
    let port = ProbePort { number: port, name: None };
    ProbeAction::HttpGet { path: Some("/healthz".into()), port, https: None, headers: vec![] }
}

fn with_probe(port: u16) -> StackSpec {
    build::spec("sample:1").ready_when(page_of(port)).build()
}

/// The certificate of an authority that has nothing to do with the engine.
fn another_authority(directory: &Path) -> PathBuf {
    let at = |name: &str| directory.join(name);
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=another authority", "-keyout"])
        .arg(at("another.key"))
        .arg("-out")
        .arg(at("another.pem"))
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{made:?}");
    at("another.pem")
}

async fn stacks_run() {
    let engine = Engine::elsewhere();
    engine.load_sample(&["sample:1"]).await;
    let address = engine.address().expect("it is elsewhere").to_owned();
    let bed = Bed::elsewhere(&engine);
    let mut strangers = bed.config.clone();
    strangers.tls_ca = Some(another_authority(bed.path()));
    let error = DockerRuntime::open(strangers).await.err().expect("it may be anybody");
    assert!(error.to_string().contains("certificate"), "{error}");
    let runtime = bed.open().await;
    let place = runtime.placement().expect("one engine is one place");
    assert_eq!(place.public_ip.as_deref(), Some(address.as_str()));
    assert_eq!(networks(&bed).await, 2, "made ahead");

    let udp = build::spec("sample:1").port(7, Protocol::Udp).args(&["serve", "--udp", "7"]);
    let (plain, mut probed) = (bed::request(udp.build()), bed::request(with_probe(80)));
    let mut side = build::container("sample:1");
    side.name = "side".to_owned();
    side.args = Some(vec!["sleep".to_owned()]);
    let mut several = (*probed.spec).clone();
    several.containers.push(side);
    probed.spec = several.into();
    for request in [&plain, &probed] {
        bed::run(&runtime, request).await;
        let page = bed::get_at(&address, request.ports[0].node_port, "/healthz").await;
        assert!(page.expect("an answer").starts_with("HTTP/1.1 200"));
    }
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.expect("a socket");
    socket.connect((address.as_str(), plain.ports[1].node_port)).await.expect("an address");
    within("a datagram comes back", async {
        let mut data = [0; 16];
        socket.send(b"ping").await.expect("sent");
        let length = socket.recv(&mut data).await.expect("received");
        assert_eq!(&data[..length], b"ping");
    })
    .await;

    let hidden = bed::request(with_probe(81));
    let error = runtime.ensure(hidden.clone()).await.expect_err("81 is not published");
    assert_eq!(
        (error.kind, error.condition.reason.as_str()),
        (ErrorKind::Rejected, reason::START_ERROR)
    );
    assert!(error.condition.message.contains("port 81 of a probe"), "{error}");

    let keepers = bed.keepers();
    drop(runtime);
    let runtime = bed.open().await;
    assert_eq!(bed.keepers(), keepers, "the same processes check them");
    bed::until_ready(&runtime, plain.id).await;
    let (text, code) = bed::exec(&runtime, plain.id, None, &["/sample", "print", "1"]).await;
    assert_eq!((text.as_str(), code), ("line 1\n", 0));
    for request in [&plain, &probed, &hidden] {
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
    assert_eq!(bed.left().await, Vec::<String>::new());
    assert_eq!(networks(&bed).await, 2, "networks serve the next stacks");
}

async fn pruned() {
    let engine = Engine::elsewhere();
    engine.load_sample(&["sample:1"]).await;
    let bed = Bed::elsewhere(&engine);
    let runtime = bed.open().await;
    assert_eq!(networks(&bed).await, 2);
    bed.docker().await.prune_networks(None).await.expect("pruned");
    assert_eq!(networks(&bed).await, 0);
    let requests = [bed::request(with_probe(80)), bed::request(with_probe(80))];
    for request in &requests {
        bed::run(&runtime, request).await;
    }
    for request in &requests {
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
    runtime.remove_all().await;
    assert_eq!(networks(&bed).await, 0, "none is kept for nobody");
    assert_eq!(bed.left().await, Vec::<String>::new());
}

/// What could not be started while the engine was away is, once it is back.
async fn started_again(runtime: &DockerRuntime, request: &EnsureRequest) {
    within("a start succeeds again", async {
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        while let Err(error) = runtime.ensure(request.clone()).await {
            assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
            pause.tick().await;
        }
    })
    .await;
    bed::until_ready(runtime, request.id).await;
}

async fn engine_restarts() {
    let mut engine = Engine::elsewhere();
    engine.load_sample(&["sample:1"]).await;
    let bed = Bed::elsewhere(&engine);
    let runtime = bed.open().await;
    let request = bed::request(with_probe(80));
    bed::run(&runtime, &request).await;
    engine.stop();
    let next = bed::request(with_probe(80));
    let error = runtime.ensure(next.clone()).await.expect_err("nobody is there");
    assert_eq!(error.kind, ErrorKind::Retry, "{error:?}");
    engine.launch();
    bed::until_ended(&runtime, request.id).await;
    started_again(&runtime, &next).await;
    for request in [&request, &next] {
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
    assert_eq!(bed.left().await, Vec::<String>::new());
}

async fn ended_by_hand() {
    let engine = Engine::elsewhere();
    engine.load_sample(&["sample:1"]).await;
    let bed = Bed::elsewhere(&engine);
    let runtime = bed.open().await;
    let (killed, removed) = (bed::request(with_probe(80)), bed::request(with_probe(80)));
    for request in [&killed, &removed] {
        bed::run(&runtime, request).await;
    }
    let docker = bed.docker().await;
    let name = format!("{}.app", killed.id);
    docker.kill_container(&name, None::<KillContainerOptions>).await.expect("killed");
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    let name = format!("{}.app", removed.id);
    docker.remove_container(&name, Some(options)).await.expect("removed");
    let end = ending(bed::until_ended(&runtime, killed.id).await);
    assert_eq!(end, (Outcome::Failed, Some(137), reason::ERROR.to_owned()));
    let (outcome, ..) = ending(bed::until_ended(&runtime, removed.id).await);
    assert_eq!(outcome, Outcome::Failed);
    for request in [&killed, &removed] {
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
    assert_eq!(bed.left().await, Vec::<String>::new());
}

/// Its stacks are not to blame, though they do not answer. One that really does not answer is.
async fn machine_away() {
    let engine = Engine::elsewhere();
    engine.load_sample(&["sample:1"]).await;
    let bed = Bed::elsewhere(&engine);
    let runtime = bed.open().await;
    let once = |port| {
        let port = ProbePort { number: port, name: None };
        let action = ProbeAction::TcpSocket { port };
        Probe {
            action,
            initial_delay_seconds: None,
            period_seconds: Some(1),
            timeout_seconds: Some(1),
            success_threshold: None,
            failure_threshold: Some(1),
        }
    };
    let mut spec = with_probe(80);
    spec.containers[0].liveness_probe = Some(once(80));
    let well = bed::request(spec);
    let mut spec = build::spec("sample:1").port(81, Protocol::Tcp).build();
    spec.containers[0].readiness_probe = Some(Probe { action: page_of(80), ..once(80) });
    spec.containers[0].liveness_probe = Some(Probe { initial_delay_seconds: Some(2), ..once(81) });
    let silent = bed::request(spec);
    bed::run(&runtime, &well).await;
    engine.cut_off();
    // The fault itself: longer than several probes have.
    tokio::time::sleep(Duration::from_secs(4)).await;
    engine.reconnect();
    started_again(&runtime, &silent).await;
    let state = bed::until_ended(&runtime, silent.id).await;
    assert_eq!(ending(state).2, reason::UNHEALTHY);
    bed::until_ready(&runtime, well.id).await;
    for request in [&well, &silent] {
        runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    }
    assert_eq!(bed.left().await, Vec::<String>::new());
}

async fn keeper_dies() {
    let engine = Engine::elsewhere();
    engine.load_sample(&["sample:1"]).await;
    let bed = Bed::elsewhere(&engine);
    let runtime = bed.open().await;
    let request = bed::request(with_probe(80));
    bed::run(&runtime, &request).await;
    let keepers = bed.keepers();
    let [keeper] = keepers[..] else { panic!("one keeper: {keepers:?}") };
    // It enters no network, and has given its rights up all the same.
    let status = std::fs::read_to_string(format!("/proc/{}/status", keeper.as_raw_nonzero()));
    let status = status.expect("it runs");
    for name in ["CapEff:", "CapPrm:", "CapBnd:"] {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a set");
        assert_eq!(line.trim(), "0000000000000000", "{name}");
    }
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).expect("killed");
    within("it gets another", async {
        while bed.keepers().is_empty() || bed.keepers().contains(&keeper) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    bed::until_ready(&runtime, request.id).await;
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    assert_eq!(bed.left().await, Vec::<String>::new());
}
