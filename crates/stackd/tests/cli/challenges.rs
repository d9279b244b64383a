//! `stackd challenge`.

use super::*;

#[test]
fn a_directory_of_challenges_is_applied_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let web = "id: web\nname: Web\nimage: web:1\nport: 80\nextra_config: {pids_limit: 9}\n";
    file("web.yaml", web);
    file("pwn.yml", "id: pwn\nname: Pwn\nimage: pwn:1\nport: 1337\nprotocol: tcp\n");
    file("notes.txt", "no challenge");
    let path = dir.path().to_str().unwrap();
    let server = Server::start(&[]);
    let apply = |more: &[&str]| {
        let said = server.challenge(&[&["apply", "-f", path], more].concat());
        (said.code, said.out.lines().last().unwrap_or_default().to_owned(), said)
    };
    let (code, last, said) = apply(&["--dry-run"]);
    assert_eq!(code, 0, "{}", said.err);
    assert_eq!(last, "2 created, 0 changed, 0 removed, 0 unchanged (nothing was done)");
    assert_eq!(server.challenge(&["list", "-o", "name"]).out, "");
    assert_eq!(apply(&[]).1, "2 created, 0 changed, 0 removed, 0 unchanged");
    assert_eq!(apply(&[]).1, "0 created, 0 changed, 0 removed, 2 unchanged");
    file("web.yaml", &web.replace("{pids_limit: 9}", "{pids_limit: 8, env: {A: b}}"));
    let shown = apply(&["--dry-run"]).2.out;
    let options = "    extra_config.env.A: unset -> b\n    extra_config.pids_limit: 9 -> 8\n";
    assert!(shown.contains(options), "{shown}");
    file("web.yaml", web);
    let edited = server.challenge(&["edit", "web", "--ttl", "1h", "--enabled", "false"]);
    assert!(edited.out.contains("3600") && edited.out.contains("disabled"), "{}", edited.err);
    let (_, last, said) = apply(&[]);
    assert_eq!(last, "0 created, 1 changed, 0 removed, 1 unchanged");
    assert!(
        said.out.contains("    ttl_seconds: 3600 -> unset\n    enabled: false -> true\n"),
        "{}",
        said.out
    );
    std::fs::remove_file(dir.path().join("pwn.yml")).unwrap();
    assert_eq!(apply(&[]).1, "0 created, 0 changed, 0 removed, 1 unchanged");
    assert_eq!(apply(&["--prune"]).1, "0 created, 0 changed, 1 removed, 1 unchanged");
    // What the server shows may be kept as a file.
    file("web.yaml", &server.challenge(&["get", "web", "-o", "yaml"]).out);
    assert_eq!(apply(&[]).1, "0 created, 0 changed, 0 removed, 1 unchanged");
    // All or nothing.
    file("bad.yaml", "id: bad\nname: Bad\nimage: i\nport: 1\ncpu_count: 3\n");
    file("good.yaml", "id: good\nname: Good\nimage: i\nport: 1\n");
    for more in [&["--dry-run"][..], &[]] {
        let (code, _, said) = apply(more);
        assert_eq!(code, 7, "{}", said.err);
        assert!(said.err.contains("bad.yaml: cpu_count must be one of 1, 2, 4"), "{}", said.err);
        assert!(
            said.err.contains("1 of 2 changes would be refused; nothing was done"),
            "{}",
            said.err
        );
        assert_eq!(server.challenge(&["list", "-o", "name"]).out, "web\n");
    }
    // An empty directory is a mistake, and not the wish for an empty catalogue.
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    assert_eq!(server.challenge(&["apply", "--prune", "-f", path]).code, 2);
    assert_eq!(server.challenge(&["list", "-o", "name"]).out, "web\n");
}

#[test]
fn a_protocol_among_further_options_can_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pwn.yaml");
    let server = Server::start(&[]);
    let pwn = "id: pwn\nname: Pwn\nimage: pwn:1\nport: 1337\n";
    for (extra, protocol) in [
        ("extra_config: {protocol: tcp}\n", "tcp"),
        ("extra_config: {protocol: http}\n", "http"),
        ("extra_config: {protocol: tcp, pids_limit: 9}\n", "tcp"),
        ("", "http"),
        ("protocol: tcp\nextra_config: {protocol: tcp}\n", "tcp"),
    ] {
        std::fs::write(&path, format!("{pwn}{extra}")).unwrap();
        for unchanged in ["0 unchanged", "1 unchanged"] {
            let said = server.challenge(&["apply", "-f", path.to_str().unwrap()]);
            assert_eq!(said.code, 0, "{extra}: {}", said.err);
            assert!(said.out.trim_end().ends_with(unchanged), "{extra}: {}", said.out);
        }
        let shown = server.challenge(&["get", "pwn", "-o", "json"]);
        let shown: Value = serde_json::from_str(&shown.out).unwrap();
        assert_eq!(shown[0]["protocol"], protocol, "{extra}");
    }
}

#[test]
fn a_challenge_is_described_by_a_pod_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pod.yaml");
    let pod = "kind: Pod\nspec:\n  containers:\n  - name: a\n    image: b:1\n    \
               ports: [{containerPort: 7}, {containerPort: 53, protocol: UDP}]\n    \
               resources: {limits: {cpu: 1, memory: 1Gi}}\n";
    std::fs::write(&path, pod).unwrap();
    let file = path.to_str().unwrap();
    let server = Server::start(&[]);
    assert_eq!(server.challenge(&["create", "web", "--image", "web:1", "--port", "80"]).code, 0);
    let json = |args: &[&str]| {
        let said = server.challenge(&[args, &["-o", "json"]].concat());
        assert_eq!(said.code, 0, "{args:?}: {}", said.err);
        serde_json::from_str::<Value>(&said.out).unwrap()[0].clone()
    };
    let ports = |list: &[(u16, &str)]| -> Value {
        let port = |(port, protocol): &(u16, &str)| serde_json::json!({"container_port": port, "protocol": protocol});
        list.iter().map(port).collect()
    };
    let edited = json(&["edit", "web", "--pod-file", file]);
    assert_eq!((&edited["pod_spec"], &edited["image"]), (&pod.into(), &Value::Null));
    assert_eq!(edited["target_port"], ports(&[(7, "TCP"), (53, "UDP")]));
    let edited = json(&["edit", "web", "--target-port", "53/udp"]);
    assert_eq!(edited["target_port"], ports(&[(53, "UDP")]));
    let made = json(&["create", "pod", "--pod-file", file, "--target-port", "7"]);
    assert_eq!(made["target_port"], ports(&[(7, "TCP")]));
}

#[test]
fn challenges_are_made_shown_warmed_and_removed() {
    let server = Server::start(&[]);
    let made =
        server.challenge(&["create", "web", "--image", "web:1", "--port", "80", "-o", "json"]);
    assert_eq!(made.code, 0, "{}", made.err);
    let made: Value = serde_json::from_str(&made.out).unwrap();
    assert_eq!((&made[0]["number"], &made[0]["name"]), (&1.into(), &"web".into()));
    assert!(server.challenge(&["get", "1"]).out.contains("image: web:1"));
    assert_eq!(server.challenge(&["warm"]).out, "web: web:1 is ready\n");
    let missing = server.challenge(&["get", "none"]);
    assert_eq!(missing.code, 6);
    assert!(missing.err.contains("challenge not found") && missing.err.contains("challenge list"));
    assert_eq!(server.challenge(&["edit", "web"]).code, 2);
    assert_eq!(server.challenge(&["delete", "web", "--destroy"]).out, "web\n");
    assert_eq!(server.challenge(&["delete", "web", "--ignore-not-found"]).code, 0);
    let schema: Value = serde_json::from_str(&run(&["challenge", "schema"]).out).unwrap();
    assert_eq!(schema["title"], "stackd challenge");
}
