//! Images reach a server from a registry and from archives, and stacks start from them.

use std::process::Output;

use reqwest::Method;
use serde_json::{Value, json};
use stackd_testkit::registry::{PASSWORD, Registry};
use stackd_testkit::{sample, within};

use crate::server::{Server, fetch};

/// `stackd image` on the server's data directory.
async fn image(server: &Server, words: &[&str]) -> Output {
    let data = server.data();
    server.stackd(&[&["image", "--data-dir", &data][..], words].concat()).await
}

async fn image_ok(server: &Server, words: &[&str]) -> String {
    let data = server.data();
    server.stackd_ok(&[&["image", "--data-dir", &data][..], words].concat()).await
}

/// A stack of the image runs and answers, and is gone again.
async fn assert_starts(server: &Server, name: &str) {
    let (id, port) = server.sample_from(name, &[], &[]).await;
    assert_eq!(fetch(port, "/healthz").await.expect("it serves"), "ok\n");
    server.stackd_ok(&["stack", "delete", &id]).await;
}

/// The wrong password was refused, and the command says what to do.
fn assert_denied(registry: &Registry, pulled: &Output) {
    let text = String::from_utf8_lossy(&pulled.stderr);
    assert_eq!(pulled.status.code(), Some(5), "{text}");
    assert!(text.contains(&format!("{} denies access", registry.host)), "{text}");
    assert!(text.contains("hint: --docker-config names a config.json"), "{text}");
    assert!(!text.contains("not-the-password"), "{text}");
}

#[tokio::test]
async fn an_image_is_pulled_with_a_server_and_without_one() {
    let registry = Registry::start(true, false);
    let digest = registry.push_sample("team/app:1").await.to_string();
    registry.push_sample("team/app:2").await;
    let (first, second) = (registry.name("team/app:1"), registry.name("team/app:2"));
    let login = registry.dir.path().join("docker.json");
    let log_in = |password: &str| {
        std::fs::write(&login, registry.docker_config(password)).expect("a file");
    };
    let login = login.display().to_string();

    // The server pulls, as it was told at its start; the file is read again for each pull.
    log_in("not-the-password");
    let mut server = Server::without_images(&["--docker-config", &login]).await;
    assert_denied(&registry, &image(&server, &["pull", &first]).await);
    log_in(PASSWORD);
    let said = image_ok(&server, &["pull", &first]).await;
    assert_eq!(said.trim(), format!("{first} {digest}"));
    assert_starts(&server, &first).await;

    // The command itself pulls, and the server has it at its next start.
    server.stop();
    log_in("not-the-password");
    let words = ["--docker-config", &login, "pull", "--quiet", &second];
    assert_denied(&registry, &image(&server, &words).await);
    log_in(PASSWORD);
    assert_eq!(image_ok(&server, &words).await.trim(), digest);
    server.launch().await;
    drop(registry);
    assert_starts(&server, &second).await;
    let mut listed: Vec<_> = [first, second].into();
    listed.sort();
    let names = image_ok(&server, &["list", "-o", "name"]).await;
    assert_eq!(names.lines().collect::<Vec<_>>(), listed);
    server.finish().await;
}

/// Asks for a stack of this image: its id. It is shown as `creating` at once.
async fn create(server: &Server, image: &str) -> String {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "spec": {"containers": [{
            "name": "app",
            "image": image,
            "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
        }]},
    });
    let body = json!({"target_port": 80, "pod_spec": pod.to_string()});
    let (status, stack) = server.post("/stacks", &body).await;
    assert_eq!((status.as_u16(), &stack["status"]), (201, &"creating".into()), "{stack:#}");
    stack["stack_id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_create_pulls_what_is_not_here() {
    let registry = Registry::start(false, false);
    registry.push_sample("app:1").await;
    let server = Server::without_images(&[]).await;

    // While the registry does not answer, the stack is on its way.
    registry.pause();
    let id = create(&server, &registry.name("app:1")).await;
    let path = format!("/stacks/{id}?wait=running&timeout=300ms");
    let (_, stack) = server.get(&path).await;
    assert_eq!(stack["status"], "creating", "{stack:#}");
    registry.resume();
    let stack = server.running(&id).await;
    let port = u16::try_from(stack["node_port"].as_u64().expect("a port")).expect("a port");
    assert_eq!(fetch(port, "/healthz").await.expect("it serves"), "ok\n");

    let name = registry.name("nothing:1");
    let id = create(&server, &name).await;
    let (_, stack) = server
        .send(server.request(Method::GET, &format!("/stacks/{id}?wait=ended&timeout=30s")))
        .await;
    let fields = |stack: &Value| (stack["status"].clone(), stack["reason"].clone());
    assert_eq!(fields(&stack), ("failed".into(), "ErrImagePull".into()), "{stack:#}");
    let message = stack["message"].as_str().expect("a message");
    assert!(message.contains(&name) && message.contains("does not exist"), "{message}");
    server.finish().await;
}

#[tokio::test]
async fn archives_of_both_kinds_are_loaded_by_a_running_server() {
    let server = Server::without_images(&[]).await;
    let docker = server.file("docker.tar", &sample::docker_archive(&["saved:1", "saved:2"]));
    let oci = server.file("oci.tar", &sample::oci_archive("layout:1"));
    let said = image_ok(&server, &["load", &docker]).await;
    let both = "docker.io/library/saved:1 docker.io/library/saved:2 sha256:";
    assert!(said.starts_with(both), "{said}");
    let said = image_ok(&server, &["load", &oci]).await;
    assert!(said.starts_with("docker.io/library/layout:1 sha256:"), "{said}");
    for name in ["saved:2", "layout:1"] {
        assert_starts(&server, name).await;
    }

    // From standard input, which goes through the socket.
    let mut command = tokio::process::Command::new(crate::server::stackd());
    command.args(["image", "--data-dir", &server.data(), "load", "-"]);
    command.stdin(std::fs::File::open(&docker).expect("made above"));
    let output = within("the load ends", command.output()).await.expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.starts_with(both), "{output:?}");

    let broken = server.file("broken.tar", b"this is not an archive");
    let refused = image(&server, &["load", &broken]).await;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(7), "{text}");
    assert!(text.starts_with("error: "), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn a_pull_that_is_killed_in_the_middle_leaves_nothing_in_the_way() {
    let registry = Registry::start(false, false);
    registry.push_large_sample("large:1", 96 << 20).await;
    let name = registry.name("large:1");
    let mut server = Server::without_images(&[]).await;
    server.stop();

    let data = server.data();
    let partial = || {
        let files = crate::leftovers::entries(format!("{data}/images/partial"));
        let bytes = |path: &std::path::PathBuf| path.metadata().map_or(0, |file| file.len());
        files.iter().map(bytes).max().unwrap_or(0)
    };
    let mut command = tokio::process::Command::new(crate::server::stackd());
    command.args(["image", "--data-dir", &data, "pull", &name]).kill_on_drop(true);
    let mut pull = command.stdout(std::process::Stdio::null()).spawn().expect("it runs");
    within("it has begun", async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(1));
        while partial() < 8 << 20 {
            pause.tick().await;
            assert!(pull.try_wait().expect("its state").is_none(), "it was too quick");
        }
    })
    .await;
    registry.pause();
    pull.kill().await.expect("SIGKILL");
    let before = partial();
    assert!(before < 96 << 20, "it was in the middle: {before}");
    registry.resume();

    server.launch().await;
    image_ok(&server, &["pull", &name]).await;
    for place in ["partial", "tmp"] {
        let left = crate::leftovers::entries(format!("{data}/images/{place}"));
        assert_eq!(left, Vec::<std::path::PathBuf>::new(), "{place}");
    }
    assert_starts(&server, &name).await;
    server.finish().await;
}

#[tokio::test]
async fn a_credential_helper_is_asked_and_what_docker_keeps_for_a_person_is_not() {
    use std::os::unix::fs::PermissionsExt;
    let registry = Registry::start(true, false);
    registry.push_sample("app:1").await;
    let name = registry.name("app:1");
    let directory = registry.dir.path().join("helpers");
    let home = registry.dir.path().join("home/.docker");
    for path in [&directory, &home] {
        std::fs::create_dir_all(path).expect("a directory");
    }
    // It tells what it was asked, and answers as the ones of docker do.
    let asked = directory.join("asked");
    let script = format!(
        "#!/bin/sh\nread -r host; echo \"$1 $host\" >> {}\n\
         echo '{{\"ServerURL\":\"\",\"Username\":\"{}\",\"Secret\":\"{PASSWORD}\"}}'\n",
        asked.display(),
        stackd_testkit::registry::USER,
    );
    let helper = directory.join("docker-credential-tested");
    std::fs::write(&helper, script).expect("a file");
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let config = json!({"credHelpers": {&registry.host: "tested"}}).to_string();
    let login = directory.join("config.json");
    std::fs::write(&login, config).expect("a file");
    std::fs::write(home.join("config.json"), registry.docker_config(PASSWORD)).expect("a file");

    let mut server = Server::without_images(&[]).await;
    server.stop();
    let path = std::env::var("PATH").expect("a path");
    let pull = async |options: &[&str]| {
        let mut command = tokio::process::Command::new(crate::server::stackd());
        command.args(["image", "--data-dir", &server.data()]).args(options).args(["pull", &name]);
        command.env("PATH", format!("{}:{path}", directory.display()));
        command.env("HOME", registry.dir.path().join("home"));
        within("a pull", command.output()).await.expect("it runs")
    };
    // Who may ask for stacks is not to pull with the operator's own login.
    assert_eq!(pull(&[]).await.status.code(), Some(5), "anonymous");
    let with_helper = pull(&["--docker-config", &login.display().to_string()]).await;
    assert!(with_helper.status.success(), "{}", String::from_utf8_lossy(&with_helper.stderr));
    let asked = std::fs::read_to_string(asked).expect("it was asked");
    assert_eq!(asked.lines().next(), Some(format!("get {}", registry.host).as_str()));
    server.finish().await;
}
