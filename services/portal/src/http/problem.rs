//! Refusals as problem documents (RFC 9457), and what every answer gets on its way out.

use std::sync::Arc;

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use opentelemetry::trace::{FutureExt as _, SpanKind};
use runtime::trace;
use serde::Serialize;
use types::RequestId;
use utoipa::ToSchema;

use super::Portal;
use crate::error::{Answer, Error};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A refusal (RFC 9457).
#[derive(Serialize, ToSchema)]
pub(super) struct Problem {
    /// Names the kind of problem.
    #[serde(rename = "type")]
    #[schema(format = "uri")]
    kind: String,
    /// The kind in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What happened, and what to do.
    detail: String,
    /// Stable; scripts may rely on it.
    code: String,
    /// As in the header `x-request-id`.
    request_id: String,
}

fn title(code: &str) -> String {
    let mut words = code.replace('_', " ");
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    words
}

impl IntoResponse for Error {
    /// The document is written by [`finish`], which knows the request's id.
    fn into_response(self) -> Response {
        let answer = self.answer();
        let status = StatusCode::from_u16(answer.status);
        let mut response = status
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            .into_response();
        response.extensions_mut().insert(answer);
        response
    }
}

fn write(response: Response, answer: Answer, request: RequestId) -> Response {
    let problem = Problem {
        kind: format!("https://tollgate.dev/errors/{}", answer.code),
        title: title(&answer.code),
        status: answer.status,
        detail: answer.detail,
        code: answer.code,
        request_id: request.to_string(),
    };
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let (mut head, _) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    let kind = HeaderValue::from_static("application/problem+json");
    head.headers.insert(header::CONTENT_TYPE, kind);
    if answer.status == 401 {
        let how = HeaderValue::from_static("Bearer");
        head.headers.insert(header::WWW_AUTHENTICATE, how);
    }
    if let Some(seconds) = answer.retry_after {
        head.headers
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    Response::from_parts(head, body.into())
}

/// Gives every request an id and a span, and every answer its headers; counts it.
pub(super) async fn finish(
    State(portal): State<Arc<Portal>>,
    request: Request,
    next: Next,
) -> Response {
    let id: RequestId = portal.host.ids().new_id();
    let method = request.method().to_string();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let parent = request
        .headers()
        .get(trace::TRACEPARENT)
        .and_then(|value| value.to_str().ok())
        .and_then(trace::parse_traceparent);
    let tracer = portal.host.tracer();
    let span = match tracer.samples(parent.as_ref(), u32::from_ne_bytes(portal.host.random())) {
        true => tracer.root(format!("{method} {route}"), SpanKind::Server, parent),
        false => trace::Span::none(),
    };
    span.set("http.request.method", method.clone());
    span.set("http.route", route.clone());
    span.set("tollgate.request_id", id.to_string());

    let mut response = next.run(request).with_context(span.context()).await;
    if let Some(answer) = response.extensions_mut().remove::<Answer>() {
        response = write(response, answer, id);
    }
    let status = response.status().as_u16();
    span.set("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.fail(format!("status {status}"));
    }
    portal.metrics.request(&method, &route, status);
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(REQUEST_ID, value);
    }
    let sniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, sniff);
    // Answers are for who asked; some hold secrets.
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
