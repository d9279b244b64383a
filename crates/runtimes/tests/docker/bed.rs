//! A data directory on an engine, and the proof that nothing is left.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use rustix::process::{Pid, Signal};
use stackd_core::port::PortMapping;
use stackd_core::runtime::{
    EnsureRequest, ExecOutput, ExecRequest, Observation, Runtime, RuntimeState,
};
use stackd_core::spec::{Container, Probe, ProbeAction, Volume, VolumeMedium, VolumeMount};
use stackd_core::{StackId, StackSpec};
use stackd_runtimes::docker::{DockerConfig, DockerRuntime, MachineConfig};
use stackd_shim::protocol::wire::{Inbox, Read};
use stackd_shim::protocol::{Event, SOCKET_FILE};
use stackd_testkit::docker::Engine;
use stackd_testkit::{PATIENCE, build, ports, within};

/// What a test works in. Clones are the same.
#[derive(Clone)]
pub(crate) struct Bed {
    directory: Arc<tempfile::TempDir>,
    pub(crate) config: DockerConfig,
    /// The engine's socket, also where the runtime uses another way.
    socket: String,
}

impl Bed {
    pub(crate) fn new(host: String) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let machine = MachineConfig {
            data_dir: directory.path().to_owned(),
            public_ip: Some("127.0.0.1".to_owned()),
            ..MachineConfig::default()
        };
        let socket = host.clone();
        let config = DockerConfig { host, machine, ..DockerConfig::default() };
        Self { directory: Arc::new(directory), config, socket }
    }

    /// A bed whose runtime reaches the engine by TCP, as one on another machine.
    pub(crate) fn elsewhere(engine: &Engine) -> Self {
        let mut bed = Self::new(engine.host());
        let at = |name: &str| Some(engine.directory().join(name));
        bed.config.host = format!("tcp://{}:2376", engine.address().expect("it is elsewhere"));
        bed.config.tls_ca = at("ca.pem");
        bed.config.tls_cert = at("server.pem");
        bed.config.tls_key = at("server.key");
        bed.config.machine.public_ip = None;
        bed.config.ready_networks = 2;
        bed
    }

    pub(crate) async fn open(&self) -> DockerRuntime {
        DockerRuntime::open(self.config.clone()).await.expect("a runtime")
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A client of the engine, for what others do to it.
    pub(crate) async fn docker(&self) -> Docker {
        let path = self.socket.strip_prefix("unix://").expect("a socket");
        let docker = Docker::connect_with_unix(path, 60, API_DEFAULT_VERSION).expect("a client");
        docker.negotiate_version().await.expect("a version")
    }

    /// The processes that keep stacks of this directory.
    pub(crate) fn keepers(&self) -> Vec<Pid> {
        let log = self.path().join("shim.log");
        let is_keeper = |pid: &i32| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            line.starts_with(b"stackd\0shim")
                && std::fs::read_link(process.join("fd/2")).is_ok_and(|to| to == log)
        };
        let names = std::fs::read_dir("/proc").expect("processes").flatten();
        let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(is_keeper).filter_map(Pid::from_raw).collect()
    }

    fn instance(&self) -> Option<String> {
        std::fs::read_to_string(self.path().join("docker/instance")).ok()
    }

    /// What is left of this directory's stacks; waits a moment for what ends by itself.
    pub(crate) async fn left(&self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.look().await;
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn look(&self) -> Vec<String> {
        let mut left: Vec<_> =
            self.keepers().iter().map(|pid| format!("process {}", pid.as_raw_nonzero())).collect();
        let stacks = std::fs::read_dir(self.path().join("docker/stacks")).into_iter().flatten();
        left.extend(stacks.flatten().map(|entry| format!("{:?}", entry.path())));
        let Some(instance) = self.instance() else { return left };
        let docker = self.docker().await;
        let label = format!("io.stackd.instance={}", instance.trim());
        let filters = std::collections::HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = docker.list_containers(Some(options)).await.expect("containers");
        left.extend(containers.into_iter().map(|c| format!("container {:?}", c.names)));
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let volumes = docker.list_volumes(Some(options)).await.expect("volumes");
        left.extend(volumes.volumes.into_iter().flatten().map(|v| format!("volume {}", v.name)));
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let networks = docker.list_networks(Some(options)).await.expect("networks");
        // As many as are kept ready serve nobody.
        let ready = if self.config.is_here() { 0 } else { self.config.ready_networks };
        let more = networks.into_iter().skip(ready);
        left.extend(more.map(|network| format!("network {:?}", network.name)));
        left
    }

    /// After a failure: ends what the test has left running.
    pub(crate) async fn clear(&self) {
        for pid in self.keepers() {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        let Some(instance) = self.instance() else { return };
        let docker = self.docker().await;
        let label = format!("io.stackd.instance={}", instance.trim());
        let filters = std::collections::HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        for container in docker.list_containers(Some(options)).await.unwrap_or_default() {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            let id = container.id.unwrap_or_default();
            let _ = docker.remove_container(&id, Some(options)).await;
        }
    }
}

/// What the keeper of a stack tells whoever connects, until it has told what is wanted. One that
/// says nothing more is given up.
pub(crate) async fn told(bed: &Bed, id: StackId, wanted: impl Fn(&Event) -> bool + Send + 'static) {
    let socket = bed.path().join(format!("docker/stacks/{id}/{SOCKET_FILE}"));
    let listen = move || {
        let stream = std::os::unix::net::UnixStream::connect(socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        let mut inbox = Inbox::default();
        loop {
            while let Some(event) = inbox.message::<Event>().expect("an event") {
                if wanted(&event) {
                    return;
                }
            }
            let read = inbox.read(stream.as_fd()).expect("it tells");
            assert_eq!(read, Read::Some, "the keeper is gone");
        }
    };
    tokio::task::spawn_blocking(listen).await.expect("it told");
}

/// What a runtime is asked to make true.
pub(crate) fn request(spec: StackSpec) -> EnsureRequest {
    let ports = spec.target_ports.iter().map(|port| PortMapping {
        container_port: port.container_port,
        protocol: port.protocol,
        node_port: ports::free(),
    });
    let ports = ports.collect();
    build::ensure(build::stack_id(), spec, ports, "default")
}

/// A probe by this command, every second.
pub(crate) fn probe(command: &[&str]) -> Probe {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    Probe {
        action: ProbeAction::Exec { command },
        initial_delay_seconds: None,
        period_seconds: Some(1),
        timeout_seconds: None,
        success_threshold: None,
        failure_threshold: Some(1),
    }
}

/// A container that runs a script of busybox.
pub(crate) fn script(name: &str, text: &str) -> Container {
    let mut container = build::container("busybox:1");
    container.name = name.to_owned();
    container.command = Some(["/bin/sh", "-c", text].map(str::to_owned).to_vec());
    container
}

/// A volume on disk.
pub(crate) fn disk(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        medium: VolumeMedium::Disk,
        size_limit_bytes: None,
        size_limit_written: None,
    }
}

/// A place of a volume.
pub(crate) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        sub_path: None,
        read_only: false,
    }
}

/// A stack of these containers, of which the first serves a page on 80/TCP.
pub(crate) fn serving(others: Vec<Container>) -> StackSpec {
    let mut spec = build::spec("busybox:1")
        .command(&["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"])
        .build();
    spec.containers.extend(others);
    spec
}

/// Starts a stack and waits until it is ready.
pub(crate) async fn run(runtime: &DockerRuntime, request: &EnsureRequest) {
    runtime.claim_ports(request.id, &request.ports).expect("ports");
    within("a start", runtime.ensure(request.clone())).await.expect("a start");
    until_ready(runtime, request.id).await;
}

/// Waits until a stack is as wanted.
pub(crate) async fn until(
    runtime: &DockerRuntime,
    id: StackId,
    what: &str,
    wanted: impl Fn(&RuntimeState) -> bool,
) -> RuntimeState {
    let mut changes = runtime.observe();
    let mut last = None;
    let find = async {
        while let Some(change) = changes.next().await {
            if let Observation::Stack(stack) = change
                && stack.id == id
            {
                if wanted(&stack.state) {
                    return stack.state;
                }
                last = Some(stack.state);
            }
        }
        panic!("the stream ended");
    };
    match tokio::time::timeout(Duration::from_secs(40), find).await {
        Ok(state) => state,
        Err(_) => panic!("{what} did not happen; last: {last:?}"),
    }
}

pub(crate) async fn until_ready(runtime: &DockerRuntime, id: StackId) {
    until(runtime, id, "readiness", |state| {
        assert!(!matches!(state, RuntimeState::Ended { .. }), "it ended: {state:?}");
        matches!(state, RuntimeState::Running { ready: true, .. })
    })
    .await;
}

pub(crate) async fn until_ended(runtime: &DockerRuntime, id: StackId) -> RuntimeState {
    until(runtime, id, "the end", |state| matches!(state, RuntimeState::Ended { .. })).await
}

/// Runs a command and returns what it wrote and its code.
pub(crate) async fn exec(
    runtime: &DockerRuntime,
    id: StackId,
    container: Option<&str>,
    command: &[&str],
) -> (String, i32) {
    let request = ExecRequest {
        container: container.map(str::to_owned),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        terminal: None,
        stdin: false,
    };
    within("a command ends", async {
        let mut session = runtime.exec(id, request).await.expect("a command");
        let mut text = String::new();
        while let Some(output) = session.output.next().await {
            match output.expect("output") {
                ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => {
                    text.push_str(&String::from_utf8_lossy(&bytes));
                }
                ExecOutput::Exit(code) => return (text, code),
            }
        }
        panic!("the command's output ended without a code: {text}")
    })
    .await
}

/// One request by HTTP to a node port of this machine.
pub(crate) async fn get(port: u16, path: &str) -> std::io::Result<String> {
    get_at("127.0.0.1", port, path).await
}

/// One request by HTTP.
pub(crate) async fn get_at(address: &str, port: u16, path: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let work = async {
        let mut stream = tokio::net::TcpStream::connect((address, port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    within("an answer", work).await
}
