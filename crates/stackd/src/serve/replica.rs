//! How this server takes part where there may be several on one database.

use stackd_engine::{ReplicaConfig, StartError};
use stackd_server::Tls;
use stackd_store::Candidate;

use super::parts::Parts;
use crate::config::Config;
use crate::exit::{Exit, Failure};

/// How it does.
pub(super) enum Part {
    /// Nobody else reaches its database.
    Owner,
    /// It is by itself on a database that others reach too.
    Alone(ReplicaConfig),
    /// It is one of several.
    Replica(ReplicaConfig),
}

/// What the settings say.
pub(super) fn of(
    config: &Config,
    addresses: &[String],
    tls: Option<&Tls>,
    runtime: &Parts,
) -> Result<Part, Failure> {
    let replicas = &config.replicas;
    let with =
        |candidate| ReplicaConfig { candidate, lease: replicas.lease, renew: replicas.renew };
    if !replicas.enabled {
        return Ok(match config.store.database_url {
            None => Part::Owner,
            Some(_) => {
                let name = rustix::system::uname();
                let name = name.nodename().to_string_lossy();
                let id = format!("process {} on {name}", std::process::id());
                Part::Alone(with(Candidate::alone(id)))
            }
        });
    }
    let capabilities = runtime.runtime.capabilities();
    if capabilities.machine.is_some() && config.runtime.simulated.directory.is_none() {
        return Err(of_one_machine(&capabilities.name));
    }
    let bits = getrandom::u64().map_err(|error| {
        Failure::new(Exit::Unfit, format!("the kernel gives no random bytes: {error}"))
    })?;
    let address = match &replicas.advertise {
        Some(address) => address.trim_end_matches('/').to_owned(),
        None => addresses.first().cloned().unwrap_or_default(),
    };
    let certificate = tls.map(|tls| tls.fingerprint().to_owned()).unwrap_or_default();
    tracing::info!(address, "one of several replicas");
    Ok(Part::Replica(with(Candidate { id: format!("{bits:016x}"), address, certificate })))
}

/// Two servers that do not know of each other would both decide.
pub(super) fn not_started(error: StartError) -> anyhow::Error {
    match error {
        StartError::Held(holder) if holder.is_alone() => {
            let text = format!("another server uses this database: {}", holder.id);
            Failure::new(Exit::Busy, text)
                .hint("stop it first, or give each server a database of its own")
                .hint("several servers share a database where all of them are given --replicas")
                .into()
        }
        StartError::Held(holder) => {
            let text = format!("replicas use this database; {} leads them", holder.address);
            Failure::new(Exit::Busy, text)
                .hint("add --replicas to be one of them, or stop them all first")
                .into()
        }
        other => anyhow::Error::new(other).context("the engine cannot start"),
    }
}

/// Another server has begun to decide, while this one did not reach the database.
pub(super) fn ousted() -> Failure {
    Failure::new(Exit::Busy, "another server has taken this database over; stacks go on")
        .hint("only one server by itself may use a database: stop the other, or leave this one out")
}

/// A runtime that no other replica can reach.
pub(super) fn of_one_machine(name: &str) -> Failure {
    Failure::new(
        Exit::Config,
        format!(
            "--replicas does not go with the {name} runtime: its stacks are on one machine, and no \
             other server could take over"
        ),
    )
    .hint("use a runtime that every replica reaches, or leave --replicas out")
}

/// What can be said from the settings alone.
pub(super) fn check(config: &Config) -> Result<(), Failure> {
    use crate::config::Driver;
    let replicas = &config.replicas;
    let wrong = |text: &str| Failure::new(Exit::Config, text);
    let holds_lease = replicas.enabled || config.store.database_url.is_some();
    if holds_lease && (replicas.renew.is_zero() || replicas.renew * 2 > replicas.lease) {
        return Err(wrong("--replica-renew must be above 0 and at most half of --replica-lease"));
    }
    if !replicas.enabled {
        return Ok(());
    }
    match config.runtime.driver {
        Driver::Oci => return Err(of_one_machine("oci")),
        Driver::Docker => return Err(of_one_machine("docker")),
        Driver::Simulated if config.runtime.simulated.directory.is_none() => {
            return Err(of_one_machine("simulated")
                .hint("--simulated-directory lets servers on one machine share their stacks"));
        }
        _ => {}
    }
    if config.store.database_url.is_none() {
        return Err(wrong("--replicas needs a PostgreSQL database that all of them use")
            .hint("give its URL with --database-url"));
    }
    let tls = config.server.tls_cert.is_some();
    let Some(advertise) = &replicas.advertise else {
        let first = config.server.listen.first();
        return match first.filter(|address| address.ip().is_unspecified()) {
            Some(address) => {
                Err(wrong(&format!("other replicas cannot reach this one at {address}"))
                    .hint("say where they can: --advertise http://ADDRESS:PORT"))
            }
            None => Ok(()),
        };
    };
    let url = reqwest::Url::parse(advertise)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .filter(|url| url.path() == "/" && url.query().is_none() && url.username().is_empty());
    match url {
        None => Err(wrong(&format!("--advertise {advertise:?} is not an address"))
            .hint("write it as http://host:port or https://host:port")),
        Some(url) if tls && url.scheme() == "http" => {
            Err(wrong("--advertise is http, but with --tls-cert every listener speaks https"))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Driver;

    fn with(change: impl FnOnce(&mut Config)) -> Result<(), String> {
        let mut config = Config::default();
        config.replicas.enabled = true;
        config.runtime.driver = Driver::Simulated;
        config.runtime.simulated.directory = Some("/tmp/stacks".into());
        config.store.database_url = Some("postgres://h/d".to_owned());
        change(&mut config);
        check(&config).map_err(|failure| failure.to_string())
    }

    fn refused(change: impl FnOnce(&mut Config), text: &str) {
        let error = with(change).unwrap_err();
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn replicas_need_a_database_and_a_runtime_that_all_of_them_reach() {
        assert_eq!(with(|_| ()), Ok(()));
        refused(|c| c.runtime.driver = Driver::Oci, "does not go with the oci runtime");
        refused(|c| c.runtime.driver = Driver::Docker, "does not go with the docker runtime");
        refused(|c| c.runtime.simulated.directory = None, "does not go with the simulated runtime");
        refused(|c| c.store.database_url = None, "needs a PostgreSQL database");
        refused(|c| c.replicas.renew = c.replicas.lease, "at most half");
        let alone = |c: &mut Config| {
            c.replicas.enabled = false;
            c.runtime.driver = Driver::Oci;
        };
        assert_eq!(with(alone), Ok(()));
    }

    #[test]
    fn others_must_be_able_to_reach_a_replica() {
        let advertise = |text: &str| with(|c| c.replicas.advertise = Some(text.to_owned()));
        for good in ["http://10.0.0.1:8080", "https://replica-1.stackd:443/", "http://[::1]:1"] {
            assert_eq!(advertise(good), Ok(()), "{good}");
        }
        for bad in ["10.0.0.1:8080", "ftp://h", "http://h/path", "http://u@h", ""] {
            assert!(advertise(bad).unwrap_err().contains("is not an address"), "{bad}");
        }
        let everywhere = |c: &mut Config| c.server.listen = vec!["0.0.0.0:8080".parse().unwrap()];
        refused(everywhere, "cannot reach this one at 0.0.0.0:8080");
        let mixed = |c: &mut Config| {
            c.server.tls_cert = Some("c.pem".into());
            c.replicas.advertise = Some("http://h:1".to_owned());
        };
        refused(mixed, "every listener speaks https");
    }
}
