//! The keys of the API: the first one, those that are made and revoked, and where none may be seen.

use super::*;

#[test]
fn the_first_key_is_in_a_file_and_nowhere_else() {
    let server = Server::start(&[]);
    let key = server.key();
    assert_eq!((key.len(), mode(&server.data.join("api-key"))), (64, 0o600));
    assert_eq!(mode(&server.data.join("admin.sock")), 0o600);
    assert_eq!(mode(&server.data.join("stackd.db")), 0o600);
    assert_eq!(server.status("/healthz", Some(&key)), 200);
    assert_eq!(server.status("/healthz", None), 401);
    let (code, out, log, dir) = server.stop();
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(log.contains("made the first API key") && !log.contains(&key), "{log}");

    let again = Server::start_in(dir, &[], &[]);
    assert_eq!(again.key(), key);
    assert_eq!(again.status("/healthz", Some(&key)), 200);
    assert_eq!(again.local(&["key", "list", "-o", "name"]).out, "default\n");
}

#[test]
fn a_key_from_the_environment_takes_the_place_of_the_first_one() {
    let server = Server::start(&[]);
    let first = server.key();
    let (_, _, _, dir) = server.stop();
    let mine = "a-key-that-the-operator-chose";
    let server = Server::start_in(dir, &[], &[("STACKD_API_KEY", mine)]);
    assert_eq!(server.status("/healthz", Some(mine)), 200);
    assert_eq!(server.status("/healthz", Some(&first)), 401);
    assert!(!server.data.join("api-key").exists());
    let (_, _, log, dir) = server.stop();
    assert!(!log.contains(mine));

    let short = stackd()
        .args(["serve", "--runtime", "simulated", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path().join("data"))
        .env("STACKD_API_KEY", "short")
        .output();
    let short = said(short.unwrap());
    assert_eq!(short.code, 3);
    assert!(short.err.contains("at least 16 characters") && short.err.contains("hint: "));
}

#[test]
fn a_key_from_the_environment_that_is_known_already_keeps_nobody_out() {
    let server = Server::start(&[]);
    let first = server.key();
    let ci = server.local(&["key", "create", "ci", "--file", "-"]).out.trim().to_owned();
    let (_, _, _, dir) = server.stop();
    // That of another name: both stay good.
    let server = Server::start_in(dir, &[], &[("STACKD_API_KEY", &ci)]);
    assert_eq!(server.status("/healthz", Some(&ci)), 200);
    assert_eq!(server.status("/healthz", Some(&first)), 200);
    assert_eq!(server.local(&["key", "revoke", "ci"]).code, 0);
    let again = server.local(&["key", "revoke", "ci"]);
    assert!(again.code == 6 && again.err.contains("revoked already"), "{}", again.err);
    let (_, _, _, dir) = server.stop();
    // One that was revoked stays so, and the server goes on with the others.
    let server = Server::start_in(dir, &[], &[("STACKD_API_KEY", &ci)]);
    assert_eq!(server.status("/healthz", Some(&ci)), 401);
    assert_eq!(server.status("/healthz", Some(&first)), 200);
    let (_, _, log, _) = server.stop();
    assert!(log.contains("the key of STACKD_API_KEY was revoked and stays so"), "{log}");
    assert!(!log.contains(&ci));
}

#[test]
fn keys_are_made_and_revoked_while_the_server_runs() {
    let server = Server::start(&[]);
    let file = server._dir.path().join("ci-key");
    let silent = server.local(&["key", "create", "ci"]);
    assert_eq!((silent.code, silent.out.as_str()), (2, ""));
    assert!(silent.err.contains("hint: `--file FILE`"), "{}", silent.err);

    let made = server.local(&["key", "create", "ci", "--file", file.to_str().unwrap()]);
    assert_eq!((made.code, made.out.as_str(), mode(&file)), (0, "", 0o600), "{}", made.err);
    let key = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    assert_eq!(server.status("/stacks", Some(&key)), 200);
    assert_eq!(server.local(&["key", "create", "ci", "--file", "-"]).code, 7);
    assert_eq!(server.local(&["key", "create", "a b", "--file", "-"]).code, 2);
    let dialect = server.local(&["key", "create", "x", "--dialect", "nope", "--file", "-"]);
    assert!(dialect.code == 2 && dialect.err.contains("[possible values: provisioner"));

    assert_eq!(server.local(&["key", "revoke", "ci"]).code, 0);
    assert_eq!(server.status("/stacks", Some(&key)), 401);
    assert_eq!(server.local(&["key", "revoke", "ci"]).code, 6);
    assert_eq!(server.local(&["key", "revoke", "../info"]).code, 6);
    let table = server.local(&["key", "list"]).out;
    assert!(table.lines().any(|l| l.starts_with("ci") && l.contains("revoked")), "{table}");
    // A key that may not run commands gets to know that.
    let other = server.local(&["key", "create", "other", "--file", "-"]).out;
    let id = server.create();
    let denied = server.stack(&["--api-key", other.trim(), "exec", &id, "--", "true"]);
    assert_eq!(denied.code, 125);
    assert!(denied.err.contains("hint: `stackd key create NAME --allow exec`"), "{}", denied.err);
}

#[test]
fn keys_are_made_and_revoked_while_no_server_runs() {
    let server = Server::start(&[]);
    let data = server.data.to_str().unwrap().to_owned();
    let (_, _, _, dir) = server.stop();
    let made =
        run(&["key", "--data-dir", &data, "create", "ops", "--allow", "exec", "--file", "-"]);
    assert_eq!(made.code, 0, "{}", made.err);
    let list = run(&["key", "--data-dir", &data, "list", "-o", "json"]);
    let keys: Value = serde_json::from_str(&list.out).unwrap();
    assert_eq!(keys[1]["name"], "ops");
    assert_eq!(keys[1]["permissions"], serde_json::json!(["exec"]));
    assert_eq!(run(&["key", "--data-dir", &data, "revoke", "default"]).code, 0);
    let server = Server::start_in(dir, &[], &[]);
    assert_eq!(server.status("/healthz", Some(made.out.trim())), 200);
    assert_eq!(server.status("/healthz", Some(&server.key())), 401);
    assert_eq!(run(&["key", "--data-dir", "/nowhere/at/all", "list"]).code, 3);
}

#[test]
fn a_key_is_shown_on_a_terminal() {
    let (controller, terminal) = terminal();
    let server = Server::start(&[]);
    let mut command = stackd();
    command.args(["key", "create", "mine"]).env("STACKD_DATA_DIR", &server.data);
    let status = command.stdout(terminal).stderr(Stdio::null()).status().unwrap();
    drop(command);
    assert!(status.success());
    let key = shown_on(controller).trim().to_owned();
    assert_eq!(key.len(), 64, "{key}");
    assert_eq!(server.status("/healthz", Some(&key)), 200);
}

#[test]
fn the_first_key_is_shown_on_a_terminal_once() {
    let (controller, screen) = terminal();
    let server = Server::start_with(tempfile::tempdir().unwrap(), &[], &[], Stdio::from(screen));
    let key = server.key();
    let (_, _, log, dir) = server.stop();
    assert_eq!(shown_on(controller).trim(), format!("API key: {key}"));
    assert!(!log.contains(&key), "{log}");

    let (controller, screen) = terminal();
    let again = Server::start_with(dir, &[], &[], Stdio::from(screen));
    assert_eq!(again.key(), key);
    again.stop();
    assert_eq!(shown_on(controller), "");
}

#[test]
fn a_key_from_the_environment_is_looked_at_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut command = stackd();
    command.args(["serve", "--runtime", "simulated", "--listen", "127.0.0.1:0", "--data-dir"]);
    let refused = said(command.arg(&data).env("STACKD_API_KEY", "short").output().unwrap());
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(refused.err.contains("STACKD_API_KEY must have at least"), "{}", refused.err);
    assert!(!data.exists());
}

#[test]
fn no_log_line_holds_a_key() {
    let server = Server::start(&["--log-level", "trace"]);
    let key = server.key();
    for path in ["/stacks", "/healthz", "/events/nowhere", "/stacks/x", "/stacks/x/exec"] {
        server.status(&format!("{path}?a=b&api_key={key}"), None);
        server.status(path, Some(&key));
        server.status(&format!("{path}?api_key=wrong-{key}"), Some(&format!("wrong-{key}")));
    }
    assert_eq!(server.status(&format!("/stacks?limit=1&api_key={key}"), None), 200);
    let id = server.create();
    server.stack(&["exec", &id, "--", "true"]);
    let (code, out, log, _dir) = server.stop();
    assert_eq!(code, 0);
    assert!(log.contains("\"answered\""), "the requests are in the log");
    assert!(!out.contains(&key));
    let leaks: Vec<_> =
        log.lines().filter(|line| line.contains(&key) || line.contains("api_key=")).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[test]
fn without_authentication_everybody_on_this_machine_may() {
    let server = Server::start(&["--no-auth"]);
    assert_eq!(server.status("/stacks", None), 200);
    assert!(!server.data.join("api-key").exists());
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
