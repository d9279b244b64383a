//! Records for the contract: plain ones, and any that the types allow.

use std::sync::Arc;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use stackd_core::event::{EventKind, NewEvent};
use stackd_core::quantity::Quantity;
use stackd_core::spec::{
    Container, ContainerPort, EnvVar, ImagePullPolicy, Probe, ProbeAction, ProbePort, Requested,
    Resources, SecretVariable, StackSpec, Volume, VolumeMedium, VolumeMount, WrittenResources,
};
use stackd_core::stack::{Condition, Desired, Observed, Owner};
use stackd_core::{JobId, Phase, PortMapping, Protocol, Stack, StackId, TargetPort, Timestamp};
use stackd_store::{ApiKey, IdempotencyRecord, Job, JobError, JobStatus, Permission};

/// A moment, `seconds` after a fixed one.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + seconds).unwrap_or_default()
}

/// A plain stack with an owner of its own and no ports.
pub fn stack(number: u64) -> Stack {
    let id = StackId::from_bits(number);
    let container = Container {
        name: "web".to_owned(),
        image: "nginx:stable".to_owned(),
        image_pull_policy: None,
        command: None,
        args: None,
        working_dir: None,
        env: Vec::new(),
        ports: Vec::new(),
        resources: Resources::default(),
        volume_mounts: Vec::new(),
        readiness_probe: None,
        liveness_probe: None,
        startup_probe: None,
        stdin: false,
        tty: false,
    };
    let spec = StackSpec {
        name: None,
        labels: Default::default(),
        annotations: Default::default(),
        hostname: None,
        termination_grace_seconds: None,
        init_containers: Vec::new(),
        containers: vec![container],
        volumes: Vec::new(),
        target_ports: vec![TargetPort { container_port: 80, protocol: Protocol::Tcp }],
        restrictions: Default::default(),
        secrets: vec![SecretVariable {
            name: "FLAG".to_owned(),
            value: "flag{x}".into(),
            containers: vec!["web".to_owned()],
        }],
    };
    Stack {
        id,
        owner: owner("provisioner", "tenant", &id.to_string()),
        spec: Arc::new(spec),
        pod_spec: "apiVersion: v1\n".into(),
        runtime_class: "default".to_owned(),
        labels: Default::default(),
        ports: Vec::new(),
        requested: Requested::default(),
        desired: Desired::Running,
        generation: 1,
        observed: Observed::accepted(),
        created_at: at(0),
        updated_at: at(0),
        expires_at: at(7200),
    }
}

/// An owner from its parts.
pub fn owner(dialect: &str, tenant: &str, slot: &str) -> Owner {
    Owner { dialect: dialect.to_owned(), tenant: tenant.to_owned(), slot: slot.to_owned() }
}

/// A published port.
pub fn port(protocol: Protocol, node_port: u16) -> PortMapping {
    PortMapping { container_port: 80, protocol, node_port }
}

/// An event of a stack.
pub fn event(stack: StackId, kind: EventKind) -> NewEvent {
    NewEvent { at: at(1), stack, kind, phase: Phase::Creating, reason: None, message: None }
}

/// An API key with a hash of its own.
pub fn api_key(name: &str, hash: u8) -> ApiKey {
    ApiKey {
        name: name.to_owned(),
        hash: [hash; 32],
        permissions: Vec::new(),
        dialects: Vec::new(),
        created_at: at(hash.into()),
        revoked_at: None,
    }
}

/// An idempotency record.
pub fn idempotency(key: &str, stack: StackId, created_at: Timestamp) -> IdempotencyRecord {
    IdempotencyRecord {
        scope: "first".to_owned(),
        key: key.to_owned(),
        body_hash: [7; 32],
        stack,
        created_at,
    }
}

/// A job of no stacks.
pub fn job(number: u64, status: JobStatus, updated_at: Timestamp) -> Job {
    Job {
        id: JobId::from_bits(number),
        status,
        stack_ids: Default::default(),
        done: 0,
        deleted: 0,
        not_found: 0,
        failed: 0,
        errors: Vec::new(),
        created_at: at(0),
        updated_at,
    }
}

/// Any text that both databases keep: all but NUL.
fn text() -> impl Strategy<Value = String> {
    "[^\\x00]{0,12}"
}

/// Any moment that fits 64 bits of nanoseconds.
fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(|nanos| Timestamp::from_nanosecond(nanos.into()).unwrap_or_default())
}

fn quantity() -> impl Strategy<Value = Quantity> {
    "[1-9][0-9]{0,3}(m|k|M|Ki|Mi|Gi|e2)?"
        .prop_map(|text| text.parse().unwrap_or_else(|error| panic!("{text}: {error}")))
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Creating),
        Just(Phase::Running),
        Just(Phase::Stopped),
        Just(Phase::Failed),
        Just(Phase::NodeDeleted),
    ]
}

fn probe() -> impl Strategy<Value = Probe> {
    let port =
        || (any::<u16>(), option::of(text())).prop_map(|(number, name)| ProbePort { number, name });
    let action = prop_oneof![
        vec(text(), 0..3).prop_map(|command| ProbeAction::Exec { command }),
        port().prop_map(|port| ProbeAction::TcpSocket { port }),
        (option::of(text()), port(), option::of(any::<bool>()), vec((text(), text()), 0..2))
            .prop_map(|(path, port, https, headers)| ProbeAction::HttpGet {
                path,
                port,
                https,
                headers
            }),
    ];
    let n = || option::of(any::<u32>());
    (action, n(), n(), n(), n(), n()).prop_map(|(action, delay, period, timeout, good, bad)| {
        Probe {
            action,
            initial_delay_seconds: delay,
            period_seconds: period,
            timeout_seconds: timeout,
            success_threshold: good,
            failure_threshold: bad,
        }
    })
}

prop_compose! {
    fn container()(
        name in text(),
        image in text(),
        image_pull_policy in option::of(prop_oneof![
            Just(ImagePullPolicy::Always),
            Just(ImagePullPolicy::IfNotPresent),
            Just(ImagePullPolicy::Never),
        ]),
        (command, args, working_dir) in (
            option::of(vec(text(), 0..3)),
            option::of(vec(text(), 0..3)),
            option::of(text()),
        ),
        env in vec((text(), text()).prop_map(|(name, value)| EnvVar { name, value }), 0..3),
        ports in vec(
            (option::of(text()), any::<u16>(), protocol(), any::<bool>()).prop_map(
                |(name, container_port, protocol, protocol_given)| ContainerPort {
                    name, container_port, protocol, protocol_given,
                }
            ),
            0..3,
        ),
        (cpu_milli, memory_bytes, ephemeral_storage_bytes) in
            (any::<u64>(), any::<u64>(), option::of(any::<u64>())),
        written in (option::of(quantity()), option::of(quantity()), option::of(quantity()))
            .prop_map(|(cpu, memory, ephemeral_storage)| {
                WrittenResources { cpu, memory, ephemeral_storage }
            }),
        volume_mounts in vec(
            (text(), text(), option::of(text()), any::<bool>()).prop_map(
                |(name, mount_path, sub_path, read_only)| VolumeMount {
                    name, mount_path, sub_path, read_only,
                }
            ),
            0..2,
        ),
        (readiness_probe, liveness_probe, startup_probe) in
            (option::of(probe()), option::of(probe()), option::of(probe())),
        (stdin, tty) in any::<(bool, bool)>(),
    ) -> Container {
        Container {
            name, image, image_pull_policy, command, args, working_dir, env, ports,
            resources: Resources { cpu_milli, memory_bytes, ephemeral_storage_bytes, written },
            volume_mounts, readiness_probe, liveness_probe, startup_probe, stdin, tty,
        }
    }
}

prop_compose! {
    fn spec()(
        name in option::of(text()),
        labels in btree_map(text(), text(), 0..3),
        annotations in btree_map(text(), text(), 0..3),
        hostname in option::of(text()),
        termination_grace_seconds in option::of(any::<u32>()),
        init_containers in vec(container(), 0..2),
        containers in vec(container(), 1..3),
        volumes in vec(
            (text(), any::<bool>(), option::of(any::<u64>()), option::of(quantity())).prop_map(
                |(name, memory, size_limit_bytes, size_limit_written)| Volume {
                    name,
                    size_limit_written,
                    medium: if memory { VolumeMedium::Memory } else { VolumeMedium::Disk },
                    size_limit_bytes,
                }
            ),
            0..2,
        ),
        target_ports in vec(
            (any::<u16>(), protocol())
                .prop_map(|(container_port, protocol)| TargetPort { container_port, protocol }),
            1..4,
        ),
    ) -> StackSpec {
        StackSpec {
            name, labels, annotations, hostname, termination_grace_seconds, init_containers,
            containers, volumes, target_ports, restrictions: Default::default(),
 secrets: Vec::new(),
        }
    }
}

/// Anything that may be known of a stack.
pub fn any_observed() -> impl Strategy<Value = Observed> {
    (
        phase(),
        option::of(text()),
        option::of(text()),
        option::of((text(), text()).prop_map(|(reason, message)| Condition { reason, message })),
        any::<u32>(),
        option::of(any::<i32>()),
        option::of(time()),
        option::of(time()),
    )
        .prop_map(
            |(phase, node, node_public_ip, condition, restarts, exit_code, ready_at, ended_at)| {
                Observed {
                    phase,
                    node,
                    node_public_ip,
                    condition,
                    restarts,
                    exit_code,
                    ready_at,
                    ended_at,
                }
            },
        )
}

prop_compose! {
    /// Any stack; its id, owner and node ports are `number`'s own.
    pub fn any_stack(number: u16)(
        (dialect, tenant) in (text(), text()),
        spec in spec(),
        (pod_spec, runtime_class) in (text(), text()),
        labels in btree_map(text(), text(), 0..3),
        ports in vec((any::<u16>(), protocol()), 0..=1),
        (cpu_milli, memory_bytes, disk_bytes) in any::<(u64, u64, u64)>(),
        gone in any::<bool>(),
        generation in 0..=i64::MAX as u64,
        observed in any_observed(),
        (created_at, updated_at, expires_at) in (time(), time(), time()),
    ) -> Stack {
        let id = StackId::from_bits(number.into());
        Stack {
            id,
            owner: Owner { dialect, tenant, slot: id.to_string() },
            spec: Arc::new(spec),
            pod_spec: pod_spec.into(),
            runtime_class,
            labels,
            ports: ports
                .into_iter()
                .map(|(container_port, protocol)| PortMapping {
                    container_port, protocol, node_port: number,
                })
                .collect(),
            requested: Requested { cpu_milli, memory_bytes, disk_bytes },
            desired: if gone { Desired::Gone } else { Desired::Running },
            generation,
            observed,
            created_at,
            updated_at,
            expires_at,
        }
    }
}

prop_compose! {
    /// Any event.
    pub fn any_event()(
        at in time(),
        stack in any::<u64>(),
        kind in prop_oneof![
            Just(EventKind::Created),
            Just(EventKind::Changed),
            Just(EventKind::Deleted),
            Just(EventKind::Expired),
            Just(EventKind::Removed),
        ],
        phase in phase(),
        reason in option::of(text()),
        message in option::of(text()),
    ) -> NewEvent {
        NewEvent { at, stack: StackId::from_bits(stack), kind, phase, reason, message }
    }
}

prop_compose! {
    /// Any job of this number.
    pub fn any_job(number: u64)(
        status in prop_oneof![
            Just(JobStatus::Queued),
            Just(JobStatus::Running),
            Just(JobStatus::Completed),
            Just(JobStatus::Failed),
        ],
        stack_ids in vec(text(), 0..4),
        counts in proptest::array::uniform4(0..=i64::MAX as u64),
        errors in vec(
            (text(), text()).prop_map(|(stack_id, error)| JobError { stack_id, error }),
            0..3,
        ),
        (created_at, updated_at) in (time(), time()),
    ) -> Job {
        let [done, deleted, not_found, failed] = counts;
        Job {
            id: JobId::from_bits(number),
            status, stack_ids: stack_ids.into(), done, deleted, not_found, failed, errors, created_at, updated_at,
        }
    }
}

prop_compose! {
    /// Any idempotency record; its key is `number`'s own.
    pub fn any_idempotency(number: u64)(
        scope in text(),
        key in text(),
        body_hash in any::<[u8; 32]>(),
        stack in any::<u64>(),
        created_at in time(),
    ) -> IdempotencyRecord {
        IdempotencyRecord {
            scope,
            key: format!("{key}{number}"),
            body_hash,
            stack: StackId::from_bits(stack),
            created_at,
        }
    }
}

prop_compose! {
    /// Any API key; its name is `number`'s own.
    pub fn any_api_key(number: u64)(
        name in text(),
        hash in any::<[u8; 32]>(),
        exec in any::<bool>(),
        dialects in vec(text(), 0..3),
        created_at in time(),
        revoked_at in option::of(time()),
    ) -> ApiKey {
        ApiKey {
            name: format!("{name}{number}"),
            hash,
            permissions: if exec { vec![Permission::Exec] } else { Vec::new() },
            dialects,
            created_at,
            revoked_at,
        }
    }
}
