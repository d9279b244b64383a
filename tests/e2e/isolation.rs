//! What a hostile tenant can do: the table of probes, run from inside a real stack while another one
//! goes on serving beside it.

use stackd_probe::{Case, Places, Platform, Said, cases};
use stackd_testkit::kubernetes::Cluster;
use stackd_testkit::within;

use crate::IMAGE;
use crate::on::{NAMESPACE, On};
use crate::server::{Server, fetch};

/// An address of this machine that is not loopback, where it has one.
fn host_address() -> String {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // Sends nothing: only a route is looked up.
    let routed = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    routed.map_or_else(|_| "127.0.0.1".to_owned(), |address| address.ip().to_string())
}

async fn probe(server: &Server, id: &str, words: &[String]) -> Result<Said, String> {
    let mut args = vec!["stack", "exec", id, "--", "/sample", "probe"];
    args.extend(words.iter().map(String::as_str));
    let output = server.stackd(&args).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Said::read(&text, output.status.code().unwrap_or(-1)).ok_or_else(|| {
        format!(
            "{words:?} said {text:?} ({}), {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

#[tokio::test]
async fn a_hostile_stack_reaches_nothing_and_takes_only_its_own() {
    hostile(On::Oci).await;
}

#[tokio::test]
async fn a_hostile_stack_on_docker_reaches_nothing_and_is_ended_for_a_full_disk() {
    hostile(On::Docker).await;
}

#[tokio::test]
async fn a_hostile_stack_on_kubernetes_reaches_nothing_and_is_ended_for_a_full_disk() {
    if On::Kubernetes.is_here() {
        hostile(On::Kubernetes).await;
    }
}

/// What a stack must not reach.
fn places(server: &Server, on: On, hostile: &str, neighbour: &str, node_port: u16) -> Places {
    if on != On::Kubernetes {
        return Places::Machine {
            host: host_address(),
            api: server.port(),
            gateway: "10.77.0.1".to_owned(),
            neighbour: node_port,
            data_dir: server.data(),
        };
    }
    let of_pod = |id: &str, field: &str| {
        let path = format!("jsonpath={{{field}}}");
        on.cluster().kubectl(&["--namespace", NAMESPACE, "get", "pod", id, "--output", &path])
    };
    // These nodes make user namespaces; that a stack is in one is a case of its own.
    assert_eq!(of_pod(hostile, ".spec.hostUsers"), "false");
    assert_eq!(of_pod(hostile, ".spec.nodeSelector"), r#"{"kubernetes.io/os":"linux"}"#);
    let service = ["get", "service", "kubernetes", "--output", "jsonpath={.spec.clusterIP}"];
    let places = Places::Cluster {
        node: of_pod(hostile, ".status.hostIP"),
        api_server: format!("{}:443", on.cluster().kubectl(&service)),
        neighbour: node_port,
        pod: format!("{}:80", of_pod(neighbour, ".status.podIP")),
    };
    all_of_it_is_there(on.cluster(), &places);
    places
}

/// Whoever no policy holds back gets to all of these places, so that a stack that does not is held
/// back. The node's loopback is seen by who shares its network; of the internet there may be none.
fn all_of_it_is_there(cluster: &Cluster, places: &Places) {
    let namespace = cluster.namespace();
    let connects = |case: &&Case| case.words(places).first().is_some_and(|word| word == "connect");
    let is_near = |case: &&Case| case.name != "the internet, TCP";
    let walls: Vec<_> = places.cases().filter(connects).filter(is_near).collect();
    assert_eq!(walls.len(), 6, "{walls:?}");
    for on_node in [false, true] {
        let tried = walls.iter().filter(|case| (case.name == "the node's loopback") == on_node);
        let tried: Vec<_> = tried.enumerate().collect();
        let name = if on_node { "on-node" } else { "open" };
        let mut pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {}}}\nspec:\n  \
             hostNetwork: {on_node}\n  restartPolicy: Never\n  containers:\n",
            namespace.name
        );
        for (number, case) in &tried {
            let words = ["probe".to_owned()].into_iter().chain(case.words(places));
            let words: Vec<_> = words.map(|word| format!("{word:?}")).collect();
            pod.push_str(&format!(
                "  - {{name: c{number}, image: {IMAGE}, imagePullPolicy: Never, args: [{}]}}\n",
                words.join(", ")
            ));
        }
        cluster.apply(&pod);
        let in_namespace = |args: &[&str]| {
            cluster.kubectl(&[&["--namespace", namespace.name.as_str()], args].concat())
        };
        // A way that is open is told by a code other than 0.
        let failed = "--for=jsonpath={.status.phase}=Failed";
        in_namespace(&["wait", failed, &format!("pod/{name}"), "--timeout=60s"]);
        for (number, case) in &tried {
            let said = in_namespace(&["logs", name, "--container", &format!("c{number}")]);
            assert!(said.starts_with("allowed "), "{}: {said}", case.name);
        }
    }
}

async fn hostile(on: On) {
    let server = Server::on(on).await;
    let (neighbour, neighbour_port) = server.sample(&[], &[]).await;
    let (hostile, _) = server.sample(&["--disk", "32Mi"], &[]).await;
    let places = places(&server, on, &hostile, &neighbour, neighbour_port);
    let mut holes = Vec::new();
    for case in places.cases() {
        let words = case.words(&places);
        if case.fills.is_some() && on != On::Oci {
            fills_its_disk(&server, &words, on).await;
        } else {
            match probe(&server, &hostile, &words).await {
                Ok(said) if said.verdict == case.expected => {}
                // The engine has one user namespace for all, or as here none.
                Ok(said)
                    if on == On::Docker
                        && said.detail == "NoNewPrivs 1, root here is user 0 outside" => {}
                Ok(said) => holes.push(format!("{}: {said:?}", case.name)),
                Err(text) => holes.push(text),
            }
        }
        let served = server.fetch(neighbour_port, "/healthz").await;
        assert!(served.is_ok(), "the neighbour after {words:?}: {served:?}");
        let works = server.stackd(&["stack", "exec", &neighbour, "--", "/sample", "json"]).await;
        assert!(works.status.success(), "the neighbour after {words:?}");
    }
    assert!(holes.is_empty(), "{} holes:\n{}", holes.len(), holes.join("\n"));
    server.finish().await;
}

/// A stack that does so is ended for it, where it cannot be kept from it.
async fn fills_its_disk(server: &Server, words: &[String], on: On) {
    let (id, _) = server.sample(&["--disk", "32Mi"], &[]).await;
    // What it says itself is of no account: it is ended in the middle of it.
    let mut filler = tokio::process::Command::new(crate::server::stackd());
    filler.args(["stack", "exec", &id, "--", "/sample", "probe"]).args(words);
    filler.env("STACKD_SERVER", server.url("")).env("STACKD_API_KEY", server.key());
    filler.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let _filler = filler.spawn().expect("it runs");
    ended_for_disk(server, &id, on).await;
    server.delete(&format!("/stacks/{id}")).await;
}

/// Waits until a stack has been ended because it has written too much.
async fn ended_for_disk(server: &Server, id: &str, on: On) {
    let ended = async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(50));
        loop {
            pause.tick().await;
            let (_, stack) = server.get(&format!("/stacks/{id}")).await;
            if stack["status"] == "failed" || stack["status"] == "stopped" {
                return stack;
            }
        }
    };
    // A busy kubelet takes its time.
    let ended = tokio::time::timeout(3 * stackd_testkit::PATIENCE, ended).await;
    let stack = ended.expect("the stack is ended");
    // A kubelet may lose why it has ended a Pod, where that ends at once.
    let is_told = stack["reason"] == "EphemeralStorageFull";
    assert!(is_told || on == On::Kubernetes, "{stack:#}");
}

#[tokio::test]
async fn what_one_stack_holds_is_not_taken_from_another() {
    let server = Server::start().await;
    let (hostile, _) = server.sample(&[], &[]).await;
    let (neighbour, _) = server.sample(&[], &[]).await;
    for kind in ["inotify", "pipes"] {
        let words = ["stack", "exec", &hostile, "--", "/sample", "probe", kind, "hold"];
        let mut holder = tokio::process::Command::new(crate::server::stackd());
        holder.args(words).env("STACKD_SERVER", server.url("")).kill_on_drop(true);
        let key = server.key();
        let mut holder = holder
            .env("STACKD_API_KEY", key)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("it runs");
        let out = holder.stdout.take().expect("its output");
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(out));
        let held = within("it holds", lines.next_line()).await;
        let held = held.expect("a line").expect("a line");
        assert!(held.contains("contained"), "{held}");
        let count = |said: &str| -> usize {
            let digits = said.chars().skip_while(|c| !c.is_ascii_digit());
            digits.take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
        };
        let words = [kind.to_owned()];
        let said = probe(&server, &neighbour, &words).await.expect("an answer");
        let left = count(&said.detail);
        assert!(left >= 16, "the neighbour gets {kind} too: {said:?}, while {held}");
        holder.kill().await.expect("it ends");
    }
    // Of these the machine has one number for all, so a stack gets none.
    let said = probe(&server, &hostile, &["aio".to_owned()]).await.expect("an answer");
    assert_eq!(said.verdict, stackd_probe::Verdict::Denied, "{said:?}");
    server.finish().await;
}

#[tokio::test]
async fn a_stack_that_eats_memory_fails_alone_and_says_so() {
    let server = Server::start().await;
    let (_, port) = server.sample(&[], &[]).await;
    let body = serde_json::json!({
        "target_port": 80,
        "pod_spec": format!(
            "kind: Pod\nspec:\n  containers:\n  - name: hog\n    image: {}\n    \
             args: [probe, memory-hog]\n    ports: [{{containerPort: 80}}]\n    \
             resources: {{limits: {{cpu: 500m, memory: 32Mi}}}}\n",
            IMAGE
        ),
    });
    let (status, created) = server.post("/stacks", &body).await;
    assert_eq!(status.as_u16(), 201, "{created}");
    let path =
        format!("/stacks/{}?wait=running&timeout=30s", created["stack_id"].as_str().unwrap());
    let (_, ended) = server.get(&path).await;
    assert_eq!((&ended["status"], &ended["reason"]), (&"failed".into(), &"OOMKilled".into()));
    assert!(fetch(port, "/healthz").await.is_ok(), "the neighbour serves");
    server.finish().await;
}

#[tokio::test]
async fn doctor_proves_the_isolation_beside_a_running_server_and_leaves_nothing() {
    let server = Server::start().await;
    let (_, port) = server.sample(&[], &[]).await;
    let data = server.data();
    let before = crate::leftovers::entries(&data);
    let args = ["doctor", "--probe", "-o", "json", "--data-dir", &data, "--listen", "127.0.0.1:0"];
    let output = server.stackd(&args).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{text}{errors}", output.status);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let checks = report["checks"].as_array().expect("a list");
    let probed = |case: &&Case| {
        let name = format!("isolation: {}", case.name);
        checks.iter().any(|check| check["name"] == name && check["status"] == "ok")
    };
    let all = || cases(Platform::Machine);
    assert_eq!(all().filter(probed).count(), all().count(), "{text}");
    assert!(fetch(port, "/healthz").await.is_ok(), "the server's own stack serves");
    assert_eq!(crate::leftovers::entries(&data), before, "its directory is gone");
    let groups = crate::leftovers::entries("/sys/fs/cgroup");
    let groups = groups.iter().flat_map(crate::leftovers::entries);
    let left: Vec<_> = groups
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let process = name.strip_prefix("stackd-probe-");
            process.is_some_and(|process| !std::path::Path::new("/proc").join(process).exists())
        })
        .collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new(), "its control groups are gone");
    server.finish().await;
}
