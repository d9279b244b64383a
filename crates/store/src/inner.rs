//! What the handles of a store share: the way to its writer, its readers, and its news.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sea_orm::DatabaseConnection;
use stackd_core::event::{Event, Seq};
use stackd_core::{JobId, Stack, StackId, Timestamp};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::apply::Prune;
use crate::ballast::Ballast;
use crate::connect::Target;
use crate::fault::{Fault, Kind};
use crate::times::EventTimes;
use crate::writer::{Task, Work, Writer};
use crate::{
    ApiKey, Catalogue, Change, Committed, Job, Snapshot, StoreConfig, StoreError, migrations,
    queries,
};

/// Use cases that may wait; whoever comes then waits to be let in.
const QUEUE: usize = 1024;

/// Events that a subscriber may lag behind before it must read what it missed.
const EVENTS_KEPT_FOR_SUBSCRIBERS: usize = 4096;

/// Events that a replica reads at once of what others have committed.
const EVENTS_ANNOUNCED_AT_ONCE: u64 = 1_000;

/// Events that are pruned in one transaction; no use case should wait long for it.
const PRUNED_AT_ONCE: u64 = 5_000;

/// How long the schema may take, another server's turn included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// The database has ended, with the program.
fn closed() -> StoreError {
    StoreError::Unavailable {
        reason: "the server is stopping".to_owned(),
        operator: "the store's writer has ended".to_owned(),
    }
}

pub(crate) struct Inner {
    queue: mpsc::Sender<Work>,
    events: broadcast::Sender<Arc<Event>>,
    /// The newest event that subscribers were given.
    announced: Arc<AtomicU64>,
    times: Arc<EventTimes>,
    readers: DatabaseConnection,
    target: Target,
}

impl Inner {
    pub(crate) async fn open(config: StoreConfig) -> Result<Arc<Self>, StoreError> {
        let target = Target::new(&config)?;
        let mut ballast = match &config {
            StoreConfig::Sqlite { path, ballast_bytes } => {
                make_private(path)?;
                Ballast::beside(path, *ballast_bytes)
            }
            StoreConfig::Postgres { .. } => None,
        };
        let db = open_writer(&target, ballast.as_mut()).await?;
        let readers = target.readers();
        // Without it no more is lost than an order of times.
        let newest = queries::newest_event(&readers).await.unwrap_or_default();
        let times = Arc::new(EventTimes::after(newest.as_ref()));
        let (queue, received) = mpsc::channel(QUEUE);
        let (events, _) = broadcast::channel(EVENTS_KEPT_FOR_SUBSCRIBERS);
        let announced = Arc::new(AtomicU64::new(0));
        let kept = target.clone();
        let writer = Writer {
            db,
            ballast,
            events: events.clone(),
            announced: Arc::clone(&announced),
            name: getrandom::u64().map_err(|e| StoreError::Unusable(e.to_string()))?,
            commits: 0,
            times: Arc::clone(&times),
            target,
        };
        tokio::spawn(writer.run(received));
        Ok(Arc::new(Self { queue, events, announced, times, readers, target: kept }))
    }

    pub(crate) async fn load(&self) -> Result<Snapshot, StoreError> {
        queries::load(&self.readers).await
    }

    pub(crate) async fn load_catalogue(&self) -> Result<Catalogue, StoreError> {
        queries::load_catalogue(&self.readers).await
    }

    pub(crate) fn readers(&self) -> &DatabaseConnection {
        &self.readers
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) async fn stacks(&self, ids: &[StackId]) -> Result<Vec<Stack>, StoreError> {
        queries::stacks_of(&self.readers, ids).await
    }

    pub(crate) async fn jobs(&self, ids: &[JobId]) -> Result<Vec<Job>, StoreError> {
        queries::jobs_of(&self.readers, ids).await
    }

    pub(crate) async fn api_keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        queries::all_api_keys(&self.readers).await
    }

    /// Writes as the replica of `epoch`, or as nobody in particular.
    pub(crate) async fn write(
        &self,
        epoch: Option<u64>,
        changes: Vec<Change>,
    ) -> Result<Committed, StoreError> {
        if changes.is_empty() {
            return Ok(Committed::default());
        }
        self.queue(epoch, Task::UseCase(changes)).await
    }

    async fn queue(&self, epoch: Option<u64>, task: Task) -> Result<Committed, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Work { epoch, task, reply }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Subscribers begin after this event.
    pub(crate) fn announce_from(&self, last: Seq) {
        // An error says that they have begun before.
        let _ = self.announced.compare_exchange(0, last.0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Gives subscribers what others have committed. Not while this process leads.
    pub(crate) async fn announce(&self, last: Seq) -> Result<(), StoreError> {
        loop {
            let after = Seq(self.announced.load(Ordering::Relaxed));
            if after >= last {
                return Ok(());
            }
            let events = self.events_after(after, EVENTS_ANNOUNCED_AT_ONCE).await?;
            let Some(last) = events.last().map(|event| event.seq) else { return Ok(()) };
            for event in events {
                // If this replica leads next, its own clock may be a little behind.
                self.times.no_earlier(event.event.at);
                // An error only says that nobody listens.
                let _ = self.events.send(Arc::new(event));
            }
            self.announced.fetch_max(last.0, Ordering::Relaxed);
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    pub(crate) fn newest_event(&self) -> Seq {
        Seq(self.announced.load(Ordering::Relaxed))
    }

    pub(crate) async fn events_after(
        &self,
        after: Seq,
        limit: u64,
    ) -> Result<Vec<Event>, StoreError> {
        queries::events_after(&self.readers, after, limit).await
    }

    pub(crate) async fn events_of(
        &self,
        stack: StackId,
        limit: u64,
    ) -> Result<Vec<Event>, StoreError> {
        queries::events_of(&self.readers, stack, limit).await
    }

    pub(crate) async fn event_range(&self) -> Result<(Seq, Seq), StoreError> {
        queries::event_range(&self.readers).await
    }

    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        queries::ping(&self.readers).await
    }

    pub(crate) async fn prune(
        &self,
        epoch: Option<u64>,
        keep_events: u64,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        let (Seq(oldest), Seq(newest)) = self.event_range().await?;
        // Numbers have no gaps, so a number is a count.
        let cut = newest.saturating_sub(keep_events);
        let mut through = oldest.saturating_sub(1);
        while through < cut {
            through = through.saturating_add(PRUNED_AT_ONCE).min(cut);
            self.queue(epoch, Task::Prune(Prune::Events(Seq(through)))).await?;
        }
        self.queue(epoch, Task::Prune(Prune::Records(before))).await?;
        self.queue(epoch, Task::Prune(Prune::Feed)).await?;
        Ok(())
    }
}

/// Connects and brings the schema up to date. Even to be opened a file needs some room beside it:
/// that of the reserve, if there is no other.
async fn open_writer(
    target: &Target,
    ballast: Option<&mut Ballast>,
) -> Result<DatabaseConnection, StoreError> {
    let attempt = async || {
        let db = target.writer();
        match tokio::time::timeout(OPEN_TIMEOUT, migrations::run(&db)).await {
            Ok(result) => result.map(|()| db),
            Err(_) => Err(migrations::OpenError::Database(Fault::timed_out())),
        }
    };
    let mut result = attempt().await;
    if let Err(migrations::OpenError::Database(fault)) = &result
        && fault.kind == Kind::Full
        && ballast.is_some_and(Ballast::release)
    {
        result = attempt().await;
    }
    match result {
        Ok(db) => Ok(db),
        Err(migrations::OpenError::Database(fault)) => Err(target.explain(fault).await.at_open()),
        Err(migrations::OpenError::Newer(text)) => Err(StoreError::Unusable(text)),
    }
}

/// The file holds hashes of keys and what customers run: it is made readable for its owner only,
/// and SQLite gives the files beside it the same rights.
fn make_private(path: &std::path::Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map(drop).map_err(|e| {
        StoreError::Unusable(format!(
            "the database file {} cannot be opened: {e}; check its directory, its owner and its \
             permissions",
            path.display()
        ))
    })
}
