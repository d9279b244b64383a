//! An engine on another machine, by TCP with TLS: networks of the engine's, ports that it publishes.

use std::time::Duration;

use bollard::query_parameters::ListNetworksOptions;
use stackd_core::port::Protocol;
use stackd_core::runtime::ErrorKind;
use stackd_core::spec::{ProbeAction, ProbePort};
use stackd_core::stack::reason;
use stackd_core::{Runtime, StackSpec};
use stackd_testkit::docker::Engine;
use stackd_testkit::{build, within};

use crate::Body;
use crate::bed::{self, Bed};

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("elsewhere::stacks_run_on_an_engine_of_another_machine", |_| Box::pin(stacks_run()));
    add("elsewhere::networks_that_were_removed_are_made_again", |_| Box::pin(pruned()));
    add("elsewhere::a_keeper_that_dies_is_replaced", |_| Box::pin(keeper_dies()));
}

async fn networks(bed: &Bed) -> usize {
    let networks = bed.docker().await.list_networks(None::<ListNetworksOptions>).await;
    let names = networks.expect("networks").into_iter().filter_map(|network| network.name);
    names.filter(|name| name.starts_with("stackd-")).count()
}

fn with_probe(port: u16) -> StackSpec {
    let port = ProbePort { number: port, name: None };
    let action =
        ProbeAction::HttpGet { path: Some("/healthz".into()), port, https: None, headers: vec![] };
    build::spec("sample:1").ready_when(action).build()
}

async fn stacks_run() {
    let engine = Engine::elsewhere();
    engine.load_sample(&["sample:1"]).await;
    let address = engine.address().expect("it is elsewhere").to_owned();
    let bed = Bed::elsewhere(&engine);
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
