//! From a POST to the first answer through the node port.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::http::Client;
use crate::server::Server;
use crate::stats::{Samples, head, millis};

fn request() -> String {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bench\nspec:\n  containers:\n    \
               - name: app\n      image: stackd-sample:bench\n      imagePullPolicy: Never\n      \
               ports:\n        - containerPort: 80\n      resources:\n        limits:\n          \
               cpu: \"100m\"\n          memory: \"64Mi\"\n";
    json!({"target_port": 80, "pod_spec": pod}).to_string()
}

/// Until the first good answer, as a browser would try.
pub(crate) fn first_answer(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let since = Instant::now();
    loop {
        let answer = Client::tcp(address, "").and_then(|mut client| client.send("GET", "/", ""));
        match answer {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(_) | Err(_) if since.elapsed() < Duration::from_secs(120) => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(answer) => anyhow::bail!("status {}", answer.status),
            Err(error) => return Err(error),
        }
    }
}

struct Start {
    id: String,
    answered: Duration,
    served: Duration,
}

fn start(client: &mut Client<std::net::TcpStream>, body: &str) -> Result<Start> {
    let since = Instant::now();
    let answer = client.send("POST", "/stacks", body)?;
    let answered = since.elapsed();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status == 201, "status {}: {text}", answer.status);
    let stack: Value = serde_json::from_str(&text)?;
    let port = stack["node_port"].as_u64().and_then(|p| u16::try_from(p).ok());
    first_answer(port.context("a node port")?)?;
    let id = stack["stack_id"].as_str().context("an id")?.to_owned();
    Ok(Start { id, answered, served: since.elapsed() })
}

fn note(
    steps: &mut BTreeMap<String, Vec<Duration>>,
    order: &mut Vec<String>,
    name: String,
    time: Duration,
) {
    if !steps.contains_key(&name) {
        order.push(name.clone());
    }
    steps.entry(name).or_default().push(time);
}

/// Reads a duration as the log shows it: `1.5ms`.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let scale = match &text[unit..] {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(text[..unit].parse::<f64>().ok()? * scale))
}

/// The times of single steps, from the server's own log.
fn steps(log: &str) -> Vec<(String, Samples)> {
    let mut steps: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    let mut order = Vec::new();
    for line in log.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        for (field, name) in [
            ("planned", "plan: image, command, ids (until here)"),
            ("outside", "files outside (until here)"),
            ("taken", "an empty stack taken (until here)"),
            ("total", "the runtime's whole start"),
        ] {
            let Some(time) = line[field].as_str().and_then(duration) else { continue };
            note(&mut steps, &mut order, name.to_owned(), time);
        }
        let Some(text) = line["trace"].as_str() else { continue };
        let ahead = if text.contains("cgroup parent") { "(ahead of need) " } else { "" };
        for step in text.split("Step { name: \"").skip(1) {
            let Some((name, rest)) = step.split_once("\", micros: ") else { continue };
            let micros = rest.split(' ').next().unwrap_or_default();
            let Ok(micros) = micros.parse() else { continue };
            let name = format!("  {ahead}{name}");
            note(&mut steps, &mut order, name, Duration::from_micros(micros));
        }
    }
    order
        .into_iter()
        .filter_map(|name| steps.remove(&name).map(|samples| (name, Samples::new(samples))))
        .collect()
}

pub(crate) fn one_after_another(count: usize) -> Result<Samples> {
    let server = Server::start("oci")?;
    let served = of_server(&server, count)?;
    head("its steps, as the server logs them");
    for (name, samples) in steps(&server.log()?) {
        println!("{}", samples.row(&name));
    }
    Ok(served)
}

/// Starts stacks one after another.
pub(crate) fn of_server(server: &Server, count: usize) -> Result<Samples> {
    let mut client = server.client()?;
    let body = request();
    let (mut answered, mut served, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..count + 5 {
        let start = start(&mut client, &body)?;
        let since = Instant::now();
        let answer = client.send("DELETE", &format!("/stacks/{}", start.id), "")?;
        ensure!(answer.status == 200, "status {}", answer.status);
        // The first few fill caches that a server in use has filled.
        if i >= 5 {
            answered.push(start.answered);
            served.push(start.served);
            deleted.push(since.elapsed());
        }
    }
    let served = Samples::new(served);
    head("one stack after another");
    println!("{}", Samples::new(answered).row("POST answered (durable)"));
    println!("{}", served.row("POST to first answer through the node port"));
    println!("{}", Samples::new(deleted).row("DELETE answered (durable)"));
    Ok(served)
}

pub(crate) fn at_once(count: usize) -> Result<()> {
    let server = Server::start("oci")?;
    at_once_on(&server, count).map(drop)
}

/// Starts stacks at once; gives how long it took until all had answered.
pub(crate) fn at_once_on(server: &Server, count: usize) -> Result<Duration> {
    let body = request();
    let together = Barrier::new(count + 1);
    let (served, all) = std::thread::scope(|scope| -> Result<_> {
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let mut client = server.client()?;
                let (together, body) = (&together, &body);
                Ok(scope.spawn(move || {
                    together.wait();
                    start(&mut client, body).map(|start| start.served)
                }))
            })
            .collect::<Result<_>>()?;
        together.wait();
        let since = Instant::now();
        let served: Result<Vec<_>> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .collect();
        Ok((served?, since.elapsed()))
    })?;
    head(&format!("{count} stacks at once"));
    println!("{}", Samples::new(served).row("POST to first answer through the node port"));
    println!("{:<44} {:>9.0}", "all have answered", millis(all));
    report_memory(server, count)?;
    Ok(all)
}

/// What the server and the processes beside the stacks hold.
fn report_memory(server: &Server, count: usize) -> Result<()> {
    let mut shims = 0;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let path = process.path();
        let Ok(command) = std::fs::read(path.join("cmdline")) else { continue };
        let words: Vec<_> = command.split(|b| *b == 0).collect();
        if words.get(1) == Some(&b"shim".as_slice()) {
            shims += private_kib(&path.join("smaps_rollup")).unwrap_or(0);
        }
    }
    let own = private_kib(&format!("/proc/{}/smaps_rollup", server.pid()).into()).unwrap_or(0);
    println!("{:<44} {:>9.1} MiB", "memory of the server, private", own as f64 / 1024.0);
    let each = shims as f64 / 1024.0 / count as f64;
    println!("{:<44} {each:>9.2} MiB", "memory beside each stack, private");
    Ok(())
}

fn private_kib(rollup: &std::path::PathBuf) -> Result<u64> {
    let text = std::fs::read_to_string(rollup)?;
    let of = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    Ok(text.lines().filter(|line| line.starts_with("Private_")).filter_map(of).sum())
}
