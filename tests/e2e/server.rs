//! A server in a process of its own.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use stackd_testkit::{certificates, ports, sample, within};
use tempfile::TempDir;

use crate::IMAGE;
use crate::leftovers::{Leftovers, entries};
use crate::on::{NAMESPACE, On};
use crate::terminal::Terminal;

const KEY: &str = "a-key-for-the-tests-0123456789";

/// The binary under test.
pub(crate) fn stackd() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| sample::build_program("stackd", "stackd"))
}

/// A running server and its directory. [`Server::finish`] ends a test.
pub(crate) struct Server {
    on: On,
    directory: TempDir,
    process: Option<Child>,
    port: u16,
    node_ports: (u16, u16),
    http: Client,
    options: Vec<String>,
    /// The authority of its certificate, where it speaks TLS.
    authority: Option<PathBuf>,
}

impl Server {
    /// A server with the sample image under the name of the documents' example.
    pub(crate) async fn start() -> Self {
        Self::on(On::Oci).await
    }

    /// The same, whatever runs its stacks.
    pub(crate) async fn on(on: On) -> Self {
        let mut server = Self::prepare(on, &[]);
        server.launch().await;
        if on.is_this_machine() {
            server.load_sample().await;
        }
        server
    }

    /// The same on Kubernetes, in a namespace of its own and with these options.
    pub(crate) async fn in_namespace(name: &str, options: &[&str]) -> Self {
        let mut server = Self::prepare(On::Kubernetes, options);
        let shared = server.options.iter_mut().find(|option| *option == NAMESPACE);
        *shared.expect("it is named") = name.to_owned();
        server.launch().await;
        server
    }

    /// The same, with a certificate of an authority that only the test trusts.
    pub(crate) async fn with_tls() -> Self {
        let mut server = Self::prepare(On::Oci, &[]);
        let directory = server.directory.path();
        certificates::make(directory);
        let path = |name: &str| directory.join(name).display().to_string();
        let options = ["--tls-cert", &path("server.pem"), "--tls-key", &path("server.key")];
        server.options = options.map(str::to_owned).to_vec();
        let authority = directory.join("ca.pem");
        let pem = std::fs::read(&authority).expect("made above");
        let certificate = reqwest::Certificate::from_pem(&pem).expect("a certificate");
        let client = Client::builder().tls_certs_only([certificate]).build();
        server.http = client.expect("an HTTP client");
        server.authority = Some(authority);
        server.launch().await;
        server.load_sample().await;
        server
    }

    /// Loads the sample under the name of the documents' example.
    pub(crate) async fn load_sample(&self) {
        let path = self.file("image.tar", &sample::docker_archive(&[IMAGE]));
        self.stackd_ok(&["image", "--data-dir", &self.data(), "load", &path]).await;
    }

    /// A server with the sample image and these options.
    pub(crate) async fn with_options(options: &[&str]) -> Self {
        let server = Self::without_images(options).await;
        server.load_sample().await;
        server
    }

    /// A server with these options besides what every test needs.
    pub(crate) async fn without_images(options: &[&str]) -> Self {
        let mut server = Self::prepare(On::Oci, options);
        server.launch().await;
        server
    }

    fn prepare(on: On, options: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let node_ports = on.node_ports();
        let options = options.iter().map(|option| (*option).to_owned());
        Self {
            on,
            directory: tempfile::tempdir().expect("a directory"),
            process: None,
            port: ports::free(),
            node_ports,
            http: Client::new(),
            options: on.options(node_ports).into_iter().chain(options).collect(),
            authority: None,
        }
    }

    /// A file beside the data directory, and its path.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path.display().to_string()
    }

    pub(crate) fn data(&self) -> String {
        self.directory.path().join("data").display().to_string()
    }

    /// The control group of this server's stacks.
    fn cgroup(&self) -> String {
        format!("stackd-e2e-{}-{}", std::process::id(), self.node_ports.0)
    }

    fn leftovers(&self) -> Leftovers {
        Leftovers::of(self.directory.path(), self.node_ports, self.cgroup())
    }

    /// Starts the process on the same directory, and waits until it is ready.
    pub(crate) async fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = self.directory.path().join("log");
        let log = File::options().create(true).append(true).open(log).expect("a log");
        let mut command = Command::new(stackd());
        command
            .args(["serve", "--data-dir", &self.data(), "--listen"])
            .arg(format!("127.0.0.1:{}", self.port))
            .arg("--node-port-range")
            .arg(format!("{}-{}", self.node_ports.0, self.node_ports.1))
            // Servers side by side want groups of their own.
            .args(["--cgroup-parent", &self.cgroup(), "--ready-stacks", "1"])
            .args(&self.options)
            .env("STACKD_API_KEY", KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        self.process = Some(command.spawn().expect("the server starts"));
        let url = self.url("/readyz");
        within("the server is ready", async {
            let mut pause = tokio::time::interval(Duration::from_millis(10));
            loop {
                pause.tick().await;
                let process = self.process.as_mut().expect("started above");
                if let Some(status) = process.try_wait().expect("its status") {
                    panic!("the server ended ({status}):\n{}", self.log());
                }
                if self.http.get(&url).send().await.is_ok_and(|a| a.status().is_success()) {
                    return;
                }
            }
        })
        .await;
    }

    fn signal(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut process = self.process.take().expect("it runs");
        let pid = Pid::from_child(&process);
        rustix::process::kill_process(pid, signal).expect("the signal is sent");
        process.wait().expect("it ends")
    }

    /// Ends the process at once, as a crash does.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    /// Leaves what a restart of the machine leaves: the files of another boot, and no process.
    pub(crate) fn lose_power(&mut self) {
        self.kill();
        self.leftovers().end();
        for stack in entries(format!("{}/stacks", self.data())) {
            let path = stack.join("state.json");
            let state = std::fs::read(&path).expect("a state");
            let mut state: Value = serde_json::from_slice(&state).expect("JSON");
            state["boot_id"] = "00000000-0000-4000-8000-000000000000".into();
            std::fs::write(&path, state.to_string()).expect("written");
        }
    }

    /// Ends the process as an operator does.
    pub(crate) fn stop(&mut self) {
        let status = self.signal(Signal::TERM);
        assert!(status.success(), "a graceful stop: {status}\n{}", self.log());
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}{path}", self.port)
    }

    /// The key that the server was started with.
    pub(crate) fn key(&self) -> &'static str {
        KEY
    }

    /// The API's own port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A request with the key.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path)).header("X-API-KEY", KEY)
    }

    /// An answer's status and JSON.
    pub(crate) async fn send(&self, request: RequestBuilder) -> (StatusCode, Value) {
        let answer = within("an answer", request.send()).await;
        let answer = answer.unwrap_or_else(|e| panic!("no answer: {e}\n{}", self.log()));
        let status = answer.status();
        let text = answer.text().await.expect("a body");
        let json = serde_json::from_str(&text);
        (status, json.unwrap_or_else(|_| panic!("not JSON ({status}): {text}")))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Waits until a stack runs, and gives it as it then is.
    pub(crate) async fn running(&self, id: &str) -> Value {
        let path = format!("/stacks/{id}?wait=running&timeout=30s");
        let running = async {
            loop {
                let (status, stack) = self.get(&path).await;
                if stack["status"] != "creating" {
                    return (status, stack);
                }
            }
        };
        let (status, stack) = within("the stack runs", running).await;
        assert_eq!((status.as_u16(), &stack["status"]), (200, &"running".into()), "{stack:#}");
        stack
    }

    /// Where a node port is reached.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        (self.on.address(), port).into()
    }

    /// The answer to a GET of a path at the node port of a stack that runs, or that nobody answers.
    /// The nodes of a cluster beside the stack's own hear of it a moment later.
    pub(crate) async fn fetch(&self, port: u16, path: &str) -> Result<String, reqwest::Error> {
        let heard = async {
            while tokio::net::TcpStream::connect(self.at(port)).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        if !self.on.is_this_machine() {
            within("the node has heard of the stack", heard).await;
        }
        fetch_at(self.at(port), path).await
    }

    /// Fails unless a node port refuses: at once on this machine, and in a cluster when all of its
    /// nodes have heard that the stack is gone.
    pub(crate) async fn refuses(&self, port: u16) {
        let refuses = async {
            while fetch_at(self.at(port), "/healthz").await.is_ok() {
                assert!(!self.on.is_this_machine(), "port {port} refuses");
            }
        };
        within("the port refuses", refuses).await;
    }

    /// A command of the binary, as the client of this server.
    pub(crate) async fn stackd(&self, args: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(stackd());
        command.args(args).env("STACKD_API_KEY", KEY).env("STACKD_SERVER", self.url(""));
        command.stdin(Stdio::null()).kill_on_drop(true);
        if let Some(authority) = &self.authority {
            command.env("STACKD_CACERT", authority);
        }
        within("a command ends", command.output()).await.expect("it runs")
    }

    /// The same, at a terminal.
    pub(crate) fn terminal(&self, args: &[&str]) -> Terminal {
        let mut variables =
            vec![("STACKD_API_KEY", KEY.to_owned()), ("STACKD_SERVER", self.url(""))];
        if let Some(authority) = &self.authority {
            variables.push(("STACKD_CACERT", authority.display().to_string()));
        }
        let program = stackd().display().to_string();
        Terminal::start(&[&[program.as_str()][..], args].concat(), &variables)
    }

    /// The authority of its certificate, where it speaks TLS.
    pub(crate) fn authority(&self) -> String {
        self.authority.as_ref().expect("it speaks TLS").display().to_string()
    }

    /// What a command prints that must succeed.
    pub(crate) async fn stackd_ok(&self, args: &[&str]) -> String {
        let output = self.stackd(args).await;
        let (out, err) = (&output.stdout, &output.stderr);
        assert!(
            output.status.success(),
            "stackd {}: {}\n{}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(out),
            String::from_utf8_lossy(err),
        );
        String::from_utf8_lossy(out).into_owned()
    }

    /// A stack of the sample with these arguments that runs: its id and first node port.
    pub(crate) async fn sample(&self, options: &[&str], args: &[&str]) -> (String, u16) {
        self.sample_from(IMAGE, options, args).await
    }

    /// The same, from the sample image under this name.
    pub(crate) async fn sample_from(
        &self,
        image: &str,
        options: &[&str],
        args: &[&str],
    ) -> (String, u16) {
        let mut words = vec!["stack", "create", image, "--port", "80", "--wait", "-o", "name"];
        words.extend(options);
        if !args.is_empty() {
            words.push("--");
            words.extend(args);
        }
        let id = self.stackd_ok(&words).await.trim().to_owned();
        let stack = self.get(&format!("/stacks/{id}")).await.1;
        let port = stack["ports"][0]["node_port"].as_u64().expect("a node port");
        (id, u16::try_from(port).expect("a port"))
    }

    /// Deletes what is left, stops, and fails when anything is left over.
    pub(crate) async fn finish(mut self) {
        if self.process.is_none() {
            self.launch().await;
        }
        let stacks = self.get("/stacks").await.1["stacks"].clone();
        for stack in stacks.as_array().expect("a list") {
            let id = stack["stack_id"].as_str().expect("an id");
            self.delete(&format!("/stacks/{id}")).await;
        }
        let leftovers = self.leftovers();
        leftovers.stacks_gone().await.unwrap_or_else(|left| panic!("{left}\n{}", self.log()));
        self.on.cleared(self.node_ports).await;
        leftovers.rows_gone().await.unwrap_or_else(|left| panic!("{left}\n{}", self.log()));
        let stats = self.get("/stats").await.1;
        assert_eq!((&stats["total_stacks"], &stats["used_node_ports"]), (&0.into(), &0.into()));
        self.stop();
        leftovers.all_gone().await.unwrap_or_else(|left| panic!("{left}\n{}", self.log()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // The test has failed before `finish`: what it started must not outlive it.
            let _ = process.kill();
            let _ = process.wait();
        }
        self.leftovers().end();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}

/// The answer to a GET of a path at a node port of this machine, or that nobody answers.
pub(crate) async fn fetch(port: u16, path: &str) -> Result<String, reqwest::Error> {
    fetch_at((Ipv4Addr::LOCALHOST, port).into(), path).await
}

async fn fetch_at(address: SocketAddr, path: &str) -> Result<String, reqwest::Error> {
    let url = format!("http://{address}{path}");
    let client = Client::builder().timeout(Duration::from_secs(5)).build()?;
    client.get(url).send().await?.error_for_status()?.text().await
}
