//! The stream of all changes: what is kept from before, then what comes, without a gap.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use stackd_core::event::{Event, Seq};
use stackd_core::runtime::BoxStream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::command::EventMessage;
use crate::view::View;

/// How many events are read at once while a reader catches up.
const PAGE: u64 = 500;
/// How long to wait before the database is asked again.
const RETRY: Duration = Duration::from_millis(500);

struct Reader {
    view: Arc<View>,
    live: broadcast::Receiver<Arc<Event>>,
    /// The last event given, or the newest that the reader does not want.
    last: Seq,
    /// Read from the database before going on live.
    behind: bool,
    /// Whether events before the first page may be missing.
    check_range: bool,
    ready: VecDeque<EventMessage>,
}

/// The stream after `after`, or from now on.
pub(crate) fn stream(view: &Arc<View>, after: Option<Seq>) -> BoxStream<'static, EventMessage> {
    // Before the look at the newest, so that none falls between the two.
    let live = view.store.subscribe();
    let reader = Reader {
        view: Arc::clone(view),
        live,
        last: after.unwrap_or_else(|| view.store.newest_event()),
        behind: after.is_some(),
        check_range: after.is_some(),
        ready: VecDeque::new(),
    };
    Box::pin(stream::unfold(reader, |mut reader| async move {
        let message = reader.next().await?;
        Some((message, reader))
    }))
}

impl Reader {
    async fn next(&mut self) -> Option<EventMessage> {
        let stop = self.view.stop.clone();
        tokio::select! {
            biased;
            message = self.next_message() => message,
            () = stop.cancelled() => None,
        }
    }

    async fn next_message(&mut self) -> Option<EventMessage> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                if let EventMessage::Event(event) = &message {
                    self.last = event.seq;
                }
                return Some(message);
            }
            if self.behind {
                self.catch_up().await;
                continue;
            }
            match self.live.recv().await {
                // What was committed by another replica in between is read from the database.
                Ok(event) if event.seq.0 == self.last.0 + 1 => {
                    self.ready.push_back(EventMessage::Event(event));
                }
                Ok(event) if event.seq <= self.last => {}
                Ok(_) | Err(RecvError::Lagged(_)) => {
                    self.behind = true;
                    self.check_range = true;
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    async fn catch_up(&mut self) {
        let last = self.last;
        let read = async {
            if self.check_range {
                let (oldest, newest) = self.view.store.event_range().await?;
                // A number that was never given out comes from another database.
                let lost = oldest.0 > last.0.saturating_add(1) || last > newest;
                if lost {
                    let from = Seq(oldest.0.saturating_sub(1));
                    return Ok((Some((oldest, from)), Vec::new()));
                }
            }
            Ok::<_, stackd_store::StoreError>((
                None,
                self.view.store.events_after(last, PAGE).await?,
            ))
        };
        match read.await {
            Ok((Some((oldest, from)), _)) => {
                self.check_range = false;
                self.last = from;
                self.ready.push_back(EventMessage::Reset { oldest });
            }
            Ok((None, events)) => {
                self.check_range = false;
                self.behind = !events.is_empty();
                self.ready.extend(events.into_iter().map(|e| EventMessage::Event(Arc::new(e))));
            }
            Err(error) => {
                tracing::warn!(%error, "events could not be read; trying again");
                let again = self.view.clock.boot().after(RETRY);
                self.view.clock.sleep_until(again).await;
            }
        }
    }
}
