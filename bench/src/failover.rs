//! How long nobody can make stacks when the replica that leads goes away, and what it costs to be
//! one of several.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use stackd_testkit::kubernetes::{Cluster, Options};
use stackd_testkit::postgres::Postgres;

use crate::http::Client;
use crate::server::{KEY, beside};
use crate::stats::{Samples, head, millis, target};

const REPLICAS: usize = 3;
const FAILOVERS: usize = 10;
const CALLS: usize = 300;
/// Stacks that a new leader reads.
const STACKS: usize = 1000;
/// Milliseconds that a failover may take.
const MOST: f64 = 5000.0;

struct Fleet {
    directory: tempfile::TempDir,
    database: String,
    /// The runtime's options.
    runtime: Vec<String>,
    addresses: Vec<SocketAddr>,
    processes: Vec<Option<Child>>,
}

impl Fleet {
    fn start(database: String, runtime: Vec<String>) -> Result<Self> {
        let mut addresses = Vec::new();
        for _ in 0..REPLICAS {
            addresses.push(TcpListener::bind("127.0.0.1:0")?.local_addr()?);
        }
        let directory = tempfile::tempdir()?;
        let processes = (0..REPLICAS).map(|_| None).collect();
        let mut fleet = Self { directory, database, runtime, addresses, processes };
        for index in 0..REPLICAS {
            fleet.launch(index)?;
        }
        Ok(fleet)
    }

    fn launch(&mut self, index: usize) -> Result<()> {
        let path = self.directory.path();
        let child = Command::new(beside("stackd")?)
            .args(["serve", "--replicas"])
            .args(&self.runtime)
            .arg("--data-dir")
            .arg(path.join(index.to_string()))
            .args(["--listen", &self.addresses[index].to_string()])
            .args(["--database-url", &self.database])
            .env("STACKD_API_KEY", KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(path, index)?)
            .spawn()?;
        self.processes[index] = Some(child);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(30) {
            if self.role(index).is_ok_and(|role| role != "behind") {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("replica {index} is not ready: {}", std::fs::read_to_string(path.join("log"))?)
    }

    /// Makes the stacks that a new leader reads.
    fn fill(&self) -> Result<()> {
        let mut client = self.client(self.leader()?)?;
        (0..STACKS).try_for_each(|_| create(&mut client).map(drop))
    }

    fn client(&self, index: usize) -> Result<Client<TcpStream>> {
        Client::tcp(self.addresses[index], &format!("x-api-key: {KEY}\r\n"))
    }

    fn role(&self, index: usize) -> Result<String> {
        let answer = self.client(index)?.send("GET", "/readyz", "")?;
        let body: Value = serde_json::from_slice(&answer.body)?;
        Ok(body["replica"].as_str().context("a replica")?.to_owned())
    }

    fn leader(&self) -> Result<usize> {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(30) {
            for index in 0..REPLICAS {
                if self.role(index).is_ok_and(|role| role == "leader") {
                    return Ok(index);
                }
            }
        }
        bail!("no replica leads")
    }

    fn signal(&self, index: usize, signal: &str) -> Result<()> {
        let process = self.processes[index].as_ref().context("it runs")?;
        let sent = Command::new("kill").args([signal, &process.id().to_string()]).status()?;
        ensure!(sent.success(), "kill {signal}: {sent}");
        Ok(())
    }

    /// What became of a leader that has gone away, and a replica in its place.
    fn recover(&mut self, index: usize, fault: Fault) -> Result<()> {
        if fault == Fault::Paused {
            self.signal(index, "-CONT")?;
            let since = Instant::now();
            while !self.role(index).is_ok_and(|role| role == "follower") {
                ensure!(since.elapsed() < Duration::from_secs(30), "it does not follow");
                std::thread::sleep(Duration::from_millis(5));
            }
            return Ok(());
        }
        let mut process = self.processes[index].take().context("it was there")?;
        process.wait()?;
        self.launch(index)
    }
}

/// In what way a leader goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Stopped,
    /// It goes on when another leads.
    Paused,
}

impl Fault {
    const ALL: [(Self, &str, &str); 3] = [
        (Self::Killed, "killed", "-KILL"),
        (Self::Stopped, "stopped in order", "-TERM"),
        (Self::Paused, "paused", "-STOP"),
    ];
}

fn log(directory: &Path, index: usize) -> Result<std::fs::File> {
    let name = directory.join(format!("log-{index}"));
    Ok(std::fs::File::options().create(true).append(true).open(name)?)
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn body() -> String {
    let pod = "kind: Pod\nspec:\n  containers:\n    - name: app\n      image: nginx:stable\n      \
               ports: [{containerPort: 80}]\n      resources: {limits: {cpu: 1m, memory: 1Mi}}\n";
    json!({"target_port": 80, "pod_spec": pod}).to_string()
}

fn create(client: &mut Client<TcpStream>) -> Result<String> {
    let answer = client.send("POST", "/stacks", &body())?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status == 201, "status {}: {text}", answer.status);
    let stack: Value = serde_json::from_str(&text)?;
    Ok(stack["stack_id"].as_str().context("an id")?.to_owned())
}

/// From the signal to the first create that a follower has acknowledged.
fn interruptions(fleet: &mut Fleet, fault: Fault, signal: &str) -> Result<(Samples, usize)> {
    let (mut times, mut refused) = (Vec::new(), 0);
    for _ in 0..FAILOVERS {
        let leader = fleet.leader()?;
        let mut client = fleet.client((leader + 1) % REPLICAS)?;
        create(&mut client)?;
        let since = Instant::now();
        fleet.signal(leader, signal)?;
        while create(&mut client).is_err() {
            refused += 1;
            ensure!(since.elapsed() < Duration::from_secs(60), "nobody takes over");
        }
        times.push(since.elapsed());
        fleet.recover(leader, fault)?;
    }
    Ok((Samples::new(times), refused))
}

pub(crate) fn of_the_leader() -> Result<()> {
    let postgres = Postgres::start();
    let runtime = tempfile::tempdir()?;
    let machine = runtime.path().display().to_string();
    let options = [
        ("--runtime", "simulated"),
        ("--simulated-directory", &machine),
        ("--node-port-range", "20000-29999"),
    ];
    let mut fleet = Fleet::start(postgres.database(), owned(&options))?;
    fleet.fill()?;
    let leader = fleet.leader()?;

    head(&format!("{REPLICAS} replicas, PostgreSQL, {STACKS} stacks"));
    for (name, index) in [("leader", leader), ("follower", (leader + 1) % REPLICAS)] {
        let mut client = fleet.client(index)?;
        let (mut made, mut read) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            let since = Instant::now();
            let id = create(&mut client)?;
            made.push(since.elapsed());
            let since = Instant::now();
            let answer = client.send("GET", &format!("/stacks/{id}"), "")?;
            read.push(since.elapsed());
            ensure!(answer.status == 200, "status {}", answer.status);
            client.send("DELETE", &format!("/stacks/{id}"), "")?;
        }
        println!("{}", Samples::new(made).row(&format!("POST /stacks at the {name}")));
        println!("{}", Samples::new(read).row(&format!("GET /stacks/{{id}} at the {name}")));
    }
    goes_away(&mut fleet, "simulated runtime")
}

/// The same on a cluster, which a new leader lists before it decides anything.
pub(crate) fn on_a_cluster() -> Result<()> {
    let options = Options { nodes: 0, fake_nodes: 10, ..Options::default() };
    let Some(cluster) = Cluster::start(options) else { return Ok(()) };
    let namespace = "stacks";
    cluster.kubectl(&["create", "namespace", namespace]);
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let options = [
        ("--runtime", "kubernetes"),
        ("--kubeconfig", &kubeconfig),
        ("--namespace", namespace),
        ("--node-port-range", "30000-31499"),
    ];
    let postgres = Postgres::start();
    let mut fleet = Fleet::start(postgres.database(), owned(&options))?;
    fleet.fill()?;
    goes_away(&mut fleet, "cluster")
}

fn owned(options: &[(&str, &str)]) -> Vec<String> {
    options.iter().flat_map(|(option, value)| [*option, *value]).map(str::to_owned).collect()
}

fn goes_away(fleet: &mut Fleet, runtime: &str) -> Result<()> {
    head(&format!("{runtime}, {STACKS} stacks, the leader goes away: first create by a follower"));
    for (fault, name, signal) in Fault::ALL {
        let (times, refused) = interruptions(fleet, fault, signal)?;
        println!("{}", times.row(&format!("{name}, {refused} requests refused")));
        println!("{}", target("milliseconds until then", millis(times.median()), MOST));
    }
    Ok(())
}
