//! Calls that look into a stack: its output, a command inside it, what it uses, what happened to it.

use futures_util::{TryStreamExt as _, stream};
use stackd_core::event::Event;
use stackd_core::runtime::{
    BoxStream, ErrorKind, ExecRequest, ExecSession, LogLine, LogOptions, Usage,
};
use stackd_core::{Phase, RuntimeError, StackId};
use std::sync::Arc;

use crate::command::CallError;
use crate::live::LiveStack;
use crate::shared::unavailable;
use crate::view::View;

/// How many of a stack's events are shown.
const MAX_EVENTS: u64 = 1000;

fn visible(view: &View, id: StackId) -> Result<Arc<LiveStack>, CallError> {
    view.live.read().get(id).ok_or(CallError::NotFound)
}

/// A stack with a container of this name, if one is named.
fn with_container(
    view: &View,
    id: StackId,
    container: Option<&String>,
) -> Result<Arc<LiveStack>, CallError> {
    let live = visible(view, id)?;
    let known = |name: &String| live.stack.spec.all_containers().any(|c| c.name == *name);
    match container {
        Some(name) if !known(name) => Err(CallError::NoContainer(name.clone())),
        _ => Ok(live),
    }
}

fn failed(error: RuntimeError) -> CallError {
    if matches!(error.kind, ErrorKind::Failed | ErrorKind::Retry) {
        tracing::warn!(error = error.operator, "a call of the runtime failed");
    }
    CallError::Runtime(error)
}

/// A failure about a stack that is to run and may not do so yet.
fn not_running(error: RuntimeError, phase: Phase) -> CallError {
    if error.is_absence() { CallError::NotRunning(phase.as_str()) } else { failed(error) }
}

type Lines = BoxStream<'static, Result<LogLine, RuntimeError>>;

pub(crate) async fn logs(
    view: &Arc<View>,
    id: StackId,
    options: LogOptions,
) -> Result<Lines, CallError> {
    with_container(view, id, options.container.as_ref())?;
    match view.runtime.logs(id, options.clone()).await {
        // It has not been started yet, or was refused: so far it has written nothing.
        Err(error) if error.is_absence() => {
            Ok(Box::pin(stream::once(begun(Arc::clone(view), id, options)).try_flatten()))
        }
        other => other.map_err(failed),
    }
}

/// What a stack writes that has written nothing yet: who follows waits until it begins or ends.
async fn begun(view: Arc<View>, id: StackId, options: LogOptions) -> Result<Lines, RuntimeError> {
    loop {
        // Registered before the look, so that no change between the two is missed.
        let changed = view.waiter(id).notified_owned();
        let live = view.live.read().get(id);
        let may_begin = live.is_some_and(|live| live.stack.observed.phase.is_active());
        if !options.follow || !may_begin {
            return Ok(Box::pin(stream::empty()));
        }
        match view.runtime.logs(id, options.clone()).await {
            Err(error) if error.is_absence() => {}
            other => return other,
        }
        tokio::select! {
            () = changed => {}
            () = view.stop.cancelled() => return Ok(Box::pin(stream::empty())),
        }
    }
}

pub(crate) async fn exec(
    view: &View,
    id: StackId,
    request: ExecRequest,
) -> Result<ExecSession, CallError> {
    let live = with_container(view, id, request.container.as_ref())?;
    let phase = live.stack.observed.phase;
    if !phase.is_active() {
        return Err(CallError::NotRunning(phase.as_str()));
    }
    view.runtime.exec(id, request).await.map_err(|error| not_running(error, phase))
}

pub(crate) async fn usage(view: &View, id: StackId) -> Result<Usage, CallError> {
    let phase: Phase = visible(view, id)?.stack.observed.phase;
    if !phase.is_active() {
        return Err(CallError::NotRunning(phase.as_str()));
    }
    view.runtime.usage(id).await.map_err(|error| not_running(error, phase))
}

pub(crate) async fn events_of(view: &View, id: StackId) -> Result<Vec<Event>, CallError> {
    visible(view, id)?;
    view.store.events_of(id, MAX_EVENTS).await.map_err(|error| unavailable(error).into())
}
