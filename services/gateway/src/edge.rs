//! The edge: what its threads share, and the way of one request through the checks.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri,
    header::{RETRY_AFTER, USER_AGENT},
};
use hyper::body::Incoming;
use proto::{events::v1::Disposition, keys::v1::KeyUse};
use runtime::{
    Clock, Ids,
    trace::{self, Kind, Span, TRACEPARENT, Tracer},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, watch},
};
use types::{Gcra, KeyHash, PresentedKey, Rate, Refusal, RequestId};

use crate::{
    address,
    body::EdgeBody,
    catalogue::{Catalogue, Route, Service},
    country::Countries,
    credential, domain, headers,
    journal::Journal,
    keyring::{Entry, Keyring},
    lease::Hold,
    lender::Lender,
    meter::{Facts, Ticket},
    metrics::{Metrics, Source},
    path,
    pool::Pool,
    principal::Signer,
    proxy,
    record::{self, USER_AGENT_BYTES_MAX},
    refuse::Refused,
};

/// Ours, on every answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Credits charged.
pub(crate) const COST: HeaderName = HeaderName::from_static("tollgate-cost");

/// What all threads of the edge share.
pub(crate) struct Edge {
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
    pub(crate) tracer: Tracer,
    pub(crate) journal: Journal,
    pub(crate) catalogue: ArcSwap<Catalogue>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) lender: Arc<Lender>,
    pub(crate) countries: Countries,
    pub(crate) metrics: Metrics,
    pub(crate) signer: Signer,
    pub(crate) trusted_hops: u8,
    /// Where look-ups and acquisitions run: never on a thread that carries calls.
    pub(crate) control: Handle,
    pub(crate) draining: AtomicBool,
    pub(crate) in_flight: AtomicU64,
    /// Wakes the shipper.
    pub(crate) shipping: Arc<Notify>,
    /// Every record below it is on disk.
    pub(crate) synced: watch::Sender<u64>,
    /// Every record below it is in the stream.
    pub(crate) shipped: watch::Sender<u64>,
    /// Uses of keys on their way to `keys`; a full queue forgets.
    pub(crate) touches: mpsc::Sender<KeyUse>,
    pub(crate) trace_budget: Gcra,
    pub(crate) trace_rate: Rate,
}

/// One thread's part.
pub(crate) struct Worker {
    pub(crate) edge: Arc<Edge>,
    pub(crate) pool: Pool,
}

/// Counts a call while it is in flight, to the last byte of its answer.
pub(crate) struct InFlight(Arc<Edge>);

impl InFlight {
    fn new(edge: &Arc<Edge>) -> Self {
        edge.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(edge))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request that passed every check.
pub(crate) struct Admitted<'a> {
    pub(crate) ticket: Ticket,
    pub(crate) service: &'a Service,
    pub(crate) route: &'a Route,
    /// The path behind the service, as it came.
    pub(crate) rest: String,
}

/// Answers one request.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<EdgeBody> {
    let edge = &worker.edge;
    let id: RequestId = edge.ids.new_id();
    let answered = answer(&worker, peer, request, id).await;
    let (mut response, rate) = match answered {
        Ok((response, rate)) => (response, rate),
        Err(Denied {
            refused,
            rate,
            known,
        }) => {
            if !known {
                edge.metrics.call("", refused.refusal.as_str(), 0);
            }
            (refused.into_response(id), rate)
        }
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        headers.insert(REQUEST_ID, value);
    }
    if let Some((rate, left)) = rate {
        limits(headers, rate, left);
    }
    response
}

/// RateLimit fields of draft-ietf-httpapi-ratelimit-headers-11.
fn limits(headers: &mut HeaderMap, rate: Rate, left: u32) {
    let policy = format!("\"key\";q={};w=1", rate.per_second);
    let state = match headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
    {
        Some(seconds) => format!("\"key\";r={left};t={seconds}"),
        None => format!("\"key\";r={left};t=1"),
    };
    for (name, text) in [("ratelimit-policy", policy), ("ratelimit", state)] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// A refusal on its way out.
pub(crate) struct Denied {
    pub(crate) refused: Refused,
    pub(crate) rate: Option<(Rate, u32)>,
    /// True when a ticket has counted it.
    pub(crate) known: bool,
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self {
            refused: refusal.into(),
            rate: None,
            known: false,
        }
    }
}

type Answered = Result<(Response<EdgeBody>, Option<(Rate, u32)>), Denied>;

async fn answer(
    worker: &Rc<Worker>,
    peer: SocketAddr,
    request: Request<Incoming>,
    id: RequestId,
) -> Answered {
    let edge = &worker.edge;
    let started = edge.clock.monotonic_nanos();
    if edge.draining.load(Ordering::Acquire) {
        return Err(Refusal::Draining.into());
    }
    let Some((name, rest)) = path::split(request.uri().path()) else {
        return Err(Refusal::UnknownService.into());
    };
    if path::check(rest).is_err() || !headers::is_framed_plainly(request.headers()) {
        return Err(Refusal::BadRequest.into());
    }
    let presented = credential::find(request.headers(), request.uri().query())?;
    let hash = edge.keyring.hash(&presented);
    let entry = find(edge, hash, presented, started).await?;
    // Room for the record first: from here on every way out writes one.
    let Some(reservation) = edge.journal.reserve() else {
        return Err(Refusal::MeteringUnavailable.into());
    };
    let facts = facts(edge, peer.ip(), &request, id, started, (name, rest));
    let ticket = Ticket::new(Arc::clone(edge), entry, reservation, facts);
    let catalogue = edge.catalogue.load_full();
    let (name, rest) = (name.to_owned(), rest.to_owned());
    let (admitted, rate) = admit(edge, &catalogue, &request, ticket, &name, rest).await?;
    let response = proxy::forward(worker, request, admitted).await;
    match response {
        Ok(response) => Ok((response, rate)),
        Err(refused) => Err(Denied {
            refused,
            rate,
            known: true,
        }),
    }
}

/// The record of a key: from memory without waiting, else by way of the control runtime.
async fn find(
    edge: &Arc<Edge>,
    hash: KeyHash,
    presented: PresentedKey,
    started: u64,
) -> Result<Arc<Entry>, Refusal> {
    if let Some(entry) = edge.keyring.cached(&hash) {
        edge.metrics.verified(Source::Local);
        edge.metrics
            .verification(edge.clock.monotonic_nanos().saturating_sub(started));
        return Ok(entry);
    }
    if edge.keyring.is_unknown(&hash) {
        edge.metrics.verified(Source::Negative);
        return Err(Refusal::InvalidKey);
    }
    let keyring = Arc::clone(&edge.keyring);
    let previous = keyring.previous_hash(&presented);
    let looked_up = edge
        .control
        .spawn(async move { keyring.find(hash, previous).await });
    let found = looked_up.await.unwrap_or(Err(Refusal::CreditsUnavailable));
    edge.metrics
        .verification(edge.clock.monotonic_nanos().saturating_sub(started));
    found
}

fn facts(
    edge: &Arc<Edge>,
    peer: IpAddr,
    request: &Request<Incoming>,
    id: RequestId,
    started: u64,
    (service, rest): (&str, &str),
) -> Facts {
    let headers = request.headers();
    let forwarded = headers.get_all("x-forwarded-for").iter();
    let client = address::client_address(peer, forwarded, edge.trusted_hops);
    let user_agent = headers
        .get(USER_AGENT)
        .and_then(|value| value.to_str().ok());
    Facts {
        in_flight: InFlight::new(edge),
        request: id,
        started,
        client,
        country: edge.countries.country(client),
        method: request.method().clone(),
        endpoint: if rest.is_empty() {
            "/".to_owned()
        } else {
            rest.to_owned()
        },
        user_agent: record::cut(user_agent.unwrap_or_default(), USER_AGENT_BYTES_MAX),
        span: span(
            edge,
            headers,
            request.method().as_str(),
            request.uri(),
            service,
            id,
        ),
    }
}

/// Decides on sampling before any span exists. A stranger's flag and the sampler both spend from
/// one budget a second.
fn span(
    edge: &Edge,
    headers: &HeaderMap,
    method: &str,
    uri: &Uri,
    service: &str,
    id: RequestId,
) -> Span {
    let parent = headers
        .get(TRACEPARENT)
        .and_then(|value| value.to_str().ok())
        .and_then(trace::parse_traceparent);
    // The last bytes of a UUIDv7 are random.
    let [.., a, b, c, d] = *id.bytes();
    let dice = u32::from_be_bytes([a, b, c, d]);
    let sampled = edge.tracer.samples(parent.as_ref(), dice)
        && edge
            .trace_budget
            .admit(edge.trace_rate, edge.clock.monotonic_nanos())
            .is_ok();
    if !sampled {
        return Span::none();
    }
    let name = format!("{method} /api/v1/{service}/*");
    let span = edge.tracer.root(name, Kind::Server, parent);
    span.set("http.request.method", method.to_owned());
    span.set("http.route", format!("/api/v1/{service}/{{path}}"));
    span.set("url.path", uri.path().to_owned());
    span.set("url.scheme", "http");
    span.set("tollgate.request_id", id.to_string());
    if let Some(theirs) = headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
    {
        span.set("http.request.header.x-request-id", record::cut(theirs, 128));
    }
    span
}

type Admission<'a> = Result<(Admitted<'a>, Option<(Rate, u32)>), Denied>;

/// All checks behind the key, cheapest first. A refused call gives back what an earlier check
/// took, and leaves a record of cost 0.
async fn admit<'a>(
    edge: &Arc<Edge>,
    catalogue: &'a Catalogue,
    request: &Request<Incoming>,
    mut ticket: Ticket,
    name: &str,
    rest: String,
) -> Admission<'a> {
    let entry = Arc::clone(ticket.entry());
    let judged = route(
        catalogue,
        request,
        &entry,
        &mut ticket,
        name,
        &rest,
        &edge.clock,
    );
    let (service, route) = match judged {
        Ok(found) => found,
        Err(refusal) => {
            ticket.refuse(refusal, Disposition::Refused);
            return Err(Denied {
                known: true,
                ..refusal.into()
            });
        }
    };
    let rate = match take_rate(edge, &entry) {
        Ok(rate) => rate,
        Err((refused, rate)) => {
            ticket.refuse(refused.refusal, Disposition::Refused);
            return Err(Denied {
                refused,
                rate: Some((rate, 0)),
                known: true,
            });
        }
    };
    match take_credits(edge, &entry, route.cost).await {
        Ok(hold) => ticket.holds(hold, route.durability),
        Err(refusal) => {
            if let Some((rate, _)) = rate {
                entry.limiter.give_back(rate);
            }
            ticket.refuse(refusal, Disposition::Refused);
            return Err(Denied {
                known: true,
                rate,
                ..refusal.into()
            });
        }
    }
    touch(edge, &entry, ticket.facts().client);
    Ok((
        Admitted {
            ticket,
            service,
            route,
            rest,
        },
        rate,
    ))
}

/// Notes a key's use, once a minute.
fn touch(edge: &Edge, entry: &Entry, client: IpAddr) {
    let now = edge.clock.now();
    let minute = now.as_second() / 60;
    if entry.touched.swap(minute, Ordering::Relaxed) == minute {
        return;
    }
    let used = KeyUse {
        key_id: entry.key.to_string(),
        at: Some(proto::convert::timestamp(now)),
        ip: client.to_string(),
    };
    if edge.touches.try_send(used).is_err() {
        entry.touched.store(0, Ordering::Relaxed); // the next call says it again
    }
}

fn route<'a>(
    catalogue: &'a Catalogue,
    request: &Request<Incoming>,
    entry: &Entry,
    ticket: &mut Ticket,
    name: &str,
    rest: &str,
    clock: &Clock,
) -> Result<(&'a Service, &'a Route), Refusal> {
    let now = clock.now().as_microsecond();
    domain::judge_key(entry, now)?;
    let service = catalogue.service(name).ok_or(Refusal::UnknownService)?;
    ticket.concerns(service);
    if !service.active {
        return Err(Refusal::ServiceDisabled);
    }
    let route = service
        .route(request.method(), rest)
        .ok_or(Refusal::UnknownRoute)?;
    domain::judge(entry, route, ticket.facts().client, now)?;
    Ok((service, route))
}

type Limited = Option<(Rate, u32)>;

fn take_rate(edge: &Edge, entry: &Entry) -> Result<Limited, (Refused, Rate)> {
    let Some(rate) = entry.rate else {
        return Ok(None);
    };
    let share = edge.keyring.share(rate);
    let now = edge.clock.monotonic_nanos();
    match entry.limiter.admit(share, now) {
        Ok(()) => Ok(Some((share, entry.limiter.remaining(share, now)))),
        Err(wait) => {
            let seconds = wait.div_ceil(1_000_000_000).max(1);
            let refused = Refused {
                retry_after: Some(seconds),
                ..Refusal::RateLimited.into()
            };
            Err((refused, share))
        }
    }
}

async fn take_credits(edge: &Arc<Edge>, entry: &Entry, cost: i64) -> Result<Option<Hold>, Refusal> {
    if cost == 0 {
        return Ok(None);
    }
    if let Some(hold) = edge.lender.hold(&entry.account, cost) {
        return Ok(Some(hold));
    }
    let (lender, account) = (Arc::clone(&edge.lender), Arc::clone(&entry.account));
    let acquired = edge
        .control
        .spawn(async move { lender.hold_or_acquire(&account, cost).await });
    acquired
        .await
        .unwrap_or(Err(Refusal::CreditsUnavailable))
        .map(Some)
}

impl Edge {
    /// Ready to carry calls: keys and services are known.
    pub(crate) fn is_ready(&self) -> bool {
        self.keyring.is_informed()
    }
}
