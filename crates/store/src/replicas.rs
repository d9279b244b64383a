//! What several servers on one PostgreSQL database need of it: a lease that one of them holds, and
//! the news of what others have committed. A server by itself holds the lease too, so that there is
//! no second one.
//!
//! The lease lives by the database's clock alone. Its epoch goes up with every holder; it is also
//! in the row that every commit holds, so that a holder that was superseded commits nothing: not
//! even what it had begun before. Renewing touches only the lease and never waits for a commit.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgListener;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, TransactionTrait};
use stackd_core::event::Seq;
use stackd_core::{JobId, Stack, StackId};

use crate::apply::{self, CHANNEL};
use crate::connect::ANSWER_TIMEOUT;
use crate::fault::Fault;
use crate::queries::bounded;
use crate::rows::int;
use crate::{ApiKey, Job, Snapshot, Store, StoreError, Touched};

/// The database's clock, in microseconds.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// Commits that are read at once.
const COMMITS_AT_ONCE: u64 = 500;

/// Who wants to lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Tells replicas apart, also two runs of one.
    pub id: String,
    /// Where the others reach it, as `http://host:port` or `https://host:port`; empty for a server
    /// by itself, which takes nothing from others.
    pub address: String,
    /// SHA-256 of the certificate that it shows there, in hexadecimal; empty without TLS.
    pub certificate: String,
}

impl Candidate {
    /// A server that holds the lease to be by itself.
    pub fn alone(id: impl Into<String>) -> Self {
        Self { id: id.into(), address: String::new(), certificate: String::new() }
    }

    /// Whether it is by itself, and no replica.
    pub fn is_alone(&self) -> bool {
        self.address.is_empty()
    }
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Which of all who ever led.
    pub epoch: u64,
    /// Who.
    pub candidate: Candidate,
    /// For how long still, unless it renews its lease.
    pub remaining: Duration,
    /// Up to which commit the leader has seen what others wrote.
    pub applied: u64,
}

/// What was committed since a replica last looked.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The newest commit that this tells of.
    pub commit: u64,
    /// The newest event.
    pub last_event: Seq,
    /// Who leads; `None` where nobody does, or where the lease has run out.
    pub leader: Option<Leader>,
    /// What to read again; `None` when too much was missed, and everything has to be.
    pub touched: Option<Vec<Touched>>,
    /// There is more: ask again.
    pub more: bool,
}

/// The news that there are new commits.
pub struct Commits(PgListener);

impl Commits {
    /// Completes at the next news, or when some may have been missed.
    pub async fn next(&mut self) -> Result<(), StoreError> {
        // What has come meanwhile is read together.
        while self.0.next_buffered().is_some() {}
        match self.0.try_recv().await {
            Ok(_) => Ok(()),
            Err(error) => Err(lost(&error)),
        }
    }
}

fn lost(error: &sea_orm::sqlx::Error) -> StoreError {
    StoreError::Unavailable {
        reason: "the database cannot be reached".to_owned(),
        operator: error.to_string(),
    }
}

fn statement(sql: String, values: impl IntoIterator<Item = sea_orm::Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn whole(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Replicas are for PostgreSQL: on SQLite these calls fail.
impl Store {
    /// A handle whose writes are made only while the replica of this epoch leads.
    pub fn at_epoch(&self, epoch: u64) -> Self {
        Self { epoch: Some(epoch), ..self.clone() }
    }

    /// Takes the lease for `valid`, if nobody holds it. From then on nothing is committed that an
    /// earlier holder asked for.
    pub async fn acquire_lease(
        &self,
        candidate: &Candidate,
        valid: Duration,
    ) -> Result<Option<u64>, StoreError> {
        bounded(ANSWER_TIMEOUT, acquire(self.inner.readers(), candidate, valid)).await
    }

    /// Holds the lease for `valid` from now. False when another holds it. `applied` tells others up
    /// to which commit this one has seen what they wrote.
    pub async fn renew_lease(
        &self,
        epoch: u64,
        applied: u64,
        valid: Duration,
    ) -> Result<bool, StoreError> {
        let sql = format!(
            "UPDATE lease SET expires_at = {NOW} + $1, applied = greatest(applied, $2) \
             WHERE id = 1 AND epoch = $3 AND expires_at > 0"
        );
        let values = [micros(valid).into(), int(applied).into(), int(epoch).into()];
        let renew = self.inner.readers().execute_raw(statement(sql, values));
        Ok(bounded(ANSWER_TIMEOUT, renew).await?.rows_affected() > 0)
    }

    /// Gives the lease back, so that another takes it at once.
    pub async fn release_lease(&self, epoch: u64) -> Result<(), StoreError> {
        let sql = format!(
            "WITH given_back AS (UPDATE lease SET expires_at = 0 WHERE id = 1 AND epoch = $1 \
             RETURNING id) SELECT pg_notify('{CHANNEL}', '') FROM given_back"
        );
        let release = self.inner.readers().query_one_raw(statement(sql, [int(epoch).into()]));
        bounded(ANSWER_TIMEOUT, release).await.map(drop)
    }

    /// What was committed after the commit `after`, and who leads: one look at one moment.
    pub async fn changes_after(&self, after: u64) -> Result<Changes, StoreError> {
        bounded(ANSWER_TIMEOUT, changes(self.inner.readers(), after)).await
    }

    /// Begins to listen for new commits.
    pub async fn commits(&self) -> Result<Commits, StoreError> {
        let Some(pool) = self.inner.target().listener() else {
            return Err(StoreError::Unusable("only PostgreSQL tells of commits".to_owned()));
        };
        let listen = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(CHANNEL).await?;
            Ok(Commits(listener))
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, listen).await {
            Ok(result) => result.map_err(|error| lost(&error)),
            Err(_) => Err(Fault::timed_out().unavailable()),
        }
    }

    /// Those of these stacks that there are.
    pub async fn stacks(&self, ids: &[StackId]) -> Result<Vec<Stack>, StoreError> {
        self.inner.stacks(ids).await
    }

    /// Those of these jobs that there are.
    pub async fn jobs(&self, ids: &[JobId]) -> Result<Vec<Job>, StoreError> {
        self.inner.jobs(ids).await
    }

    /// All API keys, also revoked ones.
    pub async fn api_keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        self.inner.api_keys().await
    }

    /// Lets subscribers begin after the snapshot's last event, unless they have begun before.
    pub fn announce_from(&self, snapshot: &Snapshot) {
        self.inner.announce_from(snapshot.last_event);
    }

    /// Gives subscribers the events that others have committed, if there are any up to `last`. Not
    /// while this process leads.
    pub async fn announce(&self, last: Seq) -> Result<(), StoreError> {
        self.inner.announce(last).await
    }
}

async fn acquire(
    db: &DatabaseConnection,
    candidate: &Candidate,
    valid: Duration,
) -> Result<Option<u64>, DbErr> {
    let transaction = db.begin().await?;
    // Waits for a commit under way; those behind it find the new epoch.
    apply::hold_head(&transaction).await?;
    let sql = format!(
        "UPDATE lease SET epoch = epoch + 1, holder = $1, address = $2, certificate = $3, \
         expires_at = {NOW} + $4, applied = 0 WHERE id = 1 AND expires_at <= {NOW} \
         RETURNING epoch"
    );
    let values = [
        candidate.id.as_str().into(),
        candidate.address.as_str().into(),
        candidate.certificate.as_str().into(),
        micros(valid).into(),
    ];
    let Some(row) = transaction.query_one_raw(statement(sql, values)).await? else {
        transaction.rollback().await?;
        return Ok(None);
    };
    let epoch: i64 = row.try_get("", "epoch")?;
    let sql = format!(
        "WITH led AS (UPDATE head SET epoch = $1 WHERE id = 1 RETURNING id) \
         SELECT pg_notify('{CHANNEL}', '') FROM led"
    );
    transaction.query_one_raw(statement(sql, [epoch.into()])).await?;
    transaction.commit().await?;
    Ok(Some(whole(epoch)))
}

async fn changes(db: &DatabaseConnection, after: u64) -> Result<Changes, DbErr> {
    let sql = format!(
        "SELECT head.commits, head.last_event, lease.epoch, lease.holder, lease.address, \
         lease.certificate, lease.applied, lease.expires_at - {NOW} AS remaining, \
         feed.seq, feed.touched \
         FROM head JOIN lease ON lease.id = 1 LEFT JOIN feed ON feed.seq > $1 \
         WHERE head.id = 1 ORDER BY feed.seq LIMIT {COMMITS_AT_ONCE}"
    );
    let rows = db.query_all_raw(statement(sql, [int(after).into()])).await?;
    let first = rows.first().ok_or_else(|| DbErr::RecordNotFound("head and lease".to_owned()))?;
    let number = |column: &str| first.try_get::<i64>("", column).map(whole);
    let remaining: i64 = first.try_get("", "remaining")?;
    let leader = match u64::try_from(remaining) {
        Ok(remaining) if remaining > 0 => Some(Leader {
            epoch: number("epoch")?,
            candidate: Candidate {
                id: first.try_get("", "holder")?,
                address: first.try_get("", "address")?,
                certificate: first.try_get("", "certificate")?,
            },
            remaining: Duration::from_micros(remaining),
            applied: number("applied")?,
        }),
        _ => None,
    };
    let newest = number("commits")?;
    let mut touched = Some(Vec::new());
    let mut commit = after;
    for row in &rows {
        let (seq, text): (Option<i64>, Option<String>) =
            (row.try_get("", "seq")?, row.try_get("", "touched")?);
        let (Some(seq), Some(text)) = (seq, text) else { break };
        // Numbers have no gaps: one that is missing was pruned.
        if whole(seq) != commit + 1 {
            touched = None;
            break;
        }
        commit = whole(seq);
        if let Some(touched) = &mut touched {
            touched.extend(read_touched(&text));
        }
    }
    // Commits that nobody wrote down, or a database that was put back from an older copy.
    let full = rows.len() as u64 == COMMITS_AT_ONCE;
    if after > newest || (commit < newest && !full) {
        touched = None;
    }
    let commit = if touched.is_none() { newest } else { commit };
    Ok(Changes {
        commit,
        last_event: Seq(number("last_event")?),
        leader,
        more: touched.is_some() && commit < newest,
        touched,
    })
}

/// What a later version may have written besides is nothing that this one holds in memory.
fn read_touched(text: &str) -> Vec<Touched> {
    let values: Vec<serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
    values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect()
}

impl std::fmt::Debug for Commits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Commits")
    }
}
