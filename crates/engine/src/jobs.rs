//! Batch deletes: accepted durably, worked off one stack after another, taken up again after a
//! crash where they were.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use stackd_core::{JobId, StackId, Timestamp};
use stackd_store::{Change, Job, JobError, JobStatus};

use crate::book::SharedEngine;
use crate::command::{DeleteError, Unavailable};
use crate::remove;
use crate::shared::unavailable;

/// How many failures a job shows, and how long each text may be.
const MAX_ERRORS: usize = 100;
const MAX_ERROR_CHARS: usize = 512;
/// How long a job waits before it goes on when the database cannot be written.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an ended job can be looked up.
pub(crate) const KEEP: Duration = Duration::from_secs(24 * 3600);

/// The jobs that are kept.
#[derive(Default)]
pub(crate) struct Jobs {
    jobs: RwLock<HashMap<JobId, Arc<Job>>>,
}

fn ended(job: &Job) -> bool {
    matches!(job.status, JobStatus::Completed | JobStatus::Failed)
}

impl Jobs {
    /// Keeps these jobs and no others.
    pub(crate) fn reset(&self, jobs: Vec<Job>) {
        *self.jobs.write() = jobs.into_iter().map(|job| (job.id, Arc::new(job))).collect();
    }

    pub(crate) fn forget(&self, id: JobId) {
        self.jobs.write().remove(&id);
    }

    pub(crate) fn get(&self, id: JobId) -> Option<Arc<Job>> {
        self.jobs.read().get(&id).cloned()
    }

    /// The jobs that are not at their end.
    pub(crate) fn unfinished(&self) -> Vec<JobId> {
        self.jobs.read().values().filter(|job| !ended(job)).map(|job| job.id).collect()
    }

    /// Forgets jobs that ended before `before`.
    pub(crate) fn prune(&self, before: Timestamp) {
        self.jobs.write().retain(|_, job| !ended(job) || job.updated_at >= before);
    }

    pub(crate) fn put(&self, job: Job) {
        self.jobs.write().insert(job.id, Arc::new(job));
    }
}

/// Accepts a batch delete.
pub(crate) async fn accept(
    shared: &SharedEngine,
    stack_ids: Vec<String>,
) -> Result<JobId, Unavailable> {
    let mut bits = [0u8; 8];
    getrandom::fill(&mut bits).map_err(|error| {
        tracing::error!(%error, "the system gives no randomness");
        Unavailable { reason: "the system gives no randomness".to_owned() }
    })?;
    let id = JobId::from_bits(u64::from_ne_bytes(bits));
    let mut seen = HashSet::new();
    let stack_ids: Arc<[String]> =
        stack_ids.into_iter().filter(|id| seen.insert(id.clone())).collect();
    let now = shared.clock.wall();
    let job = Job {
        id,
        status: JobStatus::Queued,
        stack_ids,
        done: 0,
        deleted: 0,
        not_found: 0,
        failed: 0,
        errors: Vec::new(),
        created_at: now,
        updated_at: now,
    };
    shared.write(vec![Change::PutJob(Box::new(job.clone()))]).await.map_err(unavailable)?;
    shared.view.jobs.put(job);
    run(shared, id);
    Ok(id)
}

/// Works a job off in the background.
pub(crate) fn run(shared: &SharedEngine, id: JobId) {
    let engine = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let Some(job) = engine.view.jobs.get(id) else { return };
        let mut job = Job::clone(&job);
        while !ended(&job) {
            if engine.stop.is_cancelled() {
                return;
            }
            match step(&engine, &job).await {
                Ok(next) => {
                    job = next;
                    engine.view.jobs.put(job.clone());
                }
                Err(Unavailable { .. }) => {
                    let again = engine.clock.boot().after(PAUSE);
                    tokio::select! {
                        () = engine.clock.sleep_until(again) => {}
                        () = engine.stop.cancelled() => return,
                    }
                }
            }
        }
        tracing::info!(job = %id, deleted = job.deleted, not_found = job.not_found, failed = job.failed, "batch delete ended");
    });
}

/// Deletes the job's next stack. The job's progress is written with the intent, so that a crash
/// between the two cannot count a stack twice or not at all. An id that does not exist changes
/// nothing, and is counted again after a crash: it is written with whatever comes next.
async fn step(shared: &SharedEngine, job: &Job) -> Result<Job, Unavailable> {
    let mut next = job.clone();
    next.status = JobStatus::Running;
    next.updated_at = shared.clock.wall();
    let Some(text) = usize::try_from(job.done).ok().and_then(|i| job.stack_ids.get(i)) else {
        return finish(shared, next).await;
    };
    next.done += 1;
    let deleted = match text.parse::<StackId>() {
        Err(_) => Err(DeleteError::NotFound),
        Ok(id) => {
            let mut counted = next.clone();
            counted.deleted += 1;
            let change = Change::PutJob(Box::new(counted));
            remove::delete(shared, id, Some(change)).await
        }
    };
    match deleted {
        Ok(()) => {
            next.deleted += 1;
            return Ok(next);
        }
        Err(DeleteError::NotFound) => {
            next.not_found += 1;
            // There may be very many, and nothing in between that waits.
            tokio::task::yield_now().await;
            return Ok(next);
        }
        Err(DeleteError::Unavailable(unavailable)) => return Err(unavailable),
        Err(DeleteError::Refused(error)) => {
            next.failed += 1;
            if next.errors.len() < MAX_ERRORS {
                let error = error.chars().take(MAX_ERROR_CHARS).collect();
                next.errors.push(JobError { stack_id: text.clone(), error });
            }
        }
    }
    put(shared, &next).await?;
    Ok(next)
}

async fn finish(shared: &SharedEngine, mut job: Job) -> Result<Job, Unavailable> {
    let all_failed = job.failed > 0 && job.deleted == 0 && job.not_found == 0;
    job.status = if all_failed { JobStatus::Failed } else { JobStatus::Completed };
    put(shared, &job).await?;
    Ok(job)
}

async fn put(shared: &SharedEngine, job: &Job) -> Result<(), Unavailable> {
    shared.write(vec![Change::PutJob(Box::new(job.clone()))]).await.map_err(unavailable)
}
