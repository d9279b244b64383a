//! `GET /stacks`.

use axum::extract::{RawQuery, State};
use axum::http::header::{ETAG, IF_NONE_MATCH, LINK};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use form_urlencoded::Serializer;
use sha2::{Digest, Sha256};
use stackd_core::Phase;
use stackd_engine::Cursor;
use utoipa::ToSchema;

use super::labels::Selector;
use super::model::{self, StackView, StatusSchema};
use crate::ServerState;
use crate::fault::{ErrorBody, Fault, json_text};
use crate::params::Params;

/// The most stacks in one page.
const MAX_LIMIT: u64 = 1000;

/// All stacks, or a page of them.
#[derive(ToSchema)]
#[schema(as = StackList)]
#[expect(
    dead_code,
    reason = "it only describes the list, which is put together from rendered stacks"
)]
struct ListSchema<'a> {
    /// The stacks, oldest first.
    stacks: Vec<StackView<'a>>,
    /// With `limit` only: where the next page begins, null after the last.
    #[schema(required = false)]
    next_cursor: Option<String>,
}

/// What a list is narrowed to.
struct Filter {
    limit: Option<usize>,
    cursor: Option<Cursor>,
    statuses: Vec<Phase>,
    selector: Selector,
}

impl Filter {
    fn read(params: &Params) -> Result<Self, Fault> {
        let cursor = params.one("cursor").map(str::parse).transpose();
        let words = params.all("status").flat_map(|text| text.split(',')).map(str::trim);
        let statuses = words.filter(|word| !word.is_empty()).map(Phase::parse).collect();
        let statuses: Option<Vec<_>> = statuses;
        Ok(Self {
            limit: params.number("limit", 1, MAX_LIMIT)?.map(|limit| limit as usize),
            cursor: cursor
                .map_err(|_| Fault::input("cursor must be one that an earlier page gave"))?,
            statuses: statuses.ok_or_else(|| {
                Fault::input("status must be creating, running, stopped, failed or node_deleted")
            })?,
            selector: Selector::read(params.all("label"))?,
        })
    }

    /// The query of the next page: of what came only what this list understands, so that a key
    /// in the query goes no further.
    fn next(&self, params: &Params, cursor: Cursor) -> String {
        let mut query = Serializer::new(String::new());
        if let Some(limit) = self.limit {
            query.append_pair("limit", &limit.to_string());
        }
        for name in ["status", "label"] {
            query.extend_pairs(params.all(name).map(|value| (name, value)));
        }
        query.append_pair("cursor", &cursor.to_string()).finish()
    }
}

/// All stacks, oldest first.
///
/// Without parameters: all of them. With `limit`: a page, and where the next one begins.
#[utoipa::path(
    get, path = "/stacks", tag = "stacks", operation_id = "listStacks",
    params(
        ("limit" = Option<u64>, Query, description = "At most this many.", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "Only those after the page that gave this cursor."),
        ("status" = Option<Vec<StatusSchema>>, Query, description = "Only those with one of these statuses; repeated or separated by commas."),
        ("label" = Option<Vec<String>>, Query, description = "Only those whose labels match: `key=value`, `key!=value`, `key` or `!key`; repeated or separated by commas, all must hold.", example = json!(["team=red"])),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer: 304 where nothing has changed since."),
    ),
    responses(
        (status = 200, description = "The stacks.", body = inline(ListSchema), headers(
            ("ETag" = String, description = "Changes whenever a stack does."),
            ("Link" = Option<String>, description = "With `limit`: the path of the next page (`rel=\"next\"`), where there is one."),
        )),
        (status = 304, description = "Nothing has changed since the answer with this `ETag`."),
        (status = 400, description = "A parameter is not what it should be.", body = ErrorBody,
            example = json!({"error": "invalid input: limit must be a whole number from 1 to 1000"})),
    )
)]
pub(super) async fn list_stacks(
    State(state): State<ServerState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let params = Params::read(query.as_deref().unwrap_or_default());
    let filter = Filter::read(&params)?;
    let tag = |revision: &str| etag(revision, &filter, &params);
    if let Some(known) = headers.get(IF_NONE_MATCH) {
        let now = tag(&state.engine().revision())?;
        if matches(known, &now) {
            return Ok((StatusCode::NOT_MODIFIED, [(ETAG, now)]).into_response());
        }
    }

    let Filter { limit, cursor, statuses, selector } = &filter;
    let page = state.engine().list(*cursor, *limit, |live| {
        (statuses.is_empty() || statuses.contains(&live.stack.observed.phase))
            && (selector.is_empty() || selector.matches(&live.stack.labels))
    });
    let rendered: Vec<_> = page.stacks.iter().map(|live| model::render(&state, live)).collect();
    let length: usize = rendered.iter().map(|text| text.len() + 1).sum();
    let mut body = String::with_capacity(length + 100);
    body.push_str("{\"stacks\":[");
    for (i, text) in rendered.iter().enumerate() {
        if i > 0 {
            body.push(',');
        }
        body.push_str(text);
    }
    body.push(']');
    if limit.is_some() {
        // A cursor has hexadecimal digits and a dash: nothing to escape.
        match page.next {
            Some(next) => body.push_str(&format!(",\"next_cursor\":\"{next}\"")),
            None => body.push_str(",\"next_cursor\":null"),
        }
    }
    body.push('}');

    let mut answer = json_text(StatusCode::OK, body);
    answer.headers_mut().insert(ETAG, tag(&page.revision)?);
    if let Some(next) = page.next.filter(|_| limit.is_some()) {
        let link = format!("</stacks?{}>; rel=\"next\"", filter.next(&params, next));
        if let Ok(link) = HeaderValue::from_str(&link) {
            answer.headers_mut().insert(LINK, link);
        }
    }
    Ok(answer)
}

/// Weak, since the same revision is the same list, but not promised to be the same bytes.
fn etag(revision: &str, filter: &Filter, params: &Params) -> Result<HeaderValue, Fault> {
    let mut hash = Sha256::new();
    hash.update(revision);
    hash.update(format!("\0{:?}\0{:?}", filter.limit, filter.cursor));
    for name in ["status", "label"] {
        for value in params.all(name) {
            hash.update(format!("\0{name}\0{value}"));
        }
    }
    let hash: [u8; 32] = hash.finalize().into();
    let tag = format!("W/\"{}\"", hex::encode(&hash[..12]));
    HeaderValue::from_str(&tag).map_err(|e| Fault::internal(&e))
}

/// Whether one of the tags that the caller knows is this one, by the weak comparison.
fn matches(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(known), Ok(tag)) = (known.to_str(), tag.to_str()) else { return false };
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    known.trim() == "*" || known.split(',').any(|one| bare(one) == bare(tag))
}
