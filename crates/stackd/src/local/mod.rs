//! Commands that work on this machine's data: they ask the running server through its admin socket,
//! or take the data directory's lock and do the work themselves.

pub(crate) mod admin;
pub(crate) mod client;
pub(crate) mod data_dir;
pub(crate) mod first_key;
pub(crate) mod image;
pub(crate) mod key;

use stackd_engine::Keys;
use stackd_store::{Store, StoreConfig};

use crate::config::Config;
use crate::exit::{Exit, Failure};
use data_dir::{DataDir, Lock};

/// Who does the work of a local command.
pub(crate) enum Access {
    /// The server that runs on this data directory.
    Server(client::AdminClient),
    /// This process, which holds the lock meanwhile.
    Direct(Direct),
}

/// The data directory while no server runs on it.
pub(crate) struct Direct {
    pub(crate) data: DataDir,
    _lock: Lock,
}

impl Direct {
    /// The keys, from the database.
    pub(crate) async fn keys(&self, config: &Config) -> Result<Keys, Failure> {
        let store = open_store(config, &self.data).await?;
        let snapshot = store.load().await.map_err(|error| database(&error))?;
        Ok(match config.replicas.enabled {
            true => Keys::of_replicas(store, snapshot.api_keys),
            false => Keys::new(store, snapshot.api_keys),
        })
    }
}

impl Access {
    /// Finds out whether a server runs. `what` is this command, for others who want the lock.
    pub(crate) async fn of(config: &Config, what: &str) -> Result<Self, Failure> {
        let data = DataDir::existing(&config.data_dir)?;
        match data.lock(what)? {
            Ok(lock) => Ok(Self::Direct(Direct { data, _lock: lock })),
            Err(holder) => match client::AdminClient::connect(&data).await {
                Some(client) => Ok(Self::Server(client)),
                None => {
                    let path = data.path().display();
                    let text = format!("{path} is in use by {}, which does not answer", holder.0);
                    Err(Failure::new(Exit::Busy, text)
                        .hint("it may be starting or stopping: try again in a moment"))
                }
            },
        }
    }
}

/// Opens the database that is configured.
pub(crate) async fn open_store(config: &Config, data: &DataDir) -> Result<Store, Failure> {
    let store = match &config.store.database_url {
        Some(url) => StoreConfig::Postgres { url: url.clone() },
        None => {
            let path = data.database();
            make_private(&path)?;
            StoreConfig::Sqlite { path, ballast_bytes: config.store.ballast_bytes }
        }
    };
    Store::open(store).await.map_err(|error| database(&error))
}

/// An empty file that only its owner can read is an empty database; SQLite gives the files that it
/// makes beside it the same mode.
fn make_private(path: &std::path::Path) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let open = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    open.map(drop).map_err(|error| {
        Failure::new(Exit::Config, format!("{} cannot be written: {error}", path.display()))
            .hint("run as the user who owns the data directory, for example with sudo")
    })
}

/// The database did not do what was asked, in words for the operator.
pub(crate) fn database(error: &stackd_store::StoreError) -> Failure {
    let text = match error {
        stackd_store::StoreError::Unavailable { reason, operator } => {
            format!("the database cannot be used: {reason}: {operator}")
        }
        other => format!("the database cannot be used: {other}"),
    };
    Failure::new(Exit::Saturated, text)
        .hint("`stackd doctor` checks it; --database-url or the data directory say where it is")
}
