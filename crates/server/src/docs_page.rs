//! `/openapi.json` and, for people, `/docs`: Swagger UI, served from this binary.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use crate::ServerState;
use crate::fault::Fault;
use crate::params::PathText;

/// Our own page around the viewer, with absolute paths, so that `/docs` answers as it is written.
const PAGE: &str = r##"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>stackd API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"##;

const START: &str = r##"window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
"##;

/// The viewer writes styles into the page; scripts come from here only.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
);

/// The routes of the description, which need no key: it says nothing but what everybody may know.
pub(crate) fn routes(document: &OpenApi) -> Router<ServerState> {
    let json = match document.to_json() {
        Ok(json) => Bytes::from(json),
        // The document is data of this program; a test renders it.
        Err(_) => Bytes::new(),
    };
    Router::new()
        .route("/openapi.json", get(move || async move { typed("application/json", json) }))
        .route("/docs", get(page))
        .route("/docs/{file}", get(file))
}

fn typed(content_type: &'static str, body: impl IntoResponse) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(content_type))], body).into_response()
}

async fn page() -> Response {
    ([(CONTENT_SECURITY_POLICY, POLICY)], typed("text/html; charset=utf-8", PAGE)).into_response()
}

async fn file(PathText(name): PathText) -> Response {
    if name == "start.js" {
        return typed("text/javascript; charset=utf-8", START);
    }
    let served = utoipa_swagger_ui::serve(&name, Arc::new(Config::default()));
    match served.map_err(|e| e.to_string()) {
        Ok(Some(file)) => match HeaderValue::from_str(&file.content_type) {
            Ok(content_type) => {
                let cache = HeaderValue::from_static("public, max-age=3600");
                let headers = [(CONTENT_TYPE, content_type), (CACHE_CONTROL, cache)];
                (StatusCode::OK, headers, file.bytes.into_owned()).into_response()
            }
            Err(e) => Fault::internal(&e).into_response(),
        },
        Ok(None) => Fault::new(StatusCode::NOT_FOUND, "not found").into_response(),
        Err(e) => Fault::internal(&e).into_response(),
    }
}
