//! Whose credentials a registry gets: those of a Docker `config.json`.
//!
//! Credential helpers are run, as `docker` runs them: a program that the file names by a suffix,
//! looked for on the path, asked through its standard input. Nothing that it says, and no secret,
//! is ever logged.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// What a helper prints when it knows nothing of a registry.
const HELPER_NOT_FOUND: &str = "credentials not found";
/// The user name under which helpers give identity tokens.
const TOKEN_USER: &str = "<token>";

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Password {
        user: String,
        password: String,
    },
    /// To be exchanged for an access token at the registry's token server.
    IdentityToken(String),
    /// To be sent as it is.
    RegistryToken(String),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
    #[serde(default)]
    registrytoken: Option<String>,
}

/// Finds the credentials for a registry or mirror; without a file there are none. The error is for
/// the operator.
pub(crate) async fn find(host: &str, path: Option<&Path>) -> Result<Credentials, String> {
    let Some(path) = path else { return Ok(Credentials::Anonymous) };
    let file = read(path)?;
    let server = server_names(host);
    let helper = server
        .iter()
        .find_map(|name| file.cred_helpers.get(name))
        .or(file.creds_store.as_ref())
        .filter(|helper| !helper.is_empty());
    if let Some(helper) = helper {
        // Helpers know the default registry by its old address only.
        let name = server.first().map_or(host, String::as_str);
        if let Some(found) = ask_helper(helper, name).await? {
            return Ok(found);
        }
    }
    let entry = file.auths.iter().find(|(key, _)| {
        let key = bare(key);
        server.iter().any(|name| bare(name) == key)
    });
    match entry {
        Some((_, entry)) => entry.credentials(),
        None => Ok(Credentials::Anonymous),
    }
}

fn read(path: &Path) -> Result<ConfigFile, String> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    // The parser's message could quote a secret; its place cannot.
    serde_json::from_slice(&text).map_err(|e| {
        format!(
            "{}: not a Docker config.json (line {}, column {})",
            path.display(),
            e.line(),
            e.column()
        )
    })
}

/// The names under which a registry may stand in the file, the best first.
fn server_names(host: &str) -> Vec<String> {
    if matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io") {
        let names = ["https://index.docker.io/v1/", "index.docker.io", "docker.io"];
        return names.map(str::to_owned).to_vec();
    }
    vec![host.to_owned()]
}

/// A key of `auths` without scheme and path: older clients wrote both.
fn bare(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

impl Entry {
    fn credentials(&self) -> Result<Credentials, String> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Credentials::RegistryToken(token));
        }
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Credentials::IdentityToken(token));
        }
        if let Some(auth) = given(&self.auth) {
            let text = STANDARD.decode(auth.trim()).ok().and_then(|b| String::from_utf8(b).ok());
            let (user, password) = text
                .as_deref()
                .and_then(|text| text.split_once(':'))
                .ok_or("an \"auth\" is not the base64 of user:password")?;
            // Old clients padded with NULs.
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Credentials::Password { user: user.to_owned(), password });
        }
        match (given(&self.username), given(&self.password)) {
            (Some(user), Some(password)) => Ok(Credentials::Password { user, password }),
            _ => Ok(Credentials::Anonymous),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

async fn ask_helper(helper: &str, server: &str) -> Result<Option<Credentials>, String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !helper.chars().all(safe) {
        return Err(format!("\"{helper}\" is not the name of a credential helper"));
    }
    let program = format!("docker-credential-{helper}");
    let run = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("{program}: {e}; install it, or log in without a helper"))?;
        let fault = |e: io::Error| format!("{program}: {e}");
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read is found out by its answer.
            let _broken_pipe = stdin.write_all(server.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(64 << 10).read_to_end(&mut answer).await.map_err(fault)?;
        }
        let status = child.wait().await.map_err(fault)?;
        Ok::<_, String>((status, answer))
    };
    let (status, answer) = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| format!("{program} does not answer"))??;
    if !status.success() {
        if String::from_utf8_lossy(&answer).contains(HELPER_NOT_FOUND) {
            return Ok(None);
        }
        return Err(format!("{program} failed ({status}); run it by hand to see why"));
    }
    let answer: HelperAnswer = serde_json::from_slice(&answer)
        .map_err(|_| format!("{program} gave an answer that cannot be read"))?;
    Ok(Some(if answer.username == TOKEN_USER {
        Credentials::IdentityToken(answer.secret)
    } else {
        Credentials::Password { user: answer.username, password: answer.secret }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn found(json: &str, host: &str) -> Result<Credentials, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        find(host, Some(&path)).await
    }

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.to_owned(), password: password.to_owned() }
    }

    #[tokio::test]
    async fn credentials_are_found_by_registry() {
        let json = format!(
            r#"{{"auths":{{
                "https://index.docker.io/v1/":{{"auth":"{}"}},
                "registry.example:5000":{{"username":"u","password":"p"}},
                "https://old.example/v1/":{{"auth":"{}"}},
                "token.example":{{"identitytoken":"idt"}},
                "raw.example":{{"registrytoken":"rt"}},
                "empty.example":{{}}
            }}}}"#,
            STANDARD.encode("hub:with:colon"),
            STANDARD.encode("a:b"),
        );
        for (host, expected) in [
            ("index.docker.io", password("hub", "with:colon")),
            ("registry.example:5000", password("u", "p")),
            ("registry.example", Credentials::Anonymous),
            ("old.example", password("a", "b")),
            ("token.example", Credentials::IdentityToken("idt".to_owned())),
            ("raw.example", Credentials::RegistryToken("rt".to_owned())),
            ("empty.example", Credentials::Anonymous),
            ("other.example", Credentials::Anonymous),
        ] {
            assert!(found(&json, host).await.unwrap() == expected, "{host}");
        }
    }

    #[tokio::test]
    async fn faults_name_the_file_and_never_the_secret() {
        for (json, text) in [
            (r#"{"auths":{"x":{"auth":"c2VjcmV0"}}}"#, "not the base64 of user:password"),
            (r#"{"auths":{"x":{"password":"secret" 1}}}"#, "line 1, column"),
            (r#"{"credHelpers":{"x":"../secret"}}"#, "is not the name of a credential helper"),
            (r#"{"credsStore":"nobody-has-this"}"#, "docker-credential-nobody-has-this"),
        ] {
            let error = found(json, "x").await.err().unwrap();
            assert!(error.contains(text), "{error}");
            assert!(!error.replace("../secret", "").contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn no_file_is_no_credentials() {
        let path = Path::new("/nonexistent/config.json");
        assert!(find("x", Some(path)).await.unwrap() == Credentials::Anonymous);
    }
}
