//! `stackd image` and `stackd doctor` where a Docker engine runs the stacks.

use std::process::Output;

use serde_json::Value;
use stackd_probe::{Case, Platform, cases};
use stackd_testkit::docker::{self, Engine};
use stackd_testkit::sample;

use crate::on::On;
use crate::server::{Server, fetch};

/// `stackd image` on the engine, by the command line alone.
async fn image(server: &Server, words: &[&str]) -> Output {
    let data = server.data();
    let engine =
        ["image", "--data-dir", &data, "--runtime", "docker", "--docker-host", docker::shared()];
    server.stackd(&[&engine[..], words].concat()).await
}

async fn image_ok(server: &Server, words: &[&str]) -> String {
    let output = image(server, words).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {text}{errors}");
    text
}

async fn names(server: &Server) -> Vec<String> {
    let list = image_ok(server, &["list", "-o", "name"]).await;
    list.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn its_images_are_worked_on_with_a_server_and_without_one() {
    let mut server = Server::on(On::Docker).await;
    for with_server in [true, false] {
        if !with_server {
            server.stop();
        }
        let name = |rest: &str| format!("by-hand-{with_server}-{rest}:1");
        let (loaded, tagged, made) = (name("loaded"), name("tagged"), name("made"));
        let archive = server.file("archive.tar", &sample::docker_archive(&[&loaded]));
        let said = image_ok(&server, &["load", &archive]).await;
        // Others have given the same image other names.
        assert!(said.contains(&loaded) && said.contains(" sha256:"), "{said}");
        image_ok(&server, &["tag", &loaded, &tagged]).await;
        let rootfs = server.file("rootfs.tar", &sample::rootfs());
        let words = ["import", &rootfs, &made, "--entrypoint", sample::PROGRAM];
        let said = image_ok(&server, &words).await;
        assert!(said.starts_with(&format!("{made} sha256:")), "{said}");
        let listed = names(&server).await;
        assert!([&loaded, &tagged, &made].iter().all(|name| listed.contains(name)), "{listed:?}");

        // These are the engine's own business.
        for words in [&["inspect", &loaded][..], &["prune"]] {
            let output = image(&server, words).await;
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(7), "{errors}");
            let hint = format!("hint: `docker image {}` does that there", words[0]);
            assert!(errors.contains(&hint), "{errors}");
        }
        let absent = image(&server, &["remove", "by-hand-absent:1"]).await;
        let errors = String::from_utf8_lossy(&absent.stderr);
        assert!(!absent.status.success() && errors.contains("No such image"), "{errors}");

        if with_server {
            let (id, port) = server.sample_from(&made, &[], &["serve"]).await;
            assert_eq!(fetch(port, "/healthz").await.expect("it serves"), "ok\n");
            server.stackd_ok(&["stack", "delete", &id]).await;
        }
        let said = image_ok(&server, &["remove", "--force", &loaded, &tagged, &made]).await;
        assert!(said.contains(&format!("untagged {tagged}")), "{said}");
        let listed = names(&server).await;
        assert!([&loaded, &tagged, &made].iter().all(|name| !listed.contains(name)), "{listed:?}");
    }
    server.finish().await;
}

#[tokio::test]
async fn doctor_tells_what_an_engine_is_like() {
    let server = Server::on(On::Docker).await;
    let data = server.data();
    let doctor = async |host: &str| {
        let words = ["doctor", "--runtime", "docker", "--docker-host", host, "--data-dir", &data];
        let output = server.stackd(&[&words[..], &["-o", "json"]].concat()).await;
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        (output.status.code(), report)
    };
    let found = |report: &Value, name: &str| {
        let checks = report["checks"].as_array().expect("checks").clone();
        let check = checks.into_iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("{name} is not looked at: {report:#}"))
    };
    let (_, report) = doctor(docker::shared()).await;
    for name in ["engine", "engine API", "permissions", "seccomp", "runtime classes", "capacity"] {
        assert_eq!(found(&report, name)["status"], "ok", "{report:#}");
    }
    let less = found(&report, "user namespaces");
    assert_eq!(less["status"], "warning", "{less:#}");
    let room = found(&report, "capacity")["detail"].as_str().expect("words").to_owned();
    assert!(room.starts_with("about ") && room.contains("more stacks of 100m CPU"), "{room}");

    let (code, report) = doctor("unix:///nowhere/docker.sock").await;
    assert_eq!(code, Some(12));
    assert_eq!(found(&report, "engine")["status"], "failed", "{report:#}");
    server.finish().await;
}

/// Runs the probes on an engine; what they found of each case, and where they ran.
async fn proved(server: &Server, engine: &[&str]) -> Value {
    let data = server.data();
    let words = ["doctor", "--probe", "--runtime", "docker", "-o", "json", "--listen"];
    let words = [&words[..], &["127.0.0.1:0", "--data-dir", &data], engine].concat();
    let mut command = tokio::process::Command::new(crate::server::stackd());
    command.args(words).stdin(std::process::Stdio::null()).kill_on_drop(true);
    // It tries very many things, and on an engine elsewhere waits for what never answers.
    let output = tokio::time::timeout(4 * stackd_testkit::PATIENCE, command.output()).await;
    let output = output.expect("it ends").expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice::<Value>(&output.stdout);
    report.unwrap_or_else(|error| panic!("no report ({error}): {errors}"))
}

/// What became of each case: a word, and what was found.
fn verdicts(report: &Value) -> Vec<(&'static Case, String, String)> {
    let checks = report["checks"].as_array().expect("checks");
    let of = |case: &'static Case| {
        let name = format!("isolation: {}", case.name);
        let check = checks.iter().find(|check| check["name"] == *name);
        let check = check.unwrap_or_else(|| panic!("{name} is not tried: {report:#}"));
        let text = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
        (case, text("status"), text("detail"))
    };
    cases(Platform::Machine).map(of).collect()
}

#[tokio::test]
async fn doctor_proves_the_isolation_of_an_engine_and_leaves_nothing() {
    let server = Server::on(On::Docker).await;
    let report = proved(&server, &["--docker-host", docker::shared()]).await;
    for (case, status, found) in verdicts(&report) {
        // What the engine cannot do is a warning: to limit disks, and to remap users.
        let known = case.fills.is_some() || found.contains("root here is user 0 outside");
        let expected = if known { "warning" } else { "ok" };
        assert_eq!(status, expected, "{}: {found}", case.name);
    }
    assert_eq!(docker::named(docker::shared(), "stackd-probe:").await, Vec::<String>::new());
    server.finish().await;
}

#[tokio::test]
async fn doctor_says_what_an_engine_elsewhere_does_not_keep_out() {
    let engine = Engine::elsewhere();
    let server = Server::on(On::Docker).await;
    let address = engine.address().expect("it is elsewhere");
    let at = |name: &str| engine.directory().join(name).display().to_string();
    let host = format!("tcp://{address}:2376");
    let (ca, cert, key) = (at("ca.pem"), at("server.pem"), at("server.key"));
    let tls = ["--docker-tls-ca", &ca, "--docker-tls-cert", &cert, "--docker-tls-key", &key];
    let report = proved(&server, &[&["--docker-host", &host], &tls[..]].concat()).await;
    let others = verdicts(&report).into_iter().filter(|(_, status, _)| status != "ok");
    let mut others: Vec<_> = others.map(|(case, status, _)| (case.name, status)).collect();
    others.sort_unstable();
    // Its machine is reached by every stack, and it has one set of users for all.
    let expected = [
        ("disk", "warning"),
        ("inodes", "warning"),
        ("new privileges", "warning"),
        ("the host, by its address", "failed"),
    ];
    let expected = expected.map(|(name, status)| (name, status.to_owned()));
    assert_eq!(others, expected, "{report:#}");
    assert_eq!(docker::named(&engine.host(), "stackd-probe:").await, Vec::<String>::new());
    server.finish().await;
}
