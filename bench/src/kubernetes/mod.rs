//! What stackd costs on top of a cluster: the same calls by a client that keeps nothing, beside it.
//!
//! The API server, its controllers and its scheduler are real; the nodes start nothing, so that a
//! thousand stacks fit on one machine. Nothing listens there, and no stack is ever *ready*: a pod
//! that the kubelet calls running is told by its reason.

mod heap;
mod plain;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use stackd_runtimes::kubernetes::{KubernetesConfig, KubernetesRuntime};
use stackd_testkit::kubernetes::{AuditMark, Cluster, Options};

use crate::server::Server;
use crate::stats::{Samples, head, millis, target};
use plain::{Plain, Template};

const STACKS: usize = 1000;
const NODES: u16 = 10;
const ONE_BY_ONE: usize = 100;
const ROUNDS: usize = 2;
/// How many starts a server has under way at once, unless it is told otherwise.
const AT_ONCE: usize = 64;
/// Callers of stackd: each waits until its stack has a place.
const CALLERS: usize = 200;
/// Node ports of each: the API server gives those of a service back some time after it is gone.
const OUR_PORTS: usize = 30_000;
const THEIR_PORTS: usize = 31_500;
const STACKS_IN: &str = "stacks";
const PLAIN_IN: &str = "plain";
/// How the client calls itself that stackd is compared with.
const PLAIN: &str = "plain-client";
const PATIENCE: Duration = Duration::from_secs(180);
/// What docs/kubernetes.md promises of the calls of the API server for each stack: to make it, and to
/// remove it.
const CALLS: (f64, f64) = (3.0, 1.0);
/// Milliseconds that an answer may take beyond the cluster's own time.
const BEYOND: f64 = 50.0;
/// How many times as long as a plain client all stacks together may take.
const OVERHEAD: f64 = 1.2;
/// Bytes of heap for each stack.
const HEAP: f64 = 6.0 * 1024.0;
/// When clients give a create up, whatever the cluster does.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// Pods that the kubelets call running, and whose node port takes no traffic.
const RUNS: &str = "\"reason\":\"ContainersNotReady\"";
/// Stacks whose service is there too: before that no node is told.
const PLACED: &str = "\"node_id\":\"";

fn body() -> String {
    let pod = "kind: Pod\nspec:\n  containers:\n    - name: app\n      image: nginx:stable\n      \
               ports: [{containerPort: 80}]\n      resources: {limits: {cpu: 1m, memory: 1Mi}}\n";
    json!({"target_port": 80, "pod_spec": pod}).to_string()
}

fn create(server: &Server, body: &str) -> Result<String> {
    let answer = server.client()?.send("POST", "/stacks", body)?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status == 201, "status {}: {text}", answer.status);
    let stack: Value = serde_json::from_str(&text)?;
    Ok(stack["stack_id"].as_str().context("an id")?.to_owned())
}

/// Asks for something until it is so.
fn until(server: &Server, path: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
    let since = Instant::now();
    let mut client = server.client()?;
    while !holds(&String::from_utf8_lossy(&client.send("GET", path, "")?.body)) {
        ensure!(since.elapsed() < PATIENCE, "{path} does not become what it must be");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Does something for each number, so many at a time.
fn spread(server: &Server, what: impl Fn(&Server, usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    number if number < STACKS => what(server, number)?,
                    _ => return Ok(()),
                }
            }
        };
        let threads: Vec<_> = (0..CALLERS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
        })
    })
}

pub(crate) fn beside_a_plain_client() -> Result<()> {
    let options = Options { nodes: 0, fake_nodes: NODES, ..Options::default() };
    let Some(cluster) = Cluster::start(options) else { return Ok(()) };
    for namespace in [STACKS_IN, PLAIN_IN] {
        cluster.kubectl(&["create", "namespace", namespace]);
    }
    let executor = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let config = executor.block_on(async {
        let file = Kubeconfig::read_from(cluster.kubeconfig())?;
        let options = KubeConfigOptions::default();
        Ok::<_, anyhow::Error>(kube::Config::from_custom_kubeconfig(file, &options).await?)
    })?;
    let mut apart = config;
    apart.headers.push(("user-agent".parse()?, PLAIN.parse()?));
    let client = executor.block_on(async { kube::Client::try_from(apart) })?;
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let ports = format!("{OUR_PORTS}-{}", THEIR_PORTS - 1);
    let server = Server::with(
        "kubernetes",
        &["--kubeconfig", &kubeconfig, "--namespace", STACKS_IN, "--node-port-range", &ports],
    )?;
    let id = create(&server, &body())?;
    let template = executor.block_on(Template::of(&client, STACKS_IN, &id))?;
    server.client()?.send("DELETE", &format!("/stacks/{id}"), "")?;
    let (plain, beside) = executor.block_on(async {
        let template = std::sync::Arc::new(template);
        let new = |namespace| Plain::new(&client, namespace, &template);
        (new(PLAIN_IN), new(STACKS_IN))
    });
    executor.block_on(beside.until_empty())?;

    one_by_one(&executor, &server, &plain)?;
    executor.block_on(beside.until_empty())?;
    let bench = Bench { executor, server, plain, beside, cluster };
    bench.many()
}

/// What a caller waits for.
fn one_by_one(executor: &tokio::runtime::Runtime, server: &Server, plain: &Plain) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let body = body();
    for number in 0..ONE_BY_ONE {
        let since = Instant::now();
        create(server, &body)?;
        ours.push(since.elapsed());
        let since = Instant::now();
        executor.block_on(plain.make_and_place(number, THEIR_PORTS + STACKS + number))?;
        theirs.push(since.elapsed());
    }
    let (ours, theirs) = (Samples::new(ours), Samples::new(theirs));
    head("a cluster, one stack after another: until it has a node");
    println!("{}", theirs.row("the three calls, by a plain client"));
    println!("{}", ours.row("POST /stacks answered"));
    let beyond = millis(ours.median()) - millis(theirs.median());
    println!("{}", target("beyond the cluster's own time", beyond, BEYOND));
    println!("{}", target("the slowest answer", millis(ours.at(1.0)), millis(GIVEN_UP)));
    executor.block_on(async {
        for number in 0..ONE_BY_ONE {
            plain.delete(number).await?;
        }
        plain.until_empty().await
    })?;
    delete_all(server)
}

fn ids(server: &Server) -> Result<Vec<String>> {
    let listed: Value = serde_json::from_slice(&server.client()?.send("GET", "/stacks", "")?.body)?;
    let stacks = listed["stacks"].as_array().context("a list")?;
    Ok(stacks.iter().filter_map(|stack| stack["stack_id"].as_str().map(str::to_owned)).collect())
}

fn delete_all(server: &Server) -> Result<()> {
    let ids = ids(server)?;
    spread(server, |server, number| {
        let Some(id) = ids.get(number) else { return Ok(()) };
        let answer = server.client()?.send("DELETE", &format!("/stacks/{id}"), "")?;
        ensure!(answer.status == 200, "status {}", answer.status);
        Ok(())
    })
}

struct Bench {
    executor: tokio::runtime::Runtime,
    plain: Plain,
    /// Sees when the cluster has nothing of stackd's any more.
    beside: Plain,
    server: Server,
    cluster: Cluster,
}

impl Bench {
    /// A thousand, by each in turn.
    fn many(&self) -> Result<()> {
        let mut times = [const { Vec::new() }; 4];
        for round in 0..ROUNDS {
            let (made, gone) = self.plainly()?;
            times[0].push(made);
            times[1].push(gone);
            let (made, gone) = self.by_stackd(round + 1 == ROUNDS)?;
            times[2].push(made);
            times[3].push(gone);
        }
        let [made, gone, our_made, our_gone] = times.map(Samples::new);
        head(&format!("{STACKS} stacks on {NODES} nodes that start nothing"));
        for (name, theirs, ours) in
            [("made, and their pods run", &made, &our_made), ("gone", &gone, &our_gone)]
        {
            println!("{}", theirs.row(&format!("{name}: a plain client")));
            println!("{}", ours.row(&format!("{name}: stackd")));
            let ratio = millis(ours.median()) / millis(theirs.median());
            println!("{}", target("times as long as the plain client", ratio, OVERHEAD));
        }
        Ok(())
    }

    fn plainly(&self) -> Result<(Duration, Duration)> {
        self.executor.block_on(async {
            let plain = &self.plain;
            let since = Instant::now();
            futures_util::stream::iter(0..STACKS)
                .map(|number| Ok(plain.make(number, THEIR_PORTS + number)))
                .try_buffer_unordered(AT_ONCE)
                .try_collect::<Vec<()>>()
                .await?;
            plain.until(|seen| seen.running.len() == STACKS).await?;
            let made = since.elapsed();
            let since = Instant::now();
            futures_util::stream::iter(0..STACKS)
                .map(|number| Ok(plain.delete(number)))
                .try_buffer_unordered(AT_ONCE)
                .try_collect::<Vec<()>>()
                .await?;
            plain.until_empty().await?;
            Ok((made, since.elapsed()))
        })
    }

    fn by_stackd(&self, look: bool) -> Result<(Duration, Duration)> {
        let (server, body) = (&self.server, body());
        let mark = self.cluster.audit_mark();
        let since = Instant::now();
        spread(server, |server, _| create(server, &body).map(drop))?;
        until(server, "/stacks", |list| {
            [RUNS, PLACED].iter().all(|word| list.matches(word).count() == STACKS)
        })?;
        let made = since.elapsed();
        if look {
            self.calls(mark, "made", CALLS.0)?;
            self.reads()?;
            self.memory()?;
        }
        let mark = self.cluster.audit_mark();
        let since = Instant::now();
        delete_all(server)?;
        self.executor.block_on(self.beside.until_empty())?;
        let gone = since.elapsed();
        if look {
            self.calls(mark, "deleted", CALLS.1)?;
        }
        Ok((made, gone))
    }

    /// What stackd has asked for since, but for watches, from the API server's log.
    fn calls(&self, mark: AuditMark, what: &str, most: f64) -> Result<()> {
        let mut calls = self.cluster.calls_since(mark);
        calls.retain(|call| {
            let others = [PLAIN, "kwok"].iter().any(|agent| call.agent.starts_with(agent));
            let is_stackds = call.user == "admin" && !others;
            call.namespace == STACKS_IN && call.verb != "watch" && is_stackds
        });
        println!("\n{} calls for {STACKS} stacks {what}:", calls.len());
        let mut counts: Vec<_> = Cluster::count(&calls).into_iter().collect();
        counts.sort();
        for (call, count) in counts {
            println!("{call:<44} {count:>9}");
        }
        let each = calls.len() as f64 / STACKS as f64;
        println!("{}", target(&format!("calls for each stack {what}"), each, most));
        Ok(())
    }

    fn reads(&self) -> Result<()> {
        let mut client = self.server.client()?;
        head(&format!("reads with {STACKS} stacks, one connection"));
        for (path, reads) in [("/stats", 2000), ("/stacks", 100)] {
            let mut times = Vec::new();
            for _ in 0..reads {
                let since = Instant::now();
                let answer = client.send("GET", path, "")?;
                times.push(since.elapsed());
                ensure!(answer.status == 200, "status {}", answer.status);
            }
            println!("{}", Samples::new(times).row(&format!("GET {path}")));
        }
        Ok(())
    }

    /// What the runtime itself keeps: it is opened here once more, on the same stacks and on none,
    /// and what lies on the heap when it has seen all is counted.
    fn memory(&self) -> Result<()> {
        let kept = |namespace: &str| -> Result<usize> {
            let config = KubernetesConfig {
                kubeconfig: Some(self.cluster.kubeconfig()),
                namespace: namespace.to_owned(),
                ..KubernetesConfig::default()
            };
            self.executor.block_on(async {
                let before = heap::bytes();
                let runtime = KubernetesRuntime::open(config).await?;
                // The inventory is whole when this is known.
                runtime.node_address().await.context("a node")?;
                tokio::time::sleep(Duration::from_secs(3)).await;
                let kept = heap::bytes().saturating_sub(before);
                drop(runtime);
                Ok(kept)
            })
        };
        let (none, all) = (kept(PLAIN_IN)?, kept(STACKS_IN)?);
        let each = all.saturating_sub(none) / STACKS;
        println!("\n{}", target("the runtime's cache: bytes of heap a stack", each as f64, HEAP));
        Ok(())
    }
}
