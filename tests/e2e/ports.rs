//! Datagrams, beside connections.

use std::time::Duration;

use stackd_testkit::within;
use tokio::net::UdpSocket;

use crate::IMAGE;
use crate::on::On;
use crate::server::Server;

on_every_runtime! {
    a_stack_is_reached_by_udp_too => super::datagrams;
}

async fn datagrams(on: On) {
    let server = Server::on(on).await;
    let words =
        ["stack", "create", IMAGE, "--port", "80", "--port", "7/udp", "--wait", "-o", "name"];
    let id = server.stackd_ok(&[&words[..], &["--", "serve", "--udp", "7"]].concat()).await;
    let id = id.trim();
    let stack = server.get(&format!("/stacks/{id}")).await.1;
    let ports = stack["ports"].as_array().expect("a list");
    let port = |protocol: &str| {
        let port = ports.iter().find(|port| port["protocol"] == protocol).expect("a port");
        u16::try_from(port["node_port"].as_u64().expect("a number")).expect("a port")
    };
    assert!(server.fetch(port("TCP"), "/healthz").await.is_ok());
    let shown = server.stackd_ok(&["stack", "port", id, "7/udp"]).await;
    assert!(shown.contains(&port("UDP").to_string()), "{shown}");

    for text in ["one", "two"] {
        let socket = UdpSocket::bind("0.0.0.0:0").await.expect("a socket");
        socket.connect(server.at(port("UDP"))).await.expect("an address");
        within("a datagram comes back", async {
            let mut data = [0; 16];
            loop {
                socket.send(text.as_bytes()).await.expect("sent");
                // Datagrams may be lost.
                let answer = socket.recv(&mut data);
                if let Ok(length) = tokio::time::timeout(Duration::from_millis(200), answer).await {
                    let length = length.expect("received");
                    return assert_eq!(&data[..length], text.as_bytes());
                }
            }
        })
        .await;
    }
    server.delete(&format!("/stacks/{id}")).await;
    server.finish().await;
}
