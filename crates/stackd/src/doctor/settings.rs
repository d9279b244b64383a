//! Do the settings fit together, and is what they name there and free?

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};

use super::Check;
use crate::config::Config;
use crate::local::client::AdminClient;
use crate::local::data_dir::DataDir;
use crate::serve;

pub(super) async fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![match serve::check_settings(config) {
        Ok(()) => Check::ok("settings", "they fit together"),
        Err(failure) => Check::failed("settings", failure.to_string(), failure.hints().join("; ")),
    }];
    let server = running(config).await;
    checks.push(data_dir(config, server.as_deref()));
    match &server {
        Some(holder) => {
            checks.push(Check::ok("listeners", format!("held by {holder}")));
        }
        None => checks.extend(config.server.listen.iter().map(listener)),
    }
    if let (Some(certificate), Some(key)) = (&config.server.tls_cert, &config.server.tls_key) {
        checks.push(match stackd_server::Tls::load(certificate, key) {
            Ok(_) => Check::ok("TLS", format!("{}", certificate.display())),
            Err(error) => Check::failed(
                "TLS",
                error.to_string(),
                "both files are PEM, the key is not encrypted, and the certificate is for the key",
            ),
        });
    }
    checks.push(database(config).await);
    checks
}

/// Who runs on the data directory, if a server does.
async fn running(config: &Config) -> Option<String> {
    let data = DataDir::existing(&config.data_dir).ok()?;
    if !data.admin_socket().exists() {
        return None;
    }
    let info = AdminClient::connect(&data).await?.info().await.ok()?;
    Some(format!("a running server, process {}", info.pid))
}

fn data_dir(config: &Config, server: Option<&str>) -> Check {
    let path = &config.data_dir;
    let name = "data directory";
    if let Some(holder) = server {
        return Check::ok(name, format!("{}, in use by {holder}", path.display()));
    }
    let there = nearest(path);
    if !there.is_dir() {
        let text = format!("{} is not a directory", there.display());
        return Check::failed(name, text, "name another with --data-dir");
    }
    match access(&there, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if path.exists() => Check::ok(name, path.display().to_string()),
        Ok(()) => Check::ok(name, format!("{} will be made", path.display())),
        Err(error) => Check::failed(
            name,
            format!("{} cannot be written: {error}", there.display()),
            "run as root, or name another directory with --data-dir",
        ),
    }
}

/// The path itself, or what is there of it.
pub(super) fn nearest(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|part| part.exists()).map_or("/".into(), Path::to_owned)
}

fn listener(address: &std::net::SocketAddr) -> Check {
    let name = format!("listen {address}");
    match TcpListener::bind(address) {
        Ok(_) => Check::ok(&name, "free"),
        Err(error) => Check::failed(
            &name,
            error.to_string(),
            "stop what listens there (`ss -ltnp`), or choose another address with --listen",
        ),
    }
}

async fn database(config: &Config) -> Check {
    let name = "database";
    let Some(url) = &config.store.database_url else {
        let path = config.data_dir.join("stackd.db");
        let there = if path.exists() { "" } else { ", which will be made" };
        return Check::ok(name, format!("SQLite, {}{there}", path.display()));
    };
    let fix = "the URL is postgres://user:password@host:port/database, and the server must run";
    // The URL holds a password: of it, only the host is shown.
    let parsed = reqwest::Url::parse(url).ok().filter(|url| url.scheme().starts_with("postgres"));
    let Some(url) = parsed else {
        return Check::failed(name, "the URL is not one of PostgreSQL", fix);
    };
    let host = url.host_str().unwrap_or("localhost").trim_matches(['[', ']']).to_owned();
    let port = url.port().unwrap_or(5432);
    let connect = tokio::net::TcpStream::connect((host.as_str(), port));
    match tokio::time::timeout(Duration::from_secs(5), connect).await {
        Ok(Ok(_)) => Check::ok(name, format!("PostgreSQL answers at {host}:{port}")),
        Ok(Err(error)) => Check::failed(name, format!("{host}:{port}: {error}"), fix),
        Err(_) => Check::failed(name, format!("{host}:{port} does not answer"), fix),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let check = listener(&taken.local_addr().unwrap());
        assert_eq!(check.status, Status::Failed);
        drop(taken);
        assert_eq!(listener(&"127.0.0.1:0".parse().unwrap()).status, Status::Ok);
    }

    #[tokio::test]
    async fn a_database_that_does_not_answer_is_found_without_telling_the_password() {
        let mut config = Config::default();
        config.store.database_url = Some("postgres://u:hunter2@127.0.0.1:1/d".to_owned());
        let check = database(&config).await;
        assert_eq!(check.status, Status::Failed);
        assert!(!format!("{check:?}").contains("hunter2"));
        config.store.database_url = Some("mysql://u:hunter2@h/d".to_owned());
        let check = database(&config).await;
        assert_eq!(check.status, Status::Failed);
        assert!(!format!("{check:?}").contains("hunter2"));
    }
}
