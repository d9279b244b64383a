//! From a stack's description to what the engine is asked to make, with the isolation of
//! `core::isolation` as far as the engine has words for it.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig,
    Mount, MountType, MountVolumeOptions, PortBinding, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum, VolumeCreateRequest,
};
use stackd_core::isolation::{self, MASKED_PATHS, READ_ONLY_PATHS};
use stackd_core::runtime::{EnsureRequest, ErrorKind};
use stackd_core::spec::{Container, Probe, ProbeAction, Volume, VolumeMedium, VolumeMount};
use stackd_core::stack::reason;
use stackd_core::variables::Variables;
use stackd_core::{Protocol, RuntimeError, StackSpec};

use super::config::DockerConfig;
use super::objects;

/// What the workload's processes are raised to, so that the machine, when it is short of memory,
/// ends them before anything of its own.
const OOM_SCORE: i64 = 500;
/// The kernel's usual period of a CPU limit, and the least that it takes of one, in microseconds.
const CPU_PERIOD: i64 = 100_000;
const LEAST_CPU_QUOTA: i64 = 1000;
/// The most of a stack's memory that `/dev/shm` may hold.
const SHM_BYTES: u64 = 64 << 20;

/// What the engine is like, as far as plans depend on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Abilities {
    /// It limits the disk of a container by itself.
    pub(super) limits_disk: bool,
    /// Its containers are on this machine.
    pub(super) is_here: bool,
    /// It has cgroups of version 2.
    pub(super) cgroup_v2: bool,
}

/// All that containers of a server have in common.
#[derive(Debug, Clone)]
pub(super) struct Mold {
    pub(super) config: DockerConfig,
    pub(super) instance: String,
    pub(super) abilities: Abilities,
    /// The filter of system calls, as the engine takes it.
    pub(super) seccomp: String,
    /// How many files a process may open at once.
    pub(super) open_files: u64,
}

/// A stack's plan.
#[derive(Debug)]
pub(super) struct Plan {
    /// The container that holds the network, where it is one of its own.
    pub(super) sandbox: Option<ContainerCreateBody>,
    /// Its containers, in the order in which they start.
    pub(super) containers: Vec<(String, ContainerCreateBody)>,
    /// Its volumes.
    pub(super) volumes: Vec<VolumeCreateRequest>,
    /// Those that are kept on disk, by name.
    pub(super) on_disk: Vec<String>,
}

/// A network of the engine's, for a stack on an engine elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The network's name.
    pub(super) network: String,
}

impl Mold {
    /// Works out a stack's plan. Pure.
    pub(super) fn plan(
        &self,
        request: &EnsureRequest,
        place: Option<&Place>,
        pause_image: &str,
    ) -> Result<Plan, RuntimeError> {
        let spec = &request.spec;
        for container in spec.all_containers() {
            self.check_probes(request, container)?;
        }
        let with_sandbox = self.has_sandbox(spec);
        let volumes = self.volumes(request);
        let holder = objects::sandbox(request.id);
        let mut containers = Vec::new();
        for container in spec.all_containers() {
            let mut body = self.container(request, container)?;
            let host = body.host_config.get_or_insert_default();
            if with_sandbox {
                host.network_mode = Some(format!("container:{holder}"));
                host.ipc_mode = Some(format!("container:{holder}"));
            } else {
                self.hold_network(request, place, &mut body);
            }
            containers.push((objects::container(request.id, &container.name), body));
        }
        let sandbox = with_sandbox.then(|| self.sandbox(request, place, pause_image));
        let on_disk = self.kept(request, VolumeMedium::Disk);
        Ok(Plan { sandbox, containers, volumes, on_disk })
    }

    /// Whether a stack has a container of its own for the network: with one the others may come and
    /// go, and a volume elsewhere can only be opened to all by a container.
    pub(super) fn has_sandbox(&self, spec: &StackSpec) -> bool {
        let on_disk = spec.volumes.iter().any(|volume| volume.medium == VolumeMedium::Disk);
        spec.all_containers().count() > 1 || (on_disk && !self.abilities.is_here)
    }

    /// The names of a stack's volumes that are kept on this medium.
    pub(super) fn kept(&self, request: &EnsureRequest, medium: VolumeMedium) -> Vec<String> {
        let volumes = request.spec.volumes.iter().filter(|volume| volume.medium == medium);
        let names = volumes.flat_map(|volume| {
            let parts = self.parts(request, volume).into_iter();
            parts.map(|part| objects::volume(request.id, &volume.name, part))
        });
        names.collect()
    }

    /// What every container of a stack is held to.
    fn isolated(&self, request: &EnsureRequest) -> HostConfig {
        let restrictions = &request.spec.restrictions;
        let capabilities = isolation::capabilities(request.profile, restrictions);
        let pids = isolation::pids_limit(request.pids_limit, restrictions);
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let log = HashMap::from([
            ("max-size".to_owned(), self.config.machine.log_file_bytes.to_string()),
            ("max-file".to_owned(), "2".to_owned()),
        ]);
        HostConfig {
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(capabilities.map(str::to_owned).collect()),
            security_opt: Some(vec![
                "no-new-privileges".to_owned(),
                format!("seccomp={}", self.seccomp),
            ]),
            masked_paths: Some(owned(MASKED_PATHS)),
            readonly_paths: Some(read_only_paths()),
            pids_limit: Some(pids.into()),
            ulimits: Some(vec![bound("core", 0), bound("nofile", signed(self.open_files))]),
            readonly_rootfs: Some(restrictions.read_only_root),
            oom_score_adj: Some(OOM_SCORE),
            cgroupns_mode: self.abilities.cgroup_v2.then_some(HostConfigCgroupnsModeEnum::PRIVATE),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(log),
            }),
            runtime: self.config.engine_runtime(&request.runtime_class),
            ..HostConfig::default()
        }
    }

    fn container(
        &self,
        request: &EnsureRequest,
        container: &Container,
    ) -> Result<ContainerCreateBody, RuntimeError> {
        let memory = container.resources.memory_bytes;
        let mut host = HostConfig {
            memory: Some(signed(memory)),
            // As much as the memory alone: no swap.
            memory_swap: Some(signed(memory)),
            cpu_period: Some(CPU_PERIOD),
            cpu_quota: Some(cpu_quota(container.resources.cpu_milli)),
            shm_size: Some(signed(memory.clamp(1 << 16, SHM_BYTES))),
            mounts: Some(self.mounts(request, container)),
            ..self.isolated(request)
        };
        if self.abilities.limits_disk {
            let size = request.disk_bytes.to_string();
            host.storage_opt = Some(HashMap::from([("size".to_owned(), size)]));
        }
        let variables = Variables::of(&container.env);
        let expand = |words: &Option<Vec<String>>| {
            let words = words.as_ref().filter(|words| !words.is_empty());
            words.map(|words| words.iter().map(|word| variables.expand(word)).collect())
        };
        let command: Option<Vec<String>> = expand(&container.command);
        let args: Option<Vec<String>> = expand(&container.args);
        let env: Vec<_> = variables.all().map(|(name, value)| format!("{name}={value}")).collect();
        let empty = |words: &Option<Vec<String>>| {
            words.as_ref().is_some_and(|words| words.first().is_some_and(String::is_empty))
        };
        if empty(&command) {
            let text = format!("container \"{}\": the command is empty", container.name);
            return Err(RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text));
        }
        Ok(ContainerCreateBody {
            image: Some(container.image.clone()),
            entrypoint: command,
            cmd: args,
            env: Some(env),
            working_dir: container.working_dir.clone(),
            tty: Some(container.tty),
            open_stdin: Some(container.stdin),
            // An image's own check would run beside those of the Pod.
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            labels: Some(objects::labels(
                &self.instance,
                request.id,
                request.generation,
                Some(&container.name),
            )),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        })
    }

    /// The container that does nothing but hold network, host name, shared memory and volumes.
    fn sandbox(
        &self,
        request: &EnsureRequest,
        place: Option<&Place>,
        image: &str,
    ) -> ContainerCreateBody {
        // Mounted where the image has an open directory, an empty volume becomes as open.
        let mounts = (self.volumes(request).into_iter().enumerate())
            .map(|(n, volume)| Mount {
                typ: Some(MountType::VOLUME),
                source: volume.name,
                target: Some(super::pause::volume_path(n)),
                ..Mount::default()
            })
            .collect();
        let mut body = ContainerCreateBody {
            image: Some(image.to_owned()),
            labels: Some(objects::labels(&self.instance, request.id, request.generation, None)),
            host_config: Some(HostConfig {
                memory: Some(super::pause::MEMORY_BYTES),
                memory_swap: Some(super::pause::MEMORY_BYTES),
                ipc_mode: Some("shareable".to_owned()),
                mounts: Some(mounts),
                readonly_rootfs: Some(true),
                ..self.isolated(request)
            }),
            ..ContainerCreateBody::default()
        };
        let host = body.host_config.get_or_insert_default();
        host.cap_add = None;
        host.runtime = None;
        self.hold_network(request, place, &mut body);
        body
    }

    /// Gives a container a network, and what the engine ties to it.
    fn hold_network(
        &self,
        request: &EnsureRequest,
        place: Option<&Place>,
        body: &mut ContainerCreateBody,
    ) {
        let name = request.spec.hostname.clone().unwrap_or_else(|| request.id.to_string());
        let host = body.host_config.get_or_insert_default();
        host.sysctls = Some(HashMap::from([
            ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
            // See the embedded runtime: only the relay connects here.
            ("net.ipv4.tcp_syncookies".to_owned(), "0".to_owned()),
        ]));
        match place {
            None => {
                host.network_mode = Some("none".to_owned());
                let address = self.config.machine.pod_address;
                host.extra_hosts = Some(vec![format!("{name}:{address}")]);
                // Else the machine's own name servers are shown, which cannot be reached.
                host.dns = Some(vec!["127.0.0.1".to_owned()]);
                host.dns_search = Some(vec![".".to_owned()]);
            }
            Some(place) => {
                host.network_mode = Some(place.network.clone());
                host.port_bindings = Some(self.bindings(request));
                let exposed = request.ports.iter().map(port_name).collect();
                body.exposed_ports = Some(exposed);
            }
        }
        body.hostname = Some(name);
    }

    fn bindings(&self, request: &EnsureRequest) -> HashMap<String, Option<Vec<PortBinding>>> {
        let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
        for port in &request.ports {
            let binding =
                PortBinding { host_ip: None, host_port: Some(port.node_port.to_string()) };
            bindings.entry(port_name(port)).or_default().get_or_insert_default().push(binding);
        }
        bindings
    }

    /// A stack's volumes: each, and each path in it that some container mounts by itself, is one
    /// of the engine's, so that no path is ever looked up in what a container can write.
    fn volumes(&self, request: &EnsureRequest) -> Vec<VolumeCreateRequest> {
        let spec = &request.spec;
        let most = spec.all_containers().map(|c| c.resources.memory_bytes).max().unwrap_or(0);
        let mut volumes = Vec::new();
        for volume in &spec.volumes {
            let options = match volume.medium {
                VolumeMedium::Disk => HashMap::new(),
                VolumeMedium::Memory => {
                    let bytes = volume.size_limit_bytes.unwrap_or(most).min(most);
                    HashMap::from([
                        ("type".to_owned(), "tmpfs".to_owned()),
                        ("device".to_owned(), "tmpfs".to_owned()),
                        ("o".to_owned(), format!("size={bytes},mode=0777,nosuid,nodev")),
                    ])
                }
            };
            for part in self.parts(request, volume) {
                volumes.push(VolumeCreateRequest {
                    name: Some(objects::volume(request.id, &volume.name, part)),
                    driver: Some("local".to_owned()),
                    driver_opts: Some(options.clone()),
                    labels: Some(objects::labels(
                        &self.instance,
                        request.id,
                        request.generation,
                        None,
                    )),
                    ..VolumeCreateRequest::default()
                });
            }
        }
        volumes
    }

    /// The paths of a volume that are mounted: the whole first.
    fn parts<'a>(&self, request: &'a EnsureRequest, volume: &Volume) -> Vec<Option<&'a str>> {
        let mut parts = vec![None];
        for mount in request.spec.all_containers().flat_map(|c| &c.volume_mounts) {
            let path = sub_path(mount);
            if mount.name == volume.name && !parts.contains(&path) {
                parts.push(path);
            }
        }
        parts
    }

    fn mounts(&self, request: &EnsureRequest, container: &Container) -> Vec<Mount> {
        let mut mounts = Vec::new();
        for mount in &container.volume_mounts {
            let Some(volume) = request.spec.volumes.iter().find(|v| v.name == mount.name) else {
                continue;
            };
            let of = |part: Option<&str>, target: String| Mount {
                typ: Some(MountType::VOLUME),
                source: Some(objects::volume(request.id, &volume.name, part)),
                target: Some(target),
                read_only: Some(mount.read_only),
                volume_options: Some(MountVolumeOptions {
                    // A volume begins empty, whatever the image has there.
                    no_copy: Some(true),
                    ..MountVolumeOptions::default()
                }),
                ..Mount::default()
            };
            let own = sub_path(mount);
            mounts.push(of(own, mount.mount_path.clone()));
            // Paths below it that others mount by themselves are found here too.
            for part in self.parts(request, volume).into_iter().flatten() {
                let below = match own {
                    None => Some(part),
                    Some(own) => part.strip_prefix(own).and_then(|rest| rest.strip_prefix('/')),
                };
                if let Some(below) = below.filter(|below| !below.is_empty()) {
                    let target = format!("{}/{below}", mount.mount_path.trim_end_matches('/'));
                    mounts.push(of(Some(part), target));
                }
            }
        }
        mounts
    }

    /// What checks these containers has no TLS: it is small, and what it speaks with is hostile.
    /// And elsewhere it reaches nothing but what is published.
    fn check_probes(
        &self,
        request: &EnsureRequest,
        container: &Container,
    ) -> Result<(), RuntimeError> {
        let name = &container.name;
        let refused =
            |text: String| Err(RuntimeError::open(ErrorKind::Rejected, reason::START_ERROR, text));
        let probes =
            [&container.readiness_probe, &container.liveness_probe, &container.startup_probe];
        for probe in probes.into_iter().flatten() {
            let published = |number: u16| {
                let tcp = request.ports.iter().filter(|p| p.protocol == Protocol::Tcp);
                tcp.map(|p| p.container_port).any(|port| port == number)
            };
            match probed_port(probe) {
                Some(port) if !self.abilities.is_here && !published(port) => {
                    return refused(format!(
                        "container {name:?}: port {port} of a probe is not among the published \
                         ports, and nothing else is reached on an engine on another machine; \
                         publish it, or use an exec probe"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The engine mounts control groups on top of `/sys`, which being read-only does not reach.
fn read_only_paths() -> Vec<String> {
    let paths = READ_ONLY_PATHS.iter().chain(&["/sys/fs/cgroup"]);
    paths.map(|path| (*path).to_owned()).collect()
}

fn probed_port(probe: &Probe) -> Option<u16> {
    match &probe.action {
        ProbeAction::Exec { .. } => None,
        ProbeAction::HttpGet { port, .. } | ProbeAction::TcpSocket { port } => Some(port.number),
    }
}

fn port_name(port: &stackd_core::port::PortMapping) -> String {
    let protocol = port.protocol.as_str().to_ascii_lowercase();
    format!("{}/{protocol}", port.container_port)
}

fn sub_path(mount: &VolumeMount) -> Option<&str> {
    mount.sub_path.as_deref().map(|path| path.trim_matches('/')).filter(|path| !path.is_empty())
}

/// A limit of a process that it cannot raise.
fn bound(name: &str, most: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(most), hard: Some(most) }
}

/// What a container may use of each period, on all CPUs together. In these words more than the
/// machine has is taken as no limit, as on the embedded runtime; as a number of CPUs it is refused.
fn cpu_quota(milli: u64) -> i64 {
    signed(milli.saturating_mul(100)).max(LEAST_CPU_QUOTA)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_cpus_is_a_quota_that_the_kernel_takes() {
        assert_eq!(cpu_quota(100), 10_000);
        assert_eq!(cpu_quota(512_000), 51_200_000);
        assert_eq!(cpu_quota(1), LEAST_CPU_QUOTA);
        assert_eq!(cpu_quota(u64::MAX), i64::MAX);
    }
}
