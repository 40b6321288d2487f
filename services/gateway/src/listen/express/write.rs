//! The heads that go to the upstream and to the client: the same fields as on the other way.

use http::StatusCode;
use runtime::trace::Span;

use super::{super::Hall, answer::Answer, request::Request};
use crate::{
    catalogue::Service,
    edge::{COST, CallId, REQUEST_ID, Worker},
    headers,
    limits::Limits,
    meter::Ticket,
    proxy::Ours,
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
    let ours = Ours {
        ticket,
        service,
        span,
        came_by: "1.1 tollgate",
        host: Some(request.host.as_bytes()),
    };
    ours.say(worker, |name, value| head.field(name.as_str(), value));
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
    is_last: bool,
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
        head.field("date", hall.date(hall.clock.now()).as_bytes());
    }
    if is_last {
        head.field("connection", b"close");
    }
    head.piece(b"\r\n");
    head
}
