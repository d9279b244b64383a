//! Bodies as callers send them: read strictly by type, leniently about what is unknown.

use std::collections::BTreeMap;
use std::fmt;

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use stackd_core::port::{TargetPortError, TargetPorts};
use utoipa::ToSchema;

use super::errors::invalid_body;
use crate::config::ServerConfig;
use crate::fault::Fault;

/// The whole body, within the configured bounds of size and time.
pub(super) async fn read(body: Body, config: &ServerConfig) -> Result<Bytes, Fault> {
    let reading = to_bytes(body, config.body_limit_bytes);
    match tokio::time::timeout(config.body_timeout, reading).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) | Err(_) => Err(invalid_body()),
    }
}

/// Reads a body that must be one JSON object.
pub(super) fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    match serde_json::from_slice(bytes) {
        Ok(Object(value)) => Ok(value),
        Err(_) => Err(invalid_body()),
    }
}

/// A value that must be written as a JSON object: serde by itself takes lists for structs, too.
pub(super) struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct OnlyMap<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        d.deserialize_map(OnlyMap(std::marker::PhantomData))
    }
}

/// The body of `POST /stacks`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CreateBody {
    pub(super) target_port: TargetPortField,
    pub(super) pod_spec: Option<String>,
    pub(super) ttl_seconds: Option<WholeNumber>,
    pub(super) runtime_class: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) owner: Option<String>,
}

/// The body of `POST /stacks/batch-delete`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BatchBody {
    pub(super) stack_ids: Option<Vec<String>>,
}

/// `target_port` as it came: a number, a list, or nothing.
#[derive(Debug, Default)]
pub(super) enum TargetPortField {
    #[default]
    Absent,
    Number(i64),
    List(Vec<Object<Entry>>),
}

impl TargetPortField {
    pub(super) fn read(&self) -> Result<TargetPorts, TargetPortError> {
        match self {
            Self::Absent => Err(TargetPortError::Required),
            Self::Number(number) => TargetPorts::from_number(*number),
            Self::List(entries) => TargetPorts::from_list(entries.iter().map(|Object(entry)| {
                (entry.container_port.map_or(0, |port| port.0), entry.protocol.as_deref())
            })),
        }
    }
}

impl<'de> Deserialize<'de> for TargetPortField {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Field;

        impl<'de> Visitor<'de> for Field {
            type Value = TargetPortField;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port or a list of ports")
            }

            fn visit_unit<E>(self) -> Result<TargetPortField, E> {
                Ok(TargetPortField::Absent)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<TargetPortField, E> {
                Whole.visit_i64(number).map(|number| TargetPortField::Number(number.0))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<TargetPortField, E> {
                Whole.visit_u64(number).map(|number| TargetPortField::Number(number.0))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<TargetPortField, E> {
                Whole.visit_f64(number).map(|number| TargetPortField::Number(number.0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TargetPortField, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    entries.push(entry);
                }
                Ok(TargetPortField::List(entries))
            }
        }

        d.deserialize_any(Field)
    }
}

/// One entry of a list of target ports.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Entry {
    container_port: Option<WholeNumber>,
    protocol: Option<String>,
}

impl<T: fmt::Debug> fmt::Debug for Object<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A whole number of any size; what does not fit is as far out of range as can be.
#[derive(Debug, Clone, Copy)]
pub(super) struct WholeNumber(pub(super) i64);

struct Whole;

impl Visitor<'_> for Whole {
    type Value = WholeNumber;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_i64<E>(self, number: i64) -> Result<WholeNumber, E> {
        Ok(WholeNumber(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<WholeNumber, E> {
        Ok(WholeNumber(i64::try_from(number).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<WholeNumber, E> {
        // Digits beyond 64 bits arrive as a float.
        if number.abs() >= i64::MAX as f64 {
            return Ok(WholeNumber(if number > 0.0 { i64::MAX } else { i64::MIN }));
        }
        Err(E::invalid_type(de::Unexpected::Float(number), &self))
    }
}

impl<'de> Deserialize<'de> for WholeNumber {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Whole)
    }
}

/// What `POST /stacks` takes. Unknown fields are ignored.
#[derive(ToSchema)]
#[schema(as = CreateStackRequest)]
#[expect(dead_code, reason = "it only describes `CreateBody` to readers of the API's document")]
pub(super) struct CreateSchema {
    /// The ports to publish: one number (the Pod's TCP port of that number, else its UDP port), or
    /// a list of 1 to 24 entries, each a port and protocol that a container of the Pod lists.
    target_port: TargetPortSchema,
    /// The Pod, as YAML or JSON text of at most 64 KiB.
    #[schema(
        example = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: challenge\nspec:\n  containers:\n    - name: app\n      image: nginx:stable\n      ports:\n        - containerPort: 80\n          protocol: TCP\n      resources:\n        limits:\n          cpu: 100m\n          memory: 128Mi\n"
    )]
    pod_spec: String,
    /// How long the stack may live, in seconds; the configured default where absent.
    #[schema(nullable, minimum = 1, example = 3600)]
    ttl_seconds: Option<i64>,
    /// Which handler of the runtime starts it; the runtime's default where absent.
    #[schema(nullable, max_length = 63)]
    runtime_class: Option<String>,
    /// At most 32 labels in the syntax of Kubernetes, to select by in the list.
    labels: Option<BTreeMap<String, String>>,
    /// Whose stack it is, at most 128 characters: waiting starts are served in turn between
    /// owners. The key's name where absent.
    #[schema(nullable, max_length = 128)]
    owner: Option<String>,
}

/// One number or a list.
#[derive(ToSchema)]
#[schema(as = TargetPort)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "it only describes `TargetPortField` to readers of the API's document"
)]
pub(super) enum TargetPortSchema {
    /// One port.
    Number(#[schema(inline)] NumberSchema),
    /// Several ports.
    List(#[schema(inline)] ListSchema),
}

/// A port.
#[derive(ToSchema)]
#[schema(minimum = 1, maximum = 65535)]
#[expect(
    dead_code,
    reason = "it only describes `TargetPortField` to readers of the API's document"
)]
pub(super) struct NumberSchema(u16);

/// Ports, each with its protocol.
#[derive(ToSchema)]
#[schema(min_items = 1, max_items = 24)]
#[expect(
    dead_code,
    reason = "it only describes `TargetPortField` to readers of the API's document"
)]
pub(super) struct ListSchema(Vec<EntrySchema>);

/// One port to publish.
#[derive(ToSchema)]
#[schema(as = TargetPortEntry, example = json!({"container_port": 80, "protocol": "TCP"}))]
#[expect(dead_code, reason = "it only describes `Entry` to readers of the API's document")]
pub(super) struct EntrySchema {
    /// The port inside the stack.
    #[schema(minimum = 1, maximum = 65535)]
    container_port: u16,
    /// `TCP` or `UDP`, in any case.
    #[schema(pattern = "^\\s*([Tt][Cc][Pp]|[Uu][Dd][Pp])\\s*$")]
    protocol: String,
}

/// What `POST /stacks/batch-delete` takes.
#[derive(ToSchema)]
#[schema(as = BatchDeleteRequest, example = json!({"stack_ids": ["stack-1", "stack-2", "stack-3"]}))]
#[expect(dead_code, reason = "it only describes `BatchBody` to readers of the API's document")]
pub(super) struct BatchSchema {
    /// At least one id; an id that is given twice counts once.
    #[schema(min_items = 1)]
    stack_ids: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(json: &str) -> Result<TargetPorts, String> {
        let body: CreateBody = object(format!(r#"{{"target_port":{json}}}"#).as_bytes())
            .map_err(|fault| fault.text.to_string())?;
        body.target_port.read().map_err(|e| e.to_string())
    }

    #[test]
    fn a_port_is_a_number_or_a_list_of_objects() {
        assert_eq!(ports("80"), Ok(TargetPorts::Any(80)));
        let list = r#"[{"protocol":"udp","container_port":53,"later":1}]"#;
        assert!(matches!(ports(list), Ok(TargetPorts::List(list)) if list.len() == 1));
        for wrong in [
            r#""80""#,
            "80.5",
            "80.0",
            "true",
            "{}",
            "[80]",
            r#"[[80,"TCP"]]"#,
            "[null]",
            r#"[{"container_port":"80","protocol":"TCP"}]"#,
            r#"[{"container_port":80.5,"protocol":"TCP"}]"#,
            r#"[{"container_port":80,"protocol":6}]"#,
        ] {
            assert_eq!(ports(wrong), Err("invalid json body".to_owned()), "{wrong}");
        }
        for (absent, text) in [
            ("null", "target_port is required"),
            ("[]", "target_port is required"),
            ("0", "target_port is out of range"),
            ("-1", "target_port is out of range"),
            ("65536", "target_port is out of range"),
            ("99999999999999999999999", "target_port is out of range"),
            (r#"[{"protocol":"TCP"}]"#, "target_port is out of range"),
            (r#"[{"container_port":null,"protocol":"TCP"}]"#, "target_port is out of range"),
            (r#"[{"container_port":80}]"#, "protocol is required"),
            (r#"[{"container_port":80,"protocol":null}]"#, "protocol is required"),
        ] {
            assert_eq!(ports(absent), Err(text.to_owned()), "{absent}");
        }
    }

    #[test]
    fn a_body_is_one_object() {
        for wrong in ["", " ", "null", "[]", "[80]", "1", "\"x\"", "{", "{} {}", "\u{feff}{}"] {
            assert_eq!(
                object::<CreateBody>(wrong.as_bytes()).unwrap_err(),
                invalid_body(),
                "{wrong:?}"
            );
        }
        let body: CreateBody = object(br#" {"unknown":{"deep":[1]},"pod_spec":"x"} "#).unwrap();
        assert_eq!(body.pod_spec.as_deref(), Some("x"));
        assert!(object::<CreateBody>(b"{\"pod_spec\":\"\xff\"}").is_err());
        assert!(object::<CreateBody>(br#"{"pod_spec":1}"#).is_err());
        // What is not known is skipped, however deep it is.
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(object::<CreateBody>(deep.as_bytes()).is_ok());
    }
}
