//! Several servers on one PostgreSQL database, each in a process of its own, with a line to the
//! database that can be cut. Their stacks run on the cluster of the tests, or seem to, in a directory
//! that all of them share: what each asked of the runtime is counted there.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use stackd_testkit::{certificates, within};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::on::On;
use crate::server::stackd;

pub(crate) const KEY: &str = "a-key-for-all-replicas-0123456789";

pub(crate) fn create_body() -> Value {
    json!({
        "target_port": 80,
        "pod_spec": "kind: Pod\nspec:\n  containers:\n  - name: app\n    image: nginx:stable\n    \
                     ports: [{containerPort: 80}]\n    \
                     resources: {limits: {cpu: 100m, memory: 64Mi}}\n",
    })
}

/// What a replica's line to the database does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    Open,
    /// Connections are closed, and new ones too.
    Cut,
    /// Connections stay, and nothing passes.
    Silent,
}

/// Passes connections on to this port of loopback, as the line says.
pub(crate) async fn relay(port: u16, listener: TcpListener, line: watch::Receiver<Line>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { return };
        let mut line = line.clone();
        tokio::spawn(async move {
            loop {
                let now = *line.borrow_and_update();
                match now {
                    Line::Cut => return,
                    Line::Silent => {
                        let _ = line.changed().await;
                    }
                    Line::Open => break,
                }
            }
            let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            loop {
                let now = *line.borrow_and_update();
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server), if now == Line::Open => return,
                    changed = line.changed() => {
                        if changed.is_err() || *line.borrow() == Line::Cut {
                            return;
                        }
                    }
                }
            }
        });
    }
}

/// One server of a fleet.
pub(crate) struct Replica {
    directory: PathBuf,
    pub(crate) port: u16,
    database: String,
    pub(crate) line: watch::Sender<Line>,
    process: Option<Child>,
}

pub(crate) struct Fleet {
    directory: TempDir,
    pub(crate) replicas: Vec<Replica>,
    http: Client,
    /// What runs the stacks, and where those are that only seem to run.
    runtime: Vec<String>,
    simulated: PathBuf,
    /// How its servers take part, and what else they are told.
    options: Vec<String>,
    scheme: &'static str,
}

impl Fleet {
    /// Servers on this database, one of which leads.
    pub(crate) async fn start(database: &str, count: usize, options: &[&str]) -> Self {
        Self::launch_all(Self::prepare(database, count, options).await).await
    }

    /// Servers whose stacks run on the cluster of the tests.
    pub(crate) async fn on_cluster(database: &str, count: usize, node_ports: (u16, u16)) -> Self {
        let mut fleet = Self::prepare(database, count, &[]).await;
        fleet.runtime = On::Kubernetes.options(node_ports);
        let range = format!("{}-{}", node_ports.0, node_ports.1);
        fleet.runtime.extend(["--node-port-range".to_owned(), range]);
        Self::launch_all(fleet).await
    }

    /// One server that is no replica.
    pub(crate) async fn by_itself(database: &str) -> Self {
        let mut fleet = Self::prepare(database, 1, &[]).await;
        fleet.options.clear();
        fleet.launch(0);
        fleet.ready(0).await;
        fleet
    }

    /// A replica that reaches the stacks of another fleet, and need not lead.
    pub(crate) async fn beside(other: &Self, database: &str) -> Self {
        let mut fleet = Self::prepare(database, 1, &[]).await;
        fleet.simulated.clone_from(&other.simulated);
        fleet.runtime.clone_from(&other.runtime);
        fleet.launch(0);
        fleet.ready(0).await;
        fleet
    }

    /// The same as [`Fleet::start`], with certificates that nobody trusts.
    pub(crate) async fn with_tls(database: &str, count: usize) -> Self {
        let mut fleet = Self::prepare(database, count, &[]).await;
        let directory = fleet.directory.path();
        certificates::make(directory);
        let path = |name: &str| directory.join(name).display().to_string();
        let tls = ["--tls-cert", &path("server.pem"), "--tls-key", &path("server.key")];
        fleet.options.extend(tls.map(str::to_owned));
        let authority = std::fs::read(directory.join("ca.pem")).expect("made above");
        let certificate = reqwest::Certificate::from_pem(&authority).expect("a certificate");
        let client = Client::builder().tls_certs_only([certificate]).build();
        fleet.http = client.expect("an HTTP client");
        fleet.scheme = "https";
        Self::launch_all(fleet).await
    }

    async fn launch_all(mut fleet: Self) -> Self {
        for index in 0..fleet.replicas.len() {
            fleet.launch(index);
        }
        for index in 0..fleet.replicas.len() {
            fleet.ready(index).await;
        }
        fleet.leader().await;
        fleet
    }

    async fn prepare(database: &str, count: usize, options: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().expect("a directory");
        let mut replicas = Vec::new();
        let there = database.split(['@', '/']).nth(3).expect("a host and port");
        let port = there.split_once(':').expect("a port").1.parse().expect("a port");
        for index in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let here = listener.local_addr().expect("its address").to_string();
            let (line, watched) = watch::channel(Line::Open);
            tokio::spawn(relay(port, listener, watched));
            let own = directory.path().join(index.to_string());
            std::fs::create_dir(&own).expect("a directory");
            replicas.push(Replica {
                directory: own,
                port: stackd_testkit::ports::free(),
                database: database.replace(there, &here),
                line,
                process: None,
            });
        }
        let simulated = directory.path().join("runtime");
        let there = simulated.display().to_string();
        let runtime = ["--runtime", "simulated", "--simulated-directory", &there];
        let ports = ["--node-port-range", "20000-29999"];
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            directory,
            replicas,
            http: Client::builder()
                .timeout(Duration::from_secs(20))
                .build()
                .expect("an HTTP client"),
            runtime: owned(&[&runtime[..], &ports].concat()),
            simulated,
            options: owned(&[&["--replicas"], options].concat()),
            scheme: "http",
        }
    }

    /// The command that a replica is started with.
    pub(crate) fn command(&self, index: usize) -> Command {
        let replica = &self.replicas[index];
        let mut command = Command::new(stackd());
        command
            .args(["serve", "--data-dir"])
            .arg(replica.directory.join("data"))
            .args(["--listen", &format!("127.0.0.1:{}", replica.port)])
            .args(["--database-url", &replica.database, "--log-format", "json"])
            .args(&self.runtime)
            .args(&self.options)
            .env("STACKD_API_KEY", KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        command
    }

    pub(crate) fn launch(&mut self, index: usize) {
        assert!(self.replicas[index].process.is_none(), "it runs already");
        let log = self.replicas[index].directory.join("log");
        let log = File::options().create(true).append(true).open(log).expect("a log");
        let process = self.command(index).stderr(log).spawn().expect("it starts");
        self.replicas[index].process = Some(process);
    }

    /// Waits until a replica says that it is ready.
    pub(crate) async fn ready(&mut self, index: usize) {
        let url = self.url(index, "/readyz");
        within("the replica is ready", async {
            let mut pause = tokio::time::interval(Duration::from_millis(10));
            loop {
                pause.tick().await;
                let process = self.replicas[index].process.as_mut().expect("it was launched");
                if let Some(status) = process.try_wait().expect("its status") {
                    panic!("replica {index} has ended ({status}):\n{}", self.log(index));
                }
                if self.http.get(&url).send().await.is_ok_and(|a| a.status().is_success()) {
                    return;
                }
            }
        })
        .await;
    }

    pub(crate) fn pid(&self, index: usize) -> Pid {
        Pid::from_child(self.replicas[index].process.as_ref().expect("it runs"))
    }

    pub(crate) fn signal(&self, index: usize, signal: Signal) {
        rustix::process::kill_process(self.pid(index), signal).expect("the signal is sent");
    }

    /// Ends a replica by this signal.
    pub(crate) async fn end(&mut self, index: usize, signal: Signal) -> ExitStatus {
        self.signal(index, signal);
        self.ended(index).await
    }

    /// Waits until a replica has ended.
    pub(crate) async fn ended(&mut self, index: usize) -> ExitStatus {
        let mut process = self.replicas[index].process.take().expect("it runs");
        let ended = tokio::task::spawn_blocking(move || process.wait().expect("it ends"));
        within("the replica has ended", ended).await.expect("it is waited for")
    }

    pub(crate) fn log(&self, index: usize) -> String {
        std::fs::read_to_string(self.replicas[index].directory.join("log")).unwrap_or_default()
    }

    pub(crate) fn url(&self, index: usize, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.replicas[index].port)
    }

    pub(crate) fn data(&self, index: usize) -> String {
        self.replicas[index].directory.join("data").display().to_string()
    }

    pub(crate) fn clients(&self) -> Arc<Clients> {
        let urls = (0..self.replicas.len()).map(|index| self.url(index, "")).collect();
        Arc::new(Clients { http: self.http.clone(), urls })
    }

    /// The replica that leads: the only one that says so.
    pub(crate) async fn leader(&self) -> usize {
        self.leader_among(&(0..self.replicas.len()).collect::<Vec<_>>()).await
    }

    pub(crate) async fn leader_among(&self, of: &[usize]) -> usize {
        let clients = self.clients();
        within("one replica leads", async {
            let mut pause = tokio::time::interval(Duration::from_millis(10));
            loop {
                pause.tick().await;
                for index in of {
                    let answer = clients.json(*index, Method::GET, "/readyz").await;
                    if answer.is_some_and(|(_, body)| body["replica"] == "leader") {
                        return *index;
                    }
                }
            }
        })
        .await
    }

    /// How often the runtime was asked for what: by kind, then by stack.
    pub(crate) fn calls(&self) -> BTreeMap<String, BTreeMap<String, usize>> {
        let text = std::fs::read_to_string(self.simulated.join("calls"));
        let mut calls: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        for line in text.unwrap_or_default().lines() {
            let mut words = line.split(' ').map(str::to_owned);
            let (Some(kind), Some(stack)) = (words.next(), words.next()) else { continue };
            *calls.entry(kind).or_default().entry(stack).or_default() += 1;
        }
        calls
    }

    /// The stacks that the runtime has.
    pub(crate) fn running(&self) -> Vec<String> {
        let stacks = std::fs::read_dir(self.simulated.join("stacks"));
        let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        stacks.into_iter().flatten().flatten().map(name).collect()
    }

    /// A command of the operator, on the machine of a replica.
    pub(crate) async fn operator(&self, index: usize, args: &[&str]) {
        let mut command = tokio::process::Command::new(stackd());
        command.args(args).args(["--data-dir", &self.data(index)]).stdin(Stdio::null());
        let output = within("a command ends", command.output()).await.expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for replica in &mut self.replicas {
            if let Some(mut process) = replica.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if std::thread::panicking() {
            for index in 0..self.replicas.len() {
                eprintln!("the log of replica {index}:\n{}", self.log(index));
            }
        }
    }
}

/// Callers of all replicas.
pub(crate) struct Clients {
    http: Client,
    urls: Vec<String>,
}

impl Clients {
    pub(crate) fn count(&self) -> usize {
        self.urls.len()
    }

    pub(crate) fn request(&self, index: usize, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.urls[index])).header("X-API-KEY", KEY)
    }

    /// Status and body of an answer; nothing where none came.
    pub(crate) async fn json(
        &self,
        index: usize,
        method: Method,
        path: &str,
    ) -> Option<(u16, Value)> {
        answer(self.request(index, method, path)).await
    }

    pub(crate) async fn create(&self, index: usize) -> (u16, Value) {
        let request = self.request(index, Method::POST, "/stacks").json(&create_body());
        answer(request).await.expect("an answer")
    }

    /// The stacks that a replica lists, and how they are.
    pub(crate) async fn list(&self, index: usize) -> Option<BTreeMap<String, Value>> {
        let (status, body) = self.json(index, Method::GET, "/stacks").await?;
        let stacks = body["stacks"].as_array().filter(|_| status == 200)?;
        let id = |stack: &Value| stack["stack_id"].as_str().expect("an id").to_owned();
        Some(stacks.iter().map(|stack| (id(stack), stack.clone())).collect())
    }
}

/// Status and body of an answer; nothing where none came whole.
pub(crate) async fn answer(request: RequestBuilder) -> Option<(u16, Value)> {
    let answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    let text = answer.text().await.ok()?;
    Some((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}
