//! The edge: what its threads share, and the way of one request through the checks.

use std::{
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, USER_AGENT},
};
use hyper::body::Incoming;
use jiff::Timestamp;
use proto::keys::v1::KeyUse;
use runtime::{
    Clock, Ids,
    trace::{self, Kind, Span, TRACEPARENT, Tracer},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::task::TaskTracker;
use types::{Gcra, KeyHash, PresentedKey, Rate, Refusal, RequestId};

use crate::{
    admit::{Aim, Asked, admit},
    body::EdgeBody,
    catalogue::Catalogue,
    cors::{Origins, Page},
    country::Countries,
    credential, headers,
    idempotency::{self, Keyed, desk::Desk, relay},
    journal::Journal,
    keyring::{Entry, Keyring},
    lender::Lender,
    limits::Limits,
    listen::{Opened, Peer},
    meter::{Facts, Ticket},
    metrics::{Metrics, Source, Strange},
    path,
    pool::{Pool, patience::Patience},
    principal::Signer,
    proxy,
    record::{self, USER_AGENT_BYTES_MAX},
    refuse::Refused,
    strangers::{Origin, Strangers},
};

/// Ours, on every answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Length of its value: a kind and 32 hex digits.
pub(crate) const REQUEST_ID_BYTES: usize = 36;
/// Credits charged.
pub(crate) const COST: HeaderName = HeaderName::from_static("tollgate-cost");

/// Whom we have it from, on what upstreams get.
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Of so many calls in flight, one may be a tunnel.
const CALLS_PER_TUNNEL: u64 = 2;

/// What all threads of the edge share.
pub(crate) struct Edge {
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
    pub(crate) tracer: Tracer,
    pub(crate) journal: Journal,
    pub(crate) catalogue: ArcSwap<Catalogue>,
    pub(crate) origins: ArcSwap<Origins>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) lender: Arc<Lender>,
    pub(crate) strangers: Arc<Strangers>,
    pub(crate) countries: Countries,
    pub(crate) desk: Desk,
    pub(crate) metrics: Metrics,
    pub(crate) signer: Signer,
    pub(crate) trusted_hops: u8,
    /// Where look-ups and acquisitions run: never on a thread that carries calls.
    pub(crate) control: Handle,
    pub(crate) draining: AtomicBool,
    /// The calls still in flight are being cut off.
    pub(crate) is_cut: AtomicBool,
    pub(crate) in_flight: AtomicU64,
    /// Beyond, calls are refused.
    pub(crate) calls_max: u64,
    /// Of them, those that are tunnels or ask their upstreams for one.
    pub(crate) tunnels: AtomicU64,
    /// A call that costs so much is as durable as the disk at least; 0: as its route says.
    pub(crate) disk_cost_min: i64,
    /// Tunnels end when nothing has passed for so long.
    pub(crate) tunnel_idle: Duration,
    /// Every record below it is on disk.
    pub(crate) synced: watch::Sender<u64>,
    /// Every record below it is in the stream.
    pub(crate) shipped: watch::Sender<u64>,
    /// Uses of keys on their way to `keys`; a full queue forgets.
    pub(crate) touches: mpsc::Sender<KeyUse>,
    /// Limits the log.
    pub(crate) complaints: Gcra,
    pub(crate) trace_budget: Gcra,
    pub(crate) trace_rate: Rate,
}

/// One thread's part.
pub(crate) struct Worker {
    pub(crate) edge: Arc<Edge>,
    pub(crate) pool: Pool,
    /// With answers that pause.
    pub(crate) patience: Rc<Patience>,
    /// Calls that go on when their client has gone.
    pub(crate) beyond: TaskTracker,
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

/// Answers one request.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    peer: Peer,
    mut request: Request<Incoming>,
) -> Response<EdgeBody> {
    let edge = &worker.edge;
    let id = CallId::new(&edge.ids);
    let dialect = Dialect::of(&request);
    let page = Page::of(&request);
    let preflight = page.as_ref().and_then(|page| {
        request.extensions_mut().insert(page.clone());
        page.preflight(&request, &edge.origins.load())
    });
    let answered = match preflight {
        // No call: it is counted where calls of nobody are.
        Some(Ok(response)) => {
            edge.metrics.refused("", "preflight", 0);
            Ok((response, Limits::default()))
        }
        Some(Err(refused)) => Err(refused.into()),
        None if edge.is_full() => Err(Refusal::Overloaded.into()),
        None => match idempotency::find(request.method(), request.headers()) {
            Ok(None) => answer(&worker, peer, request, id, None).await,
            Ok(Some(keyed)) => relay::answer(&worker, peer, request, id, keyed).await,
            Err(refused) => Err(refused.into()),
        },
    };
    seal(edge, dialect, id, page.as_ref(), answered)
}

/// What a client understands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    Http1,
    Http2,
    /// By HTTP/2: a refusal is a status in trailers.
    Grpc,
}

impl Dialect {
    fn of(request: &Request<Incoming>) -> Self {
        let kind = request
            .headers()
            .get(CONTENT_TYPE)
            .map(HeaderValue::as_bytes);
        let kind = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
        match (request.version() < Version::HTTP_2, kind) {
            (true, _) => Self::Http1,
            // Its client takes any 200 for the tunnel, also one with a refusal of gRPC.
            _ if request.extensions().get::<Opened>().is_some() => Self::Http2,
            // With the name of an encoding or without; that for pages has a way of its own.
            (false, Some([] | [b'+' | b';', ..])) => Self::Grpc,
            (false, _) => Self::Http2,
        }
    }
}

/// The answer as it leaves, whatever became of the request.
pub(crate) fn seal(
    edge: &Edge,
    dialect: Dialect,
    id: CallId,
    page: Option<&Page>,
    answered: Answered,
) -> Response<EdgeBody> {
    let (mut response, limits) = match answered {
        Ok((response, limits)) => (response, limits),
        Err(Denied {
            refused,
            limits,
            known,
        }) => {
            if !known {
                edge.metrics.refused("", refused.refusal.as_str(), 0);
            }
            let mut response = match dialect {
                Dialect::Grpc => refused.into_grpc_response(),
                Dialect::Http1 | Dialect::Http2 => refused.into_response(id.id),
            };
            if let Some(page) = page {
                page.explain(&edge.origins.load(), response.headers_mut());
            }
            (response, limits)
        }
    };
    let is_tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id.header());
    limits.put(headers);
    // Served, but the next call goes elsewhere. HTTP/2 has a frame for this.
    let is_stopping = dialect == Dialect::Http1 && edge.draining.load(Ordering::Acquire);
    if is_stopping && !is_tunnel {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The id of a call.
#[derive(Clone, Copy)]
pub(crate) struct CallId {
    pub(crate) id: RequestId,
    /// As both sides get it.
    pub(crate) text: [u8; REQUEST_ID_BYTES],
}

impl CallId {
    pub(crate) fn new(ids: &Ids) -> Self {
        Self::of(ids.new_id())
    }

    /// Of a call that began at this moment.
    pub(crate) fn new_at(ids: &Ids, at: Timestamp) -> Self {
        Self::of(ids.new_id_at(at))
    }

    fn of(id: RequestId) -> Self {
        let text = id.to_ascii();
        Self { id, text }
    }

    /// As the value of a field.
    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text).expect("letters and digits")
    }
}

/// A refusal on its way out.
pub(crate) struct Denied {
    pub(crate) refused: Refused,
    pub(crate) limits: Limits,
    /// True when a ticket has counted it.
    pub(crate) known: bool,
}

impl Denied {
    /// Of a call whose ticket has counted it.
    pub(crate) fn counted(refused: Refused, limits: Limits) -> Self {
        Self {
            refused,
            limits,
            known: true,
        }
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Refused::from(refusal).into()
    }
}

impl From<Refused> for Denied {
    fn from(refused: Refused) -> Self {
        Self {
            refused,
            limits: Limits::default(),
            known: false,
        }
    }
}

pub(crate) type Answered = Result<(Response<EdgeBody>, Limits), Denied>;

/// Answers one request, which may carry an idempotency key.
pub(crate) async fn answer(
    worker: &Rc<Worker>,
    peer: Peer,
    request: Request<Incoming>,
    id: CallId,
    keyed: Option<Rc<Keyed>>,
) -> Answered {
    let edge = &worker.edge;
    let started = edge.clock.monotonic_nanos();
    let Some((name, rest)) = path::split(request.uri().path()) else {
        return Err(Refusal::UnknownService.into());
    };
    let origin = || Origin::from(client(edge, peer.address, request.headers()));
    if path::check(rest).is_err() || !headers::is_framed_plainly(request.headers()) {
        return Err(Refusal::BadRequest.into());
    }
    let presented = match credential::find(request.headers(), request.uri().query()) {
        Ok(presented) => presented,
        Err(Refusal::InvalidKey) => return Err(malformed(edge, origin()).into()),
        Err(refusal) => return Err(refusal.into()),
    };
    let entry = find(edge, presented, origin, started).await?;
    // Room for the record first: from here on every way out writes one.
    let Some(reservation) = edge.journal.reserve() else {
        return Err(Refusal::MeteringUnavailable.into());
    };
    let client = client(edge, peer.address, request.headers());
    let facts = Facts {
        keyed,
        ..facts(
            edge,
            peer,
            &Told::by(&request, client),
            id,
            (started, edge.clock.now()),
            (name, rest),
        )
    };
    let page = request.extensions().get::<Page>().cloned();
    let org = entry.org;
    let ticket = Ticket::new(Arc::clone(edge), entry, reservation, facts);
    let catalogue = edge.catalogue.load_full();
    let (name, rest) = (name.to_owned(), rest.to_owned());
    let method = request.method().clone();
    let aim = Aim::Said(&catalogue, &name, &method, &rest);
    let (admitted, limits) = admit(edge, aim, Asked::Any(&request), ticket).await?;
    let response = proxy::forward(worker, request, admitted, &rest).await;
    match response {
        Ok(mut response) => {
            if let Some(page) = page {
                page.allow(&edge.origins.load(), &org, response.headers_mut());
            }
            Ok((response, limits))
        }
        Err(refused) => Err(Denied::counted(refused, limits)),
    }
}

/// What memory tells of a key. `None`: it has to be looked up.
///
/// # Errors
/// Nobody issued it as far as is known, or its address has asked for too many of these.
pub(crate) fn recall(
    edge: &Edge,
    hash: &KeyHash,
    origin: impl FnOnce() -> Origin,
    started: u64,
) -> Result<Option<Arc<Entry>>, Refused> {
    if let Some(entry) = edge.keyring.cached(hash, started) {
        return Ok(Some(entry));
    }
    let origin = origin();
    // A gateway without news looks up again what it has in memory: then keys tell nothing of where
    // they come from.
    if !edge.keyring.is_blind()
        && let Some(refused) = edge.strangers.refusal(origin, started)
    {
        edge.note_stranger(origin, Strange::Refused);
        return Err(refused);
    }
    if edge.keyring.is_unknown(hash) {
        edge.verified(Source::Negative, started);
        edge.note_stranger(origin, Strange::Unknown);
        return Err(Refusal::InvalidKey.into());
    }
    Ok(None)
}

/// The record of a key: from memory without waiting, else by way of the control runtime.
async fn find(
    edge: &Arc<Edge>,
    presented: PresentedKey,
    origin: impl Fn() -> Origin,
    started: u64,
) -> Result<Arc<Entry>, Refused> {
    let hashing = edge.keyring.hashing();
    let hash = hashing.hash(&presented);
    if let Some(entry) = recall(edge, &hash, &origin, started)? {
        edge.verified(Source::Local, started);
        return Ok(entry);
    }
    let origin = origin();
    let keyring = Arc::clone(&edge.keyring);
    let key = Guard::into_inner(hashing).seek(hash, &presented);
    let looked_up = edge
        .control
        .spawn(async move { keyring.find(&key, origin).await });
    match looked_up.await {
        Ok(Ok((Some(entry), source))) => {
            edge.verified(source, started);
            Ok(entry)
        }
        Ok(Ok((None, source))) => {
            edge.verified(source, started);
            edge.note_stranger(origin, Strange::Unknown);
            Err(Refusal::InvalidKey.into())
        }
        Ok(Err(refused)) => {
            if refused.refusal == Refusal::RateLimited {
                edge.note_stranger(origin, Strange::Refused);
            }
            Err(refused)
        }
        Err(_) => Err(Refusal::CreditsUnavailable.into()),
    }
}

/// A key that cannot be one: told as any other that nobody issued.
pub(crate) fn malformed(edge: &Edge, origin: Origin) -> Refused {
    let now = edge.clock.monotonic_nanos();
    let refused = edge.strangers.refusal(origin, now);
    edge.note_stranger(origin, Strange::Malformed);
    refused.unwrap_or_else(|| Refusal::InvalidKey.into())
}

/// The client's address, as far as it can be trusted.
fn client(edge: &Edge, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let forwarded = headers.get_all(&X_FORWARDED_FOR).iter();
    types::client_address(peer, forwarded, edge.trusted_hops)
}

/// What a request says of itself, apart from its key and its body.
pub(crate) struct Told<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) traceparent: Option<&'a str>,
    /// The client's own id of it.
    pub(crate) request_id: Option<&'a str>,
    /// Where it came from, as far as that can be trusted.
    pub(crate) client: IpAddr,
}

impl<'a> Told<'a> {
    fn by(request: &'a Request<Incoming>, client: IpAddr) -> Self {
        let text = |name: &str| request.headers().get(name)?.to_str().ok();
        Self {
            method: request.method(),
            path: request.uri().path(),
            user_agent: text(USER_AGENT.as_str()),
            traceparent: text(TRACEPARENT),
            request_id: text(REQUEST_ID.as_str()),
            client,
        }
    }
}

/// What is known of a call before its key is.
pub(crate) fn facts(
    edge: &Arc<Edge>,
    peer: Peer,
    told: &Told<'_>,
    CallId { id, text }: CallId,
    (started, at): (u64, Timestamp),
    (service, rest): (&str, &str),
) -> Facts {
    Facts {
        keyed: None,
        in_flight: InFlight::new(edge),
        request: id,
        request_text: text,
        started,
        at,
        client: told.client,
        scheme: peer.scheme(),
        country: edge.countries.country(told.client),
        method: told.method.clone(),
        endpoint: if rest.is_empty() {
            "/".to_owned()
        } else {
            rest.to_owned()
        },
        user_agent: record::cut(told.user_agent.unwrap_or_default(), USER_AGENT_BYTES_MAX)
            .to_owned(),
        span: span(edge, peer, told, service, id),
    }
}

/// Decides on sampling before any span exists. A stranger's flag and the sampler both spend from
/// one budget a second.
fn span(edge: &Edge, peer: Peer, told: &Told<'_>, service: &str, id: RequestId) -> Span {
    let parent = told.traceparent.and_then(trace::parse_traceparent);
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
    let method = told.method.as_str();
    let name = format!("{method} /api/v1/{service}/*");
    let span = edge.tracer.root(name, Kind::Server, parent);
    span.set("http.request.method", method.to_owned());
    span.set("http.route", format!("/api/v1/{service}/{{path}}"));
    span.set("url.path", told.path.to_owned());
    span.set("url.scheme", peer.scheme());
    span.set("tollgate.request_id", id.to_string());
    if let Some(theirs) = told.request_id {
        span.set(
            "http.request.header.x-request-id",
            record::cut(theirs, 128).to_owned(),
        );
    }
    span
}

impl Edge {
    /// There are as many calls in flight as there may be. Asked before anything else of a call, so
    /// that refusing it costs next to nothing; those whose keys are being looked up come on top.
    pub(crate) fn is_full(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) >= self.calls_max
    }

    /// Tunnels that there may be: they last, and would leave no room for calls.
    pub(crate) const fn tunnels_max(&self) -> u64 {
        self.calls_max.div_ceil(CALLS_PER_TUNNEL)
    }

    /// Ready to carry calls: keys and services are known.
    pub(crate) fn is_ready(&self) -> bool {
        self.keyring.is_informed()
    }

    /// Counts a call whose key is known, or known to be nobody's. Returns when: a monotonic
    /// nanosecond.
    pub(crate) fn verified(&self, source: Source, started: u64) -> u64 {
        let now = self.clock.monotonic_nanos();
        self.metrics.verified(source, now.saturating_sub(started));
        now
    }

    fn note_stranger(&self, origin: Origin, strange: Strange) {
        self.metrics.strange(strange);
        self.strangers
            .note_call(origin, self.clock.monotonic_nanos());
    }
}
