//! The one place where this dialect turns the engine's refusals into statuses and texts.

use axum::http::StatusCode;
use stackd_core::RuntimeError;
use stackd_core::pod::PodError;
use stackd_core::port::TargetPortError;
use stackd_core::runtime::ErrorKind;
use stackd_engine::{CallError, CreateError, DeleteError, Unavailable};

use crate::fault::Fault;

pub(crate) fn not_found() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "stack not found")
}

pub(super) fn invalid_body() -> Fault {
    Fault::new(StatusCode::BAD_REQUEST, "invalid json body")
}

impl From<PodError> for Fault {
    fn from(error: PodError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("invalid pod spec: {error}"))
    }
}

impl From<TargetPortError> for Fault {
    fn from(error: TargetPortError) -> Self {
        Self::input(error)
    }
}

impl From<Unavailable> for Fault {
    fn from(error: Unavailable) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl From<CreateError> for Fault {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::LimitRange(text) => {
                Self::new(StatusCode::BAD_REQUEST, format!("invalid pod spec: {text}"))
            }
            CreateError::Quota(text) => Self::unavailable(format!("cluster saturated: {text}")),
            CreateError::Saturated(why) => {
                tracing::info!(%why, "a create was refused: no room");
                Self::unavailable("cluster saturated")
            }
            CreateError::NoNodePort => Self::unavailable("no available nodeport"),
            CreateError::Ttl { .. } | CreateError::RuntimeClass(_) => Self::input(error),
            CreateError::IdempotencyMismatch => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
            CreateError::IdempotencyGone => {
                Self::new(StatusCode::CONFLICT, format!("{error}; use a new key for a new stack"))
            }
            CreateError::Unavailable(error) => error.into(),
            // This dialect gives no slot, so no owner can have taken it.
            CreateError::OwnerTaken(_) => Self::internal(&error),
        }
    }
}

impl From<DeleteError> for Fault {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::NotFound => not_found(),
            DeleteError::Unavailable(error) => error.into(),
            DeleteError::Refused(why) => Self::internal(&why),
        }
    }
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NotFound => not_found(),
            CallError::NoContainer(_) => Self::input(error),
            CallError::NotRunning(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            CallError::Runtime(error) => error.into(),
            CallError::Unavailable(error) => error.into(),
        }
    }
}

impl From<RuntimeError> for Fault {
    fn from(error: RuntimeError) -> Self {
        match error.kind {
            ErrorKind::Rejected => Self::input(error),
            ErrorKind::Saturated => Self::unavailable("cluster saturated"),
            ErrorKind::Retry => {
                tracing::warn!(error = %error.operator, "the runtime could not answer a call");
                Self::unavailable(error.to_string())
            }
            ErrorKind::Failed => Self::internal(&error.operator),
        }
    }
}
