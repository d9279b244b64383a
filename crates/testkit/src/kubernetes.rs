//! A real Kubernetes with real nodes: `testbed/kubernetes` of this repository. Tests of one process
//! share one, each in a namespace of its own; a test that breaks nodes may start its own.
//!
//! It ends with the process that started it, in whatever way that ends.
#![expect(clippy::unwrap_used, reason = "without it the test has failed")]

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The variable by which whoever runs the tests leaves out what this machine cannot do: a list of
/// words, here `kubernetes`. Without it, a cluster that does not start is a failure.
const SKIP: &str = "STACKD_TEST_SKIP";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testbed/kubernetes/cluster");

/// What a cluster consists of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes that run containers.
    pub nodes: u8,
    /// Nodes that only say that they do, for numbers.
    pub fake_nodes: u16,
    /// After how long a silence a node counts as lost.
    pub node_grace: Duration,
    /// Further flags of the API server, separated by spaces.
    pub apiserver_args: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            fake_nodes: 0,
            node_grace: Duration::from_secs(12),
            apiserver_args: String::new(),
        }
    }
}

/// A cluster, gone when this is.
pub struct Cluster {
    directory: PathBuf,
    namespaces: AtomicU32,
    supervisor: Child,
    /// Its end is what the supervisor waits for.
    life_line: Option<ChildStdin>,
}

/// A place in the audit log.
#[derive(Debug, Clone, Copy)]
pub struct AuditMark(u64);

/// A call that the API server has answered, or a watch that it has begun to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Who asked, such as `admin` or `system:serviceaccount:stacks:stackd`.
    pub user: String,
    /// With what program.
    pub agent: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// Such as `pods` or `pods/log`; empty for a path that is no resource.
    pub resource: String,
    /// Empty for what is in none.
    pub namespace: String,
    /// Empty where none was named.
    pub name: String,
    /// The answer.
    pub status: u64,
}

impl Cluster {
    /// The one that the tests of this process share; none where whoever runs the tests has said
    /// that there is none to be had.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: LazyLock<Option<Cluster>> =
            LazyLock::new(|| Cluster::start(Options::default()));
        SHARED.as_ref()
    }

    /// Makes one for a test alone.
    pub fn start(options: Options) -> Option<Self> {
        if is_left_out() {
            return None;
        }
        build();
        let directory = tempfile::Builder::new().prefix("stackd-kube-").tempdir().unwrap().keep();
        let said = tempfile::tempfile().unwrap();
        let mut supervisor = Command::new(SCRIPT)
            .arg("run")
            .env("KUBE_DIR", &directory)
            .env("KUBE_NODES", options.nodes.to_string())
            .env("KUBE_FAKE_NODES", options.fake_nodes.to_string())
            .env("KUBE_NODE_GRACE", format!("{}s", options.node_grace.as_secs()))
            .env("KUBE_APISERVER_ARGS", &options.apiserver_args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(said.try_clone().unwrap())
            .spawn()
            .unwrap();
        let life_line = supervisor.stdin.take();
        let mut ready = String::new();
        BufReader::new(supervisor.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(!ready.is_empty(), "Kubernetes did not start:\n{}", all_of(said));
        Some(Self { directory, namespaces: AtomicU32::new(0), supervisor, life_line })
    }

    /// For a client with every right.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// For a client with the rights of this service account.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.script(&["token", namespace, account]);
        let path = self.directory.join(format!("{namespace}-{account}.kubeconfig"));
        fs::copy(self.kubeconfig(), &path).unwrap();
        let at = path.to_str().unwrap();
        let own = format!("--kubeconfig={at}");
        self.kubectl(&[&own, "config", "delete-user", "admin"]);
        let token = format!("--token={}", token.trim());
        self.kubectl(&[&own, "config", "set-credentials", "admin", &token]);
        path
    }

    /// The address of a node, from which its node ports are reached.
    pub fn node_address(&self, number: u8) -> Ipv4Addr {
        let slot = fs::read_to_string(self.directory.join("run/slot")).unwrap();
        let slot: u8 = slot.trim().parse().unwrap();
        Ipv4Addr::new(10, 100 + slot, 0, 10 + number)
    }

    /// The address of this machine in the cluster's network: where pods reach what listens there.
    pub fn machine_address(&self) -> Ipv4Addr {
        let [first, second, ..] = self.node_address(1).octets();
        Ipv4Addr::new(first, second, 0, 254)
    }

    /// Runs `kubectl` as the cluster's administrator; what it printed.
    pub fn kubectl(&self, args: &[&str]) -> String {
        let mut all = vec!["kubectl"];
        all.extend(args);
        self.script(&all)
    }

    /// Creates or changes what this document says.
    pub fn apply(&self, yaml: &str) {
        let path = self.directory.join(format!("apply-{:?}.yaml", std::thread::current().id()));
        fs::write(&path, yaml).unwrap();
        self.kubectl(&["apply", "--filename", path.to_str().unwrap()]);
    }

    /// A namespace of a test's own, gone when the value is.
    pub fn namespace(&self) -> Namespace<'_> {
        let number = self.namespaces.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        self.kubectl(&["create", "namespace", &name]);
        Namespace { cluster: self, name }
    }

    /// Loads a `docker save` or OCI archive into every node, present and future.
    pub fn load(&self, archive: &[u8]) {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory).unwrap();
        std::io::Write::write_all(&mut file, archive).unwrap();
        self.script(&["image-import", file.path().to_str().unwrap()]);
    }

    /// Sends a signal (`KILL`, `STOP`, `CONT`) to `kube-apiserver`, `etcd` or another program of
    /// the control plane.
    pub fn signal(&self, program: &str, signal: &str) {
        self.script(&["signal", program, signal]);
    }

    /// Starts a program of the control plane again, and waits until it answers.
    pub fn start_again(&self, program: &str) {
        self.script(&["start", program]);
    }

    /// Pulls a node's plug. Its disk stays.
    pub fn crash_node(&self, number: u8) {
        self.script(&["node-crash", &number.to_string()]);
    }

    /// Boots a node (again) and waits until it is ready.
    pub fn start_node(&self, number: u8) {
        self.script(&["node-start", &number.to_string()]);
    }

    /// Kills a node's kubelet only: containers run on.
    pub fn kill_kubelet(&self, number: u8) {
        self.script(&["kubelet-kill", &number.to_string()]);
    }

    /// Starts a killed kubelet.
    pub fn start_kubelet(&self, number: u8) {
        self.script(&["kubelet-start", &number.to_string()]);
    }

    /// Runs a command on a node as its root; what it printed.
    pub fn on_node(&self, number: u8, command: &[&str]) -> String {
        let number = number.to_string();
        let mut all = vec!["node-exec", &number];
        all.extend(command);
        self.script(&all)
    }

    /// Where the audit log ends now.
    pub fn audit_mark(&self) -> AuditMark {
        self.await_audit();
        AuditMark(fs::metadata(self.audit_log()).unwrap().len())
    }

    /// What has been asked since, but by the cluster's own parts: each call once.
    pub fn calls_since(&self, mark: AuditMark) -> Vec<Call> {
        self.await_audit();
        let mut file = File::open(self.audit_log()).unwrap();
        file.seek(SeekFrom::Start(mark.0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let mut seen = HashSet::new();
        let events = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        events
            .filter(|event: &serde_json::Value| {
                seen.insert(event["auditID"].as_str().unwrap_or_default().to_owned())
            })
            .map(|event| call(&event))
            .filter(|call| call.resource != SENTINEL)
            .collect()
    }

    /// How often each verb and resource was asked for, as in `create pods`.
    pub fn count(calls: &[Call]) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for call in calls {
            *counts.entry(format!("{} {}", call.verb, call.resource)).or_default() += 1;
        }
        counts
    }

    /// Takes the cluster down; what is left of it on this machine, which should be nothing.
    pub fn stop(self) -> Vec<String> {
        let directory = self.directory.clone();
        let tag = tag(&directory);
        let slot = fs::read_to_string(directory.join("run/slot")).unwrap();
        let link = PathBuf::from(format!("/sys/class/net/kube{}/ifindex", slot.trim()));
        let index = fs::read_to_string(&link).unwrap();
        drop(self);
        let mut left = Vec::new();
        if directory.exists() {
            left.push(directory.display().to_string());
        }
        if fs::read_to_string(&link).is_ok_and(|now| now == index) {
            left.push(link.display().to_string());
        }
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let groups = hierarchies.map(|entry| entry.path().join(&tag)).filter(|path| path.exists());
        left.extend(groups.map(|path| path.display().to_string()));
        let directory = directory.to_str().unwrap();
        if fs::read_to_string("/proc/self/mountinfo").unwrap().contains(directory) {
            left.push(format!("a mount of {directory}"));
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(directory) {
                left.push(format!("process {}", process.file_name().display()));
            }
        }
        left
    }

    fn audit_log(&self) -> PathBuf {
        self.directory.join("audit.log")
    }

    /// A call is logged a moment after it was answered: makes one more and waits until that is.
    fn await_audit(&self) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mark-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut log = File::open(self.audit_log()).unwrap();
        log.seek(SeekFrom::End(0)).unwrap();
        self.kubectl(&["get", SENTINEL, &name, "--ignore-not-found"]);
        let mut text = String::new();
        let end = std::time::Instant::now() + crate::PATIENCE;
        while !text.contains(&format!("\"{name}\"")) {
            assert!(std::time::Instant::now() < end, "the audit log lacks a call");
            std::thread::yield_now();
            log.read_to_string(&mut text).unwrap();
        }
    }

    fn script(&self, args: &[&str]) -> String {
        let output = Command::new(SCRIPT)
            .args(args)
            .env("KUBE_DIR", &self.directory)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cluster {args:?}: {errors}{}", self.last_words());
        String::from_utf8(output.stdout).unwrap()
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log/cluster.log")).unwrap_or_default();
        let start = log.len().saturating_sub(2000);
        log.get(start..).unwrap_or_default().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.life_line.take());
        let _ = self.supervisor.wait();
    }
}

/// Whether whoever runs the tests has said that there is no Kubernetes here, nor what is built with it.
pub fn is_left_out() -> bool {
    let skipped = std::env::var(SKIP).unwrap_or_default();
    let is = skipped.split([',', ' ']).any(|word| word == "kubernetes");
    if is {
        eprintln!("SKIPPED: there is no Kubernetes here ({SKIP})");
    }
    is
}

/// A namespace of a test's own.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    /// Its name.
    pub name: String,
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// A kind that every cluster has and nobody else asks for.
const SENTINEL: &str = "ingressclasses";

fn call(event: &serde_json::Value) -> Call {
    let text = |pointer: &str| {
        let value = event.pointer(pointer).and_then(|value| value.as_str());
        value.unwrap_or_default().to_owned()
    };
    let mut resource = text("/objectRef/resource");
    let subresource = text("/objectRef/subresource");
    if !subresource.is_empty() {
        resource = format!("{resource}/{subresource}");
    }
    Call {
        user: text("/user/username"),
        agent: text("/userAgent"),
        verb: text("/verb"),
        resource,
        namespace: text("/objectRef/namespace"),
        name: text("/objectRef/name"),
        status: event.pointer("/responseStatus/code").and_then(|code| code.as_u64()).unwrap_or(0),
    }
}

/// The name of its control groups, as the script makes it.
fn tag(directory: &Path) -> String {
    let sum = Sha256::digest(directory.to_str().unwrap());
    let hex: String = sum[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("stackd-kube-{hex}")
}

/// Makes the programs, unless they are there.
fn build() {
    let output = Command::new(SCRIPT).arg("build").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the programs of Kubernetes cannot be built; {SKIP}=kubernetes leaves out what needs them:\n\
         {errors}"
    );
}

fn all_of(mut file: File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}
