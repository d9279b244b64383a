//! A data directory, images of busybox, and the proof that nothing is left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use libtest_mimic::Failed;
use stackd_core::isolation::Profile;
use stackd_core::port::{PortMapping, Protocol, TargetPort};
use stackd_core::runtime::{
    EnsureRequest, ExecOutput, ExecRequest, LogOptions, Observation, ObservedStack, Runtime,
    RuntimeState,
};
use stackd_core::spec::{Container, ContainerPort, Resources};
use stackd_core::{StackId, StackSpec};
use stackd_runtimes::oci::images::{ImageConfig, ImageStore, ImportOptions};
use stackd_runtimes::oci::{OciConfig, OciRuntime};
use stackd_testkit::ports;
pub(crate) use stackd_testkit::{PATIENCE, within};

const MIB: u64 = 1 << 20;

/// What a test works in.
pub(crate) struct Bed {
    directory: Arc<tempfile::TempDir>,
    pub(crate) config: OciConfig,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let layer = directory.path().join("busybox");
        for name in ["bin", "etc", "www", "tmp"] {
            std::fs::create_dir_all(layer.join(name)).expect("a directory");
        }
        std::fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("a static busybox");
        let applets = std::process::Command::new("/bin/busybox").arg("--list").output();
        for applet in String::from_utf8_lossy(&applets.expect("its list").stdout).lines() {
            if applet != "busybox" {
                std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet))
                    .expect("a link");
            }
        }
        std::fs::write(layer.join("www/index.html"), "hello\n").expect("a page");
        let config = OciConfig {
            data_dir: directory.path().to_path_buf(),
            cgroup_parent: format!("stackd-test-{}-{}", std::process::id(), unique()),
            ready_stacks: 1,
            default_disk_bytes: 64 * MIB,
            ..OciConfig::default()
        };
        Self { directory: Arc::new(directory), config }
    }

    pub(crate) async fn open(&self) -> OciRuntime {
        let images = self.images().await;
        OciRuntime::open(self.config.clone(), images).await.expect("a runtime")
    }

    /// The store, with images of busybox: as root, and as somebody else.
    pub(crate) async fn images(&self) -> ImageStore {
        let root = self.directory.path().join("images");
        let images = ImageStore::open(&root, ImageConfig::default()).expect("an image store");
        for (name, user, signal) in [
            ("busybox", "", ""),
            ("busybox-nobody", "65534:65534", ""),
            ("busybox-quit", "", "SIGQUIT"),
        ] {
            let options = ImportOptions {
                name: name.to_owned(),
                env: vec!["PATH=/bin".to_owned()],
                user: user.to_owned(),
                stop_signal: signal.to_owned(),
                ..ImportOptions::default()
            };
            let layer = self.directory.path().join("busybox");
            images.import(&layer, options).await.expect("an image");
        }
        images
    }

    /// Puts this program into the image, as `/bin/own`. It is static.
    pub(crate) fn add_own_program(&self) {
        let target = self.directory.path().join("busybox/bin/own");
        std::fs::copy("/proc/self/exe", target).expect("this program");
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What must be gone when the test has ended.
    pub(crate) fn leftovers(&self) -> Leftovers {
        Leftovers {
            directory: Arc::clone(&self.directory),
            cgroup: self.config.cgroup_parent.clone(),
        }
    }
}

/// What a test may not leave behind.
pub(crate) struct Leftovers {
    directory: Arc<tempfile::TempDir>,
    cgroup: String,
}

/// Loop devices on files of a directory.
fn loops(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().expect("a path of characters");
    std::fs::read_dir("/sys/block")
        .expect("block devices")
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("loop/backing_file")).ok())
        .filter(|file| file.starts_with(directory))
        .collect()
}

/// Shims whose errors go to a directory's log.
fn shims(directory: &Path) -> Vec<i32> {
    let log = directory.join("shim.log");
    let is_shim = |pid: &i32| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        line.starts_with(b"stackd\0shim")
            && std::fs::read_link(process.join("fd/2")).is_ok_and(|to| to == log)
    };
    let names = std::fs::read_dir("/proc").expect("processes").flatten();
    let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_shim).collect()
}

/// Mounts at or of a directory.
fn mounts(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().expect("a path of characters");
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    table.lines().filter(|line| line.contains(directory)).map(str::to_owned).collect()
}

impl Leftovers {
    /// Waits a moment for what ends by itself, then says what is left.
    pub(crate) fn check(self) -> Result<(), Failed> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut left = self.left();
            if left.is_empty() {
                left = self.remove_parents();
            }
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("left behind: {left:?}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in std::fs::read_dir(self.directory.path().join("stacks")).into_iter().flatten() {
            left.push(format!("{:?}", entry.expect("an entry").path()));
        }
        for path in self.groups() {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                // The group of all shims stays; it is empty.
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_dir && entry.file_name() != "shims" {
                    left.push(format!("{:?}", entry.path()));
                }
            }
        }
        left.extend(shims(self.directory.path()).iter().map(|pid| format!("process {pid}")));
        left.extend(loops(self.directory.path()));
        left.extend(mounts(self.directory.path()));
        left
    }

    /// After a failure: ends what the test has left running.
    pub(crate) fn end_all(&self) {
        for pid in shims(self.directory.path()) {
            // SAFETY: numbers only; the process is this test's shim.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }

    fn groups(&self) -> Vec<PathBuf> {
        std::fs::read_dir("/sys/fs/cgroup")
            .expect("control groups")
            .flatten()
            .map(|entry| entry.path().join(&self.cgroup))
            .filter(|path| path.is_dir())
            .collect()
    }

    /// Removes the groups that a runtime keeps for its next start; gives those that are still in
    /// use, as by a process that is just ending.
    fn remove_parents(&self) -> Vec<String> {
        for path in self.groups() {
            let _ = std::fs::remove_dir(path.join("shims"));
            let _ = std::fs::remove_dir(path);
        }
        self.groups().iter().map(|path| format!("{path:?}")).collect()
    }
}

fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A container that runs a command of busybox.
pub(crate) fn container(name: &str, command: &[&str]) -> Container {
    Container {
        name: name.to_owned(),
        image: "busybox".to_owned(),
        image_pull_policy: None,
        command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
        args: None,
        working_dir: None,
        env: Vec::new(),
        ports: Vec::new(),
        resources: Resources { cpu_milli: 500, memory_bytes: 64 * MIB, ..Resources::default() },
        volume_mounts: Vec::new(),
        readiness_probe: None,
        liveness_probe: None,
        startup_probe: None,
        stdin: false,
        tty: false,
    }
}

/// A container that runs a script.
pub(crate) fn script(name: &str, text: &str) -> Container {
    container(name, &["/bin/sh", "-c", text])
}

/// A web server on port 8080.
pub(crate) fn web() -> Container {
    let mut web = container("web", &["busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]);
    web.ports = vec![ContainerPort {
        name: None,
        container_port: 8080,
        protocol: Protocol::Tcp,
        protocol_given: false,
    }];
    web
}

/// A stack of these containers.
pub(crate) fn spec(containers: Vec<Container>, ports: &[(u16, Protocol)]) -> StackSpec {
    StackSpec {
        name: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        hostname: None,
        termination_grace_seconds: Some(2),
        init_containers: Vec::new(),
        containers,
        volumes: Vec::new(),
        target_ports: ports
            .iter()
            .map(|(container_port, protocol)| TargetPort {
                container_port: *container_port,
                protocol: *protocol,
            })
            .collect(),
        restrictions: Default::default(),
        secrets: Vec::new(),
    }
}

/// What a runtime is asked to make true.
pub(crate) fn request(spec: StackSpec) -> EnsureRequest {
    let ports = spec
        .target_ports
        .iter()
        .map(|port| PortMapping {
            container_port: port.container_port,
            protocol: port.protocol,
            node_port: ports::free(),
        })
        .collect();
    let bits = u64::from(std::process::id()) << 32 | unique();
    EnsureRequest {
        id: StackId::from_bits(bits),
        generation: 1,
        epoch: 1,
        spec: Arc::new(spec),
        ports,
        runtime_class: "default".to_owned(),
        labels: BTreeMap::new(),
        pids_limit: 64,
        disk_bytes: 64 * MIB,
        profile: Profile::Default,
    }
}

/// Waits until a stack is as wanted.
pub(crate) async fn until(
    runtime: &OciRuntime,
    id: StackId,
    what: &str,
    wanted: impl Fn(&RuntimeState) -> bool,
) -> RuntimeState {
    let mut changes = runtime.observe();
    let mut last = None;
    let find = async {
        while let Some(change) = changes.next().await {
            if let Observation::Stack(ObservedStack { id: of, state, .. }) = change
                && of == id
            {
                if wanted(&state) {
                    return state;
                }
                last = Some(state);
            }
        }
        panic!("the stream ended");
    };
    match tokio::time::timeout(PATIENCE, find).await {
        Ok(state) => state,
        Err(_) => panic!("{what} did not happen; last: {last:?}"),
    }
}

pub(crate) async fn until_ready(runtime: &OciRuntime, id: StackId) {
    until(runtime, id, "readiness", |state| {
        assert!(!matches!(state, RuntimeState::Ended { .. }), "it ended: {state:?}");
        matches!(state, RuntimeState::Running { ready: true, .. })
    })
    .await;
}

pub(crate) async fn until_ended(runtime: &OciRuntime, id: StackId) -> RuntimeState {
    until(runtime, id, "the end", |state| matches!(state, RuntimeState::Ended { .. })).await
}

/// Starts a stack and waits until it is ready.
pub(crate) async fn run(runtime: &OciRuntime, request: &EnsureRequest) {
    runtime.claim_ports(request.id, &request.ports).expect("ports");
    runtime.ensure(request.clone()).await.expect("a start");
    until_ready(runtime, request.id).await;
}

/// Runs a command and returns what it wrote and its code.
pub(crate) async fn exec(runtime: &OciRuntime, id: StackId, command: &[&str]) -> (String, i32) {
    let request = ExecRequest {
        container: None,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        terminal: None,
        stdin: false,
    };
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
    panic!("the command's output ended without a code: {text}");
}

/// Everything a container has written.
pub(crate) async fn logs(runtime: &OciRuntime, id: StackId, container: Option<&str>) -> String {
    let options = LogOptions { container: container.map(str::to_owned), tail: None, follow: false };
    let mut lines = runtime.logs(id, options).await.expect("logs");
    let mut text = String::new();
    while let Some(line) = lines.next().await {
        text += &String::from_utf8_lossy(&line.expect("a line").text);
        text.push('\n');
    }
    text
}

/// What this program does inside a stack: sends datagrams on port 5000 back.
pub(crate) fn echo_datagrams() {
    let socket = std::net::UdpSocket::bind("0.0.0.0:5000").expect("a socket");
    let mut data = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut data).expect("a datagram");
        socket.send_to(&data[..length], peer).expect("an answer");
    }
}

/// One request by HTTP to a node port.
pub(crate) fn get(port: u16, path: &str) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
