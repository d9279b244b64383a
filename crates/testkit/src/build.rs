//! Specs and stacks as tests want them: a sensible whole, and only what matters named.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stackd_core::isolation::Profile;
use stackd_core::port::{PortMapping, TargetPort};
use stackd_core::runtime::EnsureRequest;
use stackd_core::spec::{
    Container, ContainerPort, EnvVar, ImagePullPolicy, Probe, ProbeAction, Requested, Resources,
    Restrictions, Volume, VolumeMedium, VolumeMount,
};
use stackd_core::{Desired, Observed, Owner, Protocol, Stack, StackId, StackSpec, Timestamp, pod};

/// An id that no other call of this process has had.
pub fn stack_id() -> StackId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // The process is part of it, so that tests that run side by side on one machine differ.
    let process = u64::from(std::process::id()) << 32;
    StackId::from_bits(process | NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A container `app` of this image: a tenth of a CPU, 64 MiB, no ports.
pub fn container(image: &str) -> Container {
    Container {
        name: "app".to_owned(),
        image: image.to_owned(),
        image_pull_policy: Some(ImagePullPolicy::Never),
        command: None,
        args: None,
        working_dir: None,
        env: Vec::new(),
        ports: Vec::new(),
        resources: Resources {
            cpu_milli: 100,
            memory_bytes: 64 << 20,
            ephemeral_storage_bytes: None,
            written: Default::default(),
        },
        volume_mounts: Vec::new(),
        readiness_probe: None,
        liveness_probe: None,
        startup_probe: None,
        stdin: false,
        tty: false,
    }
}

/// Builds a [`StackSpec`] of one container, which further ones may join.
#[derive(Debug, Clone)]
pub struct SpecBuilder {
    spec: StackSpec,
}

/// A stack of one container `app` of this image that publishes 80/TCP.
pub fn spec(image: &str) -> SpecBuilder {
    SpecBuilder {
        spec: StackSpec {
            name: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            hostname: None,
            termination_grace_seconds: None,
            init_containers: Vec::new(),
            containers: vec![container(image)],
            volumes: Vec::new(),
            target_ports: Vec::new(),
            restrictions: Default::default(),
            secrets: Vec::new(),
        },
    }
    .port(80, Protocol::Tcp)
}

impl SpecBuilder {
    fn app(&mut self) -> &mut Container {
        &mut self.spec.containers[0]
    }

    /// Publishes nothing of what was published so far.
    pub fn no_ports(mut self) -> Self {
        self.spec.target_ports.clear();
        self.app().ports.clear();
        self
    }

    /// Publishes a port of the first container.
    pub fn port(mut self, number: u16, protocol: Protocol) -> Self {
        self.spec.target_ports.push(TargetPort { container_port: number, protocol });
        let port =
            ContainerPort { name: None, container_port: number, protocol, protocol_given: true };
        self.app().ports.push(port);
        self
    }

    /// The first container's arguments; its image's entrypoint stays.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.app().args = Some(args.iter().map(|arg| (*arg).to_owned()).collect());
        self
    }

    /// The first container's command, instead of its image's.
    pub fn command(mut self, command: &[&str]) -> Self {
        self.app().command = Some(command.iter().map(|arg| (*arg).to_owned()).collect());
        self
    }

    /// A variable of the first container's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.app().env.push(EnvVar { name: name.to_owned(), value: value.to_owned() });
        self
    }

    /// The first container's memory.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.app().resources.memory_bytes = bytes;
        self
    }

    /// The first container's CPU, in thousandths.
    pub fn cpu(mut self, milli: u64) -> Self {
        self.app().resources.cpu_milli = milli;
        self
    }

    /// The first container's disk.
    pub fn disk(mut self, bytes: u64) -> Self {
        self.app().resources.ephemeral_storage_bytes = Some(bytes);
        self
    }

    /// The first container is ready while this holds, looked at every second.
    pub fn ready_when(mut self, action: ProbeAction) -> Self {
        self.app().readiness_probe = Some(Probe {
            action,
            initial_delay_seconds: None,
            period_seconds: Some(1),
            timeout_seconds: None,
            success_threshold: None,
            failure_threshold: Some(1),
        });
        self
    }

    /// A volume, mounted in the first container.
    pub fn volume(mut self, name: &str, medium: VolumeMedium, path: &str) -> Self {
        self.spec.volumes.push(Volume {
            name: name.to_owned(),
            medium,
            size_limit_bytes: None,
            size_limit_written: None,
        });
        self.app().volume_mounts.push(VolumeMount {
            name: name.to_owned(),
            mount_path: path.to_owned(),
            sub_path: None,
            read_only: false,
        });
        self
    }

    /// A further container.
    pub fn and(mut self, container: Container) -> Self {
        self.spec.containers.push(container);
        self
    }

    /// A container that runs to its end before the others.
    pub fn first(mut self, container: Container) -> Self {
        self.spec.init_containers.push(container);
        self
    }

    /// What it may do less than others.
    pub fn restricted(mut self, restrictions: Restrictions) -> Self {
        self.spec.restrictions = restrictions;
        self
    }

    /// The spec.
    pub fn build(self) -> StackSpec {
        self.spec
    }
}

/// What a runtime is asked to start, with these node ports.
pub fn ensure(id: StackId, spec: StackSpec, ports: Vec<PortMapping>, class: &str) -> EnsureRequest {
    EnsureRequest {
        id,
        generation: 1,
        epoch: 1,
        spec: Arc::new(spec),
        ports,
        runtime_class: class.to_owned(),
        labels: BTreeMap::new(),
        pids_limit: 64,
        disk_bytes: 64 << 20,
        profile: Profile::Default,
    }
}

/// A stack that was accepted at `at` and lives for two hours.
pub fn stack(spec: StackSpec, ports: Vec<PortMapping>, at: Timestamp) -> Stack {
    let id = stack_id();
    let requested: Requested = spec.requested(64 << 20);
    Stack {
        id,
        owner: Owner {
            dialect: "provisioner".to_owned(),
            tenant: "test".to_owned(),
            slot: id.to_string(),
        },
        pod_spec: pod::render(&spec),
        spec: Arc::new(spec),
        runtime_class: "default".to_owned(),
        labels: BTreeMap::new(),
        ports,
        requested,
        desired: Desired::Running,
        generation: 1,
        observed: Observed::accepted(),
        created_at: at,
        updated_at: at,
        expires_at: at + Duration::from_secs(2 * 3600),
    }
}
