//! What the API server's refusals mean for a stack: whose move it is, and in which words.

use kube::core::Status;
use stackd_core::RuntimeError;
use stackd_core::runtime::ErrorKind;
use stackd_core::stack::{Condition, reason};

const BUSY: &str = "the cluster cannot be reached for the moment";

/// Translates the failure of a call about a stack.
pub(super) fn of_call(what: &str, error: &kube::Error) -> RuntimeError {
    match error {
        kube::Error::Api(status) => of_status(what, status),
        other => retry(format!("{what}: {}", chain(other))),
    }
}

/// The call is to be made again.
pub(super) fn retry(operator: impl Into<String>) -> RuntimeError {
    RuntimeError::new(ErrorKind::Retry, Condition::new(reason::RETRYING, BUSY), operator)
}

/// The cluster is not as it must be; the caller can do nothing about it.
pub(super) fn failed(operator: impl Into<String>) -> RuntimeError {
    let condition = Condition::new(reason::START_ERROR, "the cluster refused the stack");
    RuntimeError::new(ErrorKind::Failed, condition, operator)
}

/// An error with all that caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn of_status(what: &str, status: &Status) -> RuntimeError {
    let operator = format!("{what}: {} ({} {})", status.message, status.code, status.reason);
    let message = status.message.as_str();
    match status.code {
        403 if message.contains("exceeded quota") => {
            let text = from(message, "exceeded quota");
            RuntimeError::new(
                ErrorKind::Saturated,
                Condition::new(reason::EXCEEDED_QUOTA, text),
                operator,
            )
        }
        403 if is_limit_range(message) => rejected(plain(message), operator),
        422 if message.contains("provided port is already allocated") => RuntimeError::new(
            ErrorKind::Saturated,
            Condition::new(reason::NODE_PORT_TAKEN, "a node port is held by another service"),
            operator,
        ),
        // The node ports are ours to choose, so that a wrong range is the operator's to mend.
        422 if message.contains("nodePort") => failed(operator),
        400 | 422 => rejected(plain(message), operator),
        // A token that is being replaced, or an API server that does not know all roles yet.
        401 => retry(operator),
        403 if ["User \"", " cannot ", " resource "].iter().all(|word| message.contains(word)) => {
            retry(operator)
        }
        403 | 405 | 406 | 415 => failed(operator),
        _ => retry(operator),
    }
}

fn rejected(text: String, operator: String) -> RuntimeError {
    RuntimeError::new(ErrorKind::Rejected, Condition::new(reason::START_ERROR, text), operator)
}

/// The words that the admission of limit ranges uses, and no other does.
fn is_limit_range(message: &str) -> bool {
    let limits = ["usage per Container is", "usage per Pod is", "limit to request ratio per"];
    limits.iter().any(|limit| message.contains(limit))
}

/// What is violated, without the name of the object, which is not the caller's.
fn plain(message: &str) -> String {
    let text = [" is forbidden: ", " is invalid: "]
        .iter()
        .find_map(|after| message.split_once(after))
        .map_or(message, |(_, text)| text);
    text.trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn from(message: &str, word: &str) -> String {
    message.find(word).and_then(|at| message.get(at..)).unwrap_or(message).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_and_text(code: u16, message: &str) -> (ErrorKind, String, String) {
        let status = Status::failure(message, "Forbidden").with_code(code);
        let error = of_status("creating a pod", &status);
        (error.kind, error.condition.reason, error.condition.message)
    }

    #[test]
    fn a_quota_is_saturation_and_a_limit_range_the_callers() {
        let (kind, word, text) = kind_and_text(
            403,
            "pods \"stack-1\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, \
             limited: pods=2",
        );
        assert_eq!((kind, word.as_str()), (ErrorKind::Saturated, reason::EXCEEDED_QUOTA));
        assert_eq!(text, "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2");
        let (kind, _, text) = kind_and_text(
            403,
            "pods \"stack-1\" is forbidden: [maximum cpu usage per Container is 2, but limit is 3]",
        );
        assert_eq!(kind, ErrorKind::Rejected);
        assert_eq!(text, "maximum cpu usage per Container is 2, but limit is 3");
    }

    #[test]
    fn a_port_of_another_is_told_apart_from_a_wrong_range() {
        let taken = "Service \"svc\" is invalid: spec.ports[0].nodePort: Invalid value: 31001: \
                     provided port is already allocated";
        assert_eq!(kind_and_text(422, taken).1, reason::NODE_PORT_TAKEN);
        let outside = "Service \"svc\" is invalid: spec.ports[0].nodePort: Invalid value: 80: \
                       provided port is not in the valid range.";
        assert_eq!(kind_and_text(422, outside).0, ErrorKind::Failed);
    }

    #[test]
    fn what_may_pass_is_tried_again_and_a_refusal_is_not() {
        for code in [401, 404, 409, 410, 429, 500, 503, 504] {
            assert_eq!(kind_and_text(code, "x").0, ErrorKind::Retry, "{code}");
        }
        let right = "pods is forbidden: User \"system:serviceaccount:a:b\" cannot create resource \
                     \"pods\" in API group \"\" in the namespace \"stacks\"";
        assert_eq!(kind_and_text(403, right).0, ErrorKind::Retry);
        let policy = "pods \"stack-1\" is forbidden: violates PodSecurity \"restricted:latest\"";
        assert_eq!(kind_and_text(403, policy).0, ErrorKind::Failed);
    }
}
