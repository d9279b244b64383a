//! What a stack looks like in this dialect: the fields of both documents side by side, in their
//! order, then what was added.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use stackd_core::isolation::EffectiveSecurity;
use stackd_core::stack::{Condition, reason};
use stackd_core::{PortMapping, StackId};
use stackd_engine::LiveStack;
use utoipa::ToSchema;

use super::DIALECT;
use crate::ServerState;

/// A stack.
#[derive(Serialize, ToSchema)]
#[schema(as = Stack, example = example::stack)]
pub(crate) struct StackView<'a> {
    /// Its identity: `stack-` and 16 hexadecimal digits.
    #[schema(value_type = String, example = "stack-716b6384dd477b0b")]
    stack_id: StackId,
    /// The same as `stack_id`.
    #[schema(value_type = String, example = "stack-716b6384dd477b0b")]
    pod_id: StackId,
    /// Configured; `stacks` by default.
    #[schema(example = "stacks")]
    namespace: &'a str,
    /// The machine it runs on; null until it is placed.
    #[schema(required)]
    node_id: Option<&'a str>,
    /// The address at which its node ports are reached; null where the machine has none.
    #[schema(required)]
    node_public_ip: Option<&'a str>,
    /// The hardened Pod as YAML.
    pod_spec: &'a str,
    /// Its published ports, in the order asked. They stay shown after it has ended, when others
    /// may have got them.
    #[schema(value_type = Vec<PortSchema>)]
    ports: &'a [PortMapping],
    /// The `container_port` of the first of `ports`.
    target_port: u16,
    /// The `node_port` of the first of `ports`.
    node_port: u16,
    /// `svc-` and the stack's id.
    #[schema(example = "svc-stack-716b6384dd477b0b")]
    service_name: String,
    /// How far it has come.
    #[schema(value_type = StatusSchema)]
    status: &'static str,
    /// When it is taken away.
    #[schema(value_type = String, format = DateTime)]
    ttl_expires_at: Timestamp,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When something of it last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// CPU it reserves, in thousandths.
    requested_cpu_milli: u64,
    /// Memory it reserves.
    requested_memory_bytes: u64,
    /// Disk it reserves.
    requested_disk_bytes: u64,
    /// The labels that its creator gave it.
    labels: &'a BTreeMap<String, String>,
    /// Whose stack it is: what its creator said, else the name of the key.
    owner: &'a str,
    /// Which handler of the runtime starts it.
    runtime_class: &'a str,
    /// One word for why it is not simply running; left out where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Queued")]
    reason: Option<&'a str>,
    /// A sentence for why it is not simply running; left out where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Cow<'a, str>>,
    /// How often its containers were started again.
    restarts: u32,
    /// The code of the first container that ended otherwise than with 0 (128 + n after signal n),
    /// else 0; left out while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// When it became ready for traffic first; left out before that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    ready_at: Option<Timestamp>,
    /// When it ended; left out while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    /// What is really applied to it, which is stricter than what `pod_spec` says.
    #[schema(value_type = SecuritySchema)]
    effective_security: &'a EffectiveSecurity,
}

/// The answer of `GET /stacks/{stack_id}/status`.
#[derive(Serialize, ToSchema)]
#[schema(as = StackStatus, example = json!({
    "stack_id": "stack-716b6384dd477b0b",
    "status": "running",
    "ttl": "2026-02-10T04:02:26.535664Z",
    "ports": [{"container_port": 80, "protocol": "TCP", "node_port": 31538}],
    "node_port": 31538,
    "target_port": 80,
    "node_public_ip": "12.34.56.78"
}))]
pub(super) struct StatusView<'a> {
    /// Its identity.
    #[schema(value_type = String)]
    stack_id: StackId,
    /// How far it has come.
    #[schema(value_type = StatusSchema)]
    status: &'static str,
    /// When it is taken away.
    #[schema(value_type = String, format = DateTime)]
    ttl: Timestamp,
    /// Its published ports.
    #[schema(value_type = Vec<PortSchema>)]
    ports: &'a [PortMapping],
    /// The `node_port` of the first of `ports`.
    node_port: u16,
    /// The `container_port` of the first of `ports`.
    target_port: u16,
    /// The address at which its node ports are reached; null where the machine has none.
    #[schema(required)]
    node_public_ip: Option<&'a str>,
    /// One word for why it is not simply running; left out where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// A sentence for why it is not simply running; left out where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Cow<'a, str>>,
}

/// A published port.
#[derive(ToSchema)]
#[schema(as = Port, example = json!({"container_port": 80, "protocol": "TCP", "node_port": 31538}))]
#[expect(dead_code, reason = "it only describes `PortMapping` to readers of the API's document")]
struct PortSchema {
    /// The port inside the stack.
    #[schema(minimum = 1, maximum = 65535)]
    container_port: u16,
    /// Its protocol.
    #[schema(value_type = ProtocolSchema)]
    protocol: (),
    /// The port on the node.
    #[schema(minimum = 1, maximum = 65535)]
    node_port: u16,
}

/// A transport protocol.
#[derive(ToSchema)]
#[schema(as = Protocol)]
#[expect(dead_code, reason = "it only describes `Protocol` to readers of the API's document")]
enum ProtocolSchema {
    #[schema(rename = "TCP")]
    Tcp,
    #[schema(rename = "UDP")]
    Udp,
}

/// How far a stack has come: `creating`, then `running` when it is ready for traffic; `stopped`
/// when every container ended with 0, `failed` otherwise; `node_deleted` when its machine is gone.
#[derive(ToSchema)]
#[schema(as = Status, rename_all = "snake_case")]
#[expect(dead_code, reason = "it only describes `Phase` to readers of the API's document")]
pub(crate) enum StatusSchema {
    Creating,
    Running,
    Stopped,
    Failed,
    NodeDeleted,
}

/// What a stack's processes can do, on every runtime.
#[derive(ToSchema)]
#[schema(as = EffectiveSecurity)]
#[expect(
    dead_code,
    reason = "it only describes `EffectiveSecurity` to readers of the API's document"
)]
struct SecuritySchema {
    /// `default` or `strict`.
    profile: String,
    /// The capabilities that root has inside.
    capabilities: Vec<String>,
    /// No program gains rights by being run.
    no_new_privileges: bool,
    /// Whether root inside is nobody outside.
    user_namespace: bool,
    /// The filter of system calls.
    seccomp: String,
    /// What it may reach beyond its published ports.
    egress: String,
    /// The most processes and threads; null where that is the cluster's to set.
    pids_limit: Option<u32>,
    /// The most bytes on disk.
    disk_bytes: u64,
    /// Whether the containers' own file systems cannot be written.
    read_only_root: bool,
}

/// The stack in JSON. It is rendered once for every version of a stack; only the place in the
/// queue of one that waits for its start moves without a new version.
pub(super) fn render(state: &ServerState, live: &LiveStack) -> Arc<str> {
    let ours = live.stack.owner.dialect == DIALECT;
    if is_queued(live) || !ours {
        return text(state, live);
    }
    Arc::clone(live.rendered.get_or_init(|| text(state, live)))
}

fn text(state: &ServerState, live: &LiveStack) -> Arc<str> {
    match serde_json::to_string(&view(state, live)) {
        Ok(text) => text.into(),
        Err(error) => {
            // No part of a stack can fail to be written: no maps but of strings, no floats.
            tracing::error!(%error, stack = %live.stack.id, "a stack could not be rendered");
            "{}".into()
        }
    }
}

fn view<'a>(state: &'a ServerState, live: &'a LiveStack) -> StackView<'a> {
    let stack = &live.stack;
    let observed = &stack.observed;
    let (target_port, node_port) = first_port(live);
    let (reason, message) = condition(state, live);
    StackView {
        stack_id: stack.id,
        pod_id: stack.id,
        namespace: &state.config().namespace,
        node_id: observed.node.as_deref(),
        node_public_ip: observed.node_public_ip.as_deref(),
        pod_spec: &stack.pod_spec,
        ports: &stack.ports,
        target_port,
        node_port,
        service_name: stack.id.service_name(),
        status: observed.phase.as_str(),
        ttl_expires_at: stack.expires_at,
        created_at: stack.created_at,
        updated_at: stack.updated_at,
        requested_cpu_milli: stack.requested.cpu_milli,
        requested_memory_bytes: stack.requested.memory_bytes,
        requested_disk_bytes: stack.requested.disk_bytes,
        labels: &stack.labels,
        owner: &stack.owner.tenant,
        runtime_class: &stack.runtime_class,
        reason,
        message,
        restarts: observed.restarts,
        exit_code: observed.exit_code,
        ready_at: observed.ready_at,
        ended_at: observed.ended_at,
        effective_security: &live.security,
    }
}

pub(super) fn status<'a>(state: &ServerState, live: &'a LiveStack) -> StatusView<'a> {
    let stack = &live.stack;
    let (target_port, node_port) = first_port(live);
    let (reason, message) = condition(state, live);
    StatusView {
        stack_id: stack.id,
        status: stack.observed.phase.as_str(),
        ttl: stack.expires_at,
        ports: &stack.ports,
        node_port,
        target_port,
        node_public_ip: stack.observed.node_public_ip.as_deref(),
        reason,
        message,
    }
}

/// A stack has at least one port; 0 is what Kubernetes shows for none.
fn first_port(live: &LiveStack) -> (u16, u16) {
    live.stack.ports.first().map_or((0, 0), |port| (port.container_port, port.node_port))
}

fn is_queued(live: &LiveStack) -> bool {
    live.stack.observed.condition.as_ref().is_some_and(|c| c.reason == reason::QUEUED)
}

fn condition<'a>(
    state: &ServerState,
    live: &'a LiveStack,
) -> (Option<&'a str>, Option<Cow<'a, str>>) {
    let Some(Condition { reason, message }) = &live.stack.observed.condition else {
        return (None, None);
    };
    let place = if is_queued(live) { state.engine().queue_place(live.stack.id) } else { None };
    let message = match place {
        Some((place, length)) => {
            Cow::Owned(format!("waiting for a start slot: place {place} of {length}"))
        }
        None => Cow::Borrowed(message.as_str()),
    };
    (Some(reason), Some(message))
}

/// The examples of the API's document.
pub(super) mod example {
    use serde_json::{Value, json};

    /// The Pod that the provisioner's documents send.
    pub(in crate::provisioner) const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: challenge\nspec:\n  containers:\n    - name: app\n      image: nginx:stable\n      ports:\n        - containerPort: 80\n          protocol: TCP\n      resources:\n        requests:\n          cpu: \"100m\"\n          memory: \"128Mi\"\n        limits:\n          cpu: \"100m\"\n          memory: \"128Mi\"";

    const HARDENED: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: challenge\nspec:\n  automountServiceAccountToken: false\n  containers:\n  - image: nginx:stable\n    name: app\n    ports:\n    - containerPort: 80\n      protocol: TCP\n    resources:\n      limits:\n        cpu: 100m\n        memory: 128Mi\n      requests:\n        cpu: 100m\n        memory: 128Mi\n    securityContext:\n      allowPrivilegeEscalation: false\n      privileged: false\n      seccompProfile:\n        type: RuntimeDefault\n  enableServiceLinks: false\n  restartPolicy: Never\n  securityContext:\n    seccompProfile:\n      type: RuntimeDefault\nstatus: {}\n";

    /// The stack that the provisioner's documents show, with what was added.
    pub(in crate::provisioner) fn stack() -> Value {
        json!({
            "stack_id": "stack-716b6384dd477b0b",
            "pod_id": "stack-716b6384dd477b0b",
            "namespace": "stacks",
            "node_id": "dev-worker2",
            "node_public_ip": "12.34.56.78",
            "pod_spec": HARDENED,
            "ports": [{"container_port": 80, "protocol": "TCP", "node_port": 31538}],
            "target_port": 80,
            "node_port": 31538,
            "service_name": "svc-stack-716b6384dd477b0b",
            "status": "running",
            "ttl_expires_at": "2026-02-10T04:02:26.535664Z",
            "created_at": "2026-02-10T02:02:26.535664Z",
            "updated_at": "2026-02-10T02:06:33.16031Z",
            "requested_cpu_milli": 100,
            "requested_memory_bytes": 134217728,
            "requested_disk_bytes": 268435456,
            "labels": {"team": "red"},
            "owner": "red",
            "runtime_class": "default",
            "restarts": 0,
            "ready_at": "2026-02-10T02:02:26.548112Z",
            "effective_security": {
                "profile": "default",
                "capabilities": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"],
                "no_new_privileges": true,
                "user_namespace": true,
                "seccomp": "stackd/default",
                "egress": "none",
                "pids_limit": 256,
                "disk_bytes": 268435456,
                "read_only_root": false
            }
        })
    }
}
