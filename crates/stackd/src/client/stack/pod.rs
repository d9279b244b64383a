//! The request for a stack: from a Pod file, or from an image and what it needs.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stackd_core::Protocol;

use crate::exit::{Exit, Failure};

/// A port of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Port {
    pub(crate) container_port: u16,
    pub(crate) protocol: Protocol,
}

/// Reads `80`, `80/tcp` or `53/udp`.
pub(crate) fn port(text: &str) -> Result<Port, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = number.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match (number, Protocol::parse(protocol)) {
        (Some(container_port), Some(protocol)) => Ok(Port { container_port, protocol }),
        _ => Err("write it as 80, 80/tcp or 53/udp".to_owned()),
    }
}

/// Reads `NAME=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.to_owned()))
        }
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

/// What is wanted of an image.
#[derive(Debug, Default)]
pub(crate) struct FromImage<'a> {
    pub(crate) image: &'a str,
    pub(crate) ports: &'a [Port],
    pub(crate) cpu: &'a str,
    pub(crate) memory: &'a str,
    pub(crate) disk: Option<&'a str>,
    pub(crate) env: &'a [(String, String)],
    pub(crate) args: &'a [String],
}

/// A Pod of one container. JSON is YAML, so it needs no other writer.
pub(crate) fn from_image(wanted: &FromImage<'_>) -> Value {
    let name = container_name(wanted.image);
    let mut resources = BTreeMap::from([("cpu", wanted.cpu), ("memory", wanted.memory)]);
    resources.extend(wanted.disk.map(|disk| ("ephemeral-storage", disk)));
    let port =
        |port: &Port| json!({"containerPort": port.container_port, "protocol": port.protocol});
    let mut container = json!({
        "name": name,
        "image": wanted.image,
        "ports": wanted.ports.iter().map(port).collect::<Vec<_>>(),
        "resources": {"requests": resources, "limits": resources},
    });
    if !wanted.env.is_empty() {
        let variable = |(name, value): &(String, String)| json!({"name": name, "value": value});
        container["env"] = wanted.env.iter().map(variable).collect();
    }
    if !wanted.args.is_empty() {
        container["args"] = json!(wanted.args);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container]},
    })
}

/// A name for the container: the last part of the image's, as a DNS label.
fn container_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    let bare = last.split(['@', ':']).next().unwrap_or_default().to_ascii_lowercase();
    let label: String =
        bare.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let label = label.trim_matches('-');
    if label.is_empty() { "app".to_owned() } else { label.to_owned() }
}

/// Reads a Pod file; `-` is standard input.
pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// The ports that a Pod file says its containers listen on: what is published unless `--port` says
/// otherwise.
pub(crate) fn ports_of(yaml: &str) -> Result<Vec<Port>, Failure> {
    #[derive(Deserialize)]
    struct Pod {
        #[serde(default)]
        spec: Spec,
    }
    #[derive(Default, Deserialize)]
    struct Spec {
        #[serde(default)]
        containers: Vec<Container>,
    }
    #[derive(Deserialize)]
    struct Container {
        #[serde(default)]
        ports: Vec<ContainerPort>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ContainerPort {
        container_port: u16,
        #[serde(default)]
        protocol: Option<String>,
    }
    let pod: Pod = serde_saphyr::from_str(yaml).map_err(|error| {
        Failure::new(Exit::Rejected, format!("the Pod's ports cannot be read: {error}"))
            .hint("name the ports to publish with --port to leave the rest to the server")
    })?;
    let mut ports = Vec::new();
    for port in pod.spec.containers.into_iter().flat_map(|container| container.ports) {
        let protocol = port.protocol.as_deref().map_or(Some(Protocol::Tcp), Protocol::parse);
        let port = Port {
            container_port: port.container_port,
            // Another protocol is for the server to refuse, in its words.
            protocol: protocol.unwrap_or(Protocol::Tcp),
        };
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    if ports.is_empty() {
        return Err(Failure::new(Exit::Rejected, "the Pod names no port that could be published")
            .hint("add `ports` with a `containerPort` to one of its containers"));
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use stackd_core::pod::{PodDefaults, parse};
    use stackd_core::{TargetPort, port::TargetPorts};

    use super::*;

    #[test]
    fn ports_are_numbers_with_a_protocol() {
        let tcp = |container_port| Port { container_port, protocol: Protocol::Tcp };
        assert_eq!(port("80"), Ok(tcp(80)));
        assert_eq!(port("80/TCP"), Ok(tcp(80)));
        assert_eq!(port("53/udp"), Ok(Port { container_port: 53, protocol: Protocol::Udp }));
        for text in ["", "0", "65536", "http", "80/sctp", "80:80", "/udp"] {
            assert!(port(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_pod_of_an_image_is_one_that_the_server_takes() {
        let ports = [port("80").unwrap(), port("53/udp").unwrap()];
        let pod = from_image(&FromImage {
            image: "registry.example:5000/team/My_App:1.2@sha256:00",
            ports: &ports,
            cpu: "250m",
            memory: "64Mi",
            disk: Some("1Gi"),
            env: &[("GREETING".to_owned(), "a=b".to_owned())],
            args: &["--port".to_owned(), "80".to_owned()],
        });
        assert_eq!(pod["metadata"]["name"], "my-app");
        // With a name that is one; the digest above is not.
        let mut pod = pod;
        pod["spec"]["containers"][0]["image"] = json!("nginx:stable");
        let wanted =
            ports.map(|p| TargetPort { container_port: p.container_port, protocol: p.protocol });
        let wanted = TargetPorts::List(wanted.to_vec());
        let spec = parse(&pod.to_string(), &wanted, &PodDefaults::default()).unwrap();
        let container = &spec.containers[0];
        assert_eq!(container.resources.cpu_milli, 250);
        assert_eq!(container.resources.ephemeral_storage_bytes, Some(1 << 30));
        assert_eq!(container.env[0].value, "a=b");
    }

    #[test]
    fn a_file_publishes_the_ports_of_its_containers() {
        let yaml = "spec:\n  containers:\n  - ports: [{containerPort: 53, protocol: UDP}]\n  - \
                    ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]\n";
        assert_eq!(ports_of(yaml), Ok(vec![port("53/udp").unwrap(), port("80").unwrap()]));
        assert!(ports_of("spec: {containers: [{name: a}]}").is_err());
        assert!(ports_of("spec: [").is_err());
    }
}
