//! Batch deletes.

use stackd_core::JobId;
use stackd_store::JobStatus;
use stackd_testkit::build::spec;
use stackd_testkit::{TestEngine, within};

async fn ended(test: &TestEngine, id: JobId) -> std::sync::Arc<stackd_store::Job> {
    within("the job ends", async {
        loop {
            let job = test.engine.job(id).unwrap_or_else(|| panic!("{id} is kept"));
            if matches!(job.status, JobStatus::Completed | JobStatus::Failed) {
                return job;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_batch_counts_what_it_did() {
    let test = TestEngine::start().await;
    let mut ids = vec!["stack-1".to_owned(), "stack-00000000000000ff".to_owned()];
    for _ in 0..3 {
        let id = test.running(spec("app").build()).await.stack.id.to_string();
        ids.extend([id.clone(), id]);
    }
    let id = test.engine.batch_delete(ids).await.unwrap();
    let job = ended(&test, id).await;
    assert_eq!(job.status, JobStatus::Completed);
    assert_eq!(job.stack_ids.len(), 5);
    assert_eq!((job.deleted, job.not_found, job.failed), (3, 2, 0));
    assert!(job.errors.is_empty());
    assert_eq!(test.engine.stats().total_stacks, 0);
    test.finish().await;
}

#[tokio::test]
async fn ids_that_do_not_exist_cost_no_writes() {
    let test = TestEngine::start().await;
    let ids = (0..2000).map(|n| format!("stack-{n:016x}")).collect();
    let id = test.engine.batch_delete(ids).await.unwrap();
    within("the job ends", async {
        while test.engine.job(id).unwrap().status != JobStatus::Completed {
            // Between its acceptance and its end there was nothing to make durable.
            let row = test.store.load().await.unwrap().jobs.remove(0);
            assert_ne!(row.status, JobStatus::Running, "{} of 2000 are written", row.done);
        }
    })
    .await;
    let row = test.store.load().await.unwrap().jobs.remove(0);
    assert_eq!(*test.engine.job(id).unwrap(), row);
    assert_eq!((row.deleted, row.not_found, row.failed), (0, 2000, 0));
    test.finish().await;
}

#[tokio::test]
async fn a_batch_goes_on_after_a_restart_and_counts_nothing_twice() {
    let test = TestEngine::start().await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(test.running(spec("app").build()).await.stack.id.to_string());
    }
    let id = test.engine.batch_delete(ids).await.unwrap();
    within("it is under way", async {
        while test.engine.job(id).unwrap().deleted == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let test = test.restart(true).await;
    let job = ended(&test, id).await;
    assert_eq!((job.deleted, job.not_found, job.failed), (10, 0, 0));
    assert!(test.engine.job(JobId::from_bits(1)).is_none());
    test.finish().await;
}
