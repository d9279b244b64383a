//! Stacks as people and scripts read them. JSON is the server's own, unchanged.

use std::fmt::Write;
use std::net::IpAddr;

use anyhow::Context;
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::Value;
use stackd_core::{PortMapping, Timestamp};

use super::pod::Port;
use crate::exit::{Exit, Failure};
use crate::table;

/// How stacks are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Table,
    /// For people, with more columns
    Wide,
    /// The server's JSON
    Json,
    /// The same as YAML
    Yaml,
    /// Only the ids, one a line
    Name,
}

/// What people are shown of a stack.
#[derive(Debug, Deserialize)]
pub(crate) struct Stack {
    pub(crate) stack_id: String,
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) message: Option<String>,
    #[serde(default)]
    exit_code: Option<i32>,
    #[serde(default)]
    node_id: Option<String>,
    #[serde(default)]
    node_public_ip: Option<String>,
    #[serde(default)]
    ports: Vec<PortMapping>,
    ttl_expires_at: Timestamp,
    created_at: Timestamp,
    #[serde(default)]
    owner: Option<String>,
    #[serde(default)]
    restarts: u32,
    #[serde(default)]
    requested_cpu_milli: u64,
    #[serde(default)]
    requested_memory_bytes: u64,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

impl Stack {
    pub(crate) fn read(value: &Value) -> anyhow::Result<Self> {
        Self::deserialize(value).context("the server's answer is not a stack")
    }

    /// Whether it neither runs nor is on its way.
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(self.status.as_str(), "creating" | "running")
    }

    fn address(&self, port: &PortMapping) -> String {
        // Without an address the node is only known by where the server is.
        match &self.node_public_ip {
            Some(host) => match host.parse::<IpAddr>() {
                Ok(IpAddr::V6(v6)) => format!("[{v6}]:{}", port.node_port),
                _ => format!("{host}:{}", port.node_port),
            },
            None => port.node_port.to_string(),
        }
    }

    /// The ports that lead to it: what has ended is reached no more, and another may have them.
    fn open_ports(&self) -> &[PortMapping] {
        if self.has_ended() { &[] } else { &self.ports }
    }

    fn ports_line(&self) -> String {
        let show = |port: &PortMapping| format!("{} -> {}", named(port), self.address(port));
        let shown = self.open_ports().iter().map(show).collect::<Vec<_>>();
        if shown.is_empty() { "-".to_owned() } else { shown.join(", ") }
    }

    fn state(&self) -> String {
        match &self.reason {
            Some(reason) if self.status != "running" => format!("{} ({reason})", self.status),
            _ => self.status.clone(),
        }
    }
}

fn named(port: &PortMapping) -> String {
    format!("{}/{}", port.container_port, port.protocol.as_str().to_ascii_lowercase())
}

/// A length of time in its two greatest units.
fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.as_second().saturating_sub(from.as_second());
    if seconds <= 0 {
        return "0s".to_owned();
    }
    let units = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (name, unit) in units {
        if rest >= unit && parts.len() < 2 {
            parts.push(format!("{}{name}", rest / unit));
            rest %= unit;
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.concat()
}

fn megabytes(bytes: u64) -> String {
    format!("{}Mi", bytes.div_ceil(1 << 20))
}

/// The list, which the server gives as `{"stacks": […]}`.
pub(crate) fn list(answer: Value, output: Output) -> anyhow::Result<String> {
    let stacks = match answer.get("stacks").and_then(Value::as_array) {
        Some(stacks) => stacks.clone(),
        None => anyhow::bail!("the server's answer is not a list of stacks"),
    };
    match output {
        Output::Json => return json(&answer),
        Output::Yaml => return yaml(&answer),
        _ => {}
    }
    rows(&stacks, output, Timestamp::now())
}

fn rows(stacks: &[Value], output: Output, now: Timestamp) -> anyhow::Result<String> {
    let stacks: Vec<Stack> = stacks.iter().map(Stack::read).collect::<anyhow::Result<_>>()?;
    let age = |stack: &Stack| span(stack.created_at, now);
    let left = |stack: &Stack| span(now, stack.ttl_expires_at);
    Ok(match output {
        Output::Name => stacks.iter().map(|stack| format!("{}\n", stack.stack_id)).collect(),
        Output::Wide => {
            let row = |stack: &Stack| {
                [
                    stack.stack_id.clone(),
                    stack.state(),
                    stack.ports_line(),
                    age(stack),
                    left(stack),
                    stack.node_id.clone().unwrap_or_else(|| "-".to_owned()),
                    stack.owner.clone().unwrap_or_else(|| "-".to_owned()),
                    format!("{}m", stack.requested_cpu_milli),
                    megabytes(stack.requested_memory_bytes),
                    stack.restarts.to_string(),
                ]
            };
            let rows: Vec<_> = stacks.iter().map(row).collect();
            let headings = [
                "STACK",
                "STATUS",
                "PORTS",
                "AGE",
                "EXPIRES IN",
                "NODE",
                "OWNER",
                "CPU",
                "MEMORY",
                "RESTARTS",
            ];
            table::render(headings, &rows)
        }
        _ => {
            let row = |stack: &Stack| {
                [stack.stack_id.clone(), stack.state(), stack.ports_line(), age(stack), left(stack)]
            };
            let rows: Vec<_> = stacks.iter().map(row).collect();
            table::render(["STACK", "STATUS", "PORTS", "AGE", "EXPIRES IN"], &rows)
        }
    })
}

/// Some stacks, each by itself.
pub(crate) fn details(stacks: Vec<Value>, output: Output) -> anyhow::Result<String> {
    let one = |mut stacks: Vec<Value>| match stacks.len() {
        1 => stacks.remove(0),
        _ => Value::Array(stacks),
    };
    match output {
        Output::Json => json(&one(stacks)),
        Output::Yaml => yaml(&one(stacks)),
        Output::Name | Output::Wide => rows(&stacks, output, Timestamp::now()),
        Output::Table => {
            let texts =
                stacks.iter().map(|stack| Ok(detail(&Stack::read(stack)?, Timestamp::now())));
            Ok(texts.collect::<anyhow::Result<Vec<_>>>()?.join("\n"))
        }
    }
}

fn detail(stack: &Stack, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<10} {value}");
        }
    };
    line("stack", &stack.stack_id);
    line("status", &stack.state());
    line("message", stack.message.as_deref().unwrap_or_default());
    line("exit code", &stack.exit_code.map(|code| code.to_string()).unwrap_or_default());
    for port in stack.open_ports() {
        line("port", &format!("{} -> {}", named(port), stack.address(port)));
    }
    line("node", stack.node_id.as_deref().unwrap_or_default());
    line("owner", stack.owner.as_deref().unwrap_or_default());
    let labels: Vec<_> =
        stack.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    line("labels", &labels.join(", "));
    line(
        "reserves",
        &format!(
            "{}m CPU, {} memory",
            stack.requested_cpu_milli,
            megabytes(stack.requested_memory_bytes)
        ),
    );
    line("created", &format!("{} ({} ago)", stack.created_at, span(stack.created_at, now)));
    line("expires", &format!("{} (in {})", stack.ttl_expires_at, span(now, stack.ttl_expires_at)));
    text
}

/// Where the ports are reached, as `80/tcp -> 127.0.0.1:31001`; of one port, only the address.
pub(crate) fn ports(stack: &Stack, wanted: Option<Port>) -> Result<String, Failure> {
    if stack.has_ended() {
        let text = format!("{} is {}: nothing reaches it any more", stack.stack_id, stack.status);
        return Err(Failure::new(Exit::NotFound, text)
            .hint("`stackd stack get` shows why, and `stackd stack logs` what it said"));
    }
    let Some(wanted) = wanted else {
        let line = |port| format!("{} -> {}\n", named(port), stack.address(port));
        return Ok(stack.ports.iter().map(line).collect());
    };
    let is_it = |port: &&PortMapping| {
        port.container_port == wanted.container_port && port.protocol == wanted.protocol
    };
    match stack.ports.iter().find(is_it) {
        Some(port) => Ok(format!("{}\n", stack.address(port))),
        None => {
            let protocol = wanted.protocol.as_str().to_ascii_lowercase();
            let text =
                format!("{} does not publish {}/{protocol}", stack.stack_id, wanted.container_port);
            Err(Failure::new(Exit::NotFound, text)
                .hint(format!("`stackd stack port {}` shows what it does", stack.stack_id)))
        }
    }
}

fn json(value: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn yaml(value: &Value) -> anyhow::Result<String> {
    let text = serde_saphyr::to_string(value).context("the answer cannot be shown as YAML")?;
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stack() -> Value {
        json!({
            "stack_id": "stack-716b6384dd477b0b", "status": "creating", "reason": "Queued",
            "message": "place 2 of 3", "node_id": null, "node_public_ip": "127.0.0.1",
            "ports": [
                {"container_port": 80, "protocol": "TCP", "node_port": 31001},
                {"container_port": 53, "protocol": "UDP", "node_port": 31002},
            ],
            "ttl_expires_at": "2026-02-10T04:02:26.5Z", "created_at": "2026-02-10T02:02:26.5Z",
            "requested_cpu_milli": 100, "requested_memory_bytes": 134217728, "labels": {"a": "b"},
        })
    }

    #[test]
    fn a_table_shows_where_a_stack_is_reached_and_how_long_it_lives() {
        let now = "2026-02-10T02:04:00Z".parse().unwrap();
        let text = rows(&[stack()], Output::Table, now).unwrap();
        let expected = "\
STACK                    STATUS              PORTS                                                    AGE     EXPIRES IN
stack-716b6384dd477b0b   creating (Queued)   80/tcp -> 127.0.0.1:31001, 53/udp -> 127.0.0.1:31002   1m34s   1h58m
";
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&text), words(expected));
        assert_eq!(rows(&[stack()], Output::Name, now).unwrap(), "stack-716b6384dd477b0b\n");
        let text = detail(&Stack::read(&stack()).unwrap(), now);
        assert!(text.contains("message    place 2 of 3\n"), "{text}");
        assert!(text.contains("reserves   100m CPU, 128Mi memory\n"), "{text}");
    }

    #[test]
    fn ports_are_listed_as_people_know_it_from_docker() {
        let read = Stack::read(&stack()).unwrap();
        let all = "80/tcp -> 127.0.0.1:31001\n53/udp -> 127.0.0.1:31002\n";
        assert_eq!(ports(&read, None).as_deref(), Ok(all));
        let udp = super::super::pod::port("53/udp").unwrap();
        assert_eq!(ports(&read, Some(udp)).as_deref(), Ok("127.0.0.1:31002\n"));
        let none = super::super::pod::port("53").unwrap();
        assert_eq!(ports(&read, Some(none)).unwrap_err().exit(), Exit::NotFound);
        let mut v6 = stack();
        v6["node_public_ip"] = json!("2001:db8::1");
        let v6 = ports(&Stack::read(&v6).unwrap(), None).unwrap();
        assert!(v6.starts_with("80/tcp -> [2001:db8::1]:31001\n"), "{v6}");
    }

    /// Another stack may have the ports by then.
    #[test]
    fn what_has_ended_shows_no_ports() {
        let mut ended = stack();
        ended["status"] = json!("stopped");
        let now = "2026-02-10T02:04:00Z".parse().unwrap();
        let text = rows(&[ended.clone()], Output::Table, now).unwrap();
        assert!(text.contains("stopped (Queued)   -       1m34s"), "{text}");
        let ended = Stack::read(&ended).unwrap();
        assert!(!detail(&ended, now).contains("31001"));
        assert_eq!(ports(&ended, None).unwrap_err().exit(), Exit::NotFound);
    }

    #[test]
    fn scripts_read_what_the_server_said() {
        let text = details(vec![stack()], Output::Json).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), stack());
        let text = list(json!({"stacks": [stack()]}), Output::Yaml).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, json!({"stacks": [stack()]}));
        assert!(list(json!({}), Output::Table).is_err());
    }

    #[test]
    fn a_span_has_its_two_greatest_units() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3600, "1h"),
            (3661, "1h1m"),
            (90061, "1d1h"),
        ] {
            assert_eq!(span(at(0), at(seconds)), text);
        }
    }
}
