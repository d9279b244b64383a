//! A real Docker engine of the test's own: Debian's `dockerd`, with its data, its socket and its
//! containerd apart from any other's. It changes no firewall and makes no bridge, unless in a network
//! namespace of its own, and it is ended by the process that started it.

mod server;

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bollard::query_parameters::{
    ImportImageOptions, ListContainersOptionsBuilder, ListImagesOptions, ListNetworksOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal};

use crate::{certificates, sample};

pub use server::{build_server, server_archive};

/// How long an engine may take to answer or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What keeps an engine from changing the machine's network.
const APART: [&str; 5] = [
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--ip-masq=false",
    "--userland-proxy=false",
];

/// An engine, gone when this is.
pub struct Engine {
    directory: tempfile::TempDir,
    process: Option<Child>,
    options: Vec<String>,
    /// Whether its users are others outside.
    remapped: bool,
    /// The network of an engine that is elsewhere.
    network: Option<Network>,
    undertaker: Undertaker,
}

/// A network namespace beside this one, with one link between them.
struct Network {
    name: String,
    address: String,
}

impl Network {
    fn new() -> Self {
        // A link of the last one may stay for a moment longer than its network.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let number = process.wrapping_mul(8).wrapping_add(next) % 16_000;
        let (third, fourth) = (number / 64, number % 64 * 4);
        let name = format!("sdk{process}x{next}");
        let address = format!("10.212.{third}.{}", fourth + 2);
        ip(&format!("netns add {name}"));
        let network = Self { name, address };
        let (name, address) = (&network.name, &network.address);
        ip(&format!("link add {name} type veth peer name eth0 netns {name}"));
        ip(&format!("addr add 10.212.{third}.{}/30 dev {name}", fourth + 1));
        ip(&format!("link set {name} up"));
        ip(&format!("-n {name} addr add {address}/30 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} link set lo up"));
        network
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output();
    let output = output.unwrap_or_else(|e| certificates::missing("ip", &e));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {errors}");
}

impl Drop for Network {
    fn drop(&mut self) {
        // The link goes with its other end. The engine's undertaker may have been here.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// The address of an engine that all tests of this process share, with a busybox as `busybox:1` and
/// the sample image as `sample:1`. It is ended when the process exits.
pub fn shared() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let mut shared = SHARED.lock();
        let engine = shared.insert(Engine::with(&[]));
        // SAFETY: the function only takes the engine away, which no other thread does.
        unsafe { libc::atexit(end_shared) };
        let host = engine.host();
        // A thread of its own: the caller may be inside of an executor.
        let load = || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
            executor.expect("an executor").block_on(async {
                engine.load_sample(&["sample:1"]).await;
                engine.load_busybox("busybox:1").await;
            });
        };
        std::thread::scope(|scope| scope.spawn(load).join()).expect("images");
        host
    })
}

/// What an engine has whose name begins like this: images, networks, and containers by their image.
pub async fn named(host: &str, beginning: &str) -> Vec<String> {
    let path = host.strip_prefix("unix://").expect("a socket");
    let client = Docker::connect_with_unix(path, 60, API_DEFAULT_VERSION).expect("a client");
    let client = client.negotiate_version().await.expect("a version");
    let all = ListContainersOptionsBuilder::new().all(true).build();
    let containers = client.list_containers(Some(all)).await.expect("containers");
    let images = client.list_images(None::<ListImagesOptions>).await.expect("images");
    let networks = client.list_networks(None::<ListNetworksOptions>).await.expect("networks");
    let names = (containers.into_iter().filter_map(|container| container.image))
        .chain(images.into_iter().flat_map(|image| image.repo_tags))
        .chain(networks.into_iter().filter_map(|network| network.name));
    names.filter(|name| name.starts_with(beginning)).collect()
}

static SHARED: Mutex<Option<Engine>> = Mutex::new(None);

extern "C" fn end_shared() {
    if let Some(mut engine) = SHARED.lock().take() {
        engine.end();
        // Nothing else of it is dropped: the process ends here.
        let _ = std::fs::remove_dir_all(engine.directory.path());
    }
}

impl Engine {
    /// Starts one with these options besides.
    pub fn with(options: &[&str]) -> Self {
        let options = APART.iter().chain(options).map(|option| (*option).to_owned());
        let directory = tempfile::tempdir().expect("a directory");
        let options = options.collect();
        let mut engine = Self::at(directory, options, None);
        engine.launch();
        engine
    }

    /// The user outside that root in the containers of a remapped engine is.
    pub const FIRST_REMAPPED: u32 = 1_600_000;

    /// Starts one that gives its containers users of their own. The machine's list of users stays
    /// as it is: the engine sees another.
    pub fn remapped() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let etc = directory.path().join("etc");
        std::fs::create_dir(&etc).expect("a directory");
        let name = "dockremap";
        let range = format!("{name}:{}:65536\n", Self::FIRST_REMAPPED);
        let read = |name: &str| std::fs::read_to_string(format!("/etc/{name}")).unwrap_or_default();
        let users = read("passwd") + &format!("{name}:x:64999:64999::/:/bin/false\n");
        let groups = read("group") + &format!("{name}:x:64999:\n");
        for (file, text) in
            [("passwd", &users), ("group", &groups), ("subuid", &range), ("subgid", &range)]
        {
            std::fs::write(etc.join(file), text).expect("written");
        }
        // Its containers' root, who is nobody here, looks for its files below.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711))
            .expect("its mode");
        let options = APART.iter().chain(&["--userns-remap=default"]);
        let options = options.map(|option| (*option).to_owned()).collect();
        let mut engine = Self::at(directory, options, None);
        engine.remapped = true;
        engine.launch();
        engine
    }

    fn at(directory: tempfile::TempDir, options: Vec<String>, network: Option<Network>) -> Self {
        let undertaker = Undertaker::new(directory.path(), network.as_ref());
        Self { directory, process: None, options, remapped: false, network, undertaker }
    }

    /// Starts one that is on another machine, as far as networks are concerned: it is reached by
    /// TCP with TLS, and publishes ports at its own address. The certificate and key of a client
    /// are `server.pem` and `server.key` in its directory, the authority is `ca.pem`.
    pub fn elsewhere() -> Self {
        let network = Network::new();
        let directory = tempfile::tempdir().expect("a directory");
        certificates::make_for(directory.path(), &network.address);
        let at = |name: &str| directory.path().join(name).display().to_string();
        let options = vec![
            "--userland-proxy=false".to_owned(),
            format!("--host=tcp://{}:2376", network.address),
            "--tlsverify".to_owned(),
            format!("--tlscacert={}", at("ca.pem")),
            format!("--tlscert={}", at("server.pem")),
            format!("--tlskey={}", at("server.key")),
        ];
        let mut engine = Self::at(directory, options, Some(network));
        engine.launch();
        engine
    }

    /// Where one that is elsewhere listens and publishes ports.
    pub fn address(&self) -> Option<&str> {
        self.network.as_ref().map(|network| network.address.as_str())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where it listens, as `DOCKER_HOST` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts it on its old data, and waits until it answers.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let at = |name: &str| self.path(name).display().to_string();
        let mut command = match &self.network {
            None if self.remapped => {
                let mut command = Command::new("unshare");
                let other_users = "mount -t overlay -o \"lowerdir=$ETC:/etc\" other-users /etc && \
                                   exec dockerd \"$@\"";
                command.args(["--mount", "--propagation", "private", "/bin/sh", "-c"]);
                command.args([other_users, "dockerd"]).env("ETC", self.path("etc"));
                command
            }
            None => Command::new("dockerd"),
            Some(network) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{}", network.name)).arg("dockerd");
                command
            }
        };
        command
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("pid"), "-H", &self.host()])
            .args(["--bridge", "none"])
            .args(&self.options)
            .env("TMPDIR", self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        let process = command.spawn().unwrap_or_else(|e| certificates::missing("dockerd", &e));
        self.process = Some(process);
        self.wait_for("the engine answers", |engine| {
            let process = engine.process.as_mut().expect("started above");
            if let Some(status) = process.try_wait().expect("its status") {
                panic!("the engine ended ({status}):\n{}", engine.log());
            }
            std::os::unix::net::UnixStream::connect(engine.path("docker.sock")).is_ok()
        });
    }

    fn wait_for(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what} did not happen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        rustix::process::kill_process(Pid::from_child(process), signal).expect("it is sent");
    }

    /// Ends it as an operator does.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.collect();
    }

    /// Ends it as a crash does. Its containerd goes with it, its containers go on.
    pub fn kill(&mut self) {
        let containerd = std::fs::read_to_string(self.path("exec/containerd/containerd.pid"));
        let containerd: Option<u32> = containerd.ok().and_then(|text| text.trim().parse().ok());
        self.signal(Signal::KILL);
        self.collect();
        // An engine that is started while the number still names something, if only what nobody has
        // collected yet, takes it for its containerd and waits for that in vain.
        if let Some(number) = containerd {
            let process = PathBuf::from(format!("/proc/{number}"));
            self.wait_for("its containerd ends", |_| !process.exists());
        }
    }

    /// Nothing gets to the machine of one that is elsewhere, or back, until [`Engine::reconnect`].
    pub fn cut_off(&self) {
        self.link("down");
    }

    /// It can be reached again.
    pub fn reconnect(&self) {
        self.link("up");
    }

    fn link(&self, state: &str) {
        // Its own end, as behind a switch: this machine goes on sending into the void.
        let name = &self.network.as_ref().expect("it is elsewhere").name;
        ip(&format!("-n {name} link set eth0 {state}"));
    }

    /// It answers nobody until [`Engine::resume`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// It answers again.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn collect(&mut self) {
        self.wait_for("the engine ends", |engine| {
            let process = engine.process.as_mut().expect("it runs");
            process.try_wait().expect("its status").is_some()
        });
        self.process = None;
    }

    /// The processes whose command line names this engine's directory.
    fn processes(&self) -> Vec<Pid> {
        let directory = self.directory.path().display().to_string();
        let names = std::fs::read_dir("/proc").expect("processes").flatten();
        let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_its = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&directory)
        };
        pids.filter(is_its).filter_map(Pid::from_raw).collect()
    }

    /// A client of its API.
    pub fn client(&self) -> Docker {
        let path = self.path("docker.sock").display().to_string();
        let client = Docker::connect_with_unix(&path, 60, API_DEFAULT_VERSION);
        client.expect("a client")
    }

    /// A client of its API, in the engine's own version.
    pub async fn docker(&self) -> Docker {
        self.client().negotiate_version().await.expect("a version")
    }

    /// Loads the sample image under these names.
    pub async fn load_sample(&self, names: &[&str]) {
        self.load(sample::docker_archive(names)).await;
    }

    /// Makes an image of a static busybox under this name.
    pub async fn load_busybox(&self, name: &str) {
        let program = std::fs::read("/bin/busybox").expect("a static busybox");
        let list = Command::new("/bin/busybox").arg("--list").output().expect("its list");
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind: tar::EntryType, mode: u32, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(data.len() as u64);
            header.set_mtime(0);
            archive.append_data(&mut header, path, data).expect("writing to memory");
        };
        for name in ["bin/", "etc/", "tmp/", "www/"] {
            add(name, tar::EntryType::Directory, if name == "tmp/" { 0o1777 } else { 0o755 }, b"");
        }
        add("bin/busybox", tar::EntryType::Regular, 0o755, &program);
        add("www/index.html", tar::EntryType::Regular, 0o644, b"hello\n");
        let applets = String::from_utf8_lossy(&list.stdout).into_owned();
        for applet in applets.lines().filter(|name| *name != "busybox") {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            header.set_mtime(0);
            archive
                .append_link(&mut header, format!("bin/{applet}"), "busybox")
                .expect("writing to memory");
        }
        let layer = archive.into_inner().expect("writing to memory");
        let (repository, tag) = name.split_once(':').expect("a name with a tag");
        let options = bollard::query_parameters::CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(repository)
            .tag(tag)
            .build();
        let docker = self.docker().await;
        let mut steps =
            docker.create_image(Some(options), Some(bollard::body_full(layer.into())), None);
        while let Some(step) = steps.next().await {
            step.expect("the image is made");
        }
    }

    /// Loads an archive of `docker save`.
    pub async fn load(&self, archive: Vec<u8>) {
        let docker = self.docker().await;
        let body = bollard::body_full(archive.into());
        let mut steps = docker.import_image(ImportImageOptions::default(), body, None);
        while let Some(step) = steps.next().await {
            step.expect("the image is loaded");
        }
    }

    /// The directory of its data.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Ends it, and everything that it started.
    pub fn end(&mut self) {
        if let Some(process) = &self.process {
            let _ = rustix::process::kill_process(Pid::from_child(process), Signal::TERM);
            let deadline = Instant::now() + PATIENCE;
            while let Some(process) = &mut self.process {
                match process.try_wait() {
                    Ok(None) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    _ => break,
                }
            }
        }
        self.bury();
    }

    /// It is gone for good from one moment to the next, with its containers and its data.
    pub fn bury(&mut self) {
        self.undertaker.call();
        if let Some(mut process) = self.process.take() {
            let _ = process.wait();
        }
    }

    /// All of its own processes are gone from one moment to the next; its containers go on.
    pub fn abandon(&mut self) {
        self.kill();
        self.wait_for("its processes end", |engine| {
            let left = engine.processes();
            for pid in &left {
                let _ = rustix::process::kill_process(*pid, Signal::KILL);
            }
            left.is_empty()
        });
    }
}

/// A process that ends an engine and all that it ran when the test is gone, however that ended.
struct Undertaker {
    process: Child,
}

impl Undertaker {
    fn new(directory: &Path, network: Option<&Network>) -> Self {
        let process = Command::new("/bin/sh")
            .args(["-c", include_str!("undertaker.sh"), "undertaker"])
            .env("DIRECTORY", directory)
            .env("NETWORK", network.map_or("", |network| &network.name))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What ends a test from a terminal would end it too.
            .process_group(0)
            .spawn()
            .expect("a shell");
        Self { process }
    }

    /// Has it do its work now.
    fn call(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}
