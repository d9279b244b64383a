//! The schema, step by step. A step that has been released is never edited: what comes later is a
//! new one.

mod m0001_first;
mod m0002_challenges;
mod m0003_replicas;
mod m0004_removed_challenges;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, SqliteTransactionMode, TransactionOptions,
    TransactionTrait,
};
use sea_orm_migration::prelude::*;

use crate::fault::{self, Fault};

struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_first::Step),
            Box::new(m0002_challenges::Step),
            Box::new(m0003_replicas::Step),
            Box::new(m0004_removed_challenges::Step),
        ]
    }
}

/// Held in PostgreSQL while the schema is brought up to date, so that of two servers that start
/// together one waits. Any constant will do: these are the letters `stackd`.
const SCHEMA_LOCK: i64 = 0x7374_6163_6b64;

/// The schema could not be brought up to date.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The database's fault.
    Database(Fault),
    /// It was written by a later version; the text says what to do.
    Newer(String),
}

impl From<DbErr> for OpenError {
    fn from(error: DbErr) -> Self {
        Self::Database(fault::classify(&error))
    }
}

/// Brings the schema up to date in one transaction: a crash leaves it as it was.
pub(crate) async fn run(writer: &DatabaseConnection) -> Result<(), OpenError> {
    let backend = writer.get_database_backend();
    let options = TransactionOptions {
        sqlite_transaction_mode: (backend == DbBackend::Sqlite)
            .then_some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let transaction = writer.begin_with_options(options).await?;
    if backend == DbBackend::Postgres {
        let lock = format!(
            "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; \
             SELECT pg_advisory_xact_lock({SCHEMA_LOCK})"
        );
        transaction.execute_unprepared(&lock).await?;
    }
    Migrator::install(&transaction).await?;
    let applied = Migrator::get_migration_models(&transaction).await?;
    let known: Vec<String> =
        Migrator::migrations().iter().map(|step| step.name().to_owned()).collect();
    let newer = applied.iter().map(|row| &row.version).find(|name| !known.contains(name));
    if let Some(newer) = newer {
        return Err(OpenError::Newer(format!(
            "the database was written by a newer version of stackd (its schema has {newer}); \
             start that version or a later one, or restore the backup from before the upgrade"
        )));
    }
    if applied.len() < known.len() {
        Migrator::up(&transaction, None).await?;
    }
    Ok(transaction.commit().await?)
}
