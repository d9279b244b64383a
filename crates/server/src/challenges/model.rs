//! What a challenge looks like: every key is always there, and null where it is not set.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};
use stackd_core::Timestamp;
use stackd_core::challenge::{Challenge, ChallengeId, Source, concealed};
use stackd_core::port::TargetPorts;
use utoipa::ToSchema;

/// A challenge.
#[derive(Serialize, ToSchema)]
#[schema(as = Challenge, example = example)]
pub(crate) struct ChallengeView<'a> {
    /// Its slug.
    #[schema(value_type = String, max_length = 63)]
    id: &'a ChallengeId,
    /// Its number, which players' paths name.
    #[schema(minimum = 1)]
    number: u64,
    /// What people call it.
    name: &'a str,
    /// How strongly its stacks are isolated: `docker` is this server's default.
    #[schema(value_type = RuntimeSchema)]
    runtime: &'static str,
    /// The image of its one container; null where a Pod describes it.
    #[schema(required)]
    image: Option<&'a str>,
    /// The port that it listens on; null where a Pod describes it.
    #[schema(required, minimum = 1, maximum = 65535)]
    port: Option<u16>,
    /// What players speak with it.
    #[schema(value_type = SchemeSchema)]
    protocol: &'static str,
    /// CPU cores; null where a Pod describes it.
    #[schema(required)]
    cpu_count: Option<u32>,
    /// Memory in MB; null where a Pod describes it.
    #[schema(required)]
    memory_mb: Option<u32>,
    /// How long a stack of it lives; null is the server's default.
    #[schema(required, minimum = 1)]
    ttl_seconds: Option<u64>,
    /// A JSON object in a string; null where there is none. In place of a flag it holds the flag's
    /// fingerprint, which may be sent back.
    #[schema(required, value_type = Option<String>)]
    extra_config: Option<Cow<'a, str>>,
    /// The Pod that describes it as YAML; null where an image does.
    #[schema(required)]
    pod_spec: Option<&'a str>,
    /// The ports of the Pod to publish: a number, or a list as the provisioner takes it.
    #[schema(required)]
    target_port: Option<Value>,
    /// Whether it is there for players at all.
    enabled: bool,
    /// Whether players may start stacks of it.
    stack_enabled: bool,
    /// Whether solving it ends the solver's stack.
    destroy_on_solve: bool,
    /// When it was written first.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When something of it last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A runtime class.
#[derive(ToSchema)]
#[schema(as = ChallengeRuntime, rename_all = "kebab-case")]
#[expect(dead_code, reason = "it only describes `Class` to readers of the API's document")]
pub(crate) enum RuntimeSchema {
    Docker,
    Kctf,
    KataFirecracker,
}

/// What players speak with a challenge.
#[derive(ToSchema)]
#[schema(as = ChallengeProtocol, rename_all = "lowercase")]
#[expect(dead_code, reason = "it only describes `Scheme` to readers of the API's document")]
pub(crate) enum SchemeSchema {
    Http,
    Tcp,
}

impl<'a> ChallengeView<'a> {
    pub(crate) fn of(challenge: &'a Challenge) -> Self {
        let of = &challenge.definition;
        let (image, pod) = match &of.source {
            Source::Image { image, port, cpu_count, memory_mb } => {
                (Some((image.as_str(), *port, *cpu_count, *memory_mb)), None)
            }
            Source::Pod { pod_spec, target_port } => (None, Some((pod_spec.as_str(), target_port))),
        };
        Self {
            id: &of.id,
            number: challenge.number.get(),
            name: &of.name,
            runtime: of.class.as_str(),
            image: image.map(|image| image.0),
            port: image.map(|image| image.1),
            protocol: of.scheme.as_str(),
            cpu_count: image.map(|image| image.2),
            memory_mb: image.map(|image| image.3),
            ttl_seconds: of.ttl_seconds,
            extra_config: of.extra_config.as_deref().map(concealed),
            pod_spec: pod.map(|pod| pod.0),
            target_port: pod.map(|pod| ports(pod.1)),
            enabled: of.enabled,
            stack_enabled: of.stack_enabled,
            destroy_on_solve: of.destroy_on_solve,
            created_at: challenge.created_at,
            updated_at: challenge.updated_at,
        }
    }
}

fn ports(ports: &TargetPorts) -> Value {
    match ports {
        TargetPorts::Any(number) => json!(number),
        TargetPorts::List(ports) => json!(ports),
    }
}

/// The challenge of the documents, with what was added.
pub(super) fn example() -> Value {
    json!({
        "id": "web100",
        "number": 12,
        "name": "Web 100",
        "runtime": "docker",
        "image": "myctf-web100:latest",
        "port": 80,
        "protocol": "http",
        "cpu_count": 1,
        "memory_mb": 512,
        "ttl_seconds": 3600,
        "extra_config": null,
        "pod_spec": null,
        "target_port": null,
        "enabled": true,
        "stack_enabled": true,
        "destroy_on_solve": true,
        "created_at": "2026-04-17T19:00:00Z",
        "updated_at": "2026-04-17T19:00:00Z"
    })
}
