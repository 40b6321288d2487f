//! `POST /render` `{"text": "…", "title"?: "…"}`: plain text set on A4 pages.

mod writer;

use axum::Router;
use axum::extract::Query;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use serde::Deserialize;

use crate::problem::{Problem, delay, fallbacks, read_json};

pub(crate) use writer::render;
#[cfg(test)]
pub(crate) use writer::win_ansi;

/// Longest title, in characters; it is a heading, not a text.
const TITLE_CHARACTERS_MAX: usize = 200;

pub(crate) fn routes() -> Router {
    fallbacks(Router::new().route("/render", post(render_text)))
}

#[derive(Debug, Deserialize)]
struct RenderRequest {
    text: Option<String>,
    title: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RenderQuery {
    delay_ms: Option<u64>,
}

async fn render_text(
    query: Result<Query<RenderQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Query(query) =
        query.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let pause = delay(query.delay_ms)?;
    let request: RenderRequest = read_json(body)?;
    let text = request.text.filter(|text| !text.trim().is_empty());
    let text = text.ok_or_else(|| Problem::field("text", "is missing or empty"))?;
    let title = request
        .title
        .as_deref()
        .map(str::trim)
        .filter(|title| !title.is_empty());
    if title.is_some_and(|title| title.chars().count() > TITLE_CHARACTERS_MAX) {
        let detail = format!("is longer than {TITLE_CHARACTERS_MAX} characters");
        return Err(Problem::field("title", detail));
    }
    let document = render(&text, title);
    tokio::time::sleep(pause).await;
    let headers = [
        (header::CONTENT_TYPE, "application/pdf".to_owned()),
        (
            header::CONTENT_DISPOSITION,
            "inline; filename=\"document.pdf\"".to_owned(),
        ),
        (
            header::HeaderName::from_static("tollgate-usage"),
            format!("pages={}", document.pages),
        ),
    ];
    Ok((headers, document.bytes).into_response())
}
