//! The hardened Pod as YAML: what the caller gave, and what is put in its place.
//!
//! A field is shown as the Kubernetes types show it: what is empty, zero or false is left out,
//! unless zero means something else than absent.

use std::sync::Arc;

use super::emit::{self, Node};
use crate::quantity::Quantity;
use crate::spec::{
    Container, Probe, ProbeAction, ProbePort, Resources, Restrictions, StackSpec, Volume,
    VolumeMedium,
};

/// A mapping in the making.
#[derive(Default)]
struct Fields(Vec<(String, Node)>);

impl Fields {
    fn with(mut self, key: &str, value: impl Into<Node>) -> Self {
        self.0.push((key.to_owned(), value.into()));
        self
    }

    fn with_some(self, key: &str, value: Option<impl Into<Node>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    fn with_list(self, key: &str, items: impl Iterator<Item = Node>) -> Self {
        let items: Vec<_> = items.collect();
        if items.is_empty() { self } else { self.with(key, Node::List(items)) }
    }

    fn with_text(self, key: &str, text: &str) -> Self {
        if text.is_empty() { self } else { self.with(key, text) }
    }

    fn with_true(self, key: &str, value: bool) -> Self {
        if value { self.with(key, true) } else { self }
    }
}

impl From<Fields> for Node {
    fn from(fields: Fields) -> Self {
        Self::Map(fields.0)
    }
}

/// Renders the hardened Pod: the same text for the same spec, always.
pub fn render(spec: &StackSpec) -> Arc<str> {
    let one = |of: &Container| container(of, &spec.restrictions);
    let seccomp = || Fields::default().with("type", "RuntimeDefault");
    let pod = Fields::default()
        .with("automountServiceAccountToken", false)
        .with_list("containers", spec.containers.iter().map(one))
        .with("enableServiceLinks", false)
        .with_text("hostname", spec.hostname.as_deref().unwrap_or_default())
        .with_list("initContainers", spec.init_containers.iter().map(one))
        .with("restartPolicy", "Never")
        .with("securityContext", Fields::default().with("seccompProfile", seccomp()))
        .with_some("terminationGracePeriodSeconds", spec.termination_grace_seconds)
        .with_list("volumes", spec.volumes.iter().map(volume));
    let root = Fields::default()
        .with("apiVersion", "v1")
        .with("kind", "Pod")
        .with("metadata", metadata(spec))
        .with("spec", pod)
        .with("status", Fields::default());
    emit::document(root.0).into()
}

fn metadata(spec: &StackSpec) -> Fields {
    let texts = |texts: &std::collections::BTreeMap<String, String>| {
        let entries = texts.iter().map(|(key, value)| (key.clone(), Node::from(value)));
        (!texts.is_empty()).then(|| Node::Map(entries.collect()))
    };
    Fields::default()
        .with_some("annotations", texts(&spec.annotations))
        .with_some("labels", texts(&spec.labels))
        .with_text("name", spec.name.as_deref().unwrap_or_default())
}

fn container(container: &Container, restrictions: &Restrictions) -> Node {
    let texts = |texts: &Option<Vec<String>>| {
        texts.iter().flatten().map(Node::from).collect::<Vec<_>>().into_iter()
    };
    let env = container
        .env
        .iter()
        .map(|var| Fields::default().with("name", &var.name).with_text("value", &var.value).into());
    let ports = container.ports.iter().map(|port| {
        Fields::default()
            .with("containerPort", port.container_port)
            .with_some("name", port.name.as_deref())
            .with_some("protocol", port.protocol_given.then(|| port.protocol.as_str()))
            .into()
    });
    let mounts = container.volume_mounts.iter().map(|mount| {
        Fields::default()
            .with("mountPath", &mount.mount_path)
            .with("name", &mount.name)
            .with_true("readOnly", mount.read_only)
            .with_text("subPath", mount.sub_path.as_deref().unwrap_or_default())
            .into()
    });
    let dropped = &restrictions.drop_capabilities;
    let drop = Fields::default().with_list("drop", dropped.iter().map(Node::from));
    let security = Fields::default()
        .with("allowPrivilegeEscalation", false)
        .with_some("capabilities", (!dropped.is_empty()).then_some(drop))
        .with("privileged", false)
        .with_true("readOnlyRootFilesystem", restrictions.read_only_root)
        .with("seccompProfile", Fields::default().with("type", "RuntimeDefault"));
    Fields::default()
        .with_list("args", texts(&container.args))
        .with_list("command", texts(&container.command))
        .with_list("env", env)
        .with("image", &container.image)
        .with_some("imagePullPolicy", container.image_pull_policy.map(|policy| policy.as_str()))
        .with_some("livenessProbe", container.liveness_probe.as_ref().map(probe))
        .with("name", &container.name)
        .with_list("ports", ports)
        .with_some("readinessProbe", container.readiness_probe.as_ref().map(probe))
        .with("resources", resources(&container.resources))
        .with("securityContext", security)
        .with_some("startupProbe", container.startup_probe.as_ref().map(probe))
        .with_true("stdin", container.stdin)
        .with_true("tty", container.tty)
        .with_list("volumeMounts", mounts)
        .with_text("workingDir", container.working_dir.as_deref().unwrap_or_default())
        .into()
}

fn resources(resources: &Resources) -> Fields {
    let written = &resources.written;
    let cpu = written.cpu.unwrap_or_else(|| Quantity::from_milli(resources.cpu_milli));
    let memory = written.memory.unwrap_or_else(|| Quantity::from_bytes(resources.memory_bytes));
    let disk = written
        .ephemeral_storage
        .or_else(|| resources.ephemeral_storage_bytes.map(Quantity::from_bytes));
    let amounts = || {
        Fields::default()
            .with("cpu", &cpu.to_string())
            .with_some("ephemeral-storage", disk.map(|disk| disk.to_string()).as_ref())
            .with("memory", &memory.to_string())
    };
    Fields::default().with("limits", amounts()).with("requests", amounts())
}

fn volume(volume: &Volume) -> Node {
    let limit =
        volume.size_limit_written.or_else(|| volume.size_limit_bytes.map(Quantity::from_bytes));
    let medium = match volume.medium {
        VolumeMedium::Disk => None,
        VolumeMedium::Memory => Some("Memory"),
    };
    let empty_dir = Fields::default()
        .with_some("medium", medium)
        .with_some("sizeLimit", limit.map(|limit| limit.to_string()).as_ref());
    Fields::default().with("emptyDir", empty_dir).with("name", &volume.name).into()
}

fn probe(probe: &Probe) -> Node {
    let number = |given: Option<u32>| given.filter(|&number| number > 0);
    let fields = Fields::default()
        .with_some("failureThreshold", number(probe.failure_threshold))
        .with_some("initialDelaySeconds", number(probe.initial_delay_seconds))
        .with_some("periodSeconds", number(probe.period_seconds))
        .with_some("successThreshold", number(probe.success_threshold))
        .with_some("timeoutSeconds", number(probe.timeout_seconds));
    let port = |port: &ProbePort| match &port.name {
        Some(name) => Node::from(name),
        None => Node::from(port.number),
    };
    match &probe.action {
        ProbeAction::Exec { command } => fields
            .with("exec", Fields::default().with_list("command", command.iter().map(Node::from))),
        ProbeAction::HttpGet { path, port: number, https, headers } => {
            let headers = headers.iter().map(|(name, value)| {
                Fields::default().with("name", name).with("value", value).into()
            });
            let scheme = https.map(|https| if https { "HTTPS" } else { "HTTP" });
            let get = Fields::default()
                .with_list("httpHeaders", headers)
                .with_text("path", path.as_deref().unwrap_or_default())
                .with("port", port(number))
                .with_some("scheme", scheme);
            fields.with("httpGet", get)
        }
        ProbeAction::TcpSocket { port: number } => {
            fields.with("tcpSocket", Fields::default().with("port", port(number)))
        }
    }
    .into()
}
