//! The three objects of a stack: the policy that closes it off and owns the others, the service
//! with its node ports, and its pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, ExecAction,
    HTTPGetAction, HTTPHeader, LocalObjectReference, Pod, PodSecurityContext, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, SecurityContext, Service, ServicePort, ServiceSpec,
    Sysctl, TCPSocketAction, Toleration, Volume, VolumeMount,
};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stackd_core::isolation;
use stackd_core::runtime::EnsureRequest;
use stackd_core::spec::{self, ProbeAction, VolumeMedium};
use stackd_core::{PortMapping, StackId};

use super::config::KubernetesConfig;
use super::names;

/// The taints of a node that does not answer; a stack on it is given up some time after.
pub(super) const NODE_TAINTS: [&str; 2] =
    ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// What a kubelet writes on a node that can start stacks: a cluster may have Windows nodes too.
pub(super) const OS_LABEL: (&str, &str) = ("kubernetes.io/os", "linux");

/// The policy of a stack: nothing goes out, and only what is published comes in.
pub(super) fn policy(config: &KubernetesConfig, request: &EnsureRequest) -> NetworkPolicy {
    let ports = request.ports.iter().map(|port| NetworkPolicyPort {
        port: Some(IntOrString::Int(port.container_port.into())),
        protocol: Some(port.protocol.to_string()),
        end_port: None,
    });
    let ports: Vec<_> = ports.collect();
    // A rule without ports would allow all of them.
    let ingress = match ports.is_empty() {
        true => Vec::new(),
        false => vec![NetworkPolicyIngressRule { from: None, ports: Some(ports) }],
    };
    let version = (request.generation, request.epoch);
    let mut metadata = names::metadata(config, request.id.to_string(), request.id, version, None);
    names::note_ports(&mut metadata, &request.ports);
    NetworkPolicy {
        metadata,
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(names::pod_selector(request.id)),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress),
            egress: Some(Vec::new()),
        }),
    }
}

/// What names the policy as owner: the deletion of the owner waits for what it owns.
pub(super) fn owned_by(id: StackId, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "networking.k8s.io/v1".to_owned(),
        kind: "NetworkPolicy".to_owned(),
        name: id.to_string(),
        uid: uid.to_owned(),
        block_owner_deletion: Some(true),
        controller: Some(true),
    }
}

/// The service of a stack, on the node ports that the engine gave out.
pub(super) fn service(
    config: &KubernetesConfig,
    id: StackId,
    version: (u64, u64),
    ports: &[PortMapping],
    owner: OwnerReference,
) -> Service {
    let ports = ports.iter().map(|port| ServicePort {
        name: Some(format!("{}-{}", port.protocol, port.container_port).to_lowercase()),
        port: port.container_port.into(),
        target_port: Some(IntOrString::Int(port.container_port.into())),
        node_port: Some(port.node_port.into()),
        protocol: Some(port.protocol.to_string()),
        app_protocol: None,
    });
    Service {
        metadata: names::metadata(config, id.service_name(), id, version, Some(owner)),
        spec: Some(ServiceSpec {
            type_: Some("NodePort".to_owned()),
            selector: Some(names::pod_selector(id)),
            ports: Some(ports.collect()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The pod of a stack.
pub(super) fn pod(
    config: &KubernetesConfig,
    request: &EnsureRequest,
    user_namespace: bool,
    owner: OwnerReference,
) -> Pod {
    let spec = &request.spec;
    let version = (request.generation, request.epoch);
    let containers = |containers: &[spec::Container]| -> Vec<Container> {
        containers.iter().map(|one| container(config, request, one)).collect()
    };
    let init = containers(&spec.init_containers);
    let class = config.runtime_classes.get(&request.runtime_class);
    let lost_after = i64::try_from(config.node_lost_after.as_secs()).unwrap_or(i64::MAX);
    let grace = spec.termination_grace().min(config.delete_grace).as_secs();
    Pod {
        // The caller's own labels and annotations stay out: webhooks and network plug-ins act on
        // such, and they would be the stack's to choose.
        metadata: names::metadata(config, request.id.to_string(), request.id, version, Some(owner)),
        spec: Some(PodSpec {
            containers: containers(&spec.containers),
            init_containers: (!init.is_empty()).then_some(init),
            volumes: (!spec.volumes.is_empty()).then(|| spec.volumes.iter().map(volume).collect()),
            restart_policy: Some("Never".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            // The resolver of the cluster is out of reach, and its names are not a stack's business.
            dns_policy: Some("None".to_owned()),
            dns_config: Some(no_dns()),
            hostname: spec.hostname.clone(),
            host_users: user_namespace.then_some(false),
            node_selector: Some(BTreeMap::from([(OS_LABEL.0.to_owned(), OS_LABEL.1.to_owned())])),
            runtime_class_name: class.filter(|class| !class.is_empty()).cloned(),
            termination_grace_period_seconds: Some(i64::try_from(grace).unwrap_or(i64::MAX)),
            security_context: Some(PodSecurityContext {
                seccomp_profile: Some(runtime_default()),
                run_as_non_root: config.run_as_non_root.then_some(true),
                sysctls: Some(vec![Sysctl {
                    name: "net.ipv4.ip_unprivileged_port_start".to_owned(),
                    value: "0".to_owned(),
                }]),
                ..PodSecurityContext::default()
            }),
            tolerations: Some(
                NODE_TAINTS
                    .iter()
                    .map(|taint| Toleration {
                        key: Some((*taint).to_owned()),
                        operator: Some("Exists".to_owned()),
                        effect: Some("NoExecute".to_owned()),
                        toleration_seconds: Some(lost_after),
                        value: None,
                    })
                    .collect(),
            ),
            image_pull_secrets: (!config.image_pull_secrets.is_empty()).then(|| {
                let secret = |name: &String| LocalObjectReference { name: name.clone() };
                config.image_pull_secrets.iter().map(secret).collect()
            }),
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// A resolver that answers nothing: the loopback of the stack itself.
fn no_dns() -> k8s_openapi::api::core::v1::PodDNSConfig {
    k8s_openapi::api::core::v1::PodDNSConfig {
        nameservers: Some(vec!["127.0.0.1".to_owned()]),
        ..Default::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

fn container(
    config: &KubernetesConfig,
    request: &EnsureRequest,
    container: &spec::Container,
) -> Container {
    let restrictions = &request.spec.restrictions;
    let capabilities = isolation::capabilities(request.profile, restrictions).map(str::to_owned);
    let env = container.env.iter().map(|var| EnvVar {
        name: var.name.clone(),
        value: Some(var.value.clone()),
        value_from: None,
    });
    let ports = container.ports.iter().map(|port| ContainerPort {
        name: port.name.clone(),
        container_port: port.container_port.into(),
        protocol: Some(port.protocol.to_string()),
        ..ContainerPort::default()
    });
    let mounts = container.volume_mounts.iter().map(|mount| VolumeMount {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        sub_path: mount.sub_path.clone(),
        read_only: mount.read_only.then_some(true),
        ..VolumeMount::default()
    });
    Container {
        name: container.name.clone(),
        image: Some(container.image.clone()),
        image_pull_policy: container.image_pull_policy.map(|policy| policy.as_str().to_owned()),
        command: container.command.clone(),
        args: container.args.clone(),
        working_dir: container.working_dir.clone(),
        env: Some(env.collect()),
        ports: Some(ports.collect()),
        resources: Some(resources(config, &container.resources)),
        volume_mounts: Some(mounts.collect()),
        readiness_probe: container.readiness_probe.as_ref().map(probe),
        liveness_probe: container.liveness_probe.as_ref().map(probe),
        startup_probe: container.startup_probe.as_ref().map(probe),
        stdin: container.stdin.then_some(true),
        tty: container.tty.then_some(true),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            privileged: Some(false),
            read_only_root_filesystem: restrictions.read_only_root.then_some(true),
            seccomp_profile: Some(runtime_default()),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: Some(capabilities.collect()),
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// A pod like those of stacks, to be made as a trial only: what a cluster lets in of stacks it should let
/// in of this.
pub(super) fn trial(config: &KubernetesConfig) -> Pod {
    let amount = |text: &str| Quantity(text.to_owned());
    let amounts = BTreeMap::from([
        ("cpu".to_owned(), amount("100m")),
        ("memory".to_owned(), amount("64Mi")),
        ("ephemeral-storage".to_owned(), Quantity(config.default_disk_bytes.to_string())),
    ]);
    Pod {
        metadata: ObjectMeta { name: Some("stackd-trial".to_owned()), ..ObjectMeta::default() },
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "trial".to_owned(),
                image: Some("trial".to_owned()),
                resources: Some(ResourceRequirements {
                    limits: Some(amounts.clone()),
                    requests: Some(amounts),
                    ..ResourceRequirements::default()
                }),
                security_context: Some(SecurityContext {
                    allow_privilege_escalation: Some(false),
                    capabilities: Some(Capabilities {
                        drop: Some(vec!["ALL".to_owned()]),
                        add: None,
                    }),
                    ..SecurityContext::default()
                }),
                ..Container::default()
            }],
            automount_service_account_token: Some(false),
            host_users: Some(false),
            security_context: Some(PodSecurityContext {
                seccomp_profile: Some(runtime_default()),
                run_as_non_root: config.run_as_non_root.then_some(true),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// Limits and requests are the same: what a stack may use is reserved for it.
fn resources(config: &KubernetesConfig, resources: &spec::Resources) -> ResourceRequirements {
    let disk = resources.ephemeral_storage_bytes.unwrap_or(config.default_disk_bytes);
    let amounts = BTreeMap::from([
        ("cpu".to_owned(), Quantity(format!("{}m", resources.cpu_milli))),
        ("memory".to_owned(), Quantity(resources.memory_bytes.to_string())),
        ("ephemeral-storage".to_owned(), Quantity(disk.to_string())),
    ]);
    ResourceRequirements {
        limits: Some(amounts.clone()),
        requests: Some(amounts),
        ..ResourceRequirements::default()
    }
}

fn volume(volume: &spec::Volume) -> Volume {
    let medium = match volume.medium {
        VolumeMedium::Disk => None,
        VolumeMedium::Memory => Some("Memory".to_owned()),
    };
    let size_limit = volume.size_limit_bytes.map(|bytes| Quantity(bytes.to_string()));
    Volume {
        name: volume.name.clone(),
        empty_dir: Some(EmptyDirVolumeSource { medium, size_limit }),
        ..Volume::default()
    }
}

fn probe(probe: &spec::Probe) -> Probe {
    let number = |given: Option<u32>| given.and_then(|n| i32::try_from(n).ok());
    let mut made = Probe {
        initial_delay_seconds: number(probe.initial_delay_seconds),
        period_seconds: number(probe.period_seconds),
        timeout_seconds: number(probe.timeout_seconds),
        success_threshold: number(probe.success_threshold),
        failure_threshold: number(probe.failure_threshold),
        ..Probe::default()
    };
    match &probe.action {
        ProbeAction::Exec { command } => {
            made.exec = Some(ExecAction { command: Some(command.clone()) });
        }
        ProbeAction::HttpGet { path, port, https, headers } => {
            let headers = headers
                .iter()
                .map(|(name, value)| HTTPHeader { name: name.clone(), value: value.clone() });
            made.http_get = Some(HTTPGetAction {
                path: path.clone(),
                port: IntOrString::Int(port.number.into()),
                scheme: https.map(|https| if https { "HTTPS" } else { "HTTP" }.to_owned()),
                http_headers: Some(headers.collect()),
                host: None,
            });
        }
        ProbeAction::TcpSocket { port } => {
            made.tcp_socket =
                Some(TCPSocketAction { port: IntOrString::Int(port.number.into()), host: None });
        }
    }
    made
}
