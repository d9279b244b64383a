//! What must hold before the server begins: settings that fit together, and a process that may do
//! what the runtime needs.

use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, Driver, by_key};
use crate::exit::{Exit, Failure};

/// Settings that contradict each other.
pub(crate) fn settings(config: &Config) -> Result<(), Failure> {
    let server = &config.server;
    let wrong = |text: String| Failure::new(Exit::Config, text);
    if server.listen.is_empty() {
        return Err(wrong("no address to listen on is set".to_owned())
            .hint("give one with --listen, for example 127.0.0.1:8080"));
    }
    for (at, address) in server.listen.iter().enumerate() {
        if address.port() != 0 && server.listen[..at].contains(address) {
            return Err(wrong(format!("--listen {address} is given twice")));
        }
    }
    let open: Vec<&SocketAddr> =
        server.listen.iter().filter(|address| !stackd_server::is_loopback(address)).collect();
    if let (true, Some(address)) = (!config.api.auth, open.first()) {
        return Err(wrong(format!(
            "--no-auth would let everybody who reaches {address} start and remove stacks"
        ))
        .hint("listen on loopback addresses only (127.0.0.1, ::1), or leave --no-auth out"));
    }
    match (&server.tls_cert, &server.tls_key) {
        (Some(_), Some(_)) | (None, None) => {}
        (Some(_), None) => {
            return Err(wrong("--tls-cert is set without --tls-key".to_owned())
                .hint("give the certificate's private key (PEM) with --tls-key"));
        }
        (None, Some(_)) => {
            return Err(wrong("--tls-key is set without --tls-cert".to_owned())
                .hint("give the certificate chain (PEM) with --tls-cert"));
        }
    }
    if let (None, false, Some(address)) = (&server.tls_cert, server.insecure_http, open.first()) {
        return Err(wrong(format!(
            "{address} is not a loopback address: without TLS, keys and data would travel in \
             clear text"
        ))
        .hint("give --tls-cert and --tls-key, or listen on 127.0.0.1")
        .hint("behind a proxy that ends TLS, on a network that is trusted, add --insecure-http"));
    }
    let url = config.store.database_url.as_deref();
    if let Some((scheme, _)) = url.map(|url| url.split_once("://").unwrap_or(("", url)))
        && !matches!(scheme, "postgres" | "postgresql")
    {
        return Err(wrong("--database-url is not the URL of a PostgreSQL database".to_owned())
            .hint(
                "write postgres://user:password@host:port/database, or leave it out for SQLite",
            ));
    }
    super::replica::check(config)?;
    config.api.check().map_err(|error| wrong(format!("[api]: {error}")))?;
    let challenges = config.engine.challenges.check();
    challenges.map_err(|error| wrong(format!("[engine.challenges]: {error}")))?;
    let engine = &config.engine;
    engine
        .limit_range
        .validate()
        .map_err(|error| wrong(format!("engine.limit_range: {error}; no stack could be made")))?;
    if engine.pids_limit == 0 {
        return Err(wrong("--pids-limit 0 would let no process start".to_owned())
            .hint("the default is right for most; a web server wants some dozens"));
    }
    if engine.max_waiting_starts == 0 {
        return Err(wrong("--max-waiting-starts 0 would let no stack start".to_owned())
            .hint("a stack waits for its start slot, if only for a moment; write at least 1"));
    }
    if !is_dns_label(&config.api.namespace) {
        let text = format!("--namespace: {:?} is not a DNS label", config.api.namespace);
        return Err(wrong(text).hint("write 1 to 63 lower-case letters, digits and '-'"));
    }
    runtime(config)?;
    if engine.min_ttl > engine.max_ttl {
        return Err(wrong("engine.min_ttl is longer than engine.max_ttl".to_owned()));
    }
    if engine.default_ttl < engine.min_ttl || engine.default_ttl > engine.max_ttl {
        return Err(wrong("engine.default_ttl is not between min_ttl and max_ttl".to_owned())
            .hint("set --default-ttl, --min-ttl and --max-ttl together"));
    }
    Ok(())
}

fn is_dns_label(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len())
        && text.chars().all(fits)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Settings of the runtime that was chosen.
fn runtime(config: &Config) -> Result<(), Failure> {
    let wrong = |key: &str, why: String| {
        let flag = by_key(key).map_or_else(|| key.to_owned(), |s| format!("--{}", s.flag));
        let failure = Failure::new(Exit::Config, format!("{flag}: {why}"));
        by_key(key).map_or(failure.clone(), |setting| failure.hint(setting.doc()))
    };
    let runtime = &config.runtime;
    match runtime.driver {
        Driver::Docker if !runtime.docker.is_here() => Ok(()),
        Driver::Oci | Driver::Docker => {
            let oci = &runtime.oci;
            oci.check().map_err(|(name, why)| wrong(&format!("runtime.oci.{name}"), why))?;
            oci.check_bind().map_err(|error| {
                let why = format!("{}: {error}", oci.node_port_bind);
                wrong("runtime.oci.node_port_bind", why)
                    .hint("it must be an address of this machine (`ip address`), or 0.0.0.0")
            })
        }
        Driver::Kubernetes => Ok(()),
        Driver::Simulated => {
            let simulated = &runtime.simulated;
            let shares =
                [("failure_rate", simulated.failure_rate), ("retry_rate", simulated.retry_rate)];
            match shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
                Some((name, share)) => Err(wrong(
                    &format!("runtime.simulated.{name}"),
                    format!("{share} is not between 0 and 1"),
                )),
                None => Ok(()),
            }
        }
    }
}

/// The user who runs the server.
pub(crate) fn user(config: &Config, is_root: bool) -> Result<(), Failure> {
    match config.runtime.driver {
        _ if is_root => return Ok(()),
        Driver::Oci => {}
        Driver::Docker if config.runtime.docker.is_here() => {
            let text = "the docker runtime needs root with an engine on this machine: it enters \
                        the networks of containers";
            return Err(Failure::new(Exit::Unfit, text).hint(
                "run it as root: `sudo stackd serve`, or as a service \
                 (contrib/systemd/stackd.service)",
            ));
        }
        Driver::Docker | Driver::Kubernetes | Driver::Simulated => return Ok(()),
    }
    Err(Failure::new(
        Exit::Unfit,
        "the oci runtime needs root: it makes namespaces, mounts and cgroups for every stack",
    )
    .hint("run it as root: `sudo stackd serve`, or as a service (contrib/systemd/stackd.service)")
    .hint("to try the API without containers: `stackd serve --runtime simulated --data-dir DIR`"))
}

/// Raises the limit on open files to what the system allows: a stack holds several.
pub(crate) fn raise_file_limit() -> Rlimit {
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: now.maximum, maximum: now.maximum };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, "the limit on open files stays as it is");
            now
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Config)) -> Result<(), String> {
        let mut config = Config::default();
        change(&mut config);
        settings(&config).map_err(|failure| failure.to_string())
    }

    fn listen(config: &mut Config, address: &str) {
        config.server.listen = vec![address.parse().unwrap()];
    }

    #[test]
    fn the_defaults_and_loopback_addresses_are_fine() {
        assert_eq!(with(|_| ()), Ok(()));
        for address in ["127.0.0.1:0", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(with(|c| listen(c, address)), Ok(()), "{address}");
        }
    }

    #[test]
    fn other_addresses_want_tls_or_a_word() {
        for address in ["0.0.0.0:8080", "192.0.2.1:8080", "[::]:8080"] {
            let plain = with(|c| listen(c, address)).unwrap_err();
            assert!(plain.contains(&format!("{address} is not a loopback address")), "{plain}");
            let tls = |c: &mut Config| {
                listen(c, address);
                c.server.tls_cert = Some("cert.pem".into());
                c.server.tls_key = Some("key.pem".into());
            };
            assert_eq!(with(tls), Ok(()));
            let insecure = |c: &mut Config| {
                listen(c, address);
                c.server.insecure_http = true;
            };
            assert_eq!(with(insecure), Ok(()));
        }
    }

    #[test]
    fn authentication_is_only_off_on_loopback() {
        assert_eq!(with(|c| c.api.auth = false), Ok(()));
        let open = with(|c| {
            c.api.auth = false;
            c.server.insecure_http = true;
            c.server.listen.push("0.0.0.0:1".parse().unwrap());
        });
        assert!(open.unwrap_err().starts_with("--no-auth would let everybody"));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        assert!(with(|c| c.server.listen.clear()).is_err());
        assert!(with(|c| c.server.tls_cert = Some("c".into())).is_err());
        assert!(with(|c| c.server.tls_key = Some("k".into())).is_err());
        assert!(with(|c| c.engine.max_ttl = c.engine.default_ttl / 2).is_err());
        let database = |url: &str| with(|c| c.store.database_url = Some(url.to_owned()));
        for good in ["postgres://u:p@h:5432/d", "postgresql://h/d"] {
            assert_eq!(database(good), Ok(()), "{good}");
        }
        for bad in ["mysql://u:secret@h/d", "/var/lib/secret.db", "secret"] {
            assert!(!database(bad).unwrap_err().contains("secret"), "{bad}");
        }
        let twice = |c: &mut Config| {
            listen(c, "127.0.0.1:80");
            listen_again(c);
        };
        fn listen_again(config: &mut Config) {
            config.server.listen.push(config.server.listen[0]);
        }
        assert!(with(twice).unwrap_err().contains("twice"));
        assert!(with(|c| c.engine.pids_limit = 0).unwrap_err().contains("--pids-limit"));
        for name in ["", "A b", "-a", "a."] {
            let refused = with(|c| c.api.namespace = name.to_owned()).unwrap_err();
            assert!(refused.contains("not a DNS label"), "{refused}");
        }
    }

    #[test]
    fn settings_of_the_runtime_are_named_by_their_flag() {
        let refused = with(|c| c.runtime.oci.first_id = 0).unwrap_err();
        assert!(refused.starts_with("--first-id: 0 is not between"), "{refused}");
        let refused = with(|c| c.runtime.oci.node_port_bind = "192.0.2.7".parse().unwrap());
        assert!(refused.unwrap_err().starts_with("--node-port-bind: 192.0.2.7: "));
        let simulated = |c: &mut Config| {
            c.runtime.driver = Driver::Simulated;
            // Those of another runtime are of no concern.
            c.runtime.oci.first_id = 0;
        };
        assert_eq!(with(simulated), Ok(()));
        let refused = with(|c| {
            simulated(c);
            c.runtime.simulated.retry_rate = 2.0;
        });
        assert_eq!(refused.unwrap_err(), "--simulated-retry-rate: 2 is not between 0 and 1");
    }

    #[test]
    fn without_root_it_says_what_it_needs() {
        let mut config = Config::default();
        let text = crate::exit::render(&user(&config, false).unwrap_err().into());
        assert!(text.contains("the oci runtime needs root") && text.contains("hint: "), "{text}");
        assert!(user(&config, true).is_ok());
        config.runtime.driver = Driver::Simulated;
        assert!(user(&config, false).is_ok());
        config.runtime.driver = Driver::Docker;
        assert!(user(&config, false).is_err());
        config.runtime.docker.host = "tcp://192.0.2.1:2376".to_owned();
        assert!(user(&config, false).is_ok(), "nothing of this machine is entered");
    }
}
