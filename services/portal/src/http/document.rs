//! The OpenAPI document: what the routes say of themselves, and what is true of all of them.

use axum::response::IntoResponse;
use http::{HeaderValue, header};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, Info, ObjectBuilder, OpenApi, Ref, RefOr, Required, Response,
        ResponseBuilder,
        content::ContentBuilder,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem},
        schema::Type,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use super::problem::Problem;

const SCHEME: &str = "token";
const PROBLEM: &str = "#/components/schemas/Problem";
const DESCRIPTION: &str = "Organisations, members, keys, wallets and usage. Sign in with \
    POST /v1/login and send the token as `Authorization: Bearer …`; operators send theirs. Lists \
    come in pages: hand `next_cursor` back as `cursor`. A POST with an `Idempotency-Key` is \
    carried out once; a repetition within 24 hours gets the first answer, without its secrets.";

/// Every refusal there is: status, name, meaning.
const REFUSALS: [(u16, &str, &str); 13] = [
    (400, "Invalid", "A field breaks a rule; the detail names it"),
    (401, "Unauthenticated", "No session, or a wrong password"),
    (
        403,
        "Forbidden",
        "Who asks may not do this, or needs a second factor",
    ),
    (404, "NotFound", "Not there, or of another organisation"),
    (409, "Conflict", "The present state does not allow it"),
    (412, "PreconditionFailed", "Changed since it was read"),
    (413, "BodyTooLarge", "The body has more than 64 KiB"),
    (415, "UnsupportedMediaType", "The body is no JSON"),
    (
        422,
        "IdempotencyMismatch",
        "The Idempotency-Key is another request's",
    ),
    (
        429,
        "TooManyRequests",
        "Retry-After says when the next attempt is welcome",
    ),
    (500, "Internal", "Our fault"),
    (503, "Unavailable", "Retry-After says when to try again"),
    (504, "Timeout", "A service did not answer in time"),
];

/// Joins both halves and adds what is the same everywhere.
pub(super) fn complete(mut open: OpenApi, mut closed: OpenApi) -> OpenApi {
    each(&mut open, |path, method, operation| {
        operation.security = Some(vec![]);
        common(path, method, operation, false);
    });
    each(&mut closed, |path, method, operation| {
        common(path, method, operation, true);
    });
    open.merge(closed);
    open.info = Info::new("Tollgate management API", "1.0.0");
    open.info.description = Some(DESCRIPTION.to_owned());
    open.security = Some(vec![SecurityRequirement::new(SCHEME, [""; 0])]);
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A session's token `tgs_…`, or the operator token"))
        .build();
    let components = open.components.take().unwrap_or_default();
    let mut components = ComponentsBuilder::from(components)
        .schema(Problem::name(), Problem::schema())
        .security_scheme(SCHEME, SecurityScheme::Http(token));
    for (_, name, text) in REFUSALS {
        components = components.response(name, refusal(text));
    }
    open.components = Some(components.build());
    open
}

fn each(document: &mut OpenApi, mut then: impl FnMut(&str, &str, &mut Operation)) {
    for (path, item) in &mut document.paths.paths {
        let PathItem {
            get,
            put,
            post,
            delete,
            patch,
            ..
        } = item;
        let methods = [
            ("get", get),
            ("put", put),
            ("post", post),
            ("delete", delete),
            ("patch", patch),
        ];
        for (method, operation) in methods {
            if let Some(operation) = operation {
                then(path, method, operation);
            }
        }
    }
}

fn common(path: &str, method: &str, operation: &mut Operation, closed: bool) {
    // What the handlers' types say of the path is less than its placeholders' names do.
    let mut own = operation.parameters.take().unwrap_or_default();
    own.retain(|it| !matches!(it, RefOr::T(it) if it.parameter_in == ParameterIn::Path));
    let has_match = |it: &RefOr<Parameter>| matches!(it, RefOr::T(it) if it.name == "if-match");
    let has_match = own.iter().any(has_match);
    let mut parameters: Vec<RefOr<Parameter>> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| RefOr::T(placeholder(name)))
        .collect();
    let in_path = !parameters.is_empty();
    let is_once = closed && method == "post";
    if is_once {
        parameters.push(RefOr::T(idempotency_key()));
    }
    parameters.append(&mut own);
    operation.parameters = Some(parameters).filter(|all| !all.is_empty());

    let has_body = operation.request_body.is_some();
    for (status, name, _) in REFUSALS {
        let applies = match status {
            401 => closed || path.ends_with("login"),
            404 => in_path,
            409 => method != "get",
            412 => has_match,
            413 => has_body || is_once,
            415 => has_body,
            422 => is_once,
            _ => true,
        };
        if applies {
            let refusal = RefOr::Ref(Ref::from_response_name(name));
            let all = &mut operation.responses.responses;
            all.entry(status.to_string()).or_insert(refusal);
        }
    }
}

/// The answer that all routes share for a status.
fn refusal(text: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::new(PROBLEM)));
    ResponseBuilder::new()
        .description(text)
        .content("application/problem+json", content.build())
        .build()
}

/// A placeholder of a path. What it names is an id of its kind, but for services.
fn placeholder(name: &str) -> Parameter {
    let (text, prefix) = match name {
        "org" => ("`org_…`", Some("org")),
        "user" => ("`usr_…`", Some("usr")),
        "key" => ("`key_…`", Some("key")),
        "request" => ("`req_…`, from `x-request-id`", Some("req")),
        "anomaly" => ("`ano_…`", Some("ano")),
        "invitation" => ("`inv_…`", Some("inv")),
        "session" => ("`web_…`", Some("web")),
        _ => ("Its name", None),
    };
    let pattern = match prefix {
        Some(prefix) => format!("^{prefix}_[0-9a-f]{{32}}$"),
        None => "^[a-z][a-z0-9-]{0,62}$".to_owned(),
    };
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
        .build();
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(text))
        .schema(Some(schema))
        .build()
}

fn idempotency_key() -> Parameter {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[!-~]{1,64}$"))
        .build();
    ParameterBuilder::new()
        .name("idempotency-key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Carries the request out once, however often it is sent",
        ))
        .schema(Some(schema))
        .build()
}

/// The document as it is served and committed.
pub(crate) fn text(document: &OpenApi) -> String {
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

pub(super) fn answer(text: &str) -> axum::response::Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], text.to_owned()).into_response()
}
