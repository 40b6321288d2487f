//! Carries an admitted call to its upstream and the answer back.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version,
    header::{
        ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, VIA,
    },
    response::Parts,
};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use proto::events::v1::Disposition;
use runtime::trace::{Kind, Span, TRACEPARENT};
use types::Refusal;

use crate::{
    address,
    admit::Admitted,
    body::{self, Answer, EdgeBody},
    catalogue::{Route, Service},
    edge::{COST, REQUEST_ID, Worker, X_FORWARDED_FOR},
    headers, idempotency,
    meter::Ticket,
    pool::{Lent, patience::Pauses},
    principal::PRINCIPAL,
    refuse::Refused,
    send::{Manner, send},
    units::JSON_BYTES_MAX,
    upgrade::{self, Switch},
    upload::{Upload, Uploaded},
};

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Beside those, the standard's own (RFC 7239): some frameworks look for it first, most only for
/// those.
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACE: HeaderName = HeaderName::from_static(TRACEPARENT);
/// Room for a principal of a key with a few scopes.
const PRINCIPAL_BYTES: usize = 320;

/// Room for a path and query as they mostly are.
const TARGET_BYTES: usize = 128;

/// Forwards a call, whose path behind the service is `rest`. The ticket inside ends in a record
/// whatever happens here.
pub(crate) async fn forward(
    worker: &Rc<Worker>,
    request: Request<Incoming>,
    admitted: Admitted<'_>,
    rest: &str,
) -> Result<Response<EdgeBody>, Refused> {
    let Admitted {
        mut ticket,
        service,
        route,
        replay,
        avoid,
    } = admitted;
    let client = Client {
        version: request.version(),
        takes_trailers: takes_trailers(request.version(), request.headers()),
    };
    let announced = request.body().size_hint().exact();
    if announced.is_some_and(|bytes| bytes > route.body_bytes_max) {
        ticket.refuse(Refusal::BodyTooLarge, Disposition::Refused);
        return Err(Refusal::BodyTooLarge.into());
    }
    if let Some(replay) = replay {
        return Box::pin(idempotency::replay(request, ticket, replay, route)).await;
    }
    let span = upstream_span(worker, &ticket, service);
    let (request, switch) = match prepare(worker, request, &ticket, service, rest, &span) {
        Ok(prepared) => prepared,
        Err(refused) => {
            ticket.refuse(refused.refusal, Disposition::Refused);
            return Err(refused);
        }
    };
    let (request, upload) = measured(request, &ticket, route);
    if let Err(refusal) = ticket.forwarding(Rc::clone(&upload)) {
        ticket.refuse(refusal, Disposition::Refused);
        return Err(refusal.into());
    }
    let manner = Manner {
        timeout: route.timeout,
        may_switch: switch.is_some(),
        avoid,
    };
    let sent = send(worker, service, request, &upload, manner);
    let (lent, response) = match ticket.during(sent).await {
        Ok(answered) => answered,
        Err(refused) => {
            let refused = failed(ticket, &upload, refused);
            span.fail(refused.refusal.as_str());
            return Err(refused);
        }
    };
    span.set(
        "http.response.status_code",
        i64::from(response.status().as_u16()),
    );
    drop(span);
    if let Some(switch) = switch {
        let status = response.status();
        if status.is_informational() && switch.is_meant(response.headers()) {
            return switch.begin(worker, response, ticket, (lent, upload)).await;
        }
        if let Some(refused) = switch.refusal(status) {
            ticket.refuse(refused.refusal, Disposition::UpstreamFailed);
            return Err(refused);
        }
    }
    answered(worker, route, ticket, (lent, response), client).await
}

/// The same request, with its body counted and limited on its way.
fn measured(
    request: Request<Incoming>,
    ticket: &Ticket,
    route: &Route,
) -> (Request<Uploaded>, Rc<Upload>) {
    let (parts, body) = request.into_parts();
    let keyed = ticket.facts().keyed.as_ref();
    let digest = keyed.map(|keyed| keyed.body());
    let (body, upload) = Uploaded::new(body, route.body_bytes_max, digest);
    (Request::from_parts(parts, body), upload)
}

/// Carries an answer to its client.
pub(crate) async fn answered(
    worker: &Worker,
    route: &Route,
    mut ticket: Ticket,
    (lent, response): (Lent, Response<Incoming>),
    client: Client,
) -> Result<Response<EdgeBody>, Refused> {
    if response.status().is_informational() {
        // A switch of protocols that nobody asked for: what follows is not HTTP.
        ticket.refuse(Refusal::UpstreamUnreachable, Disposition::UpstreamFailed);
        return Err(Refusal::UpstreamUnreachable.into());
    }
    ticket.answered(response.status(), response.headers());
    let pauses = worker
        .patience
        .pauses(route.idle_timeout, route.total_timeout);
    incoming(response, ticket, lent, client, pauses).await
}

/// Ends a call that the upstream did not answer.
fn failed(ticket: Ticket, upload: &Upload, refused: Refused) -> Refused {
    let (refused, disposition) = match (upload.fault.get(), refused.refusal) {
        (Some(refusal), _) => (refusal.into(), Disposition::Refused),
        // It was not even asked.
        (None, Refusal::UpstreamBusy) => (refused, Disposition::Refused),
        (None, _) => (refused, Disposition::UpstreamFailed),
    };
    ticket.refuse(refused.refusal, disposition);
    refused
}

/// The request as the upstream gets it, and the change of protocols that it asks for.
fn prepare(
    worker: &Worker,
    mut request: Request<Incoming>,
    ticket: &Ticket,
    service: &Service,
    rest: &str,
    span: &Span,
) -> Result<(Request<Incoming>, Option<Switch>), Refused> {
    let switch = upgrade::asked(&worker.edge, &mut request, ticket.facts().keyed.is_some())?;
    let outgoing = outgoing(worker, request, ticket, service, rest, span);
    let mut request = outgoing.ok_or(Refusal::BadRequest)?;
    if let Some(switch) = &switch {
        switch.put(request.headers_mut());
    }
    Ok((request, switch))
}

/// Marks an answer that its client must not get, because its record may not last, and yet may: he
/// learns nothing, as of a gateway that dies. A refusal would say that nothing is charged.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the record of this call is not durable yet")]
pub(crate) struct Unsaid;

/// What matters of a client for its answer.
#[derive(Clone, Copy)]
pub(crate) struct Client {
    pub(crate) version: Version,
    pub(crate) takes_trailers: bool,
}

/// HTTP/1.1 sends trailers only to who asks for them.
fn takes_trailers(version: Version, headers: &HeaderMap) -> bool {
    let mut codings = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    version >= Version::HTTP_2
        || version == Version::HTTP_11
            && codings.any(|text| text.split(',').any(|coding| coding.trim() == "trailers"))
}

/// The span of the question to the upstream.
pub(crate) fn upstream_span(worker: &Worker, ticket: &Ticket, service: &Service) -> Span {
    let facts = ticket.facts();
    if !facts.span.is_some() {
        return Span::none();
    }
    let method = facts.method.as_str();
    let context = facts.span.context();
    let span = worker
        .edge
        .tracer
        .child(method.to_owned(), Kind::Client, &context);
    span.set("http.request.method", method.to_owned());
    span.set("server.address", service.upstream.host.clone());
    span.set("server.port", i64::from(service.upstream.port));
    span
}

/// The request as the upstream gets it: its own address, no credential, no header of ours that a
/// client made up. Ours are added last, so that no `Connection` header can remove them.
fn outgoing(
    worker: &Worker,
    request: Request<Incoming>,
    ticket: &Ticket,
    service: &Service,
    rest: &str,
    span: &Span,
) -> Option<Request<Incoming>> {
    let (mut parts, body) = request.into_parts();
    let path = if rest.is_empty() && service.base_path.is_empty() {
        "/"
    } else {
        rest
    };
    let query = parts.uri.query();
    let mut target = String::with_capacity(TARGET_BYTES);
    target.push_str(&service.base_path);
    target.push_str(path);
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    let host = parts
        .headers
        .get(HOST)
        .cloned()
        .or_else(|| HeaderValue::try_from(parts.uri.authority()?.as_str()).ok());
    parts.uri = Uri::try_from(target).ok()?;
    let came_by = via(parts.version);
    parts.version = Version::HTTP_11;
    let headers = &mut parts.headers;
    headers::strip_request(headers);
    headers::join_cookies(headers);
    if matches!(parts.method, Method::GET | Method::HEAD) && body.size_hint().exact().is_none() {
        // Of these, hyper sends a body only if told so.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if ticket.is_priced() {
        // Units may come in trailers, whatever the client takes.
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if ticket.has_pointers() {
        // What is compressed cannot be looked into.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if headers.contains_key(TE) {
        // It is of this connection; by HTTP/2 it goes alone.
        headers.insert(CONNECTION, HeaderValue::from_name(TE));
    }
    let mut is_sound = true;
    let ours = Ours {
        ticket,
        service,
        span,
        came_by,
        host: host.as_ref().map(HeaderValue::as_bytes),
    };
    ours.say(worker, |name, value| match HeaderValue::from_bytes(value) {
        // Others have come by as well.
        Ok(value) if *name == VIA => {
            headers.append(name, value);
        }
        Ok(value) => {
            headers.insert(name, value);
        }
        Err(_) => is_sound = false,
    });
    is_sound.then(|| Request::from_parts(parts, body))
}

/// The version that a message came by, and we.
fn via(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2 tollgate",
        Version::HTTP_10 => "1.0 tollgate",
        _ => "1.1 tollgate",
    }
}

/// What an upstream is told of a request beside what its client says.
pub(crate) struct Ours<'a> {
    pub(crate) ticket: &'a Ticket,
    pub(crate) service: &'a Service,
    pub(crate) span: &'a Span,
    /// The version it came by, and we.
    pub(crate) came_by: &'static str,
    /// Whom the client asked.
    pub(crate) host: Option<&'a [u8]>,
}

impl Ours<'_> {
    /// Says each field.
    fn say(&self, worker: &Worker, mut put: impl FnMut(&HeaderName, &[u8])) {
        self.say_whence(&mut put);
        put(&REQUEST_ID, &self.ticket.facts().request_text);
        if let Some(carried) = self.trace(worker) {
            put(&TRACE, carried.as_bytes());
        }
        let mut principal = Vec::with_capacity(PRINCIPAL_BYTES);
        self.sign(worker, &mut principal);
        put(&PRINCIPAL, &principal);
    }

    /// Says whom the request is for and where it comes from: the same for all that one client asks
    /// of one upstream by one name.
    pub(crate) fn say_whence(&self, mut put: impl FnMut(&HeaderName, &[u8])) {
        let facts = self.ticket.facts();
        let mut text = Vec::with_capacity(PRINCIPAL_BYTES);
        put(&HOST, self.service.authority.as_bytes());
        put(&VIA, self.came_by.as_bytes());
        address::write(&mut text, facts.client);
        put(&X_FORWARDED_FOR, &text);
        // A target may name a scheme; what counts is how it came.
        let scheme = facts.scheme;
        put(&X_FORWARDED_PROTO, scheme.as_bytes());
        if let Some(host) = self.host {
            put(&X_FORWARDED_HOST, host);
        }
        text.clear();
        let is_text = |host: &&[u8]| host.is_ascii() || str::from_utf8(host).is_ok();
        let host = self.host.filter(is_text);
        address::write_forwarded(&mut text, (facts.client, scheme), host);
        put(&FORWARDED, &text);
    }

    /// The trace that the upstream may carry on.
    pub(crate) fn trace(&self, worker: &Worker) -> Option<String> {
        let is_told = self.span.is_some() && worker.edge.tracer.propagates();
        let carried = is_told.then(|| self.span.traceparent())?;
        (!carried.is_empty()).then_some(carried)
    }

    /// Appends the principal.
    pub(crate) fn sign(&self, worker: &Worker, text: &mut Vec<u8>) {
        let (entry, facts) = (self.ticket.entry(), self.ticket.facts());
        let at = facts.at.as_second();
        let signer = &worker.edge.signer;
        signer.write(text, entry, &facts.request_text, at);
    }
}

/// The answer as the client gets it.
async fn incoming(
    response: Response<Incoming>,
    mut ticket: Ticket,
    lent: Lent,
    client: Client,
    mut pauses: Pauses,
) -> Result<Response<EdgeBody>, Refused> {
    let (mut parts, mut body) = response.into_parts();
    let left = body.size_hint().exact();
    let is_empty = body.is_end_stream();
    let mut is_read = is_empty;
    let mut read = VecDeque::new();
    if ticket.reads_json(&parts.headers) {
        let gathered = body::gather(&mut body, JSON_BYTES_MAX, &mut pauses);
        let (frames, is_whole) = match ticket.during(gathered).await {
            Ok(gathered) => gathered,
            Err(error) => {
                tracing::debug!(%error, "an answer broke off");
                let refusal = Refusal::UpstreamUnreachable;
                ticket.refuse(refusal, Disposition::UpstreamFailed);
                return Err(refusal.into());
            }
        };
        if is_whole {
            read_document(&mut ticket, &frames);
        }
        (read, is_read) = (frames, is_whole);
    }
    let cost = ticket.announce(is_read);
    let tells_cost = cost.is_none() && client.takes_trailers && left.is_none();
    head(&mut parts, left, cost, tells_cost);
    if !is_empty {
        let answer = Answer {
            body,
            read,
            left,
            version: client.version,
            tells_cost,
        };
        let body = EdgeBody::metered(answer, ticket, lent, pauses);
        return Ok(Response::from_parts(parts, body));
    }
    lent.give_back();
    if !ticket.finish().proof.wait().await {
        parts.extensions.insert(Unsaid);
    }
    Ok(Response::from_parts(parts, EdgeBody::empty()))
}

/// Reads the units of a JSON answer that is there as a whole.
fn read_document(ticket: &mut Ticket, frames: &VecDeque<Frame<Bytes>>) {
    let data: Vec<&[u8]> = frames
        .iter()
        .filter_map(|frame| frame.data_ref().map(Bytes::as_ref))
        .collect();
    ticket.read_json(&data.concat());
    for trailers in frames.iter().filter_map(Frame::trailers_ref) {
        ticket.read_trailers(trailers);
    }
}

/// The head of an answer: nothing of the connection it came by, and what we say of it.
pub(crate) fn head(parts: &mut Parts, left: Option<u64>, cost: Option<i64>, tells_cost: bool) {
    headers::strip_response(&mut parts.headers);
    if left.is_none() {
        // Beside a transfer coding a length says nothing; the client would take it for the end.
        parts.headers.remove(CONTENT_LENGTH);
    }
    if let Some(cost) = cost {
        parts.headers.insert(COST, HeaderValue::from(cost));
    }
    if tells_cost {
        parts.headers.append(TRAILER, HeaderValue::from_name(COST));
    }
    let came_by = via(parts.version);
    parts.headers.append(VIA, HeaderValue::from_static(came_by));
    parts.version = Version::default();
    parts.extensions = http::Extensions::new();
}
