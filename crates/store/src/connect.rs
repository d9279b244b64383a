//! Connections: how each kind of database is opened, and for how long it may keep us waiting.
//!
//! The URL is parsed once and never handed on as text: sea-orm would put it into its spans.

use std::str::FromStr;
use std::time::Duration;

use sea_orm::sqlx::ConnectOptions as _;
use sea_orm::sqlx::Executor as _;
use sea_orm::sqlx::pool::PoolOptions;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{Postgres, Sqlite};
use sea_orm::{DatabaseConnection, DbBackend};

use crate::fault::{Fault, Kind};
use crate::{StoreConfig, StoreError};

/// How long a connection may take, from nothing. SQLite waits as long for a lock.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a read or a commit may take in all. A caller of ours gives up after 5 s.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Connections that read at the same time.
const READERS: u32 = 4;

/// Shapes of statements that stay prepared on a connection.
const STATEMENT_CACHE: usize = 256;

/// What PostgreSQL is told for every session: to give up no later than we do, to free the locks of
/// a server that has vanished in the middle of a transaction, and to acknowledge a commit only when
/// it is on disk, whatever its configuration says. (`on` is left alone, and so is what is stricter.)
const POSTGRES_SESSION: &str = "\
    SET statement_timeout = '4s'; \
    SET lock_timeout = '3s'; \
    SET idle_in_transaction_session_timeout = '10s'; \
    SELECT set_config('synchronous_commit', 'on', false) \
    WHERE current_setting('synchronous_commit') = 'off'";

/// A database that connections can be made to.
#[derive(Clone)]
pub(crate) enum Target {
    Sqlite(Box<SqliteConnectOptions>),
    Postgres(Box<PgConnectOptions>),
}

impl Target {
    pub(crate) fn new(config: &StoreConfig) -> Result<Self, StoreError> {
        match config {
            StoreConfig::Sqlite { path, .. } => {
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .foreign_keys(true)
                    .busy_timeout(CONNECT_TIMEOUT)
                    // Rollback journals of statements would else be files, on whatever disk.
                    .pragma("temp_store", "memory")
                    .pragma("journal_size_limit", "16777216")
                    .statement_cache_capacity(STATEMENT_CACHE)
                    .disable_statement_logging();
                Ok(Self::Sqlite(Box::new(options)))
            }
            StoreConfig::Postgres { url } => {
                // The parser's own words may repeat a part of the URL.
                let options = PgConnectOptions::from_str(url).map_err(|_| {
                    StoreError::Unusable(
                        "the database URL cannot be read; it is \
                         postgres://user:password@host:port/database, with the characters @ : / ? # % \
                         of a user or password percent-encoded"
                            .to_owned(),
                    )
                })?;
                let options = options
                    .application_name("stackd")
                    .statement_cache_capacity(STATEMENT_CACHE)
                    .disable_statement_logging();
                Ok(Self::Postgres(Box::new(options)))
            }
        }
    }

    pub(crate) fn backend(&self) -> DbBackend {
        match self {
            Self::Sqlite(_) => DbBackend::Sqlite,
            Self::Postgres(_) => DbBackend::Postgres,
        }
    }

    /// Tells the operator where there is nobody; the driver only says that it took too long.
    pub(crate) fn locate(&self, mut fault: Fault) -> Fault {
        if let (Self::Postgres(options), Kind::Lost | Kind::Away) = (self, fault.kind) {
            let (host, port) = (options.get_host(), options.get_port());
            fault.text = format!("PostgreSQL at {host}:{port}: {}", fault.text);
        }
        fault
    }

    /// Finds out why no connection could be had: a pool tries again and again, and then only says
    /// that time is up.
    pub(crate) async fn explain(&self, mut fault: Fault) -> Fault {
        if let (Self::Postgres(options), Kind::Away | Kind::Lost) = (self, fault.kind)
            && let Ok(Err(error)) = tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await
        {
            fault.text = error.to_string();
        }
        self.locate(fault)
    }

    /// One connection, made when it is first used. Not tested before each use: the writer finds out
    /// by itself, and has nothing to lose before its commit.
    pub(crate) fn writer(&self) -> DatabaseConnection {
        self.pool(1, false)
    }

    pub(crate) fn readers(&self) -> DatabaseConnection {
        self.pool(READERS, true)
    }

    /// A connection for listening, where the database tells of commits.
    pub(crate) fn listener(&self) -> Option<PgPool> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(options) => Some(
                PoolOptions::<Postgres>::new()
                    .max_connections(1)
                    .acquire_timeout(CONNECT_TIMEOUT)
                    .connect_lazy_with((**options).clone()),
            ),
        }
    }

    fn pool(&self, connections: u32, test_before_use: bool) -> DatabaseConnection {
        match self {
            Self::Sqlite(options) => PoolOptions::<Sqlite>::new()
                .max_connections(connections)
                .acquire_timeout(CONNECT_TIMEOUT)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
                .connect_lazy_with((**options).clone())
                .into(),
            Self::Postgres(options) => PoolOptions::<Postgres>::new()
                .max_connections(connections)
                .acquire_timeout(CONNECT_TIMEOUT)
                .test_before_acquire(test_before_use)
                .after_connect(|connection: &mut PgConnection, _| {
                    Box::pin(async move {
                        connection.execute(POSTGRES_SESSION).await?;
                        Ok(())
                    })
                })
                .connect_lazy_with((**options).clone())
                .into(),
        }
    }
}
