//! One call: checked, sent, answered and recorded.

use std::{
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::CONNECTION};
use jiff::Timestamp;
use proto::events::v1::Disposition;
use runtime::{crash_point, trace::Span};
use types::Refusal;

use super::{
    super::{Hall, answer as own, door::Peer},
    answer::{Answer, Uncommon},
    ask::{NoAnswer, ask, receive},
    front::{Front, Lost},
    head,
    request::Request,
    resume::Resume,
    write,
};
use crate::{
    admit::{Admitted, Aim, Asked, admit},
    catalogue::{Catalogue, Route, Service},
    credential,
    edge::{self, CallId, Denied, Dialect, Edge, Told, Worker, seal},
    keyring::Entry,
    limits::Limits,
    meter::{Facts, Ticket},
    metrics::{Repeat, Source},
    path,
    pool::{Direct, Fault, Target},
    proxy::{self, Ours},
    refuse::Refused,
    send,
    strangers::Origin,
    upload::Upload,
};

/// What became of a request.
pub(super) enum Exchanged {
    Answered,
    /// Answered, and the connection ends.
    Ended,
    /// Nothing was done: it has a shape that hyper has to see.
    Unfit,
    /// Nothing was done: something is not at hand.
    Cold,
    /// hyper goes on with it.
    Begun(Box<Resume>),
    /// The client has gone, or must not read on.
    Gone,
}

impl From<Lost> for Exchanged {
    fn from(_: Lost) -> Self {
        Self::Gone
    }
}

/// What is known of a request whose key is known.
struct Known<'a> {
    entry: Arc<Entry>,
    service: &'a Arc<Service>,
    route: &'a Route,
    rest: &'a str,
    started: u64,
}

/// Why a request is not let in before its key is known.
enum Unknown {
    /// There are too many, or nobody issued its key, and that is known without asking.
    Refused(Refused),
    /// Nothing was done.
    Elsewhere(Exchanged),
}

impl From<Exchanged> for Unknown {
    fn from(exchanged: Exchanged) -> Self {
        Self::Elsewhere(exchanged)
    }
}

/// Looks up what a request needs, from memory. Nothing is done yet.
fn look_up<'a>(
    worker: &Worker,
    catalogue: &'a Catalogue,
    peer: Peer,
    request: &Request<'a>,
) -> Result<Known<'a>, Unknown> {
    let edge = &worker.edge;
    if edge.is_full() {
        return Err(Unknown::Refused(Refusal::Overloaded.into()));
    }
    let started = edge.clock.monotonic_nanos();
    let (service, rest) = path::split(request.path).ok_or(Exchanged::Unfit)?;
    // Whatever else is refused is refused by the other way: only strange keys come in floods.
    let is_plain = path::check(rest).is_ok() && !request.query.is_some_and(credential::holds_key);
    let presented = match is_plain {
        true => credential::read(request.known.authorization, request.known.api_key),
        false => return Err(Exchanged::Unfit.into()),
    };
    let origin = || Origin::from(client(edge, peer, request));
    let presented = match presented {
        Ok(presented) => presented,
        Err(Refusal::InvalidKey) => {
            return Err(Unknown::Refused(edge::malformed(edge, origin())));
        }
        Err(_) => return Err(Exchanged::Unfit.into()),
    };
    let hash = edge.keyring.hashing().hash(&presented);
    let entry = edge::recall(edge, &hash, origin, started).map_err(Unknown::Refused)?;
    let entry = entry.ok_or(Exchanged::Cold)?;
    let service = catalogue.service(service).ok_or(Exchanged::Unfit)?;
    let route = service.route(&request.method, rest);
    let route = route.ok_or(Exchanged::Unfit)?;
    let bytes = u64::try_from(request.body.len()).unwrap_or(u64::MAX);
    let is_common = service.is_plain()
        && route.terms.price.is_none()
        && bytes <= route.body_bytes_max
        && route.is_like_most(started);
    match is_common {
        true => Ok(Known {
            entry,
            service,
            route,
            rest,
            started,
        }),
        false => Err(Exchanged::Unfit.into()),
    }
}

/// Where a request comes from, as far as that can be trusted.
fn client(edge: &Edge, peer: Peer, request: &Request<'_>) -> IpAddr {
    types::client_address(peer.address, request.forwarded_for(), edge.trusted_hops)
}

/// Carries one call, if it is of the common shape.
pub(super) async fn exchange(
    hall: &Hall,
    peer: Peer,
    front: &mut Front<'_>,
    request: &Request<'_>,
) -> Exchanged {
    match carry(hall, peer, front, request).await {
        Ok(exchanged) | Err(exchanged) => exchanged,
    }
}

async fn carry(
    hall: &Hall,
    peer: Peer,
    front: &mut Front<'_>,
    request: &Request<'_>,
) -> Result<Exchanged, Exchanged> {
    let worker = &hall.worker;
    let edge = &worker.edge;
    if edge.draining.load(Ordering::Acquire) {
        return Err(Exchanged::Unfit); // the answer says that the connection ends
    }
    let catalogue = edge.catalogue.load_full();
    let known = match look_up(worker, &catalogue, peer, request) {
        Ok(known) => known,
        Err(Unknown::Refused(refused)) => {
            front.seat.life.heads.add(1);
            return refuse(hall, front, CallId::new(&edge.ids), refused.into()).await;
        }
        Err(Unknown::Elsewhere(exchanged)) => return Err(exchanged),
    };
    // Room for the record first: from here on every way out writes one.
    let reservation = edge.journal.reserve().ok_or(Exchanged::Cold)?;
    let now = edge.verified(Source::Local, known.started);
    front.seat.life.heads.add(1);
    let at = edge.clock.now();
    let id = CallId::new_at(&edge.ids, at);
    let facts = facts(worker, peer, request, &known, (id, at));
    let Known { entry, rest, .. } = known;
    let ticket = Ticket::new(Arc::clone(edge), entry, reservation, facts);
    let aim = Aim::Found(known.service, known.route);
    let admitted = admit(edge, aim, Asked::Plain { now }, ticket);
    let (admitted, limits) = match front.during(admitted).await? {
        Ok(admitted) => admitted,
        Err(denied) => return refuse(hall, front, id, denied).await,
    };
    let Admitted {
        ticket,
        service,
        route,
        ..
    } = admitted;
    let call = Call {
        hall,
        id,
        limits,
        ticket,
        catalogue: &catalogue,
        service,
        route,
        rest,
    };
    call.forward(front, request).await
}

/// An answer whose head was read.
struct Begun {
    /// As the client gets it.
    head: Vec<u8>,
    /// Of the upstream's.
    bytes: usize,
    /// Of the body.
    length: u64,
    /// The connection ends with it.
    is_last: bool,
}

/// An admitted call.
struct Call<'a> {
    hall: &'a Hall,
    id: CallId,
    limits: Limits,
    ticket: Ticket,
    catalogue: &'a Arc<Catalogue>,
    service: &'a Service,
    route: &'a Route,
    rest: &'a str,
}

impl Call<'_> {
    /// Asks the upstream.
    async fn forward(
        mut self,
        front: &mut Front<'_>,
        request: &Request<'_>,
    ) -> Result<Exchanged, Exchanged> {
        let worker = &self.hall.worker;
        let mut direct = match front.during(self.connect()).await? {
            Ok(Some(direct)) => direct,
            Ok(None) => return Ok(self.resumed(None, None)),
            Err(refused) => {
                let failed = Disposition::UpstreamFailed;
                return self.refuse(front, refused, failed).await;
            }
        };
        let span = proxy::upstream_span(worker, &self.ticket, self.service);
        let ours = Ours {
            ticket: &self.ticket,
            service: self.service,
            span: &span,
            came_by: "1.1 tollgate",
            host: Some(request.known.host),
        };
        let mut head = write::request(worker, request, &ours, self.rest, &mut front.whence);
        let upload = match request.body {
            [] => Rc::clone(&self.hall.nothing),
            body => Upload::of(body),
        };
        if let Err(refusal) = self.ticket.forwarding(upload) {
            let disposition = Disposition::Refused;
            return self.refuse(front, refusal.into(), disposition).await;
        }
        let timeout = self.route.timeout.saturating_sub(direct.opened_in);
        let mut pauses = worker.patience.pauses(timeout, timeout);
        let asked = ask(front, &mut direct, (&mut head, request.body), &mut pauses).await;
        drop(pauses);
        let read = match asked {
            Ok(read) => read,
            Err(NoAnswer::Lost) => return Err(Exchanged::Gone),
            Err(why) => return self.unanswered(front, request, (direct, span), why).await,
        };
        let begun = match self.begin_answer(front, &mut direct, &span, &read) {
            Ok(begun) => begun,
            Err(why) => {
                if why == Uncommon::Shape {
                    let now = worker.edge.clock.monotonic_nanos();
                    self.route.answered_like_most(false, now);
                }
                return Ok(self.resumed(None, Some((direct, read.into()))));
            }
        };
        drop(span);
        let is_last = begun.is_last;
        self.pass(front, direct, read, begun).await?;
        Ok(front.end(is_last))
    }

    /// There is no answer: hyper asks again where that is safe, else the call ends.
    async fn unanswered(
        self,
        front: &mut Front<'_>,
        request: &Request<'_>,
        (direct, span): (Direct, Span),
        why: NoAnswer,
    ) -> Result<Exchanged, Exchanged> {
        let (worker, upstream) = (&self.hall.worker, &self.service.upstream);
        let target = Rc::clone(direct.target());
        let has_other = || worker.pool.has_other(upstream, &target);
        let repeat = why.repeat(request, direct.reused, has_other);
        // One that had been used before may have been closed for want of use.
        if matches!(why, NoAnswer::Timeout) || !direct.reused {
            worker.pool.failed(&target, Fault::Call);
        }
        drop(direct); // its place may be needed
        let Some(repeat) = repeat else {
            span.fail(why.refusal().as_str());
            let failed = Disposition::UpstreamFailed;
            return self.refuse(front, why.refusal().into(), failed).await;
        };
        worker.edge.metrics.upstreams.repeated(repeat);
        let avoid = (repeat == Repeat::Elsewhere).then_some(target);
        Ok(self.resumed(avoid, None))
    }

    /// A connection to the upstream. `Ok(None)`: hyper has to wait for one.
    async fn connect(&self) -> Result<Option<Direct>, Refused> {
        let (pool, upstream) = (&self.hall.worker.pool, &self.service.upstream);
        let direct = pool.direct(upstream, self.route.timeout).await;
        direct.map_err(|unlent| match unlent {
            Some(unlent) => send::refused(self.service, unlent),
            None => Refusal::UpstreamTimeout.into(),
        })
    }

    /// hyper goes on.
    fn resumed(self, avoid: Option<Rc<Target>>, answered: Option<(Direct, Bytes)>) -> Exchanged {
        Exchanged::Begun(Box::new(Resume {
            id: self.id,
            limits: self.limits,
            ticket: self.ticket,
            catalogue: Arc::clone(self.catalogue),
            service: self.service.name.clone(),
            rest: self.rest.to_owned(),
            avoid,
            answered,
        }))
    }

    /// Ends the call without an answer of the upstream.
    async fn refuse(
        self,
        front: &mut Front<'_>,
        refused: Refused,
        disposition: Disposition,
    ) -> Result<Exchanged, Exchanged> {
        self.ticket.refuse(refused.refusal, disposition);
        let denied = Denied::counted(refused, self.limits);
        refuse(self.hall, front, self.id, denied).await
    }

    /// Reads and notes the head of an answer, and makes the one that the client gets. Nothing is
    /// awaited here, so what it is read into is no part of what a call holds.
    fn begin_answer(
        &mut self,
        front: &Front<'_>,
        direct: &mut Direct,
        span: &Span,
        read: &[u8],
    ) -> Result<Begun, Uncommon> {
        let worker = &self.hall.worker;
        let mut room = head::NO_FIELDS;
        let answer = Answer::parse(read, &mut room)?;
        self.route.answered_like_most(true, 0);
        direct.answered(&worker.pool, answer.status);
        span.set("http.response.status_code", i64::from(answer.status));
        let status = StatusCode::from_u16(answer.status).unwrap_or_default();
        // It has no field that would matter to the call's cost.
        let now = self.ticket.answered(status, &HeaderMap::new());
        let cost = self.ticket.announce(false);
        let is_last = front.is_ending || worker.edge.draining.load(Ordering::Acquire);
        let (id, limits) = (&self.id, self.limits);
        Ok(Begun {
            head: write::answer(self.hall, &answer, (id, cost), limits, (now, is_last)),
            bytes: answer.bytes,
            length: answer.length,
            is_last,
        })
    }

    /// Passes the body, of which some was read with the head. Its end leaves when the call is
    /// recorded.
    async fn pass(
        self,
        front: &mut Front<'_>,
        mut direct: Direct,
        mut read: Vec<u8>,
        begun: Begun,
    ) -> Result<(), Exchanged> {
        let mut head = begun.head;
        let Self {
            hall,
            mut ticket,
            route,
            ..
        } = self;
        let mut pauses = hall
            .worker
            .patience
            .pauses(route.idle_timeout, route.total_timeout);
        let mut body = read.get(begun.bytes..).unwrap_or_default();
        let mut left = begun.length;
        loop {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let (piece, more) = body.split_at_checked(most).unwrap_or((body, &[]));
            ticket.sent(piece);
            left = left.saturating_sub(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            if left == 0 {
                // With more than it announced, nobody knows what the next bytes are.
                if more.is_empty() {
                    direct.give_back();
                }
                let proof = ticket.finish().proof;
                if !front.during(proof.wait()).await? {
                    return Err(Exchanged::Gone);
                }
                front.write(&mut head, piece).await?;
                crash_point!("gateway.last_byte_sent");
                hall.spares.keep(head);
                hall.spares.keep(read);
                return Ok(());
            }
            front.write(&mut head, piece).await?;
            hall.spares.keep(std::mem::take(&mut head));
            hall.spares.keep(read);
            read = match receive(front, &mut direct, &mut pauses, left).await {
                Ok(read) => read,
                Err(NoAnswer::Lost) => return Err(Exchanged::Gone),
                Err(_) => {
                    ticket.abort();
                    return Err(Exchanged::Gone);
                }
            };
            // Its last piece is not too late.
            let is_last = u64::try_from(read.len()).is_ok_and(|bytes| bytes >= left);
            if pauses.go_on() && !is_last {
                ticket.abort();
                return Err(Exchanged::Gone);
            }
            body = &read;
        }
    }
}

fn facts(
    worker: &Worker,
    peer: Peer,
    request: &Request<'_>,
    known: &Known<'_>,
    (id, at): (CallId, Timestamp),
) -> Facts {
    let edge = &worker.edge;
    let told = Told {
        method: &request.method,
        path: request.path,
        user_agent: request.known.user_agent,
        traceparent: request.known.traceparent,
        request_id: request.known.request_id,
        client: client(edge, peer, request),
    };
    let asked = (known.service.name.as_str(), known.rest);
    edge::facts(edge, peer, &told, id, (known.started, at), asked)
}

/// Says why a call is refused. If its key is known, its record is written.
async fn refuse(
    hall: &Hall,
    front: &mut Front<'_>,
    id: CallId,
    denied: Denied,
) -> Result<Exchanged, Exchanged> {
    let edge = &hall.worker.edge;
    let mut response = seal(edge, Dialect::Http1, id, None, Err(denied));
    let headers = response.headers_mut();
    if front.is_ending {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let is_last = headers.contains_key(CONNECTION);
    let mut bytes = own::write(edge, response);
    front.write(&mut bytes, &[]).await?;
    Ok(front.end(is_last))
}
