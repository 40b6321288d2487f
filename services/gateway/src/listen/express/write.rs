//! The heads that go to the upstream and to the client: the same fields as on the other way.

use http::StatusCode;
use jiff::Timestamp;
use runtime::trace::{Span, TRACEPARENT};

use super::{super::Hall, answer::Answer, request::Request};
use crate::{
    address,
    catalogue::Service,
    edge::{COST, CallId, REQUEST_ID, Worker, X_FORWARDED_FOR},
    headers,
    limits::Limits,
    meter::Ticket,
    principal::PRINCIPAL,
    proxy::{X_FORWARDED_HOST, X_FORWARDED_PROTO},
};

/// Room for a head as it mostly is.
const HEAD_BYTES: usize = 1024;

/// A head that grows.
trait Head {
    fn piece(&mut self, piece: &[u8]);

    /// A field whose name is put in small letters.
    fn field(&mut self, name: &str, value: &[u8]);
}

impl Head for Vec<u8> {
    fn piece(&mut self, piece: &[u8]) {
        self.extend_from_slice(piece);
    }

    fn field(&mut self, name: &str, value: &[u8]) {
        let begin = self.len();
        self.extend_from_slice(name.as_bytes());
        if let Some(name) = self.get_mut(begin..) {
            name.make_ascii_lowercase();
        }
        for piece in [b": ", value, b"\r\n"] {
            self.extend_from_slice(piece);
        }
    }
}

/// The head of a request as the upstream gets it.
pub(super) fn request(
    worker: &Worker,
    request: &Request<'_>,
    ticket: &Ticket,
    service: &Service,
    rest: &str,
    span: &Span,
) -> Vec<u8> {
    let facts = ticket.facts();
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let path = match (rest, service.base_path.as_str()) {
        ("", "") => "/",
        _ => rest,
    };
    for piece in [request.method.as_str(), " ", &service.base_path, path] {
        head.piece(piece.as_bytes());
    }
    if let Some(query) = request.query {
        head.piece(b"?");
        head.piece(query.as_bytes());
    }
    head.piece(b" HTTP/1.1\r\n");
    for field in request.fields {
        let is_host = field.name.eq_ignore_ascii_case("host");
        if !is_host && !headers::is_not_for_upstreams(field.name) {
            head.field(field.name, field.value);
        }
    }
    head.field("host", service.authority.as_bytes());
    head.field("via", b"1.1 tollgate");
    let scheme: &[u8] = if facts.is_secure { b"https" } else { b"http" };
    head.field(X_FORWARDED_PROTO.as_str(), scheme);
    head.field(X_FORWARDED_HOST.as_str(), request.host.as_bytes());
    head.field(REQUEST_ID.as_str(), facts.request_text.as_bytes());
    if span.is_some() && worker.edge.tracer.propagates() {
        let carried = span.traceparent();
        if !carried.is_empty() {
            head.field(TRACEPARENT, carried.as_bytes());
        }
    }
    // What is text already is appended to: its end is the head's.
    let mut text = String::with_capacity(HEAD_BYTES);
    address::write(&mut text, facts.client);
    head.field(X_FORWARDED_FOR.as_str(), text.as_bytes());
    text.clear();
    let signer = &worker.edge.signer;
    signer.write(
        &mut text,
        ticket.entry(),
        facts.request,
        facts.at.as_second(),
    );
    head.field(PRINCIPAL.as_str(), text.as_bytes());
    head.piece(b"\r\n");
    head
}

/// The head of an answer as the client gets it.
pub(super) fn answer(
    hall: &Hall,
    answer: &Answer<'_>,
    id: &CallId,
    cost: Option<i64>,
    limits: Limits,
    (now, is_last): (Timestamp, bool),
) -> Vec<u8> {
    let mut head = hall.buffer();
    head.piece(b"HTTP/1.1 ");
    let mut digits = itoa::Buffer::new();
    head.piece(digits.format(answer.status).as_bytes());
    head.piece(b" ");
    let status = StatusCode::from_u16(answer.status).ok();
    let reason = status.and_then(|status| status.canonical_reason());
    head.piece(reason.unwrap_or_default().as_bytes());
    head.piece(b"\r\n");
    for field in answer.fields {
        if !headers::is_not_for_clients(field.name) {
            head.field(field.name, field.value);
        }
    }
    head.field("via", b"1.1 tollgate");
    if let Some(cost) = cost {
        head.field(COST.as_str(), digits.format(cost).as_bytes());
    }
    head.field(REQUEST_ID.as_str(), id.text.as_bytes());
    if limits != Limits::default() {
        let mut named = http::HeaderMap::new();
        limits.put(&mut named);
        for (name, value) in &named {
            head.field(name.as_str(), value.as_bytes());
        }
    }
    if !answer.has_date {
        head.field("date", hall.date(now).as_bytes());
    }
    if is_last {
        head.field("connection", b"close");
    }
    head.piece(b"\r\n");
    head
}
