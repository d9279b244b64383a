//! Ports: which ones a caller asks for, and which node port each of them got.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// A byte stream.
    #[serde(rename = "TCP")]
    Tcp,
    /// Datagrams.
    #[serde(rename = "UDP")]
    Udp,
}

impl Protocol {
    /// Reads `TCP` or `UDP`, in any case and with spaces around it.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("tcp") {
            Some(Self::Tcp)
        } else if text.eq_ignore_ascii_case("udp") {
            Some(Self::Udp)
        } else {
            None
        }
    }

    /// The name in capitals, as every document shows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A port of the stack that a caller wants published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TargetPort {
    /// The port inside the stack, 1–65535.
    pub container_port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// A published port: connections to `node_port` of the node reach `container_port` of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The port inside the stack.
    pub container_port: u16,
    /// Its protocol; TCP and UDP node ports are counted apart.
    pub protocol: Protocol,
    /// The port on the node.
    pub node_port: u16,
}

impl PortMapping {
    /// The pair that must be unique among live stacks.
    pub const fn node(self) -> (Protocol, u16) {
        (self.protocol, self.node_port)
    }
}

/// The most entries that `target_port` may have.
pub const MAX_TARGET_PORTS: usize = 24;

/// What is wrong with a caller's `target_port`. The texts are the provisioner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetPortError {
    /// Absent, null or an empty list.
    #[error("target_port is required")]
    Required,
    /// A number outside 1–65535.
    #[error("target_port is out of range")]
    OutOfRange,
    /// More than [`MAX_TARGET_PORTS`] entries.
    #[error("target_port exceeds limit (max {MAX_TARGET_PORTS})")]
    TooMany,
    /// An entry without a protocol.
    #[error("protocol is required")]
    ProtocolRequired,
    /// An entry with a protocol other than TCP and UDP.
    #[error("protocol must be TCP or UDP")]
    UnknownProtocol,
    /// One port and protocol twice.
    #[error("duplicate target_port entry")]
    Duplicate,
}

/// The ports a caller asked for, checked but for their presence in the Pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetPorts {
    /// A bare number: the Pod's TCP port of that number, else its UDP port.
    Any(u16),
    /// A list, in the order asked.
    List(Vec<TargetPort>),
}

impl TargetPorts {
    /// Reads a bare number.
    pub fn from_number(number: i64) -> Result<Self, TargetPortError> {
        port_number(number).map(Self::Any)
    }

    /// Reads a list of `(container_port, protocol)`; a missing protocol is `None`.
    ///
    /// The first fault in the order of the list is reported, and faults of the whole list (none,
    /// too many) before those of an entry.
    pub fn from_list<'a>(
        entries: impl ExactSizeIterator<Item = (i64, Option<&'a str>)>,
    ) -> Result<Self, TargetPortError> {
        if entries.len() == 0 {
            return Err(TargetPortError::Required);
        }
        if entries.len() > MAX_TARGET_PORTS {
            return Err(TargetPortError::TooMany);
        }
        let mut ports = Vec::with_capacity(entries.len());
        for (number, protocol) in entries {
            let container_port = port_number(number)?;
            let protocol = match protocol.map(str::trim) {
                None | Some("") => return Err(TargetPortError::ProtocolRequired),
                Some(text) => Protocol::parse(text).ok_or(TargetPortError::UnknownProtocol)?,
            };
            let port = TargetPort { container_port, protocol };
            if ports.contains(&port) {
                return Err(TargetPortError::Duplicate);
            }
            ports.push(port);
        }
        Ok(Self::List(ports))
    }
}

fn port_number(number: i64) -> Result<u16, TargetPortError> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(TargetPortError::OutOfRange),
    }
}

/// A range of ports in settings, as `31001-32767`: `#[serde(with = "stackd_core::port::range")]`.
pub mod range {
    use std::borrow::Cow;
    use std::ops::RangeInclusive;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Reads `first-last`, or one port.
    pub fn parse(text: &str) -> Option<RangeInclusive<u16>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
        let (first, last) = (port(first)?, port(last)?);
        (first <= last).then_some(first..=last)
    }

    /// Serializes as `first-last`.
    pub fn serialize<S: Serializer>(
        range: &RangeInclusive<u16>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}-{}", range.start(), range.end()))
    }

    /// Deserializes what [`parse`] reads.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<RangeInclusive<u16>, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| {
            de::Error::custom(format!("{text:?} is not a range of ports such as 31001-32767"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_first_and_last() {
        assert_eq!(range::parse("31001-32767"), Some(31001..=32767));
        assert_eq!(range::parse(" 80 - 81 "), Some(80..=81));
        assert_eq!(range::parse("80"), Some(80..=80));
        for text in ["", "-", "0-1", "2-1", "1-65536", "a-b", "1-2-3"] {
            assert_eq!(range::parse(text), None, "{text:?}");
        }
    }

    fn list(entries: &[(i64, Option<&str>)]) -> Result<TargetPorts, TargetPortError> {
        TargetPorts::from_list(entries.iter().copied())
    }

    #[test]
    fn a_list_keeps_its_order_and_counts_protocols_apart() {
        let ports = list(&[(53, Some("udp")), (53, Some(" TCP "))]);
        let expected = vec![
            TargetPort { container_port: 53, protocol: Protocol::Udp },
            TargetPort { container_port: 53, protocol: Protocol::Tcp },
        ];
        assert_eq!(ports, Ok(TargetPorts::List(expected)));
    }

    #[test]
    fn each_fault_has_its_own_text() {
        let many: Vec<_> = (1..=25).map(|n| (n, Some("TCP"))).collect();
        let cases = [
            (list(&[]), "target_port is required"),
            (list(&many), "target_port exceeds limit (max 24)"),
            (list(&[(0, Some("TCP"))]), "target_port is out of range"),
            (list(&[(65536, Some("TCP"))]), "target_port is out of range"),
            (list(&[(80, None)]), "protocol is required"),
            (list(&[(80, Some("  "))]), "protocol is required"),
            (list(&[(80, Some("SCTP"))]), "protocol must be TCP or UDP"),
            (list(&[(80, Some("TCP")), (80, Some("tcp"))]), "duplicate target_port entry"),
            (TargetPorts::from_number(-1), "target_port is out of range"),
        ];
        for (result, text) in cases {
            assert_eq!(result.map_err(|e| e.to_string()), Err(text.to_owned()));
        }
    }
}
