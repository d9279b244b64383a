//! Reads. None of them serves a request but those of old events.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{
    AccessMode, ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend,
    DbErr, EntityTrait, IsolationLevel, QueryFilter, QueryOrder, QuerySelect, TransactionOptions,
    TransactionTrait,
};
use stackd_core::event::{Event, Seq};
use stackd_core::{JobId, Stack, StackId};

use crate::apply;
use crate::connect::ANSWER_TIMEOUT;
use crate::entities::{api_keys, events, head, idempotency, jobs, stacks};
use crate::fault::{self, Fault};
use crate::rows;
use crate::{ApiKey, Catalogue, Job, Snapshot, StoreError, challenges};

/// The whole database may be large.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn bounded<T>(
    limit: Duration,
    read: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, read).await {
        Ok(result) => result.map_err(|e| fault::classify(&e).unavailable()),
        Err(_) => Err(Fault::timed_out().unavailable()),
    }
}

struct Rows {
    stacks: Vec<stacks::Model>,
    jobs: Vec<jobs::Model>,
    idempotency: Vec<idempotency::Model>,
    api_keys: Vec<api_keys::Model>,
    head: head::Model,
    catalogue: challenges::Rows,
}

pub(crate) async fn load(db: &DatabaseConnection) -> Result<Snapshot, StoreError> {
    let rows = bounded(LOAD_TIMEOUT, load_rows(db)).await?;
    Ok(Snapshot {
        stacks: rows.stacks.into_iter().map(rows::stack).collect::<Result<_, _>>()?,
        jobs: rows.jobs.iter().map(rows::job).collect::<Result<_, _>>()?,
        idempotency: rows
            .idempotency
            .into_iter()
            .map(rows::idempotency)
            .collect::<Result<_, _>>()?,
        api_keys: rows.api_keys.into_iter().map(rows::api_key).collect::<Result<_, _>>()?,
        last_event: Seq(u64::try_from(rows.head.last_event).unwrap_or(0)),
        commit: u64::try_from(rows.head.commits).unwrap_or(0),
        catalogue: rows.catalogue.read()?,
    })
}

pub(crate) async fn load_catalogue(db: &DatabaseConnection) -> Result<Catalogue, StoreError> {
    let read = async {
        let moment = begin_reading(db).await?;
        let rows = challenges::load(&moment).await?;
        moment.rollback().await?;
        Ok(rows)
    };
    bounded(LOAD_TIMEOUT, read).await?.read()
}

/// A transaction that shows all of one moment.
async fn begin_reading(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let postgres = db.get_database_backend() == DbBackend::Postgres;
    let options = TransactionOptions {
        isolation_level: postgres.then_some(IsolationLevel::RepeatableRead),
        access_mode: postgres.then_some(AccessMode::ReadOnly),
        ..TransactionOptions::default()
    };
    let moment = db.begin_with_options(options).await?;
    if postgres {
        moment.execute_unprepared("SET LOCAL statement_timeout = 0").await?;
    }
    Ok(moment)
}

async fn load_rows(db: &DatabaseConnection) -> Result<Rows, DbErr> {
    let moment = begin_reading(db).await?;
    let rows = Rows {
        head: apply::head(&moment).await?,
        stacks: stacks::Entity::find()
            .order_by_asc(stacks::Column::CreatedAt)
            .order_by_asc(stacks::Column::Id)
            .all(&moment)
            .await?,
        jobs: jobs::Entity::find()
            .order_by_asc(jobs::Column::CreatedAt)
            .order_by_asc(jobs::Column::Id)
            .all(&moment)
            .await?,
        idempotency: idempotency::Entity::find().all(&moment).await?,
        api_keys: api_keys::Entity::find()
            .order_by_asc(api_keys::Column::CreatedAt)
            .order_by_asc(api_keys::Column::Name)
            .all(&moment)
            .await?,
        catalogue: challenges::load(&moment).await?,
    };
    moment.rollback().await?;
    Ok(rows)
}

pub(crate) async fn stacks_of(
    db: &DatabaseConnection,
    ids: &[StackId],
) -> Result<Vec<Stack>, StoreError> {
    let ids = ids.iter().map(ToString::to_string);
    let read = stacks::Entity::find().filter(stacks::Column::Id.is_in(ids)).all(db);
    bounded(ANSWER_TIMEOUT, read).await?.into_iter().map(rows::stack).collect()
}

pub(crate) async fn jobs_of(
    db: &DatabaseConnection,
    ids: &[JobId],
) -> Result<Vec<Job>, StoreError> {
    let ids = ids.iter().map(ToString::to_string);
    let read = jobs::Entity::find().filter(jobs::Column::Id.is_in(ids)).all(db);
    bounded(ANSWER_TIMEOUT, read).await?.iter().map(rows::job).collect()
}

pub(crate) async fn all_api_keys(db: &DatabaseConnection) -> Result<Vec<ApiKey>, StoreError> {
    let read = api_keys::Entity::find()
        .order_by_asc(api_keys::Column::CreatedAt)
        .order_by_asc(api_keys::Column::Name)
        .all(db);
    bounded(ANSWER_TIMEOUT, read).await?.into_iter().map(rows::api_key).collect()
}

pub(crate) async fn events_after(
    db: &DatabaseConnection,
    after: Seq,
    limit: u64,
) -> Result<Vec<Event>, StoreError> {
    let read = events::Entity::find()
        .filter(events::Column::Seq.gt(rows::int(after.0)))
        .order_by_asc(events::Column::Seq)
        .limit(Ord::min(limit, i64::MAX as u64))
        .all(db);
    bounded(ANSWER_TIMEOUT, read).await?.into_iter().map(rows::event).collect()
}

pub(crate) async fn events_of(
    db: &DatabaseConnection,
    stack: StackId,
    limit: u64,
) -> Result<Vec<Event>, StoreError> {
    let read = events::Entity::find()
        .filter(events::Column::StackId.eq(stack.to_string()))
        .order_by_desc(events::Column::Seq)
        .limit(Ord::min(limit, i64::MAX as u64))
        .all(db);
    bounded(ANSWER_TIMEOUT, read).await?.into_iter().rev().map(rows::event).collect()
}

pub(crate) async fn event_range(db: &DatabaseConnection) -> Result<(Seq, Seq), StoreError> {
    let read = async {
        let select = Query::select()
            .expr_as(Expr::col(events::Column::Seq).min(), "oldest")
            .expr_as(Expr::col(events::Column::Seq).max(), "newest")
            .from(events::Entity)
            .to_owned();
        let Some(row) = db.query_one(&select).await? else { return Ok((None, None)) };
        Ok((row.try_get("", "oldest")?, row.try_get("", "newest")?))
    };
    let (oldest, newest): (Option<i64>, Option<i64>) = bounded(ANSWER_TIMEOUT, read).await?;
    let number = |value: Option<i64>| {
        u64::try_from(value.unwrap_or(0))
            .map(Seq)
            .map_err(|_| StoreError::Corrupt("an event has a negative number".to_owned()))
    };
    Ok((number(oldest)?, number(newest)?))
}

/// The newest event that is kept.
pub(crate) async fn newest_event(db: &DatabaseConnection) -> Result<Option<Event>, StoreError> {
    let read = events::Entity::find().order_by_desc(events::Column::Seq).one(db);
    bounded(ANSWER_TIMEOUT, read).await?.map(rows::event).transpose()
}

/// Reads something, as `SELECT 1` would be answered without a look at the file.
pub(crate) async fn ping(db: &DatabaseConnection) -> Result<(), StoreError> {
    bounded(ANSWER_TIMEOUT, apply::head(db)).await.map(drop)
}
