//! `extra_config`: what a challenge may say beyond its image and port. A JSON object of known keys,
//! in a string; version 1 is all there is so far.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, de};

use super::Scheme;
use super::flag::Flag;
use crate::isolation::Profile;
use crate::port::{Protocol, TargetPort};

/// The version that is read.
const VERSION: u64 = 1;

/// What `extra_config` says. Nothing of it can loosen a limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExtraConfig {
    /// The version of this schema: 1, also where it is absent.
    #[serde(deserialize_with = "version")]
    version: u64,
    /// Variables of the container's environment.
    #[serde(deserialize_with = "texts")]
    pub env: BTreeMap<String, String>,
    /// Replaces the image's entrypoint, as in Kubernetes.
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments, as in Kubernetes.
    pub args: Option<Vec<String>>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// The container's file system cannot be written.
    pub read_only_root: bool,
    /// Ports that are published after the challenge's own.
    pub ports: Vec<FurtherPort>,
    /// The same as the challenge's `protocol`, for clients that know no such field.
    pub protocol: Option<Scheme>,
    /// The most processes and threads; never more than the server's own limit.
    pub pids_limit: Option<PidsLimit>,
    /// Capabilities that root inside does without; `ALL` takes every one.
    pub cap_drop: BTreeSet<Capability>,
    /// What the containers are told that a player has to find.
    pub flag: Option<Flag>,
}

/// A port beside the challenge's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FurtherPort {
    /// The port inside the container.
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// Its transport.
    #[serde(default = "tcp", deserialize_with = "transport")]
    pub protocol: Protocol,
}

impl From<FurtherPort> for TargetPort {
    fn from(port: FurtherPort) -> Self {
        Self { container_port: port.port, protocol: port.protocol }
    }
}

/// A limit of processes: at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidsLimit(pub u32);

/// A capability that some profile has, by its kernel name without `CAP_`; or all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability(pub String);

impl ExtraConfig {
    /// Reads the string. The error says what is wrong and where.
    pub fn read(text: &str) -> Result<Self, String> {
        // By way of a value: a struct would also be read from a list.
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|error| format!("must be a JSON object in a string: {error}"))?;
        // What is in its place may be the flag itself, and must not be part of an error.
        if object.get("flag").is_some_and(|flag| !flag.is_object() && !flag.is_null()) {
            return Err("flag: must be an object, with a value or a template".to_owned());
        }
        serde_json::from_value(object.into()).map_err(|error| error.to_string())
    }

    /// The capabilities to do without, by name.
    pub fn dropped(&self) -> BTreeSet<String> {
        let all = self.cap_drop.iter().any(|name| name.0 == "ALL");
        let known = || Profile::Default.capabilities().iter().map(|name| (*name).to_owned());
        if all { known().collect() } else { self.cap_drop.iter().map(|c| c.0.clone()).collect() }
    }
}

fn version<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    match u64::deserialize(d)? {
        VERSION => Ok(VERSION),
        other => Err(de::Error::custom(format!(
            "version {other} is not known here; this server reads version {VERSION}"
        ))),
    }
}

/// Texts by name; whole numbers and booleans are taken for the texts that they are written as. Other
/// numbers have several spellings.
fn texts<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, String>, D::Error> {
    use serde_json::Value;
    let map = BTreeMap::<String, Value>::deserialize(d)?;
    let text = |(name, value): (String, Value)| match value {
        Value::String(text) => Ok((name, text)),
        Value::Number(number) if !number.is_f64() => Ok((name, number.to_string())),
        Value::Number(_) => Err(de::Error::custom(format!(
            "env: write the number of {name:?} as a text, in quotes"
        ))),
        Value::Bool(yes) => Ok((name, yes.to_string())),
        _ => Err(de::Error::custom(format!("env: the value of {name:?} must be a text"))),
    };
    map.into_iter().map(text).collect()
}

fn port<'de, D: Deserializer<'de>>(d: D) -> Result<u16, D::Error> {
    let number = i64::deserialize(d)?;
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| de::Error::custom("ports: port must be from 1 to 65535"))
}

const fn tcp() -> Protocol {
    Protocol::Tcp
}

fn transport<'de, D: Deserializer<'de>>(d: D) -> Result<Protocol, D::Error> {
    let text = String::deserialize(d)?;
    Protocol::parse(&text).ok_or_else(|| de::Error::custom("ports: protocol must be tcp or udp"))
}

impl<'de> Deserialize<'de> for PidsLimit {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(d)?;
        u32::try_from(number)
            .ok()
            .filter(|limit| *limit > 0)
            .map(Self)
            .ok_or_else(|| de::Error::custom("pids_limit must be a whole number above 0"))
    }
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let given = String::deserialize(d)?;
        let name = given.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        let known = Profile::Default.capabilities();
        if name == "ALL" || known.contains(&name) {
            return Ok(Self(name.to_owned()));
        }
        Err(de::Error::custom(format!(
            "cap_drop: {given:?} is no capability that a stack has; it has {}",
            known.join(", ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_read() {
        let text = r#"{"version":1,"env":{"A":"b","N":5,"T":true},"command":["/app"],"args":["-v"],
            "working_dir":"/srv","read_only_root":true,"pids_limit":20,"protocol":"tcp",
            "ports":[{"port":53,"protocol":"udp"},{"port":8080}],"cap_drop":["CAP_KILL","chown"]}"#;
        let extra = ExtraConfig::read(text).unwrap();
        assert_eq!(extra.env["N"], "5");
        assert_eq!(extra.env["T"], "true");
        assert_eq!(extra.protocol, Some(Scheme::Tcp));
        assert_eq!(extra.ports[0], FurtherPort { port: 53, protocol: Protocol::Udp });
        assert_eq!(extra.ports[1].protocol, Protocol::Tcp);
        assert_eq!(extra.pids_limit, Some(PidsLimit(20)));
        let dropped: Vec<_> = extra.dropped().into_iter().collect();
        assert_eq!(dropped, ["CHOWN", "KILL"]);
        assert_eq!(ExtraConfig::read("{}").unwrap(), ExtraConfig::default());
        let all = ExtraConfig::read(r#"{"cap_drop":["all"]}"#).unwrap().dropped();
        assert_eq!(all.len(), Profile::Default.capabilities().len());
    }

    #[test]
    fn all_else_is_refused_by_name() {
        for (text, part) in [
            ("", "must be a JSON object in a string"),
            ("nonsense", "must be a JSON object in a string"),
            ("[]", "must be a JSON object in a string"),
            (r#"{"priviledged":true}"#, "unknown field `priviledged`"),
            (r#"{"version":2}"#, "version 2 is not known here; this server reads version 1"),
            (r#"{"env":{"A":{}}}"#, "the value of \"A\" must be a text"),
            (r#"{"ports":[{"port":0}]}"#, "port must be from 1 to 65535"),
            (r#"{"ports":[{"port":1,"protocol":"sctp"}]}"#, "protocol must be tcp or udp"),
            (r#"{"pids_limit":0}"#, "pids_limit must be a whole number above 0"),
            (r#"{"cap_drop":["SYS_ADMIN"]}"#, "\"SYS_ADMIN\" is no capability that a stack has"),
            (r#"{"protocol":"gopher"}"#, "unknown variant `gopher`"),
            (r#"{"flag":{"value":"a","template":"<hmac>"}}"#, "value and template exclude"),
        ] {
            let error = ExtraConfig::read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
