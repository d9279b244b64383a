//! What an error of the database means for what was asked.

use sea_orm::sqlx;
use sea_orm::{DbErr, RuntimeErr};

use crate::StoreError;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A unique index says no: the statement's own fault, the transaction can go on.
    Unique,
    /// The database refused this statement alone; the transaction can go on.
    Statement,
    /// The database gave this statement up for what others do; the transaction can go on, and the
    /// same may succeed later.
    Busy,
    /// The disk is full.
    Full,
    /// The connection broke. The same may succeed on a new one.
    Lost,
    /// No connection could be had.
    Away,
    /// Another process holds SQLite's lock.
    Locked,
    /// The file cannot be written.
    ReadOnly,
    /// The file is not a sound database.
    Damaged,
    /// All else: the transaction may be gone, and nothing is known of why.
    Other,
}

/// An error of the database, classified. `text` is its own words and never holds a password.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

impl Fault {
    /// What took longer than the database may take.
    pub(crate) fn timed_out() -> Self {
        Self { kind: Kind::Away, text: "no answer in time".to_owned() }
    }

    /// For the caller of a read or a write that can be tried again.
    pub(crate) fn unavailable(self) -> StoreError {
        let reason = match self.kind {
            Kind::Full => "the disk is full",
            Kind::Lost | Kind::Away => "the database cannot be reached",
            Kind::Locked => "the database is locked by another process",
            Kind::Busy => "the database is busy",
            Kind::ReadOnly => "the database cannot be written",
            Kind::Damaged => "the database is damaged",
            Kind::Unique | Kind::Statement | Kind::Other => "the database cannot be used",
        };
        StoreError::Unavailable { reason: reason.to_owned(), operator: self.text }
    }

    /// For whoever opens the database.
    pub(crate) fn at_open(self) -> StoreError {
        match self.kind {
            Kind::Damaged => StoreError::Unusable(format!(
                "the database file is damaged or not a database ({}); restore it from a backup, or \
                 move it away to start with an empty one",
                self.text
            )),
            Kind::ReadOnly => StoreError::Unusable(format!(
                "the database file cannot be written ({}); check its owner, its permissions and \
                 how its file system is mounted",
                self.text
            )),
            _ => self.unavailable(),
        }
    }
}

pub(crate) fn classify(error: &DbErr) -> Fault {
    let text = error.to_string();
    let kind = match error {
        DbErr::ConnectionAcquire(_) => Kind::Away,
        DbErr::Conn(RuntimeErr::SqlxError(e))
        | DbErr::Exec(RuntimeErr::SqlxError(e))
        | DbErr::Query(RuntimeErr::SqlxError(e)) => of_driver(e),
        _ => Kind::Other,
    };
    Fault { kind, text }
}

fn of_driver(error: &sqlx::Error) -> Kind {
    use sqlx::Error as E;
    match error {
        E::Database(e) if e.is_unique_violation() => Kind::Unique,
        E::Database(e) => {
            let code = e.code().unwrap_or_default();
            if e.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                code.parse().map_or(Kind::Other, of_sqlite)
            } else {
                of_postgres(&code)
            }
        }
        E::PoolTimedOut | E::PoolClosed => Kind::Away,
        E::Io(_) | E::Tls(_) | E::Protocol(_) | E::WorkerCrashed | E::BeginFailed => Kind::Lost,
        _ => Kind::Other,
    }
}

/// By SQLite's result codes; the low byte is the primary one. Only those of a constraint leave
/// the transaction as it was for sure.
fn of_sqlite(code: i32) -> Kind {
    // SQLITE_IOERR_SHMSIZE: no room for the shared memory that every opened file needs beside it.
    if code == 4874 {
        return Kind::Full;
    }
    match code & 0xff {
        5 | 6 => Kind::Locked,
        8 => Kind::ReadOnly,
        11 | 26 => Kind::Damaged,
        13 => Kind::Full,
        18..=20 | 25 => Kind::Statement,
        // SQLITE_CANTOPEN
        14 => Kind::ReadOnly,
        _ => Kind::Other,
    }
}

/// By PostgreSQL's SQLSTATE.
fn of_postgres(code: &str) -> Kind {
    match code {
        "53100" => Kind::Full,
        // A read-only transaction: a standby, or a server that was told to be one.
        "25006" => Kind::ReadOnly,
        // A statement that took too long, waited too long for a lock, or for one that waited for it.
        "57014" | "55P03" | "40P01" => Kind::Busy,
        _ => match code.get(..2) {
            // Connection, resources, operator's intervention (shutdown, crash, starting up).
            Some("08" | "53" | "57") => Kind::Lost,
            // A wrong password or database name is the operator's to mend, and may be mended.
            Some("28" | "3D") => Kind::Away,
            Some("XX" | "58") => Kind::Other,
            // The idle transaction was ended by the server, or nothing can be said.
            Some("25") | None => Kind::Other,
            Some(_) => Kind::Statement,
        },
    }
}

/// The words of the constraint that was violated: its name, or the columns in SQLite.
pub(crate) fn constraint(error: &DbErr) -> String {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(e)) | DbErr::Query(RuntimeErr::SqlxError(e)) => {
            match e.as_ref() {
                sqlx::Error::Database(e) => {
                    e.constraint().map_or_else(|| e.message().to_owned(), str::to_owned)
                }
                _ => String::new(),
            }
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_whether_the_transaction_can_go_on() {
        assert_eq!(of_sqlite(13), Kind::Full);
        assert_eq!(of_sqlite(5), Kind::Locked);
        assert_eq!(of_sqlite(261), Kind::Locked);
        assert_eq!(of_sqlite(1299), Kind::Statement);
        assert_eq!(of_sqlite(778), Kind::Other);
        assert_eq!(of_sqlite(4874), Kind::Full);
        assert_eq!(of_sqlite(26), Kind::Damaged);
        assert_eq!(of_postgres("53100"), Kind::Full);
        assert_eq!(of_postgres("57P01"), Kind::Lost);
        assert_eq!(of_postgres("57P03"), Kind::Lost);
        assert_eq!(of_postgres("22021"), Kind::Statement);
        assert_eq!(of_postgres("55P03"), Kind::Busy);
        assert_eq!(of_postgres("28P01"), Kind::Away);
    }
}
