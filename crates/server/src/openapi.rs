//! The OpenAPI document: each route describes itself, this adds what all of them share.

use axum::Router;
use utoipa::OpenApi as _;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::Type;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    Components, ObjectBuilder, OpenApi, Paths, Ref, RefOr, Response, ResponseBuilder,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::challenges::{DetailBody, InvalidBody};
use crate::fault::{ErrorBody, PROBLEM_JSON, Problem};
use crate::player::PlayerErrorBody;
use crate::{ServerState, challenges, health, metrics, player, provisioner};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "stackd",
        description = "Isolated containers on demand: each with an address, a deadline and a budget.\n\nErrors are `{\"error\": \"…\"}`; with `Accept: application/problem+json` they come in the form of RFC 9457. Every answer carries `X-Request-Id`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This server")),
    tags(
        (name = "stacks", description = "Make, look at and take away stacks."),
        (name = "player", description = "What a player's browser calls, with the platform's tokens."),
        (name = "challenges", description = "What players start stacks from."),
        (name = "events", description = "What has happened."),
        (name = "health", description = "Whether the server is well."),
    ),
    components(schemas(ErrorBody, Problem, DetailBody, InvalidBody, PlayerErrorBody)),
)]
struct Base;

/// The document of the whole API.
pub fn openapi() -> OpenApi {
    routes().document
}

/// All routes, by how they are let in, and the document of all.
pub(crate) struct Routes {
    /// The provisioner's, which need a key.
    pub(crate) keyed: Router<ServerState>,
    /// The catalogue's, which need one, too, and refuse in other words.
    pub(crate) challenges: Router<ServerState>,
    /// Those of players, which need a token.
    pub(crate) player: Router<ServerState>,
    /// Those that need none, or decide by themselves.
    pub(crate) open: Router<ServerState>,
    /// What describes them.
    pub(crate) document: OpenApi,
}

/// What a route that needs a key answers besides.
fn needs_key(operation: &mut Operation) {
    operation.security = Some(vec![
        SecurityRequirement::new("api_key_header", Vec::<String>::new()),
        SecurityRequirement::new("api_key_query", Vec::<String>::new()),
    ]);
}

pub(crate) fn routes() -> Routes {
    let (keyed, mut keyed_document) = provisioner::routes().split_for_parts();
    let (open, open_document) = OpenApiRouter::new()
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(metrics::metrics))
        .routes(routes!(challenges::file_schema))
        .routes(routes!(player::play))
        .split_for_parts();
    for operation in operations(&mut keyed_document.paths) {
        needs_key(operation);
        let errors = [
            ("401", "No key, or a wrong one.", "invalid api key"),
            (
                "403",
                "Authentication is off, and the request is not from this machine.",
                "authentication is off, so only requests from this machine to localhost, \
                 127.0.0.1 or [::1] are answered; use such an address, or turn authentication on",
            ),
            ("500", "Something unexpected, which is in the server's log.", "internal server error"),
        ];
        for (status, description, text) in errors {
            let answer = error(description, text);
            let responses = &mut operation.responses.responses;
            responses.entry(status.to_owned()).or_insert(RefOr::T(answer));
        }
    }

    let (challenges, mut challenges_document) = challenges::routes().split_for_parts();
    for operation in operations(&mut challenges_document.paths) {
        needs_key(operation);
        let errors = [
            ("401", "No key.", "missing api key"),
            ("403", "A wrong key.", "invalid api key"),
            ("500", "Something unexpected, which is in the server's log.", "internal server error"),
        ];
        for (status, description, text) in errors {
            let answer = refusal(description, "Detail", serde_json::json!({ "detail": text }));
            operation.responses.responses.insert(status.to_owned(), RefOr::T(answer));
        }
    }

    let (player, mut player_document) = player::routes().split_for_parts();
    for operation in operations(&mut player_document.paths) {
        let needed = SecurityRequirement::new("bearer", Vec::<String>::new());
        operation.security = Some(vec![needed]);
        let errors = [
            ("401", "No token, or one that is not good.", "invalid token"),
            ("500", "Something unexpected, which is in the server's log.", "internal server error"),
            ("503", "No token can be verified here.", "stack feature disabled"),
        ];
        for (status, description, text) in errors {
            let answer = refusal(description, "PlayerError", serde_json::json!({ "error": text }));
            let answers = &mut operation.responses.responses;
            answers.entry(status.to_owned()).or_insert(RefOr::T(answer));
        }
    }

    let mut document = Base::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    document.merge(keyed_document);
    document.merge(challenges_document);
    document.merge(player_document);
    document.merge(open_document);
    let components = document.components.get_or_insert_with(Components::new);
    let header = ApiKey::Header(ApiKeyValue::with_description("X-API-KEY", "An API key."));
    let query = ApiKey::Query(ApiKeyValue::with_description(
        "api_key",
        "An API key, for clients that cannot set headers. The header wins.",
    ));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
    let bearer = bearer.description(Some("A token of the platform's own.")).build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    components.add_security_scheme("api_key_header", SecurityScheme::ApiKey(header));
    components.add_security_scheme("api_key_query", SecurityScheme::ApiKey(query));
    for operation in operations(&mut document.paths) {
        for answer in operation.responses.responses.values_mut() {
            if let RefOr::T(answer) = answer {
                every_answer(answer);
            }
        }
    }
    Routes { keyed, challenges, player, open, document }
}

fn error(description: &str, text: &str) -> Response {
    refusal(description, "Error", serde_json::json!({ "error": text }))
}

fn refusal(description: &str, schema: &str, example: serde_json::Value) -> Response {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .example(Some(example))
        .build();
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

/// Adds what holds for every answer: the request's id, and the other form of an error.
fn every_answer(answer: &mut Response) {
    let id = HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .description(Some("The request's id: the caller's where it sent one, else a new one."))
        .build();
    answer.headers.insert("X-Request-Id".to_owned(), RefOr::T(id));
    let is_error = answer.content.get("application/json").is_some_and(|content| {
        let RefOr::T(content) = content else { return false };
        let forms = ["/Error", "/Detail", "/Invalid", "/PlayerError"];
        matches!(&content.schema, Some(RefOr::Ref(r)) if forms.iter().any(|form| r.ref_location.ends_with(form)))
    });
    if is_error {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        answer.content.insert(PROBLEM_JSON.to_owned(), RefOr::T(problem));
    }
}

fn operations(paths: &mut Paths) -> impl Iterator<Item = &mut Operation> {
    paths.paths.values_mut().flat_map(|item| {
        [&mut item.get, &mut item.post, &mut item.delete, &mut item.put, &mut item.patch]
            .into_iter()
            .flatten()
    })
}
