//! Errors of the PDF and mileage upstreams (RFC 9457), and reading of JSON bodies for all three.

use std::time::Duration;

use axum::Router;
use axum::extract::rejection::BytesRejection;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::BODY_BYTES_MAX;

/// Longest pause a caller may ask for with `delay_ms`.
pub(crate) const DELAY_MS_MAX: u64 = 60_000;

/// What is wrong with a request, in words for its sender.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    pub(crate) field: Option<&'static str>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem {
            status,
            detail: detail.into(),
            field: None,
        }
    }

    /// A field that does not hold what it must.
    pub(crate) fn field(field: &'static str, detail: impl Into<String>) -> Problem {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Problem {
            status,
            detail: detail.into(),
            field: Some(field),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(field) = self.field {
            body["field"] = json!(field);
        }
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, kind, body.to_string()).into_response()
    }
}

/// Answers unknown paths and methods in the same form as every other error.
pub(crate) fn fallbacks(routes: Router) -> Router {
    routes
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
}

async fn no_route(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {}", uri.path()),
    )
}

async fn no_method(uri: Uri) -> Problem {
    let detail = format!("{} does not take this method", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// Parses a JSON body whatever its content type says, so that a bare `curl -d` works.
pub(crate) fn read_json<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
) -> Result<T, Problem> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {BODY_BYTES_MAX} bytes"),
        ),
        status => Problem::new(status, rejection.body_text()),
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not the JSON expected: {error}"),
        )
    })
}

/// Checks a pause asked for by a fault test.
pub(crate) fn delay(delay_ms: Option<u64>) -> Result<Duration, Problem> {
    match delay_ms.unwrap_or(0) {
        ms if ms <= DELAY_MS_MAX => Ok(Duration::from_millis(ms)),
        _ => Err(Problem::field(
            "delay_ms",
            format!("must be at most {DELAY_MS_MAX}"),
        )),
    }
}
