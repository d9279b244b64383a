//! The same by a Docker engine of our own, where one can be started: by its API alone, with a port
//! that it publishes, and by stackd on the docker runtime.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::http::Client;
use crate::server::Server;
use crate::starts::{at_once_on, first_answer, of_server};
use crate::stats::{Samples, head, millis};

/// How many are started at once.
const AT_ONCE: usize = 100;

struct Engine {
    child: Child,
    socket: PathBuf,
    directory: tempfile::TempDir,
    _bridge: Bridge,
}

/// A bridge of the engine's own: the one that engines share by default goes when another ends.
struct Bridge(String);

impl Bridge {
    fn new() -> Result<Self> {
        let number = std::process::id();
        let bridge = Self(format!("sdb{number}"));
        let name = &bridge.0;
        let address = format!("10.211.{}.1/24", number % 256);
        for words in [
            vec!["link", "add", name, "type", "bridge"],
            vec!["addr", "add", &address, "dev", name],
            vec!["link", "set", name, "up"],
        ] {
            let output = Command::new("ip").args(&words).output().context("ip")?;
            ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

impl Engine {
    fn start() -> Result<Option<Self>> {
        if Command::new("dockerd").arg("--version").stdout(Stdio::null()).status().is_err() {
            return Ok(None);
        }
        let directory = tempfile::tempdir()?;
        let bridge = Bridge::new()?;
        let at = |name: &str| directory.path().join(name);
        let socket = at("docker.sock");
        let log = std::fs::File::create(at("log"))?;
        let child = Command::new("dockerd")
            .arg(format!("--host=unix://{}", socket.display()))
            .arg(format!("--data-root={}", at("data").display()))
            .arg(format!("--exec-root={}", at("exec").display()))
            .arg(format!("--pidfile={}", at("pid").display()))
            // A port is then published by a process alone, which is quicker than with a firewall's
            // rules, and leaves the machine's as they are.
            .args(["--iptables=false", "--ip6tables=false", "--ip-masq=false"])
            .args(["--bridge", &bridge.0])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let engine = Self { child, socket, directory, _bridge: bridge };
        let since = Instant::now();
        while engine.client().and_then(|mut c| c.send("GET", "/_ping", "")).is_err() {
            let log = || std::fs::read_to_string(engine.directory.path().join("log"));
            ensure!(since.elapsed() < Duration::from_secs(30), "no engine: {}", log()?);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(engine))
    }

    fn client(&self) -> Result<Client<std::os::unix::net::UnixStream>> {
        Client::unix(&self.socket)
    }

    fn import(&self, sample: &Path) -> Result<()> {
        let root = self.directory.path().join("root");
        std::fs::create_dir(&root)?;
        std::fs::copy(sample, root.join("sample"))?;
        let tar = self.directory.path().join("root.tar");
        let packed =
            Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".").status()?;
        ensure!(packed.success(), "tar failed");
        let output = Command::new("docker")
            .arg(format!("--host=unix://{}", self.socket.display()))
            .args(["import", "--change", "ENTRYPOINT [\"/sample\"]"])
            .arg(&tar)
            .arg("stackd-sample:bench")
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// What the engine's API is asked for: a container with limits and a published port.
fn container() -> String {
    json!({
        "Image": "stackd-sample:bench",
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {
            "Memory": 64 << 20, "NanoCpus": 100_000_000, "PidsLimit": 256,
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        },
    })
    .to_string()
}

/// Creates and starts one by the API, to its first answer; gives its id.
fn one(engine: &Engine, body: &str) -> Result<String> {
    let mut client = engine.client()?;
    let made = client.send("POST", "/containers/create", body)?;
    let made: Value = serde_json::from_slice(&made.body)?;
    let id = made["Id"].as_str().with_context(|| made.to_string())?.to_owned();
    let started = client.send("POST", &format!("/containers/{id}/start"), "")?;
    ensure!(started.status == 204, "{}", String::from_utf8_lossy(&started.body));
    let shown = client.send("GET", &format!("/containers/{id}/json"), "")?;
    let shown: Value = serde_json::from_slice(&shown.body)?;
    let port = shown["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"].as_str();
    first_answer(port.context("a port")?.parse()?)?;
    Ok(id)
}

fn remove(engine: &Engine, id: &str) -> Result<()> {
    engine.client()?.send("DELETE", &format!("/containers/{id}?force=true"), "").map(drop)
}

/// The engine by itself, one after another and at once, and stackd on the same engine.
pub(crate) fn compare(embedded: Option<&Samples>) -> Result<()> {
    let Some(engine) = Engine::start()? else {
        println!("\nno dockerd on the path: nothing to compare with (apt-get install docker.io)");
        return Ok(());
    };
    let sample = std::env::current_exe()?.with_file_name("stackd-sample");
    engine.import(&sample)?;
    let body = container();
    let mut served = Vec::new();
    for _ in 0..20 {
        let since = Instant::now();
        let id = one(&engine, &body)?;
        served.push(since.elapsed());
        remove(&engine, &id)?;
    }
    let served = Samples::new(served);
    head("Docker, one container after another");
    println!("{}", served.row("create to first answer through the port"));
    if let Some(embedded) = embedded {
        let ratio = millis(served.median()) / millis(embedded.median());
        println!("{:<44} {ratio:>9.1} times as long as stackd's own", "");
    }
    let host = format!("unix://{}", engine.socket.display());
    let server = Server::with("docker", &["--docker-host", &host])?;
    println!("\nstackd --runtime docker, on the same engine");
    let ours = of_server(&server, 20)?;
    println!(
        "{:<44} {:>9.2} of Docker's time",
        "",
        millis(ours.median()) / millis(served.median())
    );

    let since = Instant::now();
    let ids = std::thread::scope(|scope| -> Result<Vec<String>> {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| one(&engine, &body))).collect();
        let wait = |thread: std::thread::ScopedJoinHandle<'_, Result<String>>| {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
        };
        threads.into_iter().map(wait).collect()
    })?;
    let all = since.elapsed();
    head(&format!("Docker, {AT_ONCE} containers at once"));
    println!("{:<44} {:>9.0}", "all have answered", millis(all));
    for id in ids {
        remove(&engine, &id)?;
    }
    println!("\nstackd --runtime docker, on the same engine");
    let ours = at_once_on(&server, AT_ONCE)?;
    println!("{:<44} {:>9.2} of Docker's time", "", millis(ours) / millis(all));
    Ok(())
}
