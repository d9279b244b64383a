//! The stream of all changes.

use futures_util::StreamExt as _;
use stackd_core::event::{EventKind, NewEvent, Seq};
use stackd_core::runtime::BoxStream;
use stackd_engine::EventMessage;
use stackd_runtimes::simulated::End;
use stackd_testkit::build::spec;
use stackd_testkit::{TestEngine, within};

/// The events up to the first that `last` accepts.
pub(crate) async fn until(
    events: &mut BoxStream<'static, EventMessage>,
    last: impl Fn(&NewEvent) -> bool,
) -> Vec<(Seq, NewEvent)> {
    let mut seen = Vec::new();
    within("the event comes", async {
        while let Some(message) = events.next().await {
            let EventMessage::Event(event) = message else { panic!("{message:?}") };
            seen.push((event.seq, event.event.clone()));
            if last(&event.event) {
                return;
            }
        }
        panic!("the stream has ended after {seen:?}");
    })
    .await;
    seen
}

#[tokio::test]
async fn every_change_is_told_once_and_in_order() {
    let test = TestEngine::start().await;
    let mut live = test.engine.events(None);
    let id = test.running(spec("app").build()).await.stack.id;
    assert!(test.runtime.end(id, End::failed(2)));
    until(&mut live, |e| e.phase == stackd_core::Phase::Failed).await;
    test.engine.delete(id).await.unwrap();
    until(&mut live, |e| e.kind == EventKind::Removed).await;

    let told = until(&mut test.engine.events(Some(Seq(0))), |e| e.kind == EventKind::Removed).await;
    let words: Vec<_> = told.iter().map(|(_, e)| (e.kind.as_str(), e.phase.as_str())).collect();
    assert_eq!(
        words.iter().filter(|(kind, _)| *kind != "changed").collect::<Vec<_>>(),
        [&("created", "creating"), &("deleted", "failed"), &("removed", "failed")],
    );
    assert!(words.contains(&("changed", "running")) && words.contains(&("changed", "failed")));
    assert!(told.windows(2).all(|pair| pair[0].0 < pair[1].0));

    let from = told[1].0;
    let rest = until(&mut test.engine.events(Some(from)), |e| e.kind == EventKind::Removed).await;
    assert_eq!(rest, told[2..]);
    test.finish().await;
}

#[tokio::test]
async fn a_stacks_own_events_are_kept_while_it_is() {
    let test = TestEngine::start().await;
    let id = test.running(spec("app").build()).await.stack.id;
    let mut live = test.engine.events(Some(Seq(0)));
    until(&mut live, |e| e.phase == stackd_core::Phase::Running).await;
    let events = test.engine.events_of(id).await.unwrap();
    assert_eq!(events.first().unwrap().event.kind, EventKind::Created);
    assert!(events.iter().all(|e| e.event.stack == id));
    test.finish().await;
}

#[tokio::test]
async fn a_reader_from_another_time_is_told_to_start_anew() {
    let test = TestEngine::start().await;
    test.running(spec("app").build()).await;
    let mut events = test.engine.events(Some(Seq(1_000_000)));
    let first = within("a message comes", events.next()).await.unwrap();
    assert!(matches!(first, EventMessage::Reset { .. }), "{first:?}");
    until(&mut events, |e| e.kind == EventKind::Created).await;
    test.finish().await;
}
