//! Certificates that nobody else trusts, made by `openssl`.

use std::path::Path;
use std::process::Command;

/// Makes an authority (`ca.pem`) and a certificate of it for 127.0.0.1 (`server.pem`, with
/// `server.key`) in a directory.
pub fn make(dir: &Path) {
    make_for(dir, "127.0.0.1");
}

/// The same for another address. The certificate is good for clients too.
pub fn make_for(dir: &Path, address: &str) {
    let name = format!("subjectAltName=IP:{address}");
    let new_key =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let authority = ["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority"];
    let for_both = ["-days", "2"];
    run("openssl", &[&new_key[..], &authority, &for_both].concat(), dir);
    let server = [
        "-keyout",
        "server.key",
        "-out",
        "server.pem",
        "-subj",
        "/CN=test server",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-addext",
        &name,
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ];
    run("openssl", &[&new_key[..], &server, &for_both].concat(), dir);
}

fn run(program: &str, arguments: &[&str], dir: &Path) {
    let output = Command::new(program).args(arguments).current_dir(dir).output();
    let output = output.unwrap_or_else(|e| missing(program, &e));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A program is not there.
pub(crate) fn missing(program: &str, error: &std::io::Error) -> ! {
    panic!("{program}: {error}; install what the tests need with ci/install-test-deps.sh")
}
