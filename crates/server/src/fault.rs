//! How a request is refused: `{"error": "<text>"}`, or RFC 9457 for callers that ask for it.

use std::borrow::Cow;

use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The media type of [`Problem`].
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// A refusal: the status and what the caller may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: StatusCode,
    pub(crate) text: Cow<'static, str>,
    retry_after_seconds: Option<u64>,
    /// The body in the form of another dialect than the provisioner's.
    body: Option<Box<Value>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Fault {
    pub(crate) fn new(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            text: text.into(),
            retry_after_seconds: None,
            body: None,
            headers: Vec::new(),
        }
    }

    /// The same refusal with this body.
    pub(crate) fn with_body(self, body: Value) -> Self {
        Self { body: Some(Box::new(body)), ..self }
    }

    /// The same refusal in the form `{"detail": "<text>"}`.
    pub(crate) fn into_detail(self) -> Self {
        let body = serde_json::json!({ "detail": self.text });
        self.with_body(body)
    }

    /// The same refusal with a further header.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The same refusal, worth another try after this many seconds.
    pub(crate) fn with_retry_after(self, seconds: u64) -> Self {
        Self { retry_after_seconds: Some(seconds), ..self }
    }

    /// 400 `invalid input: <text>`.
    pub(crate) fn input(text: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("invalid input: {text}"))
    }

    /// 500, after what happened went to the log: the caller learns nothing of it.
    pub(crate) fn internal(operator: &dyn std::fmt::Display) -> Self {
        tracing::error!(error = %operator, "a request failed unexpectedly");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal server error")
    }

    /// 503 that is worth another try soon.
    pub(crate) fn unavailable(text: impl Into<Cow<'static, str>>) -> Self {
        let retry_after_seconds = Some(1);
        Self { retry_after_seconds, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, text) }
    }
}

/// The error form of the provisioner's documents.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error, example = json!({"error": "stack not found"}))]
pub(crate) struct ErrorBody<'a> {
    /// What is wrong.
    error: &'a str,
}

/// What a refusal said, for the layers that count it or put it in another form.
#[derive(Debug, Clone)]
pub(crate) struct Said(pub(crate) Cow<'static, str>);

/// What a refusal has beside its text, for the same.
#[derive(Debug, Clone)]
struct Members(Map<String, Value>);

impl Members {
    /// The text is `detail` in the other form; a list of what is wrong has another name there.
    fn of(body: &Value) -> Option<Self> {
        let mut members = body.as_object()?.clone();
        // What the other form has by itself.
        for taken in ["error", "type", "title", "status", "instance"] {
            members.remove(taken);
        }
        if let Some(list) = members.remove("detail").filter(Value::is_array) {
            members.insert("errors".to_owned(), list);
        }
        Some(Self(members))
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = match &self.body {
            Some(body) => json(self.status, body),
            None => json(self.status, &ErrorBody { error: &self.text }),
        };
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if let Some(members) = self.body.as_deref().and_then(Members::of) {
            response.extensions_mut().insert(members);
        }
        response.extensions_mut().insert(Said(self.text));
        response
    }
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => json_text(status, text),
        // None of the bodies can fail: no maps with keys that are not strings, no failing parts.
        Err(e) => Fault::internal(&e).into_response(),
    }
}

/// An answer in JSON that is rendered already.
pub(crate) fn json_text(status: StatusCode, text: String) -> Response {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    (status, [(CONTENT_TYPE, JSON)], text).into_response()
}

/// A refusal as RFC 9457 has it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "type": "about:blank",
    "title": "Not Found",
    "status": 404,
    "detail": "stack not found",
    "instance": "/stacks/stack-716b6384dd477b0b"
}))]
pub(crate) struct Problem<'a> {
    /// Always `about:blank`: the status says which kind of problem it is.
    r#type: &'static str,
    /// The status in words.
    title: &'static str,
    /// The status.
    status: u16,
    /// What is wrong: the same text as `error`.
    detail: &'a str,
    /// The path that was asked for.
    instance: &'a str,
    /// What the refusal has besides, as in the dialect's own form; `errors` is a list of what is wrong
    /// with a body.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    members: Map<String, Value>,
}

/// Whether a caller accepts refusals in the form of RFC 9457.
pub(crate) fn wants_problem(headers: &HeaderMap) -> bool {
    let accepts = |media_range: &str| {
        let mut parts = media_range.split(';').map(str::trim);
        let names_it = parts.next().is_some_and(|range| range.eq_ignore_ascii_case(PROBLEM_JSON));
        let refused = |part: &str| {
            part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0)
        };
        names_it && !parts.any(refused)
    };
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(accepts)
}

/// Puts a refusal of what is at this path into the form of RFC 9457.
pub(crate) fn as_problem(response: Response, path: &str) -> Response {
    let Some(Said(text)) = response.extensions().get::<Said>().cloned() else { return response };
    let status = response.status();
    let problem = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail: &text,
        instance: path,
        members: response.extensions().get::<Members>().cloned().map_or_else(Map::new, |m| m.0),
    };
    let mut answer = json(status, &problem);
    let (mut kept, _) = response.into_parts();
    kept.headers.remove(CONTENT_LENGTH);
    kept.headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    *answer.headers_mut() = kept.headers;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_chosen_by_name_only() {
        let wants = |accept: &'static str| {
            wants_problem(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]))
        };
        assert!(wants("application/problem+json"));
        assert!(wants("application/json, Application/Problem+JSON;q=0.5"));
        assert!(!wants("application/problem+json; q=0"));
        assert!(!wants("*/*"));
        assert!(!wants("application/json"));
    }
}
