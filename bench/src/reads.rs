//! Reads come from memory: what a thousand stacks cost a reader.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::server::Server;
use crate::stats::{Samples, head};

const STACKS: usize = 1000;
const READS: usize = 2000;

pub(crate) fn from_memory() -> Result<()> {
    let server = Server::start("simulated")?;
    let mut client = server.client()?;
    let pod = "kind: Pod\nspec:\n  containers:\n    - name: app\n      image: nginx:stable\n      \
               ports: [{containerPort: 80}]\n      resources: {limits: {cpu: 1m, memory: 1Mi}}\n";
    let body = json!({"target_port": 80, "pod_spec": pod}).to_string();
    let mut created = Vec::new();
    let mut id = String::new();
    for _ in 0..STACKS {
        let since = Instant::now();
        let answer = client.send("POST", "/stacks", &body)?;
        created.push(since.elapsed());
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        ensure!(answer.status == 201, "status {}: {text}", answer.status);
        id = serde_json::from_str::<Value>(&text)?["stack_id"].as_str().unwrap_or_default().into();
    }
    head(&format!("simulated runtime, {STACKS} stacks, one connection"));
    println!("{}", Samples::new(created).row("POST /stacks answered (durable)"));
    for (name, path, reads) in [
        ("GET /stacks/{id}", format!("/stacks/{id}"), READS),
        ("GET /stats", "/stats".to_owned(), READS),
        ("GET /stacks (all)", "/stacks".to_owned(), READS / 20),
    ] {
        let mut times = Vec::new();
        for _ in 0..reads {
            let since = Instant::now();
            let answer = client.send("GET", &path, "")?;
            times.push(since.elapsed());
            ensure!(answer.status == 200, "status {}", answer.status);
        }
        println!("{}", Samples::new(times).row(name));
    }
    Ok(())
}
