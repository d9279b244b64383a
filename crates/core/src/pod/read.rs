//! From the tree of a caller's Pod to a [`StackSpec`]: what is accepted, field by field.

use std::collections::{BTreeMap, BTreeSet};

use super::error::PodError;
use super::names::{self, Rule};
use super::probe::{self, Purpose};
use super::tree::{Field, Object};
use super::{PodDefaults, image, yaml};
use crate::port::{Protocol, TargetPort, TargetPorts};
use crate::quantity::Quantity;
use crate::spec::{
    Container, ContainerPort, EnvVar, ImagePullPolicy, MAX_TERMINATION_GRACE_SECONDS, Probe,
    Resources, Restrictions, StackSpec, Volume, VolumeMedium, VolumeMount, WrittenResources,
};

/// `namespace`, `creationTimestamp` and `status` are what Kubernetes puts into a Pod it shows:
/// accepted, and dropped.
const ROOT_FIELDS: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
const METADATA_FIELDS: &[&str] =
    &["name", "labels", "annotations", "namespace", "creationTimestamp"];
const POD_FIELDS: &[&str] = &[
    "containers",
    "initContainers",
    "volumes",
    "hostname",
    "terminationGracePeriodSeconds",
    // Replaced by what holds for every stack.
    "restartPolicy",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "dnsPolicy",
    // Forbidden save for the values that ask for nothing, which step 3 let pass.
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "securityContext",
    "serviceAccountName",
    "serviceAccount",
    "nodeName",
    "runtimeClassName",
    "ephemeralContainers",
];
const CONTAINER_FIELDS: &[&str] = &[
    "name",
    "image",
    "imagePullPolicy",
    "command",
    "args",
    "workingDir",
    "env",
    "ports",
    "resources",
    "volumeMounts",
    "readinessProbe",
    "livenessProbe",
    "startupProbe",
    "stdin",
    "tty",
    // Forbidden; step 3 let null pass.
    "securityContext",
];

/// The most containers of a Pod, init containers included: a start is one piece of work, and others
/// wait for its end.
const MAX_CONTAINERS: usize = 32;
/// The most volumes of a Pod: each may be a file system of its own.
const MAX_VOLUMES: usize = 32;

/// Reads a Pod. `ports` are those that the caller wants published.
pub fn parse(
    yaml: &str,
    ports: &TargetPorts,
    defaults: &PodDefaults,
) -> Result<StackSpec, PodError> {
    let tree = yaml::read(yaml)?;
    let root = Object::root(&tree)?;
    if !root.get("kind").is_some_and(|kind| kind.text() == Ok("Pod")) {
        return Err(PodError::Kind);
    }
    let pod = root.get("spec");
    if let Some(Ok(pod)) = pod.as_ref().map(Field::object) {
        refuse_forbidden(&pod)?;
    }
    root.only(ROOT_FIELDS)?;
    root.word("apiVersion", &[("v1", ())])?;
    let mut spec = StackSpec {
        name: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        hostname: None,
        termination_grace_seconds: None,
        init_containers: Vec::new(),
        containers: Vec::new(),
        volumes: Vec::new(),
        target_ports: Vec::new(),
        restrictions: Restrictions::default(),
        secrets: Vec::new(),
    };
    if let Some(metadata) = root.get("metadata") {
        read_metadata(&metadata.object()?, &mut spec)?;
    }
    let pod = pod.ok_or(PodError::NoContainers)?.object()?;
    read_pod(&pod, defaults, &mut spec)?;
    spec.target_ports = published(ports, &spec.containers)?;
    Ok(spec)
}

/// What nobody may ask for. Fields of a wrong type are left to the reading that follows.
fn refuse_forbidden(pod: &Object<'_>) -> Result<(), PodError> {
    let refuse = |forbidden: bool, error| if forbidden { Err(error) } else { Ok(()) };
    let set = |key: &str| pod.get(key).is_some_and(|field| field.bool() == Ok(true));
    let named = |key: &str| pod.get(key).is_some_and(|field| field.text() != Ok(""));
    let objects = |key: &str| {
        let fields = pod.list(key).unwrap_or_default();
        fields.into_iter().filter_map(|field| field.object().ok())
    };
    let containers = || objects("initContainers").chain(objects("containers"));
    let ephemeral = pod.get("ephemeralContainers");

    refuse(set("hostNetwork") || set("hostPID") || set("hostIPC"), PodError::HostNamespace)?;
    refuse(pod.get("securityContext").is_some(), PodError::PodSecurityContext)?;
    refuse(
        containers().any(|container| container.get("securityContext").is_some()),
        PodError::ContainerSecurityContext,
    )?;
    refuse(named("serviceAccountName") || named("serviceAccount"), PodError::ServiceAccount)?;
    refuse(named("nodeName") || named("runtimeClassName"), PodError::Placement)?;
    refuse(
        ephemeral.is_some_and(|field| field.list().is_ok_and(|list| !list.is_empty())),
        PodError::EphemeralContainers,
    )?;
    refuse(objects("volumes").any(|volume| volume.get("hostPath").is_some()), PodError::HostPath)?;
    refuse(objects("volumes").any(|volume| has_token(&volume)), PodError::ServiceAccountToken)
}

fn has_token(volume: &Object<'_>) -> bool {
    let Some(Ok(projected)) = volume.get("projected").map(|field| field.object()) else {
        return false;
    };
    let sources = projected.list("sources").unwrap_or_default();
    let mut sources = sources.iter().filter_map(|source| source.object().ok());
    sources.any(|source| source.get("serviceAccountToken").is_some())
}

/// A text that keeps a rule; an empty one counts as absent.
pub(super) fn named(
    object: &Object<'_>,
    key: &str,
    rule: fn(&str) -> Result<(), Rule>,
) -> Result<Option<String>, PodError> {
    let Some((field, text)) = object.argument(key)? else { return Ok(None) };
    rule(text).map_err(|why| field.refused(why))?;
    Ok(Some(text.to_owned()))
}

fn read_metadata(metadata: &Object<'_>, spec: &mut StackSpec) -> Result<(), PodError> {
    metadata.only(METADATA_FIELDS)?;
    metadata.text("namespace")?;
    metadata.text("creationTimestamp")?;
    spec.name = named(metadata, "name", names::dns_subdomain)?;
    spec.labels = read_texts(metadata, "labels", names::label_value)?;
    spec.annotations = read_texts(metadata, "annotations", |_| Ok(()))?;
    Ok(())
}

/// Labels or annotations.
fn read_texts(
    metadata: &Object<'_>,
    key: &str,
    value_rule: fn(&str) -> Result<(), Rule>,
) -> Result<BTreeMap<String, String>, PodError> {
    let Some(field) = metadata.get(key) else { return Ok(BTreeMap::new()) };
    let mut texts = BTreeMap::new();
    for (name, field) in field.object()?.entries() {
        names::qualified(name).map_err(|why| field.refused(why))?;
        let value = field.text()?;
        value_rule(value).map_err(|why| field.refused(why))?;
        texts.insert(name.to_owned(), value.to_owned());
    }
    Ok(texts)
}

fn read_pod(
    pod: &Object<'_>,
    defaults: &PodDefaults,
    spec: &mut StackSpec,
) -> Result<(), PodError> {
    pod.only(POD_FIELDS)?;
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        pod.bool(key)?;
    }
    pod.list("ephemeralContainers")?;
    pod.bool("automountServiceAccountToken")?;
    pod.bool("enableServiceLinks")?;
    pod.word("restartPolicy", &[("Always", ()), ("OnFailure", ()), ("Never", ())])?;
    let dns = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    pod.word("dnsPolicy", &dns.map(|policy| (policy, ())))?;
    spec.hostname = named(pod, "hostname", names::dns_label)?;
    spec.termination_grace_seconds = read_grace(pod)?;

    let containers = pod.list("containers")?;
    if containers.is_empty() {
        return Err(PodError::NoContainers);
    }
    let init_containers = pod.list("initContainers")?;
    if containers.len() + init_containers.len() > MAX_CONTAINERS {
        let path = "spec.containers".to_owned();
        let why = format!("at most {MAX_CONTAINERS}, init containers included");
        return Err(PodError::Unsupported { path, why: Some(why) });
    }
    let volumes = pod.list("volumes")?;
    if volumes.len() > MAX_VOLUMES {
        let path = "spec.volumes".to_owned();
        return Err(PodError::Unsupported { path, why: Some(format!("at most {MAX_VOLUMES}")) });
    }
    for field in volumes {
        let volume = read_volume(&field.object()?)?;
        if spec.volumes.iter().any(|other| other.name == volume.name) {
            return Err(field.refused(format!("the name {:?} is taken", volume.name)));
        }
        spec.volumes.push(volume);
    }
    let mut taken = BTreeSet::new();
    let mut read = |field: &Field<'_>, role| {
        read_container(&field.object()?, role, &mut taken, &spec.volumes, defaults)
    };
    for field in init_containers {
        spec.init_containers.push(read(&field, Role::Init)?);
    }
    for field in containers {
        spec.containers.push(read(&field, Role::Main)?);
    }
    Ok(())
}

fn read_grace(pod: &Object<'_>) -> Result<Option<u32>, PodError> {
    let Some(field) = pod.get("terminationGracePeriodSeconds") else { return Ok(None) };
    match u32::try_from(field.int()?) {
        Ok(seconds) if seconds <= MAX_TERMINATION_GRACE_SECONDS => Ok(Some(seconds)),
        _ => Err(field.refused(format!("must be from 0 to {MAX_TERMINATION_GRACE_SECONDS}"))),
    }
}

fn read_volume(volume: &Object<'_>) -> Result<Volume, PodError> {
    volume.only(&["name", "emptyDir"])?;
    let name = named(volume, "name", names::dns_label)?
        .ok_or_else(|| volume.refused("must have a name"))?;
    let mut read = Volume {
        name,
        medium: VolumeMedium::Disk,
        size_limit_bytes: None,
        size_limit_written: None,
    };
    if let Some(field) = volume.get("emptyDir") {
        let empty_dir = field.object()?;
        empty_dir.only(&["medium", "sizeLimit"])?;
        if empty_dir.word("medium", &[("Memory", ())])?.is_some() {
            read.medium = VolumeMedium::Memory;
        }
        let limit = empty_dir.get("sizeLimit").map(|field| field.quantity()).transpose()?;
        read.size_limit_bytes = limit.filter(|limit| !limit.is_zero()).map(Quantity::units);
        read.size_limit_written = limit;
    }
    Ok(read)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Init,
    Main,
}

fn read_container(
    container: &Object<'_>,
    role: Role,
    taken: &mut BTreeSet<String>,
    volumes: &[Volume],
    defaults: &PodDefaults,
) -> Result<Container, PodError> {
    container.only(CONTAINER_FIELDS)?;
    let name = named(container, "name", names::dns_label)?.ok_or(PodError::NoContainerName)?;
    if !taken.insert(name.clone()) {
        return Err(PodError::DuplicateContainerName(name));
    }
    let image = container.text("image")?.ok_or(PodError::NoImage)?.to_owned();
    if !image::is_reference(&image) {
        return Err(PodError::InvalidImage(image));
    }
    let pull_policies = [
        ("Always", ImagePullPolicy::Always),
        ("IfNotPresent", ImagePullPolicy::IfNotPresent),
        ("Never", ImagePullPolicy::Never),
    ];
    let ports = read_ports(container, role)?;
    Ok(Container {
        name,
        image,
        image_pull_policy: container.word("imagePullPolicy", &pull_policies)?,
        command: container.argument_list("command")?,
        args: container.argument_list("args")?,
        working_dir: named(container, "workingDir", names::absolute_path)?,
        env: read_env(container)?,
        resources: read_resources(container, defaults)?,
        volume_mounts: read_mounts(container, volumes)?,
        readiness_probe: read_probe(container, "readinessProbe", role, &ports)?,
        liveness_probe: read_probe(container, "livenessProbe", role, &ports)?,
        startup_probe: read_probe(container, "startupProbe", role, &ports)?,
        stdin: container.bool("stdin")?,
        tty: container.bool("tty")?,
        ports,
    })
}

fn read_env(container: &Object<'_>) -> Result<Vec<EnvVar>, PodError> {
    let read = |field: &Field<'_>| {
        let var = field.object()?;
        var.only(&["name", "value"])?;
        let name =
            named(&var, "name", names::env)?.ok_or_else(|| var.refused("must have a name"))?;
        let value = var.argument("value")?.map(|(_, value)| value.to_owned()).unwrap_or_default();
        Ok(EnvVar { name, value })
    };
    container.list("env")?.iter().map(read).collect()
}

fn read_ports(container: &Object<'_>, role: Role) -> Result<Vec<ContainerPort>, PodError> {
    let fields = container.list("ports")?;
    if role == Role::Init && !fields.is_empty() {
        return Err(PodError::InitContainerPorts);
    }
    let mut ports: Vec<ContainerPort> = Vec::with_capacity(fields.len());
    for field in fields {
        let port = field.object()?;
        port.only(&["name", "containerPort", "protocol", "hostPort", "hostIP"])?;
        let host_port = port.get("hostPort").map(|field| field.int()).transpose()?;
        if host_port.is_some_and(|port| port != 0) || port.text("hostIP")?.is_some() {
            return Err(PodError::HostPort);
        }
        let number = port.get("containerPort").map(|field| field.int()).transpose()?;
        let container_port = number
            .and_then(|number| u16::try_from(number).ok())
            .filter(|&number| number > 0)
            .ok_or(PodError::InvalidContainerPort)?;
        let given = match port.text("protocol")? {
            None => None,
            Some("TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some(_) => return Err(PodError::Protocol),
        };
        let name = named(&port, "name", names::port)?;
        if name.is_some() && ports.iter().any(|other| other.name == name) {
            return Err(field.refused("the name is taken"));
        }
        ports.push(ContainerPort {
            name,
            container_port,
            protocol: given.unwrap_or(Protocol::Tcp),
            protocol_given: given.is_some(),
        });
    }
    Ok(ports)
}

/// The greater of request and limit is both.
fn read_resources(container: &Object<'_>, defaults: &PodDefaults) -> Result<Resources, PodError> {
    const AMOUNTS: &[&str] = &["cpu", "memory", "ephemeral-storage"];
    // More than any machine has, and so little that no sum over a Pod leaves 63 bits.
    const MOST: [Quantity; 3] = [
        Quantity::from_milli(1000 << 20),
        Quantity::from_bytes(1 << 50),
        Quantity::from_bytes(1 << 50),
    ];
    let mut greatest = [None::<Quantity>; 3];
    if let Some(field) = container.get("resources") {
        let resources = field.object()?;
        resources.only(&["requests", "limits"])?;
        // Limits first: of two equal amounts the limit's notation is shown.
        for key in ["limits", "requests"] {
            let Some(field) = resources.get(key) else { continue };
            let amounts = field.object()?;
            amounts.only(AMOUNTS)?;
            for ((name, most), greatest) in AMOUNTS.iter().zip(MOST).zip(&mut greatest) {
                if let Some(field) = amounts.get(name) {
                    let amount = field.quantity()?;
                    if amount.exceeds(most) {
                        return Err(field.refused("is more than any machine has"));
                    }
                    *greatest = Some(greatest.map_or(amount, |other| other.max(amount)));
                }
            }
        }
    }
    let [cpu, memory, disk] = greatest;
    let set = |amount: Option<Quantity>, default: Option<Quantity>| {
        amount.or(default).filter(|amount| !amount.is_zero()).ok_or(PodError::NoResources)
    };
    let cpu = set(cpu, defaults.cpu_milli.map(Quantity::from_milli))?;
    let memory = set(memory, defaults.memory_bytes.map(Quantity::from_bytes))?;
    let disk = disk.filter(|amount| !amount.is_zero());
    Ok(Resources {
        cpu_milli: cpu.milli(),
        memory_bytes: memory.units(),
        ephemeral_storage_bytes: disk.map(Quantity::units),
        written: WrittenResources { cpu: Some(cpu), memory: Some(memory), ephemeral_storage: disk },
    })
}

fn read_mounts(container: &Object<'_>, volumes: &[Volume]) -> Result<Vec<VolumeMount>, PodError> {
    let mut mounts: Vec<VolumeMount> = Vec::new();
    for field in container.list("volumeMounts")? {
        let mount = field.object()?;
        mount.only(&["name", "mountPath", "subPath", "readOnly"])?;
        let name = mount.text("name")?.unwrap_or_default();
        if !volumes.iter().any(|volume| volume.name == name) {
            return Err(field.refused(format!("there is no volume {name:?}")));
        }
        let mount_path = named(&mount, "mountPath", names::mount_path)?
            .ok_or_else(|| mount.refused("must have a mountPath"))?;
        if mounts.iter().any(|other| other.mount_path == mount_path) {
            return Err(field.refused(format!("{mount_path:?} is taken")));
        }
        mounts.push(VolumeMount {
            name: name.to_owned(),
            mount_path,
            sub_path: named(&mount, "subPath", names::relative_path)?,
            read_only: mount.bool("readOnly")?,
        });
    }
    Ok(mounts)
}

fn read_probe(
    container: &Object<'_>,
    key: &str,
    role: Role,
    ports: &[ContainerPort],
) -> Result<Option<Probe>, PodError> {
    let Some(field) = container.get(key) else { return Ok(None) };
    if role == Role::Init {
        return Err(field.refused("init containers have no probes"));
    }
    let purpose = if key == "readinessProbe" { Purpose::Readiness } else { Purpose::Health };
    probe::read(&field.object()?, purpose, ports).map(Some)
}

/// The ports to publish, each of them one that a main container has.
fn published(ports: &TargetPorts, containers: &[Container]) -> Result<Vec<TargetPort>, PodError> {
    let exposed: BTreeSet<TargetPort> = containers
        .iter()
        .flat_map(|container| &container.ports)
        .map(|port| TargetPort { container_port: port.container_port, protocol: port.protocol })
        .collect();
    if exposed.is_empty() {
        return Err(PodError::NoExposedPort);
    }
    let ports = match ports {
        TargetPorts::List(ports) => ports.clone(),
        TargetPorts::Any(number) => {
            let with = |protocol| TargetPort { container_port: *number, protocol };
            let (tcp, udp) = (with(Protocol::Tcp), with(Protocol::Udp));
            vec![if exposed.contains(&tcp) { tcp } else { udp }]
        }
    };
    if ports.iter().all(|port| exposed.contains(port)) {
        Ok(ports)
    } else {
        Err(PodError::TargetPort)
    }
}
