//! Changes as statements. Each is one statement where the database allows it: a statement costs a
//! round trip, and a create is waited for.

use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, IntoActiveModel, QueryFilter, Statement,
    Value,
};
use stackd_core::event::{Event, Seq};
use stackd_core::stack::{Desired, Observed};
use stackd_core::{Stack, StackId, Timestamp};

use crate::entities::{api_keys, events, feed, head, idempotency, jobs, ports, stacks};
use crate::fault::{self, Fault, Kind};
use crate::rows;
use crate::{Change, Job, JobStatus, StoreError, Touched, challenges};

/// Events in one `INSERT`: far from the limits of parameters, and few shapes of statement.
const EVENTS_PER_STATEMENT: usize = 100;

/// The only row of `head`.
const HEAD: i32 = 1;

/// Where replicas listen for the numbers of commits.
pub(crate) const CHANNEL: &str = "stackd_commits";

/// A change was not applied.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Its own fault: the use case fails with this and the others go on.
    UseCase(StoreError),
    /// The database's: nothing can be said of the transaction any more.
    Database(Fault),
}

impl From<DbErr> for Refused {
    fn from(error: DbErr) -> Self {
        let fault = fault::classify(&error);
        match fault.kind {
            Kind::Unique | Kind::Statement => Self::UseCase(StoreError::Refused(fault.text)),
            Kind::Busy => Self::UseCase(fault.unavailable()),
            _ => Self::Database(fault),
        }
    }
}

/// Gives a unique violation its meaning; all else stays what it is.
pub(crate) fn unique(error: DbErr, meaning: impl FnOnce(&str) -> StoreError) -> Refused {
    if fault::classify(&error).kind == Kind::Unique {
        Refused::UseCase(meaning(&fault::constraint(&error)))
    } else {
        error.into()
    }
}

/// Applies one change but for events, which are numbered when the whole commit is known.
pub(crate) async fn change<C: ConnectionTrait>(db: &C, change: &Change) -> Result<(), Refused> {
    match change {
        Change::InsertStack(stack) => insert_stack(db, stack).await,
        Change::Observe { id, generation, observed, release_ports, at } => {
            let there = observe(db, *id, *generation, observed, *at).await?;
            if there && *release_ports {
                let of_stack = ports::Column::StackId.eq(id.to_string());
                ports::Entity::delete_many().filter(of_stack).exec(db).await?;
            }
            Ok(())
        }
        Change::Desire { id, desired, generation, at } => {
            desire(db, *id, *desired, *generation, *at).await
        }
        Change::Extend { id, generation, expires_at, at } => {
            extend(db, *id, *generation, *expires_at, *at).await
        }
        Change::InsertChallenge(_)
        | Change::UpdateChallenge(_)
        | Change::RemoveChallenge(_)
        | Change::PutMark { .. }
        | Change::RemoveMark { .. }
        | Change::PutMember { .. } => challenges::change(db, change).await,
        Change::RemoveStack(id) => {
            // The ports go with it, by their foreign key.
            stacks::Entity::delete_by_id(id.to_string()).exec(db).await?;
            Ok(())
        }
        Change::Event(_) => Ok(()),
        Change::ForgetIdempotency { scope, key } => {
            idempotency::Entity::delete_many()
                .filter(idempotency::Column::Scope.eq(rows::text(scope)))
                .filter(idempotency::Column::Key.eq(rows::text(key)))
                .exec(db)
                .await?;
            Ok(())
        }
        Change::InsertIdempotency(record) => {
            idempotency::Entity::insert(rows::idempotency_row(record).into_active_model())
                .exec_without_returning(db)
                .await
                .map_err(|e| unique(e, |_| StoreError::Duplicate("an idempotency key")))?;
            Ok(())
        }
        Change::PutJob(job) => put_job(db, job).await,
        Change::InsertApiKey(key) => {
            api_keys::Entity::insert(rows::api_key_row(key).into_active_model())
                .exec_without_returning(db)
                .await
                .map_err(|e| unique(e, |_| StoreError::Duplicate("an API key")))?;
            Ok(())
        }
        Change::RevokeApiKey { name, at } => {
            api_keys::Entity::update_many()
                .col_expr(api_keys::Column::RevokedAt, Expr::value(rows::nanos(*at)))
                .filter(api_keys::Column::Name.eq(rows::text(name)))
                .filter(api_keys::Column::RevokedAt.is_null())
                .exec(db)
                .await?;
            Ok(())
        }
    }
}

async fn insert_stack<C: ConnectionTrait>(db: &C, stack: &Stack) -> Result<(), Refused> {
    stacks::Entity::insert(rows::stack_row(stack).into_active_model())
        .exec_without_returning(db)
        .await
        .map_err(|e| {
            unique(e, |constraint| {
                // PostgreSQL gives the index's name, SQLite its columns.
                if constraint.contains("stacks_live_owner") || constraint.contains("tenant") {
                    StoreError::OwnerTaken
                } else {
                    StoreError::Duplicate("a stack of this id")
                }
            })
        })?;
    if stack.ports.is_empty() {
        return Ok(());
    }
    ports::Entity::insert_many(rows::port_rows(stack).map(IntoActiveModel::into_active_model))
        .exec_without_returning(db)
        .await
        .map_err(|e| unique(e, |_| StoreError::PortTaken))?;
    Ok(())
}

/// Whether there is such a row of this generation or an earlier one.
async fn observe<C: ConnectionTrait>(
    db: &C,
    id: StackId,
    generation: u64,
    observed: &Observed,
    at: Timestamp,
) -> Result<bool, Refused> {
    use stacks::Column as C;
    let Observed {
        phase,
        node,
        node_public_ip,
        condition,
        restarts,
        exit_code,
        ready_at,
        ended_at,
    } = observed;
    let condition = condition.as_ref();
    let values: [(C, Value); 10] = [
        (C::Phase, phase.as_str().into()),
        (C::Node, rows::text_opt(node.as_deref()).into()),
        (C::NodePublicIp, rows::text_opt(node_public_ip.as_deref()).into()),
        (C::Reason, condition.map(|c| rows::text(&c.reason)).into()),
        (C::Message, condition.map(|c| rows::text(&c.message)).into()),
        (C::Restarts, i64::from(*restarts).into()),
        (C::ExitCode, (*exit_code).into()),
        (C::ReadyAt, ready_at.map(rows::nanos).into()),
        (C::EndedAt, ended_at.map(rows::nanos).into()),
        (C::UpdatedAt, rows::nanos(at).into()),
    ];
    let update =
        values.into_iter().fold(stacks::Entity::update_many(), |update, (column, value)| {
            update.col_expr(column, Expr::value(value))
        });
    let done = update
        .filter(C::Id.eq(id.to_string()))
        .filter(C::Generation.lte(rows::int(generation)))
        .exec(db)
        .await
        .map_err(|e| unique(e, |_| StoreError::OwnerTaken))?;
    Ok(done.rows_affected > 0)
}

async fn desire<C: ConnectionTrait>(
    db: &C,
    id: StackId,
    desired: Desired,
    generation: u64,
    at: Timestamp,
) -> Result<(), Refused> {
    use stacks::Column as C;
    stacks::Entity::update_many()
        .col_expr(C::Desired, Expr::value(rows::desired_word(desired)))
        .col_expr(C::Generation, Expr::value(rows::int(generation)))
        .col_expr(C::UpdatedAt, Expr::value(rows::nanos(at)))
        .filter(C::Id.eq(id.to_string()))
        .filter(C::Generation.lte(rows::int(generation)))
        .exec(db)
        .await
        .map_err(|e| unique(e, |_| StoreError::OwnerTaken))?;
    Ok(())
}

async fn extend<C: ConnectionTrait>(
    db: &C,
    id: StackId,
    generation: u64,
    expires_at: Timestamp,
    at: Timestamp,
) -> Result<(), Refused> {
    use stacks::Column as C;
    stacks::Entity::update_many()
        .col_expr(C::ExpiresAt, Expr::value(rows::nanos(expires_at)))
        .col_expr(C::UpdatedAt, Expr::value(rows::nanos(at)))
        .filter(C::Id.eq(id.to_string()))
        .filter(C::Desired.eq(rows::desired_word(Desired::Running)))
        .filter(C::Generation.lte(rows::int(generation)))
        // Of two at once the later deadline holds, in whichever order they come.
        .filter(C::ExpiresAt.lt(rows::nanos(expires_at)))
        .exec(db)
        .await?;
    Ok(())
}

/// The ids that a job is about may be a megabyte: they are written once.
async fn put_job<C: ConnectionTrait>(db: &C, job: &Job) -> Result<(), Refused> {
    use jobs::Column as J;
    let values: [(J, Value); 7] = [
        (J::Status, job.status.as_str().into()),
        (J::Done, rows::int(job.done).into()),
        (J::Deleted, rows::int(job.deleted).into()),
        (J::NotFound, rows::int(job.not_found).into()),
        (J::Failed, rows::int(job.failed).into()),
        (J::Errors, rows::json(&job.errors).into()),
        (J::UpdatedAt, rows::nanos(job.updated_at).into()),
    ];
    let update = values.into_iter().fold(jobs::Entity::update_many(), |update, (column, value)| {
        update.col_expr(column, Expr::value(value))
    });
    let done = update.filter(J::Id.eq(job.id.to_string())).exec(db).await?;
    if done.rows_affected == 0 {
        jobs::Entity::insert(rows::job_row(job).into_active_model())
            .exec_without_returning(db)
            .await?;
    }
    Ok(())
}

/// The place of a commit in the order of all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    /// Of the first event.
    pub(crate) first_event: Seq,
    /// Of the commit itself.
    pub(crate) commit: u64,
    /// Whether replicas are to be told: there are some, or were.
    pub(crate) followed: bool,
}

/// Names the commit, counts it, and takes `count` numbers for its events. Whoever is second waits
/// here for the first one's commit.
pub(crate) async fn take_numbers<C: ConnectionTrait>(
    db: &C,
    commit: &str,
    count: usize,
) -> Result<Numbers, DbErr> {
    use head::Column as H;
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let update = Query::update()
        .table(head::Entity)
        .value(H::LastEvent, Expr::col(H::LastEvent).add(count))
        .value(H::LastCommit, commit)
        .value(H::Commits, Expr::col(H::Commits).add(1))
        .and_where(Expr::col(H::Id).eq(HEAD))
        .returning(Query::returning().columns([H::LastEvent, H::Commits, H::Epoch]))
        .to_owned();
    let row = db.query_one(&update).await?.ok_or_else(no_head)?;
    let number = |column| -> Result<i64, DbErr> { row.try_get("", column) };
    let whole = |value: i64| u64::try_from(value).map_err(|_| no_head());
    Ok(Numbers {
        first_event: Seq(whole(number("last_event")? - count + 1)?),
        commit: whole(number("commits")?)?,
        followed: number("epoch")? > 0,
    })
}

/// Holds the row that every commit writes until the transaction ends, and tells the epoch of the
/// replica that may write.
///
/// A leader that is stopped or cut off in the middle of a transaction holds that row, and no other
/// can begin to lead before the server ends the session: so it must do that soon.
pub(crate) async fn hold_head<C: ConnectionTrait>(db: &C) -> Result<u64, DbErr> {
    let sql = "SELECT epoch, set_config('idle_in_transaction_session_timeout', '2s', true) \
               FROM head WHERE id = 1 FOR UPDATE";
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(statement).await?.ok_or_else(no_head)?;
    u64::try_from(row.try_get::<i64>("", "epoch")?).map_err(|_| no_head())
}

/// Tells replicas what a commit touched. `NOTIFY` carries the number only, and is sent with the
/// commit; what it says is read from the table.
pub(crate) async fn tell<C: ConnectionTrait>(
    db: &C,
    commit: u64,
    name: &str,
    touched: &[Touched],
) -> Result<(), DbErr> {
    let text = serde_json::to_string(touched).map_err(|e| DbErr::Custom(e.to_string()))?;
    let sql = format!(
        "WITH told AS (INSERT INTO feed (seq, name, touched) VALUES ($1, $2, $3) RETURNING seq) \
         SELECT pg_notify('{CHANNEL}', seq::text) FROM told"
    );
    let values = [rows::int(commit).into(), name.into(), text.into()];
    let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
    db.query_one_raw(statement).await.map(drop)
}

pub(crate) async fn insert_events<C: ConnectionTrait>(
    db: &C,
    numbered: &[&Event],
) -> Result<(), DbErr> {
    for chunk in numbered.chunks(EVENTS_PER_STATEMENT) {
        let rows = chunk.iter().map(|event| rows::event_row(event).into_active_model());
        events::Entity::insert_many(rows).exec_without_returning(db).await?;
    }
    Ok(())
}

/// Whether the commit of this name has happened. In PostgreSQL this waits for a commit that is
/// still under way, so that "not there" means "will never be there". Where there are replicas,
/// another may have committed since.
pub(crate) async fn has_committed<C: ConnectionTrait>(db: &C, name: &str) -> Result<bool, DbErr> {
    let select = Query::select()
        .columns([head::Column::LastCommit, head::Column::Epoch])
        .from(head::Entity)
        .and_where(Expr::col(head::Column::Id).eq(HEAD))
        .lock_exclusive()
        .to_owned();
    let row = db.query_one(&select).await?.ok_or_else(no_head)?;
    if row.try_get::<String>("", "last_commit")? == name {
        return Ok(true);
    }
    if row.try_get::<i64>("", "epoch")? == 0 {
        return Ok(false);
    }
    let told = feed::Entity::find().filter(feed::Column::Name.eq(name)).one(db).await?;
    Ok(told.is_some())
}

/// The row that every commit writes.
pub(crate) async fn head<C: ConnectionTrait>(db: &C) -> Result<head::Model, DbErr> {
    head::Entity::find_by_id(HEAD).one(db).await?.ok_or_else(no_head)
}

fn no_head() -> DbErr {
    DbErr::RecordNotFound("the row of the table `head`".to_owned())
}

/// A step of pruning.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Prune {
    /// Events up to and with this one.
    Events(Seq),
    /// Idempotency records and ended jobs from before.
    Records(Timestamp),
    /// What commits touched, but for the newest.
    Feed,
}

/// How many commits a replica may have missed before it reads everything anew.
const FEED_KEPT: i64 = 10_000;

pub(crate) async fn prune<C: ConnectionTrait>(db: &C, step: Prune) -> Result<(), Refused> {
    match step {
        Prune::Events(through) => {
            let old = events::Column::Seq.lte(rows::int(through.0));
            events::Entity::delete_many().filter(old).exec(db).await?;
        }
        Prune::Records(before) => {
            let before = rows::nanos(before);
            idempotency::Entity::delete_many()
                .filter(idempotency::Column::CreatedAt.lt(before))
                .exec(db)
                .await?;
            let ended = [JobStatus::Completed, JobStatus::Failed].map(JobStatus::as_str);
            jobs::Entity::delete_many()
                .filter(jobs::Column::Status.is_in(ended))
                .filter(jobs::Column::UpdatedAt.lt(before))
                .exec(db)
                .await?;
        }
        Prune::Feed => {
            let head = head(db).await?;
            let old = feed::Column::Seq.lte(head.commits.saturating_sub(FEED_KEPT));
            feed::Entity::delete_many().filter(old).exec(db).await?;
        }
    }
    Ok(())
}
