//! The one writer: takes what has queued up, commits it in one transaction, then answers.
//!
//! Nothing waits for company: a use case that is alone is committed alone at once. While a commit
//! is under way others queue up, and share the next one. In it each has a savepoint, so that one
//! that fails takes nobody with it. Events are numbered last, by the row that every commit writes:
//! order of numbers is order of commits.
//!
//! What goes wrong before `COMMIT` is sent has changed nothing, and is tried once more on a new
//! connection where the old one broke. What goes wrong while it is sent is looked up afterwards:
//! every commit leaves its name in that same row.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};
use stackd_core::event::{Event, NewEvent, Seq};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::apply::{self, Prune, Refused};
use crate::ballast::Ballast;
use crate::connect::{ANSWER_TIMEOUT, Target};
use crate::fault::{self, Fault, Kind};
use crate::times::EventTimes;
use crate::{Change, Committed, StoreError, Touched};

/// Use cases in one transaction.
const MAX_BATCH: usize = 128;

/// Between two attempts to find out what has become of a commit.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What waits to be committed.
pub(crate) struct Work {
    /// Of the replica that asked; one that does not lead any more writes nothing.
    pub(crate) epoch: Option<u64>,
    pub(crate) task: Task,
    pub(crate) reply: oneshot::Sender<Result<Committed, StoreError>>,
}

impl Work {
    fn answer(self, result: Result<Committed, StoreError>) {
        // Nobody waits any more: it is committed, or not, all the same.
        let _ = self.reply.send(result);
    }
}

pub(crate) enum Task {
    UseCase(Vec<Change>),
    Prune(Prune),
}

impl Task {
    fn frees(&self) -> bool {
        match self {
            Self::UseCase(changes) => changes.iter().all(Change::frees),
            Self::Prune(_) => true,
        }
    }

    fn new_events(&self) -> impl Iterator<Item = &NewEvent> {
        let changes = match self {
            Self::UseCase(changes) => changes.as_slice(),
            Self::Prune(_) => &[],
        };
        changes.iter().filter_map(|change| match change {
            Change::Event(event) => Some(event),
            _ => None,
        })
    }

    fn touched(&self) -> impl Iterator<Item = Touched> {
        let changes = match self {
            Self::UseCase(changes) => changes.as_slice(),
            Self::Prune(_) => &[],
        };
        changes.iter().filter_map(Change::touched)
    }

    async fn apply<C: ConnectionTrait>(&self, db: &C) -> Result<(), Refused> {
        match self {
            Self::UseCase(changes) => {
                for change in changes {
                    apply::change(db, change).await?;
                }
                Ok(())
            }
            Self::Prune(step) => apply::prune(db, *step).await,
        }
    }
}

/// What each use case of a batch gets, if the batch is committed.
type Outcomes = Vec<Result<Committed, StoreError>>;

pub(crate) struct Writer {
    pub(crate) target: Target,
    pub(crate) db: DatabaseConnection,
    pub(crate) ballast: Option<Ballast>,
    pub(crate) events: broadcast::Sender<Arc<Event>>,
    pub(crate) announced: Arc<AtomicU64>,
    /// Of this writer; with the number of the commit it is the commit's name.
    pub(crate) name: u64,
    pub(crate) commits: u64,
    pub(crate) times: Arc<EventTimes>,
}

impl Writer {
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while queue.recv_many(&mut batch, MAX_BATCH).await > 0 {
            self.serve(std::mem::take(&mut batch), &mut queue).await;
        }
        let _ = self.db.close_by_ref().await;
    }

    async fn serve(&mut self, mut batch: Vec<Work>, queue: &mut mpsc::Receiver<Work>) {
        if self.ballast.as_mut().is_some_and(|ballast| !ballast.refill()) {
            let full = Fault { kind: Kind::Full, text: "the reserve is in use".to_owned() };
            batch = refuse_new(batch, &full);
        }
        let mut outcome = self.commit(&batch, queue).await;
        if let Err(fault) = &outcome
            && fault.kind == Kind::Full
        {
            let released = self.ballast.as_mut().is_some_and(Ballast::release);
            let asked = batch.len();
            batch = refuse_new(batch, fault);
            if released || batch.len() < asked {
                outcome = self.commit(&batch, queue).await;
            }
        }
        match outcome {
            Ok(outcomes) => self.publish(batch, outcomes),
            Err(fault) => {
                refuse(batch, &fault);
                if fault.kind == Kind::Away {
                    // They have waited as long.
                    while let Ok(work) = queue.try_recv() {
                        work.answer(Err(fault.clone().unavailable()));
                    }
                }
            }
        }
    }

    fn publish(&self, batch: Vec<Work>, outcomes: Outcomes) {
        for committed in outcomes.iter().flatten() {
            for event in &committed.events {
                // An error only says that nobody listens.
                let _ = self.events.send(event.clone());
                self.announced.fetch_max(event.seq.0, Ordering::Relaxed);
            }
        }
        for (work, outcome) in batch.into_iter().zip(outcomes) {
            work.answer(outcome);
        }
    }

    /// Commits what of the batch can be. An error means that nothing of it was.
    async fn commit(
        &mut self,
        batch: &[Work],
        queue: &mut mpsc::Receiver<Work>,
    ) -> Result<Outcomes, Fault> {
        if batch.is_empty() {
            return Ok(Outcomes::new());
        }
        let mut tried_before = false;
        loop {
            self.commits += 1;
            let name = format!("{:016x}-{}", self.name, self.commits);
            let mut outcomes = Outcomes::with_capacity(batch.len());
            let committing = AtomicBool::new(false);
            let attempt = self.attempt(batch, &name, &mut outcomes, &committing);
            let result = match self.target.backend() {
                // SQLite bounds itself; and what is given up there is still being done.
                DbBackend::Sqlite => attempt.await,
                _ => tokio::time::timeout(ANSWER_TIMEOUT, attempt)
                    .await
                    .unwrap_or_else(|_| Err(Fault::timed_out())),
            };
            let Err(fault) = result else { return Ok(outcomes) };
            self.reconnect().await;
            if committing.into_inner() && self.may_have_committed(fault.kind) {
                tracing::warn!(error = %fault.text, "the connection was lost during a commit");
                if self.find_out(&name, queue).await {
                    return Ok(outcomes);
                }
            } else if fault.kind != Kind::Lost {
                return Err(self.target.locate(fault));
            }
            if tried_before {
                return Err(self.target.locate(fault));
            }
            tried_before = true;
        }
    }

    /// One transaction. `outcomes` count when it succeeds, and when it has failed with
    /// `committing` set and turns out to have been committed.
    async fn attempt(
        &self,
        batch: &[Work],
        name: &str,
        outcomes: &mut Outcomes,
        committing: &AtomicBool,
    ) -> Result<(), Fault> {
        let sqlite = self.target.backend() == DbBackend::Sqlite;
        let options = TransactionOptions {
            // Another process' lock shows here, and not in the middle.
            sqlite_transaction_mode: sqlite.then_some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let db_fault = |e: sea_orm::DbErr| fault::classify(&e);
        let transaction = self.db.begin_with_options(options).await.map_err(db_fault)?;
        // Held before anything is looked at: while it is, nobody else begins to lead.
        let leads = match batch.iter().any(|work| work.epoch.is_some()) {
            true => Some(apply::hold_head(&transaction).await.map_err(db_fault)?),
            false => None,
        };
        let mut applied = Vec::with_capacity(batch.len());
        for work in batch {
            if work.epoch.is_some() && work.epoch != leads {
                applied.push(Err(StoreError::Superseded));
                continue;
            }
            let result = if batch.len() == 1 {
                work.task.apply(&transaction).await
            } else {
                apply_alone(&transaction, &work.task).await
            };
            applied.push(match result {
                Ok(()) => Ok(work.task.new_events().cloned().collect::<Vec<_>>()),
                Err(Refused::UseCase(error)) => Err(error),
                Err(Refused::Database(fault)) => return Err(fault),
            });
        }
        if applied.iter().all(Result::is_err) {
            outcomes.extend(applied.into_iter().map(|result| result.map(|_| Committed::default())));
            return transaction.rollback().await.map_err(db_fault);
        }
        let count = applied.iter().flatten().map(Vec::len).sum();
        let numbers = apply::take_numbers(&transaction, name, count).await.map_err(db_fault)?;
        if numbers.followed {
            let done = batch.iter().zip(&applied).filter(|(_, result)| result.is_ok());
            let mut seen = HashSet::new();
            let touched: Vec<_> = done
                .flat_map(|(work, _)| work.task.touched())
                .filter(|t| seen.insert(*t))
                .collect();
            apply::tell(&transaction, numbers.commit, name, &touched).await.map_err(db_fault)?;
        }
        let Seq(mut next) = numbers.first_event;
        outcomes.extend(applied.into_iter().map(|result| {
            result.map(|events| Committed {
                commit: numbers.commit,
                events: events
                    .into_iter()
                    .map(|mut event| {
                        let seq = Seq(next);
                        next += 1;
                        event.at = self.times.no_earlier(event.at);
                        Arc::new(Event { seq, event })
                    })
                    .collect(),
            })
        }));
        let numbered: Vec<&Event> = outcomes
            .iter()
            .flatten()
            .flat_map(|committed| committed.events.iter().map(Arc::as_ref))
            .collect();
        apply::insert_events(&transaction, &numbered).await.map_err(db_fault)?;
        committing.store(true, Ordering::Relaxed);
        transaction.commit().await.map_err(db_fault)
    }

    /// SQLite and a server that answers say whether they have committed; a connection that breaks
    /// does not.
    fn may_have_committed(&self, kind: Kind) -> bool {
        match kind {
            Kind::Lost | Kind::Away => true,
            Kind::Unique | Kind::Statement | Kind::Busy | Kind::Full => false,
            Kind::Locked | Kind::ReadOnly | Kind::Damaged | Kind::Other => {
                self.target.backend() != DbBackend::Sqlite
            }
        }
    }

    /// Whether the commit of this name has happened, however long it takes to know. The queue is
    /// answered meanwhile: those use cases have not begun.
    async fn find_out(&mut self, name: &str, queue: &mut mpsc::Receiver<Work>) -> bool {
        let mut first = true;
        loop {
            let look = tokio::time::timeout(ANSWER_TIMEOUT, apply::has_committed(&self.db, name));
            let found = if first {
                look.await
            } else {
                refusing(queue, async {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    look.await
                })
                .await
            };
            first = false;
            match found {
                Ok(Ok(committed)) => {
                    tracing::info!(committed, "the database answers again");
                    return committed;
                }
                Ok(Err(_)) | Err(_) => self.reconnect().await,
            }
        }
    }

    /// Throws the connection away with whatever is open on it.
    async fn reconnect(&mut self) {
        let old = std::mem::replace(&mut self.db, self.target.writer());
        let close = async move {
            let _ = old.close_by_ref().await;
        };
        match self.target.backend() {
            // Its locks must be gone before the next begins.
            DbBackend::Sqlite => {
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, close).await;
            }
            // The server may never answer; its side of the transaction ends by itself.
            _ => drop(tokio::spawn(close)),
        }
    }
}

/// In a savepoint of its own.
async fn apply_alone(transaction: &DatabaseTransaction, task: &Task) -> Result<(), Refused> {
    let savepoint = transaction.begin().await?;
    match task.apply(&savepoint).await {
        Ok(()) => Ok(savepoint.commit().await?),
        Err(Refused::UseCase(error)) => {
            savepoint.rollback().await.map_err(|e| Refused::Database(fault::classify(&e)))?;
            Err(Refused::UseCase(error))
        }
        Err(refused) => Err(refused),
    }
}

fn refuse(batch: Vec<Work>, fault: &Fault) {
    for work in batch {
        work.answer(Err(fault.clone().unavailable()));
    }
}

/// Answers all that does not only free room, and gives back the rest.
fn refuse_new(batch: Vec<Work>, fault: &Fault) -> Vec<Work> {
    let (frees, new) = batch.into_iter().partition(|work| work.task.frees());
    refuse(new, fault);
    frees
}

/// Waits for something, and answers the queue meanwhile.
async fn refusing<T>(queue: &mut mpsc::Receiver<Work>, wait: impl Future<Output = T>) -> T {
    let mut wait = std::pin::pin!(wait);
    loop {
        tokio::select! {
            result = &mut wait => return result,
            Some(work) = queue.recv() => {
                let away = Fault { kind: Kind::Away, text: "the connection is lost".to_owned() };
                work.answer(Err(away.unavailable()));
            }
        }
    }
}
