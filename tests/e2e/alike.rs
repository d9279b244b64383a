//! One stack file, and the same commands about it on every runtime: what they print and how they
//! end is the same, but for addresses, ids and times.

use std::fmt::Write as _;

use serde_json::Value;

use crate::IMAGE;
use crate::on::On;
use crate::server::Server;

/// What a Pod file can say, as far as it shows from outside.
fn file() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: task
  labels: {{team: red}}
spec:
  initContainers:
  - name: prepare
    image: {IMAGE}
    args: [touch, /shared/prepared]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
    resources: {{limits: {{cpu: 50m, memory: 32Mi}}}}
  containers:
  - name: web
    image: {IMAGE}
    env: [{{name: GREETING, value: hello}}]
    ports: [{{containerPort: 80}}, {{containerPort: 7, protocol: UDP}}]
    readinessProbe: {{httpGet: {{path: /healthz, port: 80}}, periodSeconds: 1}}
    volumeMounts: [{{name: shared, mountPath: /shared}}]
    resources: {{limits: {{cpu: 100m, memory: 64Mi, ephemeral-storage: 64Mi}}}}
  - name: beside
    image: {IMAGE}
    args: [sleep]
    volumeMounts: [{{name: shared, mountPath: /shared, readOnly: true}}]
    resources: {{limits: {{cpu: 50m, memory: 32Mi}}}}
  volumes: [{{name: shared, emptyDir: {{}}}}]
"
    )
}

/// A Pod whose only container is told to do this.
fn doing(args: &str) -> String {
    format!(
        "kind: Pod\nspec:\n  containers:\n  - name: app\n    image: {IMAGE}\n    args: {args}\n    \
         ports: [{{containerPort: 80}}]\n    resources: {{limits: {{cpu: 100m, memory: 32Mi}}}}\n"
    )
}

/// Leaves out when a stack ended, where it is, and how far its isolation goes: what a runtime can.
fn without_what_may_differ(mut json: Value) -> Value {
    const DIFFER: [&str; 3] = ["effective_security", "ended_at", "node_id"];
    match &mut json {
        Value::Object(fields) => {
            fields.retain(|name, _| !DIFFER.contains(&name.as_str()));
            for value in fields.values_mut() {
                *value = without_what_may_differ(value.take());
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = without_what_may_differ(item.take());
            }
        }
        _ => {}
    }
    json
}

/// What was asked and answered.
struct Transcript<'a> {
    server: &'a Server,
    text: String,
    /// What differs from run to run, and what stands for it.
    names: Vec<(String, String)>,
}

impl Transcript<'_> {
    /// Takes note of what of a stack differs from run to run.
    async fn learn(&mut self, id: &str, as_what: &str) {
        let stack = self.server.get(&format!("/stacks/{id}")).await.1;
        let mut name = |value: &Value, what: &str| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !text.is_empty() && !value.is_null() {
                self.names.push((text, format!("<{what}>")));
            }
        };
        name(&stack["stack_id"], as_what);
        for field in ["created_at", "updated_at", "ready_at", "ttl_expires_at", "node_public_ip"] {
            name(&stack[field], field);
        }
        for port in stack["ports"].as_array().expect("a list") {
            name(&port["node_port"], "node port");
        }
    }

    /// Runs a command, and writes down what it printed and how it ended.
    async fn run(&mut self, args: &[&str]) -> String {
        let output = self.server.stackd(args).await;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        let shown = match serde_json::from_str(&out) {
            Ok(json) => format!("{:#}", without_what_may_differ(json)),
            Err(_) => out.clone(),
        };
        let _ = writeln!(self.text, "$ stackd {}\n{shown}{errors}({code:?})", args.join(" "));
        out
    }

    /// The same for everybody.
    fn told(self) -> String {
        let mut text = self.text;
        // Longer ones first, so that no part of one is taken for another.
        let mut names = self.names;
        names.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        for (value, name) in names {
            text = text.replace(&value, &name);
        }
        text
    }
}

async fn the_commands(on: On) -> String {
    let server = Server::on(on).await;
    let good = server.file("good.yaml", file().as_bytes());
    let ends = server.file("ends.yaml", doing("[exit, '3']").as_bytes());
    let done = server.file("done.yaml", doing("[exit, '0']").as_bytes());
    let wrong =
        server.file("wrong.yaml", file().replace("kind: Pod", "kind: Deployment").as_bytes());
    let mut told = Transcript { server: &server, text: String::new(), names: Vec::new() };
    for (path, name) in [(&good, "good"), (&ends, "ends"), (&done, "done"), (&wrong, "wrong")] {
        told.names.push((path.clone(), format!("{name}.yaml")));
    }
    let create = ["stack", "create", "--wait", "-o", "name", "--ttl", "30m", "--file"];
    let made = told.run(&[&create[..], &[&good, "--label", "of=alike"]].concat()).await;
    let id = made.trim();
    told.learn(id, "good").await;
    let container = |name: &'static str| [id, "--container", name];
    told.run(&["stack", "get", id, "-o", "json"]).await;
    told.run(&["stack", "list", "--label", "of=alike", "-o", "json"]).await;
    told.run(&["stack", "wait", id, "--for", "running"]).await;
    told.run(&["stack", "port", id]).await;
    told.run(&["stack", "port", id, "7/udp"]).await;
    told.run(&[&["stack", "logs"], &container("beside")[..]].concat()).await;
    told.run(&[&["stack", "logs"], &container("nobody")[..]].concat()).await;
    for (name, words) in [
        ("web", ["/sample", "exists", "/shared/prepared"]),
        ("beside", ["/sample", "touch", "/shared/written"]),
        ("beside", ["/sample", "print", "3"]),
        ("web", ["/sample", "exit", "42"]),
        ("nobody", ["/sample", "print", "1"]),
    ] {
        told.run(&[&["stack", "exec"], &container(name)[..], &["--"], &words].concat()).await;
    }
    for file in [&ends, &done] {
        let made = told.run(&[&create[..], &[file]].concat()).await;
        let id = made.trim();
        told.learn(id, "ended").await;
        told.run(&["stack", "get", id, "-o", "json"]).await;
        told.run(&["stack", "delete", id]).await;
    }
    told.run(&[&create[..], &[&wrong]].concat()).await;
    told.run(&["stack", "delete", id]).await;
    told.run(&["stack", "get", id]).await;
    told.run(&["stack", "delete", id]).await;
    let told = told.told();
    server.finish().await;
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stack_file_is_answered_alike_on_every_runtime() {
    let embedded = the_commands(On::Oci).await;
    for on in [On::Docker, On::Kubernetes] {
        if on.is_here() {
            let told = the_commands(on).await;
            let both = embedded.lines().zip(told.lines());
            let apart: Vec<_> = both.filter(|(one, other)| one != other).collect();
            assert!(embedded == told, "{on:?} answers otherwise: {apart:#?}\nin:\n{told}");
        }
    }
}
