//! The description of the API is current and whole.

use serde_json::Value;

use crate::harness::App;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");

#[test]
fn the_kept_document_is_current() {
    let mut current = stackd_server::openapi().to_pretty_json().unwrap();
    current.push('\n');
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(KEPT, &current).unwrap();
    }
    let kept = std::fs::read_to_string(KEPT).unwrap_or_default();
    assert!(
        kept == current,
        "docs/openapi.json is not current: run this test with UPDATE_OPENAPI=1"
    );
}

#[test]
fn every_operation_is_described() {
    let document = serde_json::to_value(stackd_server::openapi()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = format!("{method} {path}");
            ids.push(operation["operationId"].as_str().expect(&name).to_owned());
            assert!(operation["summary"].is_string(), "{name}");
            assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{name}");
            let keyless = ["/livez", "/readyz", "/schemas/challenge.json", "/play/{challenge}"]
                .contains(&path.as_str());
            assert_eq!(operation.get("security").is_none(), keyless, "{name}");
            let statuses = operation["responses"].as_object().unwrap();
            // Without API keys, pages of other origins are sent away; players always have a token.
            let shared: &[&str] = match operation["tags"][0].as_str() {
                _ if keyless => &[],
                Some("player") => &["401"],
                _ => &["401", "403"],
            };
            for shared in shared {
                assert!(statuses.contains_key(*shared) || path == "/metrics", "{name} {shared}");
            }
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let name = format!("{name} {status}");
                assert!(answer["headers"]["X-Request-Id"].is_object(), "{name}");
                let error = status.parse::<u16>().unwrap() >= 400
                    && !["/readyz", "/play/{challenge}"].contains(&path.as_str());
                if error {
                    assert!(answer["content"]["application/problem+json"].is_object(), "{name}");
                    let json = &answer["content"]["application/json"];
                    assert!(json.get("example").or(json.get("examples")).is_some(), "{name}");
                }
            }
        }
    }
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all);
    let schemes = document["components"]["securitySchemes"].as_object().unwrap();
    assert_eq!(schemes.len(), 3);
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(value: &Value, root: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    let pointer = target.strip_prefix('#').unwrap();
                    assert!(root.pointer(pointer).is_some(), "{target}");
                }
                map.values().for_each(|value| walk(value, root));
            }
            Value::Array(list) => list.iter().for_each(|value| walk(value, root)),
            _ => {}
        }
    }
    let document = serde_json::to_value(stackd_server::openapi()).unwrap();
    walk(&document, &document);
}

#[tokio::test]
async fn the_server_shows_the_document_and_the_page() {
    let app = App::new().await;
    let served = app.get("/openapi.json").await.is(200);
    assert_eq!(served.header("content-type"), Some("application/json"));
    assert_eq!(served.json(), serde_json::to_value(stackd_server::openapi()).unwrap());
    let page = app.get("/docs").await.is(200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    // Every part that the page names is there.
    let parts = page.text.split('"').filter(|part| part.starts_with("/docs/"));
    let parts: Vec<_> = parts.map(str::to_owned).collect();
    assert_eq!(parts.len(), 4, "{parts:?}");
    for part in parts.iter().filter(|part| !part.ends_with(".png")) {
        assert!(!app.get(part).await.is(200).text.is_empty(), "{part}");
    }
    app.get("/docs/../Cargo.toml").await.refuses(404, "not found");
    app.get("/docs/none.js").await.refuses(404, "not found");
}
