//! Answers to requests that never become calls.

use std::fmt::Display;

use http::{HeaderValue, Response, header::CONNECTION};
use http_body::Body as _;
use jiff::Timestamp;
use types::Refusal;

use crate::{
    body::EdgeBody,
    edge::{CallId, Edge, REQUEST_ID},
    refuse::Refused,
};

/// Refuses a request.
pub(super) fn refuse(edge: &Edge, refusal: Refusal) -> Response<EdgeBody> {
    let id = CallId::new(&edge.ids);
    edge.metrics.refused("", refusal.as_str(), 0);
    let mut response = Refused::from(refusal).into_response(id.id);
    response.headers_mut().insert(REQUEST_ID, id.header());
    response
}

/// The same as the last bytes of a connection of HTTP/1, for a request that hyper never had.
pub(super) fn close(edge: &Edge, refusal: Refusal) -> Vec<u8> {
    let mut response = refuse(edge, refusal);
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    write(edge, response)
}

/// The date as answers say it.
pub(super) fn date(now: Timestamp) -> impl Display {
    now.strftime("%a, %d %b %Y %H:%M:%S GMT")
}

/// Appends a field to a head, as it is.
pub(super) fn field(head: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    head.extend_from_slice(name);
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// Appends a field of somebody else, its name in small letters.
pub(super) fn field_of_others(head: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let begin = head.len();
    field(head, name, value);
    let end = begin.saturating_add(name.len());
    if let Some(name) = head.get_mut(begin..end) {
        name.make_ascii_lowercase();
    }
}

/// An answer of our own as bytes of HTTP/1.1.
pub(super) fn write(edge: &Edge, response: Response<EdgeBody>) -> Vec<u8> {
    let (parts, body) = response.into_parts();
    let mut bytes = format!(
        "HTTP/1.1 {}\r\ncontent-length: {}\r\ndate: {}\r\n",
        parts.status,
        body.size_hint().exact().unwrap_or_default(),
        date(edge.clock.now()),
    )
    .into_bytes();
    for (name, value) in &parts.headers {
        field(&mut bytes, name.as_str().as_bytes(), value.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    if let EdgeBody::Full(Some(text)) = body {
        bytes.extend_from_slice(&text);
    }
    bytes
}
