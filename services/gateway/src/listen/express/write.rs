//! The heads that go to the upstream and to the client: the same fields as on the other way.

use http::StatusCode;
use httparse::Header;
use runtime::trace::Span;

use super::{
    super::{
        Hall,
        answer::{field, field_of_others},
    },
    answer::{Answer, has_body},
    request::Request,
};
use crate::{
    catalogue::Service,
    edge::{COST, CallId, REQUEST_ID, Worker},
    headers,
    limits::Limits,
    meter::Ticket,
    proxy::Ours,
};

/// Room for a head as it mostly is. It is held while the upstream is waited for: a buffer for
/// whatever comes would be too much.
const HEAD_BYTES: usize = 1024;

/// The head of a request as the upstream gets it.
pub(super) fn request(
    worker: &Worker,
    request: &Request<'_>,
    ticket: &Ticket,
    service: &Service,
    rest: &str,
    span: &Span,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let path = match (rest, service.base_path.as_str()) {
        ("", "") => "/",
        _ => rest,
    };
    for piece in [request.method.as_str(), " ", &service.base_path, path] {
        head.extend_from_slice(piece.as_bytes());
    }
    if let Some(query) = request.query {
        head.extend_from_slice(b"?");
        head.extend_from_slice(query.as_bytes());
    }
    head.extend_from_slice(b" HTTP/1.1\r\n");
    for Header { name, value } in request.fields {
        if !name.eq_ignore_ascii_case("host") && !headers::is_not_for_upstreams(name) {
            field_of_others(&mut head, name, value);
        }
    }
    let ours = Ours {
        ticket,
        service,
        span,
        came_by: "1.1 tollgate",
        host: Some(request.host),
    };
    ours.say(worker, |name, value| field(&mut head, name.as_str(), value));
    head.extend_from_slice(b"\r\n");
    head
}

/// The head of an answer as the client gets it.
pub(super) fn answer(
    hall: &Hall,
    answer: &Answer<'_>,
    id: &CallId,
    cost: Option<i64>,
    limits: Limits,
    is_last: bool,
) -> Vec<u8> {
    let mut head = hall.buffer();
    let status = StatusCode::from_u16(answer.status).ok();
    let reason = status.and_then(|status| status.canonical_reason());
    let line = (answer.status, reason.unwrap_or_default());
    let fields = answer.fields.iter();
    pass_on(
        &mut head,
        line,
        fields.map(|field| (field.name, field.value)),
    );
    field(&mut head, "via", b"1.1 tollgate");
    if let Some(cost) = cost {
        let mut digits = itoa::Buffer::new();
        field(&mut head, COST.as_str(), digits.format(cost).as_bytes());
    }
    field(&mut head, REQUEST_ID.as_str(), &id.text);
    if limits != Limits::default() {
        let mut named = http::HeaderMap::new();
        limits.put(&mut named);
        for (name, value) in &named {
            field(&mut head, name.as_str(), value.as_bytes());
        }
    }
    if !answer.has_date {
        field(&mut head, "date", hall.date(hall.clock.now()).as_bytes());
    }
    if is_last {
        field(&mut head, "connection", b"close");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// What an upstream's answer begins with for its client: the status, and the fields that pass.
pub(super) fn pass_on<'a>(
    head: &mut Vec<u8>,
    (status, reason): (u16, &str),
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
) {
    let mut digits = itoa::Buffer::new();
    for piece in ["HTTP/1.1 ", digits.format(status), " ", reason, "\r\n"] {
        head.extend_from_slice(piece.as_bytes());
    }
    // Beside these a length is none of theirs (RFC 9110, 8.6).
    let is_empty = !has_body(status);
    for (name, value) in fields {
        let is_idle = is_empty && name.eq_ignore_ascii_case("content-length");
        if !is_idle && !headers::is_not_for_clients(name) {
            field_of_others(head, name, value);
        }
    }
}
