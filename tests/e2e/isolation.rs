//! What a hostile tenant can do: the table of probes, run from inside a real stack while another one
//! goes on serving beside it.

use stackd_probe::{CASES, Places, Said};

use crate::on::On;
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

async fn hostile(on: On) {
    let server = Server::on(on).await;
    let (neighbour, neighbour_port) = server.sample(&[], &[]).await;
    let (hostile, _) = server.sample(&["--disk", "32Mi"], &[]).await;
    let places = Places {
        host: host_address(),
        api: server.port(),
        gateway: "10.77.0.1".to_owned(),
        neighbour: neighbour_port,
        data_dir: server.data(),
    };
    let mut holes = Vec::new();
    for case in CASES {
        let words = case.words(&places);
        let overfull = on == On::Docker && case.fills_disk;
        let own =
            if overfull { Some(server.sample(&["--disk", "32Mi"], &[]).await.0) } else { None };
        match probe(&server, own.as_ref().unwrap_or(&hostile), &words).await {
            _ if overfull => {
                let id = own.as_ref().expect("made above");
                ended_for_disk(&server, id).await;
                server.delete(&format!("/stacks/{id}")).await;
            }
            Ok(said) if said.verdict == case.expected => {}
            // The engine has one user namespace for all, or as here none.
            Ok(said)
                if on == On::Docker
                    && said.detail == "NoNewPrivs 1, root here is user 0 outside" => {}
            Ok(said) => holes.push(format!("{}: {said:?}", case.name)),
            Err(text) => holes.push(text),
        }
        let served = fetch(neighbour_port, "/healthz").await;
        assert!(served.is_ok(), "the neighbour after {words:?}: {served:?}");
        let works = server.stackd(&["stack", "exec", &neighbour, "--", "/sample", "json"]).await;
        assert!(works.status.success(), "the neighbour after {words:?}");
    }
    assert!(holes.is_empty(), "{} holes:\n{}", holes.len(), holes.join("\n"));
    server.finish().await;
}

/// Waits until a stack has been ended because it has written too much.
async fn ended_for_disk(server: &Server, id: &str) {
    let ended = async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(50));
        loop {
            pause.tick().await;
            let (_, stack) = server.get(&format!("/stacks/{id}")).await;
            if stack["status"] == "failed" {
                return stack;
            }
        }
    };
    let stack = stackd_testkit::within("the stack is ended", ended).await;
    assert_eq!(stack["reason"], "EphemeralStorageFull", "{stack:#}");
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
        let held = stackd_testkit::within("it holds", lines.next_line()).await;
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
            crate::IMAGE
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
    let probed = |case: &&stackd_probe::Case| {
        let name = format!("isolation: {}", case.name);
        checks.iter().any(|check| check["name"] == name && check["status"] == "ok")
    };
    assert_eq!(CASES.iter().filter(probed).count(), CASES.len(), "{text}");
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
