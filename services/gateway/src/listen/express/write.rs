//! The heads that go to the upstream and to the client: the same fields as on the other way.

use http::StatusCode;
use runtime::trace::TRACEPARENT;

use super::{
    super::{
        Hall,
        answer::{field, field_of_others},
    },
    answer::{Answer, has_body},
    head::{Field, is_named},
    request::Request,
    whence::Whence,
};
use crate::{
    edge::{COST, CallId, REQUEST_ID, Worker},
    headers,
    limits::Limits,
    principal::PRINCIPAL,
    proxy::Ours,
};

/// Room for a head as it mostly is. It is held while the upstream is waited for: a buffer for
/// whatever comes would be too much.
const HEAD_BYTES: usize = 1024;

/// The head of a request as the upstream gets it.
pub(super) fn request(
    worker: &Worker,
    request: &Request<'_>,
    ours: &Ours<'_>,
    rest: &str,
    whence: &mut Whence,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let base_path = ours.service.base_path.as_str();
    let path = match (rest, base_path) {
        ("", "") => "/",
        _ => rest,
    };
    for piece in [request.method.as_str(), " ", base_path, path] {
        head.extend_from_slice(piece.as_bytes());
    }
    if let Some(query) = request.query {
        head.extend_from_slice(b"?");
        head.extend_from_slice(query.as_bytes());
    }
    head.extend_from_slice(b" HTTP/1.1\r\n");
    for Field { name, value } in request.fields.iter() {
        if !is_named(name, "host") && !headers::is_not_for_upstreams(name) {
            field_of_others(&mut head, name, value);
        }
    }
    head.extend_from_slice(whence.fields(ours, request.known.host));
    let id = &ours.ticket.facts().request_text;
    field(&mut head, REQUEST_ID.as_str().as_bytes(), id);
    if let Some(carried) = ours.trace(worker) {
        field(&mut head, TRACEPARENT.as_bytes(), carried.as_bytes());
    }
    head.extend_from_slice(PRINCIPAL.as_str().as_bytes());
    head.extend_from_slice(b": ");
    ours.sign(worker, &mut head);
    head.extend_from_slice(b"\r\n\r\n");
    head
}

/// The head of an answer as the client gets it.
pub(super) fn answer(
    hall: &Hall,
    answer: &Answer<'_>,
    (id, cost): (&CallId, Option<i64>),
    limits: Limits,
    (now, is_last): (u64, bool),
) -> Vec<u8> {
    let mut head = hall.spares.take(0);
    let status = StatusCode::from_u16(answer.status).ok();
    let reason = status.and_then(|status| status.canonical_reason());
    let line = (answer.status, reason.unwrap_or_default());
    let fields = answer.fields.iter();
    pass_on(
        &mut head,
        line,
        fields.map(|field| (field.name, field.value)),
    );
    head.extend_from_slice(b"via: 1.1 tollgate\r\n");
    if let Some(cost) = cost {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(cost).as_bytes();
        field(&mut head, COST.as_str().as_bytes(), digits);
    }
    field(&mut head, REQUEST_ID.as_str().as_bytes(), &id.text);
    if limits != Limits::default() {
        let mut named = http::HeaderMap::new();
        limits.put(&mut named);
        for (name, value) in &named {
            field(&mut head, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    if !answer.has_date {
        hall.write_date(&mut head, now);
    }
    if is_last {
        head.extend_from_slice(b"connection: close\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// What an upstream's answer begins with for its client: the status, and the fields that pass.
pub(super) fn pass_on<'a>(
    head: &mut Vec<u8>,
    (status, reason): (u16, &str),
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) {
    let mut digits = itoa::Buffer::new();
    for piece in ["HTTP/1.1 ", digits.format(status), " ", reason, "\r\n"] {
        head.extend_from_slice(piece.as_bytes());
    }
    // Beside these a length is none of theirs (RFC 9110, 8.6).
    let is_empty = !has_body(status);
    for (name, value) in fields {
        let is_idle = is_empty && is_named(name, "content-length");
        if !is_idle && !headers::is_not_for_clients(name) {
            field_of_others(head, name, value);
        }
    }
}
