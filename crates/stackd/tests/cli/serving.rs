//! `stackd serve` and what works without a server.

use super::*;

#[test]
fn a_reader_who_has_seen_enough_ends_a_command_quietly() {
    let server = Server::start(&[]);
    server.create();
    for args in [vec!["stack", "list"], vec!["key", "list"], vec!["doctor", "-o", "json"]] {
        let mut command = stackd();
        command.args(&args).env("STACKD_DATA_DIR", &server.data).env("STACKD_SERVER", &server.url);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let done = said(command.stdout(writer).output().unwrap());
        assert!(!done.err.contains("panicked") && done.code != 101, "{args:?}: {}", done.err);
        assert!(!done.err.contains("Broken pipe"), "{args:?}: {}", done.err);
    }
}

#[test]
fn a_second_server_is_told_who_has_the_directory() {
    let server = Server::start(&[]);
    let second = server.local(&["serve", "--runtime", "simulated", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, 11);
    let holder = format!("is in use by stackd serve, process {}", server.child.id());
    assert!(second.err.contains(&holder), "{}", second.err);
    assert!(second.err.contains("hint: stop that process first"), "{}", second.err);
}

#[test]
fn settings_that_are_dangerous_or_wrong_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let serve = |args: &[&str]| {
        let mut command = stackd();
        command.args(["serve", "--runtime", "simulated", "--data-dir"]).arg(&data).args(args);
        said(command.output().unwrap())
    };
    let open = serve(&["--listen", "0.0.0.0:0"]);
    assert_eq!(open.code, 3);
    assert!(open.err.contains("without TLS, keys and data would travel in clear"), "{}", open.err);
    let everybody = serve(&["--listen", "0.0.0.0:0", "--insecure-http", "--no-auth"]);
    assert_eq!(everybody.code, 3);
    assert!(everybody.err.contains("--no-auth would let everybody"), "{}", everybody.err);
    let file = dir.path().join("stackd.toml");
    std::fs::write(&file, "[engine]\ndefault_tll = 1\n").unwrap();
    let typo = serve(&["--config", file.to_str().unwrap()]);
    assert_eq!(typo.code, 3);
    assert!(typo.err.contains("hint: did you mean \"engine.default_ttl\"?"), "{}", typo.err);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let busy = serve(&["--listen", &address]);
    assert_eq!(busy.code, 11);
    assert!(busy.err.contains(&format!("{address} cannot be listened on")), "{}", busy.err);
    let tls = serve(&["--listen", "127.0.0.1:0", "--tls-cert", "/no", "--tls-key", "/no"]);
    assert_eq!(tls.code, 3, "{}", tls.err);
}

#[test]
fn doctor_says_whether_serve_will_work() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let doctor = |args: &[&str]| {
        let mut command = stackd();
        command.args(["doctor", "--runtime", "simulated", "--data-dir"]).arg(&data).args(args);
        said(command.output().unwrap())
    };
    let good = doctor(&["--listen", "127.0.0.1:0"]);
    assert_eq!(good.code, 0, "{}{}", good.out, good.err);
    assert!(good.out.ends_with("`stackd serve` will work here\n"), "{}", good.out);
    assert!(!data.exists(), "doctor changes nothing");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let bad = doctor(&["--listen", &address, "-o", "json"]);
    assert_eq!(bad.code, 12);
    let report: Value = serde_json::from_str(&bad.out).unwrap();
    assert_eq!(report["ok"], false);
    let name = format!("listen {address}");
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name.as_str()).unwrap();
    assert_eq!(check["status"], "failed");
    assert!(check["fix"].as_str().unwrap().contains("--listen"));

    let server = Server::start(&[]);
    let running = server.local(&["doctor", "--runtime", "simulated"]);
    assert_eq!(running.code, 0, "{}", running.out);
    assert!(running.out.contains("held by a running server"), "{}", running.out);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(&["--shutdown-timeout", "1h"]);
    // A request whose body never comes keeps the first signal from being enough.
    let mut slow = TcpStream::connect(server.address()).unwrap();
    let key = server.key();
    write!(
        slow,
        "POST /stacks HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {key}\r\nContent-Length: 99\r\n\
         Expect: 100-continue\r\n\r\n"
    )
    .unwrap();
    // The server asks for the body: so the request is under way.
    let mut asked = [0u8; 12];
    slow.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    server.signal(Signal::TERM);
    while TcpStream::connect(server.address()).is_ok() {
        std::thread::yield_now();
    }
    assert!(server.child.try_wait().unwrap().is_none());
    server.signal(Signal::TERM);
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
}

#[test]
fn an_engine_that_is_away_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let serve = |host: &str| {
        let mut command = stackd();
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--runtime", "docker", "--docker-host"])
            .arg(host)
            .arg("--data-dir")
            .arg(dir.path().join("data"));
        command
    };
    let mut child = serve("unix:///nowhere/docker.sock").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let told = lines.find(|line| line.contains("cannot be reached")).expect("it says so");
    assert!(told.contains("/nowhere/docker.sock") && told.contains("it is waited for"), "{told}");
    assert!(child.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "a signal is obeyed meanwhile");

    // What no waiting mends is refused at once.
    let wrong = said(serve("nowhere").output().unwrap());
    assert_eq!(wrong.code, 3, "{}", wrong.err);
}

#[test]
fn systemd_is_told_when_it_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let server = Server::start_in(dir, &[], &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    let mut buffer = [0u8; 400];
    let length = manager.recv(&mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..length]);
    assert!(text.starts_with("READY=1\n") && text.contains(&server.url), "{text}");
}

#[test]
fn images_are_imported_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::create_dir_all(dir.path().join("root/bin")).unwrap();
    std::fs::write(dir.path().join("root/bin/app"), "not a program").unwrap();
    let root = dir.path().join("root");
    let image = |args: &[&str]| {
        let mut command = stackd();
        said(command.args(["image", "--data-dir"]).arg(&data).args(args).output().unwrap())
    };
    let import = ["import", root.to_str().unwrap(), "app:1", "--entrypoint", "/bin/app"];
    let made = image(&[&import[..], &["--port", "80", "--env", "A=b"]].concat());
    assert_eq!(made.code, 0, "{}", made.err);
    assert_eq!(image(&["list", "-o", "name"]).out, "app:1\n");
    let details: Value = serde_json::from_str(&image(&["inspect", "app:1"]).out).unwrap();
    assert_eq!(details["config"]["Entrypoint"], serde_json::json!(["/bin/app"]));
    assert_eq!(details["ports"][0]["container_port"], 80);
    assert_eq!(image(&["tag", "app:1", "app:2"]).code, 0);
    let removed = image(&["remove", "app:1", "app:2"]);
    assert!(removed.out.contains("untagged app:2\ndeleted sha256:"), "{}", removed.out);
    let gone = image(&["inspect", "app:1"]);
    assert_eq!(gone.code, 6);
    assert!(gone.err.contains("hint: `stackd image list`"), "{}", gone.err);
    assert_eq!(image(&["load", "/nowhere.tar"]).code, 7);

    // The simulated runtime has none, and says so.
    let server = Server::start(&[]);
    assert_eq!(server.local(&["image", "list"]).code, 7);
}

#[test]
fn shells_complete_it() {
    for (shell, word) in
        [("bash", "_stackd()"), ("zsh", "#compdef stackd"), ("fish", "complete -c stackd")]
    {
        let script = run(&["completions", shell]);
        assert_eq!(script.code, 0);
        assert!(script.out.contains(word) && script.out.contains("node-port-range"), "{shell}");
    }
    assert_eq!(run(&["completions", "cmd"]).code, 2);
    assert!(run(&["--version"]).out.starts_with("stackd "));
    assert_eq!(run(&["--help"]).code, 0);
}

#[test]
fn settings_stand_on_either_side_of_a_subcommand() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let data = data.to_str().unwrap();
    for command in ["key", "image"] {
        for args in [[command, "--data-dir", data, "list"], [command, "list", "--data-dir", data]] {
            let listed = run(&args);
            assert_eq!(listed.code, 0, "{args:?}: {}", listed.err);
        }
    }
    assert!(Path::new(data).join("stackd.db").exists());
}
