//! `stackd stack`.

use super::*;

#[test]
fn the_name_of_a_stack_that_does_not_come_up_is_told_all_the_same() {
    let server = Server::start(&["--simulated-ready-delay", "1h"]);
    let create = ["create", "x", "--port", "80", "--wait", "--timeout", "1ms", "-o", "name"];
    let made = server.stack(&create);
    assert_eq!(made.code, 9, "{}", made.err);
    assert_eq!(server.stack(&["delete", made.out.trim()]).code, 0);
}

#[test]
fn a_stack_is_made_looked_at_and_taken_away() {
    let server = Server::start(&[]);
    let ports = ["--port", "80", "--port", "53/udp"];
    let wanted = ["--label", "team=a", "--ttl", "1h", "--owner", "me", "-o", "json", "--wait"];
    let args: Vec<_> = ["create", "nginx:stable"].into_iter().chain(ports).chain(wanted).collect();
    let made = server.stack(&args);
    assert_eq!(made.code, 0, "{}", made.err);
    let stack: Value = serde_json::from_str(&made.out).unwrap();
    assert_eq!((&stack["status"], &stack["owner"]), (&"running".into(), &"me".into()));
    assert_eq!(stack["ports"][1]["protocol"], "UDP");
    let id = stack["stack_id"].as_str().unwrap();
    let port = stack["ports"][0]["node_port"].as_u64().unwrap();

    assert_eq!(server.stack(&["list", "-o", "name", "--label", "team=a"]).out, format!("{id}\n"));
    assert_eq!(server.stack(&["list", "-o", "name", "--label", "team=b"]).out, "");
    let table = server.stack(&["list"]).out;
    assert!(table.lines().nth(1).unwrap().starts_with(id), "{table}");
    assert_eq!(server.stack(&["port", id, "80"]).out, format!("127.0.0.1:{port}\n"));
    let all = server.stack(&["port", id]).out;
    assert!(all.starts_with(&format!("80/tcp -> 127.0.0.1:{port}\n53/udp -> ")), "{all}");
    assert_eq!(server.stack(&["port", id, "81"]).code, 6);
    assert_eq!(server.stack(&["logs", id, "--tail", "1"]).out, "simulated: ready\n");
    let exec = server.stack(&["exec", id, "--", "uname", "-a"]);
    assert_eq!((exec.code, exec.out.trim_end()), (0, "uname -a"), "{}", exec.err);
    let yaml = server.stack(&["get", id, "-o", "yaml"]).out;
    assert!(yaml.contains(&format!("stack_id: {id}\n")), "{yaml}");
    assert_eq!(server.stack(&["wait", id]).out, "running\n");
    let late = server.stack(&["wait", id, "--for", "ended", "--timeout", "50ms"]);
    assert_eq!(late.code, 9, "{}", late.err);

    assert_eq!(server.stack(&["delete", id]).out, format!("{id}\n"));
    let gone = server.stack(&["get", id]);
    assert_eq!(gone.code, 6);
    assert!(gone.err.contains("error: stack not found\nhint: `stackd stack list`"), "{}", gone.err);
    assert_eq!(server.stack(&["delete", id]).code, 6);
    assert_eq!(server.stack(&["delete", id, "--ignore-not-found"]).code, 0);
    // Each that is missing is told, and those that are there go all the same.
    let last = server.create();
    let some = server.stack(&["delete", id, &last, "stack-0000000000000001"]);
    assert_eq!((some.code, some.out), (6, format!("{last}\n")));
    for missing in [id, "stack-0000000000000001"] {
        assert!(some.err.contains(&format!("error: {missing} was not deleted")), "{}", some.err);
    }
    let part = server.stack(&["create", "nginx:stable", "--port", "80", "--ttl", "1500ms"]);
    assert!(part.code == 2 && part.err.contains("whole seconds"), "{}", part.err);
    let ages = format!("{}h", u64::MAX / 3600);
    assert_eq!(server.stack(&["wait", id, "--timeout", &ages]).code, 6);
}

#[test]
fn a_pod_file_comes_from_a_file_or_standard_input() {
    let server = Server::start(&[]);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: a\n    \
               image: a:1\n    ports: [{containerPort: 80}, {containerPort: 81}]\n    resources:\n      \
               limits: {cpu: 100m, memory: 64Mi}\n";
    let mut command = stackd();
    command.args(["stack", "create", "-f", "-", "--idempotency-key", "once", "-o", "json"]);
    command.env("STACKD_SERVER", &server.url).env("STACKD_DATA_DIR", &server.data);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(pod.as_bytes()).unwrap();
    let made = said(child.wait_with_output().unwrap());
    assert_eq!(made.code, 0, "{}", made.err);
    let stack: Value = serde_json::from_str(&made.out).unwrap();
    assert_eq!(stack["ports"].as_array().unwrap().len(), 2);

    let file = server._dir.path().join("pod.yaml");
    std::fs::write(&file, pod).unwrap();
    let file = file.to_str().unwrap();
    let same = server.stack(&["create", "-f", file, "--idempotency-key", "once", "-o", "name"]);
    assert_eq!(same.out.trim(), stack["stack_id"].as_str().unwrap(), "{}", same.err);
    let other = server.stack(&["create", "-f", file, "--idempotency-key", "once", "--port", "80"]);
    assert_eq!(other.code, 7, "{}", other.err);
    std::fs::write(file, pod.replace("kind: Pod", "kind: Job")).unwrap();
    let wrong = server.stack(&["create", "-f", file]);
    assert_eq!(wrong.code, 7);
    assert!(wrong.err.contains("error: invalid pod spec: kind must be Pod"), "{}", wrong.err);
}

#[test]
fn each_failure_has_its_code_and_says_what_to_do() {
    let server = Server::start(&["--node-port-range", "31001-31001", "--quota", "cpu=1"]);
    let create = ["create", "a:1", "--port", "80"];
    let with = |more: &[&'static str]| server.stack(&[&create[..], more].concat());
    assert_eq!(with(&["--cpu", "2"]).code, 8);
    assert_eq!(with(&[]).code, 0);
    let full = with(&[]);
    assert_eq!(full.code, 8);
    assert!(full.err.contains("no available nodeport") && full.err.contains("hint: "));
    assert_eq!(server.stack(&["create", "a:1"]).code, 2);
    assert_eq!(server.stack(&["create"]).code, 2);
    assert_eq!(with(&["--ttl", "soon"]).code, 2);
    let denied = server.stack(&["--api-key", "wrong", "list"]);
    assert_eq!(denied.code, 5);
    assert!(denied.err.contains("error: invalid api key\nhint: "), "{}", denied.err);
    // Nobody listens at the lowest port of all.
    let nobody = run(&["stack", "--server", "http://127.0.0.1:1", "list"]);
    assert_eq!(nobody.code, 4);
    assert!(nobody.err.contains("hint: start it with `stackd serve`"), "{}", nobody.err);
    assert_eq!(run(&["stack", "--server", "ftp://x", "list"]).code, 2);
}

#[test]
fn a_stack_that_fails_ends_the_wait() {
    let server = Server::start(&["--simulated-failure-rate", "1"]);
    let failed = server.stack(&["create", "a:1", "--port", "80", "--wait"]);
    assert_eq!(failed.code, 10, "{}", failed.err);
    assert!(failed.err.contains(" is failed"), "{}", failed.err);
    assert!(failed.err.contains("hint: `stackd stack logs stack-"), "{}", failed.err);
    let id = server.stack(&["list", "-o", "name"]).out;
    assert_eq!(server.stack(&["wait", id.trim(), "--for", "ended"]).out, "failed\n");
}
