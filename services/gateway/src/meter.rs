//! The ticket of a call: made when a key is known, ended by exactly one record.
//!
//! However a call ends (answered, refused, broken off, cancelled, panicked), its ticket is either
//! finished or dropped, and both write the record. Room for it was set aside before.

mod tunnel;
mod writing;

use std::{
    net::IpAddr,
    ops::{Deref, DerefMut},
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode, header::CONTENT_TYPE};
use jiff::Timestamp;
use proto::events::v1::{Disposition, RecordKind};
use runtime::{crash_point, mutant, trace::Span};
use tokio::sync::watch;
use types::{Charge, Refusal, RequestId};

use crate::{
    catalogue::{Durability, Route, Service},
    charge::{Reached, Terms},
    country::Country,
    edge::{Edge, InFlight, REQUEST_ID_BYTES},
    idempotency::{Keyed, Replay},
    journal::{Kept, Reservation},
    keyring::Entry,
    lease::{Hold, Permits},
    units::{Events, Units},
    upload::Upload,
};

/// Status of a call whose client went away before there was an answer.
const CLIENT_CLOSED: u16 = 499;

/// Permits of one quota that a call uses, whatever it costs.
pub(crate) const PERMITS: i64 = 1;

/// An open call writes how far it has come after so many bytes of its answer, or so long.
const PROGRESS_BYTES: u64 = 64 * 1024;
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);
/// One that nothing else has noted for so long says that it goes on: the journal behind its last
/// note can go then.
pub(crate) const GOES_ON_PERIOD: Duration = Duration::from_secs(5);

/// A proof of durability is waited for so long; then the answer is broken off.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a record is as durable as its route demands.
pub(crate) enum Proof {
    /// It is.
    Given,
    /// It is once the watched number is above the record's.
    Awaited(watch::Receiver<u64>, u64),
    /// The call has an idempotency key: its answer is kept first, and then it is recorded.
    Kept(Pin<Box<dyn Future<Output = bool>>>),
}

impl Proof {
    /// Resolves to whether the last byte may leave.
    pub(crate) async fn wait(self) -> bool {
        let (mut durable, seq) = match self {
            Self::Given => return true,
            Self::Kept(kept) => return kept.await,
            Self::Awaited(durable, seq) => (durable, seq),
        };
        let reached = durable.wait_for(|next| *next > seq);
        matches!(
            tokio::time::timeout(PROOF_TIMEOUT, reached).await,
            Ok(Ok(_))
        )
    }
}

/// What is known of a call before its key is.
pub(crate) struct Facts {
    /// Ends with the call's record.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) in_flight: InFlight,
    /// The idempotency key it carries.
    pub(crate) keyed: Option<Rc<Keyed>>,
    pub(crate) request: RequestId,
    /// As both sides get it.
    pub(crate) request_text: [u8; REQUEST_ID_BYTES],
    /// Monotonic nanoseconds.
    pub(crate) started: u64,
    /// The same moment by the wall clock.
    pub(crate) at: Timestamp,
    pub(crate) client: IpAddr,
    /// By which the client speaks to us.
    pub(crate) scheme: &'static str,
    pub(crate) country: Country,
    pub(crate) method: Method,
    pub(crate) endpoint: String,
    pub(crate) user_agent: String,
    pub(crate) span: Span,
}

/// One call of a known key. It goes through many hands: what they pass on is a pointer.
pub(crate) struct Ticket(Box<State>);

/// What is known of a call.
pub(crate) struct State {
    edge: Arc<Edge>,
    entry: Arc<Entry>,
    facts: Facts,
    reservation: Option<Reservation>,
    hold: Option<Hold>,
    /// One permit of each quota of the key; used when the call is forwarded.
    permits: Permits,
    service: Option<Arc<Service>>,
    durability: Durability,
    terms: Terms,
    reached: Reached,
    status: u16,
    refusal: Option<Refusal>,
    units: Units,
    /// A stream whose events may report units.
    events: Option<Box<Events>>,
    /// The client knows what the call costs: nothing changes it any more.
    is_announced: bool,
    /// A call that is noted before it ends: its cost is known only afterwards, or it has a key.
    open: Option<Open>,
    upload: Option<Rc<Upload>>,
    /// The call whose kept answer it is given.
    replay_of: Option<RequestId>,
    /// Sent to the client.
    response_bytes: u64,
    /// Read ahead of that.
    read_bytes: u64,
    upstream_began: u64,
    upstream_nanos: u64,
}

/// What a successor needs of a call that has no record yet, and when it was written last.
struct Open {
    /// Keeps it in the journal.
    #[expect(dead_code, reason = "held for its drop")]
    kept: Kept,
    at: u64,
    bytes: u64,
}

impl Open {
    /// Since it was written.
    fn waited(&self, now: u64) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.at))
    }
}

/// How a call has ended.
pub(crate) struct Finished {
    pub(crate) proof: Proof,
    /// Credits.
    pub(crate) cost: i64,
}

impl Ticket {
    pub(crate) fn new(
        edge: Arc<Edge>,
        entry: Arc<Entry>,
        reservation: Reservation,
        facts: Facts,
    ) -> Self {
        Self(Box::new(State {
            edge,
            entry,
            facts,
            reservation: Some(reservation),
            hold: None,
            permits: Permits::new(),
            service: None,
            durability: Durability::Process,
            terms: Terms::NONE,
            reached: Reached::Nothing,
            status: CLIENT_CLOSED,
            refusal: None,
            units: Units::default(),
            events: None,
            is_announced: false,
            open: None,
            upload: None,
            replay_of: None,
            response_bytes: 0,
            read_bytes: 0,
            upstream_began: 0,
            upstream_nanos: 0,
        }))
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Names what was asked for.
    pub(crate) fn concerns(&mut self, service: &Arc<Service>) {
        self.service = Some(Arc::clone(service));
    }

    /// Empty before it is known.
    fn service_name(&self) -> &str {
        self.service.as_ref().map_or("", |service| &service.name)
    }

    /// Takes the credits for the call and its permits.
    pub(crate) fn holds(&mut self, hold: Option<Hold>, permits: Permits, route: &Route) {
        self.hold = hold;
        self.permits = permits;
        self.durability = route.durability;
        self.terms = route.terms.clone();
    }

    /// The upstream is about to be asked. A call whose cost is known only afterwards is noted
    /// before: if this process dies, its successor ends the call. So is one that has an idempotency
    /// key: the note tells who has it when the database of `usage-ingest` has forgotten that.
    ///
    /// # Errors
    /// There is no room for the note.
    pub(crate) fn forwarding(&mut self, upload: Rc<Upload>) -> Result<(), Refusal> {
        self.upload = Some(upload);
        self.upstream_began = self.edge.clock.monotonic_nanos();
        if self.is_priced() || (self.has_key() && !mutant!("gateway.forwards_keys_unnoted")) {
            let reservation = self.edge.journal.reserve();
            let reservation = reservation.ok_or(Refusal::MeteringUnavailable)?;
            self.note_progress(RecordKind::Open, reservation);
            crash_point!("gateway.call_opened");
        }
        self.reached = Reached::Upstream;
        Ok(())
    }

    /// The upstream has answered. Returns when: a monotonic nanosecond.
    pub(crate) fn answered(&mut self, status: StatusCode, head: &HeaderMap) -> u64 {
        let now = self.edge.clock.monotonic_nanos();
        self.upstream_nanos = now.saturating_sub(self.upstream_began);
        self.status = status.as_u16();
        self.reached = Reached::Answer(self.status);
        self.units.read_fields(head);
        if self.reads(head, |media| media == "text/event-stream") {
            self.events = Some(Box::default());
        }
        if let Some(keyed) = &self.facts.keyed {
            keyed.answered(self.terms.charges(self.status), self.status, head);
        }
        crash_point!("gateway.upstream_answered");
        now
    }

    /// It is given the answer of an earlier call, whole.
    pub(crate) fn replays(&mut self, replay: &Replay) {
        self.status = replay.status();
        self.replay_of = Some(replay.original);
        self.sent(&replay.answer.body);
    }

    /// What the call costs when it comes to its end, once that is certain. From then on it is
    /// settled: what the upstream reports later changes nothing.
    pub(crate) fn announce(&mut self, is_whole: bool) -> Option<i64> {
        let charge = self.charge(Disposition::Completed);
        self.is_announced = is_whole || !charge.estimated;
        self.is_announced.then_some(charge.cost)
    }

    /// What the client was refused with; empty if with nothing.
    fn code(&self) -> &'static str {
        self.refusal.map_or("", Refusal::as_str)
    }

    /// Whether the call has an idempotency key.
    fn has_key(&self) -> bool {
        let keyed = self.facts.keyed.as_ref();
        keyed.is_some_and(|keyed| keyed.has_key())
    }

    /// Whether the cost is known only afterwards.
    pub(crate) fn is_priced(&self) -> bool {
        self.terms.price.is_some()
    }

    /// Whether the route's prices have pointers.
    pub(crate) fn has_pointers(&self) -> bool {
        let price = self.terms.price.as_ref();
        price.is_some_and(|price| price.units().iter().any(|unit| !unit.pointer.is_empty()))
    }

    /// Whether the answer is a JSON document that may report units.
    pub(crate) fn reads_json(&self, head: &HeaderMap) -> bool {
        self.reads(head, |media| {
            media == "application/json" || media.ends_with("+json")
        })
    }

    fn reads(&self, head: &HeaderMap, is_right: impl FnOnce(&str) -> bool) -> bool {
        if !self.has_pointers() || !self.charge(Disposition::Completed).estimated {
            return false;
        }
        let media = head.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media = media.and_then(|text| text.split(';').next());
        is_right(&media.unwrap_or_default().trim().to_ascii_lowercase())
    }

    /// Reads units of a whole JSON answer.
    pub(crate) fn read_json(&mut self, text: &[u8]) {
        self.read_bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let State { terms, units, .. } = &mut **self;
        if let Some(price) = &terms.price {
            units.read_json(price, text);
        }
    }

    /// Reads units of an answer's trailers.
    pub(crate) fn read_trailers(&mut self, trailers: &HeaderMap) {
        if !self.is_announced {
            self.units.read_fields(trailers);
        }
    }

    /// Counts bytes of the answer, and looks into them.
    pub(crate) fn sent(&mut self, data: &[u8]) {
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.response_bytes = self.response_bytes.saturating_add(bytes);
        if let Some(keyed) = &self.facts.keyed {
            keyed.pass(data);
        }
        let State {
            events,
            terms,
            units,
            ..
        } = &mut **self;
        if let (Some(events), Some(price)) = (events, &terms.price) {
            events.read(data, price, units);
        }
        self.progress();
    }

    /// Notes how far an open call has come, when that is due. What costs the same however far it
    /// comes just goes on.
    fn progress(&mut self) {
        let Some(open) = &self.open else {
            return;
        };
        let now = self.edge.clock.monotonic_nanos();
        let grown = self.response_bytes.saturating_sub(open.bytes) >= PROGRESS_BYTES;
        if !self.is_priced() {
            self.keep_noted_at(now);
        } else if grown || open.waited(now) >= PROGRESS_PERIOD {
            self.goes_on();
        }
    }

    /// Notes that an open call goes on, unless it was noted lately for whatever reason. Returns
    /// when to look again; `None`: the call is not noted before it ends.
    pub(crate) fn keep_noted(&mut self) -> Option<Duration> {
        self.open.as_ref()?;
        self.keep_noted_at(self.edge.clock.monotonic_nanos())
    }

    /// The same at this monotonic nanosecond.
    pub(crate) fn keep_noted_at(&mut self, now: u64) -> Option<Duration> {
        let waited = self.open.as_ref()?.waited(now);
        match GOES_ON_PERIOD.checked_sub(waited) {
            Some(left) if !left.is_zero() => Some(left),
            _ => {
                self.goes_on();
                Some(GOES_ON_PERIOD)
            }
        }
    }

    fn goes_on(&mut self) {
        // Without room the note before has to do.
        if let Some(reservation) = self.edge.journal.reserve() {
            self.note_progress(RecordKind::Progress, reservation);
            crash_point!("gateway.progress_written");
        }
    }

    /// Does some work for the call, which may take long, and notes meanwhile that it goes on:
    /// neither a client that is slow to send nor an upstream that is slow to answer may keep the
    /// journal.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        while let Some(left) = self.keep_noted() {
            if let Ok(done) = tokio::time::timeout(left, work.as_mut()).await {
                return done;
            }
        }
        work.await
    }

    fn charge(&self, end: Disposition) -> Charge {
        let bytes = self.response_bytes.max(self.read_bytes);
        self.terms.charge(end, self.reached, &self.units, bytes)
    }

    /// Ends a call that a check refused, or whose upstream failed.
    pub(crate) fn refuse(mut self, refusal: Refusal, disposition: Disposition) {
        self.status = refusal.status();
        self.refusal = Some(refusal);
        self.record(disposition);
    }

    /// Ends a call that is complete. The last byte may leave when what this returns says so.
    pub(crate) fn finish(mut self) -> Finished {
        let State {
            events,
            terms,
            units,
            ..
        } = &mut *self.0;
        if let (Some(mut events), Some(price)) = (events.take(), &terms.price) {
            events.end(price, units);
        }
        let keyed = self.facts.keyed.clone().filter(|keyed| keyed.has_key());
        let Some(keyed) = keyed else {
            return self.close();
        };
        // What it costs is certain; its record waits until its answer is kept.
        let cost = match &self.hold {
            Some(_) => self.charge(Disposition::Completed).cost,
            None => 0,
        };
        let edge = Arc::clone(&self.edge);
        let proof = Proof::Kept(Box::pin(keyed.finish(edge, self)));
        Finished { proof, cost }
    }

    /// Ends a call that is complete and whose answer is kept, or need not be.
    pub(crate) fn close(mut self) -> Finished {
        let (seq, cost) = self.record(Disposition::Completed).unwrap_or_default();
        Finished {
            proof: self.proof(seq, cost),
            cost,
        }
    }

    /// That the record of this number, and of this cost, is as durable as the route demands, and as
    /// its cost does.
    fn proof(&self, seq: u64, cost: i64) -> Proof {
        let least = self.edge.disk_cost_min;
        let durability = match self.durability {
            Durability::Process if least > 0 && cost >= least => Durability::Disk,
            durability => durability,
        };
        match durability {
            Durability::Process => Proof::Given,
            Durability::Disk => Proof::Awaited(self.edge.synced.subscribe(), seq),
            Durability::Replicated => Proof::Awaited(self.edge.shipped.subscribe(), seq),
        }
    }

    /// Ends a call whose upstream broke off in mid-answer.
    pub(crate) fn abort(mut self) {
        self.record(Disposition::UpstreamAborted);
    }
}

impl Deref for Ticket {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl DerefMut for Ticket {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.0
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Reached only by a call that was cut off: the client is gone, a handler died, or this
        // gateway has waited for it long enough.
        let disposition = if self.edge.is_cut.load(Ordering::Acquire) || std::thread::panicking() {
            Disposition::GatewayAborted
        } else {
            Disposition::ClientAborted
        };
        self.record(disposition);
    }
}
