//! `ANY /echo`: tells the caller what arrived, for tests of what a proxy passes on.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;

use crate::problem::{Problem, delay};

/// Headers whose presence is told and whose value is not.
const SECRET_HEADERS: [&str; 4] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "x-api-key",
];

/// What a fault test may ask for.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Wanted {
    status: Option<u16>,
    delay_ms: Option<u64>,
}

/// Answers with the request's line, headers, trailers and body length. The body is counted as it
/// streams by, so it may have any size.
pub(crate) async fn echo(
    wanted: Result<Query<Wanted>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    // A query that means nothing to us is still to be echoed.
    let wanted = wanted.map(|Query(wanted)| wanted).unwrap_or_default();
    let status = wanted
        .status
        .filter(|status| (200..600).contains(status))
        .unwrap_or(200);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let (head, mut body) = request.into_parts();
    let mut body_bytes = 0usize;
    let mut trailers = BTreeMap::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("the body broke off: {error}"),
            )
        })?;
        if let Some(data) = frame.data_ref() {
            body_bytes += data.len();
        }
        if let Some(fields) = frame.trailers_ref() {
            trailers.append(&mut visible(fields));
        }
    }
    tokio::time::sleep(delay(wanted.delay_ms)?).await;
    let seen = json!({
        "method": head.method.as_str(),
        "version": format!("{:?}", head.version),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "headers": visible(&head.headers),
        "trailers": trailers,
        "body_bytes": body_bytes,
    });
    Ok((status, Json(seen)).into_response())
}

/// Header names with all their values in order; secrets only by length.
fn visible(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let value = match SECRET_HEADERS.contains(&name.as_str()) {
            true => format!("[{} bytes]", value.len()),
            false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        };
        seen.entry(name.to_string()).or_default().push(value);
    }
    seen
}
