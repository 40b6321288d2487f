//! The ticket of a call: made when a key is known, ended by exactly one record.
//!
//! However a call ends (answered, refused, broken off, cancelled, panicked), its ticket is either
//! finished or dropped, and both write the record. Room for it was set aside before.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, Method, StatusCode};
use proto::events::v1::{Call, Disposition, Permit, Record, RecordKind, Unit};
use runtime::{crash_point, trace::Span};
use tokio::sync::watch;
use types::{Rate, Refusal, RequestId, ServiceId};

use crate::{
    body::Upload,
    catalogue::{Durability, Route, Service},
    country::Country,
    edge::{Edge, InFlight},
    journal::Reservation,
    keyring::Entry,
    lease::Hold,
    record::{self, ENDPOINT_BYTES_MAX, METHOD_BYTES_MAX, UNIT_NAME_BYTES_MAX, UNITS_MAX},
};

/// Header by which an upstream reports units: `pages=5, tokens=1500`.
pub(crate) const USAGE: &str = "tollgate-usage";
/// Status of a call whose client went away before there was an answer.
const CLIENT_CLOSED: u16 = 499;

/// Permits of one quota that a call uses, whatever it costs.
pub(crate) const PERMITS: i64 = 1;

/// Failed calls that are logged.
const COMPLAINTS: Rate = Rate {
    per_second: 10,
    burst: 10,
};
/// A proof of durability is waited for so long; then the answer is broken off.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a record is as durable as its route demands.
pub(crate) enum Proof {
    /// It is.
    Given,
    /// It is once the watched number is above the record's.
    Awaited(watch::Receiver<u64>, u64),
}

impl Proof {
    /// Resolves to whether the last byte may leave.
    pub(crate) async fn wait(self) -> bool {
        let Self::Awaited(mut durable, seq) = self else {
            return true;
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
    pub(crate) request: RequestId,
    pub(crate) started: u64,
    pub(crate) client: IpAddr,
    pub(crate) country: Country,
    pub(crate) method: Method,
    pub(crate) endpoint: String,
    pub(crate) user_agent: String,
    pub(crate) span: Span,
}

/// One call of a known key.
pub(crate) struct Ticket {
    edge: Arc<Edge>,
    entry: Arc<Entry>,
    facts: Facts,
    reservation: Option<Reservation>,
    hold: Option<Hold>,
    /// One permit of each quota of the key; used when the call is forwarded.
    permits: Vec<Hold>,
    service_id: Option<ServiceId>,
    service: String,
    price_version: i64,
    durability: Durability,
    status: u16,
    code: &'static str,
    cost: i64,
    units: Vec<Unit>,
    upload: Option<Rc<Upload>>,
    response_bytes: u64,
    upstream_began: u64,
    upstream_nanos: u64,
}

impl Ticket {
    pub(crate) fn new(
        edge: Arc<Edge>,
        entry: Arc<Entry>,
        reservation: Reservation,
        facts: Facts,
    ) -> Self {
        Self {
            edge,
            entry,
            facts,
            reservation: Some(reservation),
            hold: None,
            permits: Vec::new(),
            service_id: None,
            service: String::new(),
            price_version: 0,
            durability: Durability::Process,
            status: CLIENT_CLOSED,
            code: "",
            cost: 0,
            units: Vec::new(),
            upload: None,
            response_bytes: 0,
            upstream_began: 0,
            upstream_nanos: 0,
        }
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Names what was asked for.
    pub(crate) fn concerns(&mut self, service: &Service) {
        self.service_id = Some(service.id);
        self.service.clone_from(&service.name);
        self.price_version = service.price_version;
    }

    /// Takes the credits for the call and its permits.
    pub(crate) fn holds(&mut self, hold: Option<Hold>, permits: Vec<Hold>, durability: Durability) {
        self.hold = hold;
        self.permits = permits;
        self.durability = durability;
    }

    /// The upstream is being asked.
    pub(crate) fn forwarding(&mut self, upload: Rc<Upload>) {
        self.upload = Some(upload);
        self.upstream_began = self.edge.clock.monotonic_nanos();
    }

    /// The upstream has answered: what the call costs is known now. Returns the cost.
    pub(crate) fn answered(&mut self, route: &Route, status: StatusCode, head: &HeaderMap) -> i64 {
        let now = self.edge.clock.monotonic_nanos();
        self.upstream_nanos = now.saturating_sub(self.upstream_began);
        self.status = status.as_u16();
        self.cost = route.charge(self.status);
        self.units = units(head);
        crash_point!("gateway.upstream_answered");
        self.cost
    }

    /// Counts bytes of the answer.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.response_bytes = self.response_bytes.saturating_add(bytes);
    }

    /// Ends a call that a check refused, or whose upstream failed.
    pub(crate) fn refuse(mut self, refusal: Refusal, disposition: Disposition) {
        self.status = refusal.status();
        self.code = refusal.as_str();
        self.cost = 0;
        self.record(disposition);
    }

    /// Ends a call. The last byte may leave when what this returns says so.
    pub(crate) fn finish(mut self, disposition: Disposition) -> Proof {
        let seq = self.record(disposition).unwrap_or(0);
        match self.durability {
            Durability::Process => Proof::Given,
            Durability::Disk => Proof::Awaited(self.edge.synced.subscribe(), seq),
            Durability::Replicated => Proof::Awaited(self.edge.shipped.subscribe(), seq),
        }
    }

    /// Ends a call whose upstream broke off in mid-answer.
    pub(crate) fn abort(mut self) {
        self.record(Disposition::UpstreamAborted);
    }

    /// Writes the record, once.
    fn record(&mut self, disposition: Disposition) -> Option<u64> {
        let reservation = self.reservation.take()?;
        let hold = self.hold.take();
        let mut permits = std::mem::take(&mut self.permits);
        if self.upload.is_none() || disposition == Disposition::Refused {
            permits.clear(); // the upstream was not asked: they go back
        }
        let now = self.edge.clock.monotonic_nanos();
        let total = now.saturating_sub(self.facts.started);
        // Without a hold nothing can be charged: the route is free, or the call was refused.
        let cost = if hold.is_some() { self.cost } else { 0 };
        let mut record = Record {
            kind: RecordKind::Call.into(),
            at_unix_micros: self.edge.clock.now().as_microsecond(),
            cost,
            call: Some(self.call(disposition, total)),
            permits: permits.iter().map(permit).collect(),
            ..Record::default()
        };
        // A call that costs nothing leaves its lease alone: its record names none.
        let charged = hold.as_ref().filter(|_| cost > 0);
        if let Some(hold) = charged {
            record.lease_id = hold.lease_id().bytes().to_vec();
        }
        let (seq, ()) = reservation.append(|slot| {
            record.seq = slot.seq;
            if let Some(hold) = charged {
                record.cum = hold.spend(cost);
            }
            for (permit, hold) in record.permits.iter_mut().zip(&permits) {
                permit.cum = hold.spend(PERMITS);
            }
            (record::encode(&record, slot.buf), ())
        });
        crash_point!("gateway.appended");
        if let Some(hold) = hold {
            hold.settle(cost);
        }
        for hold in permits {
            hold.settle(PERMITS);
        }
        self.edge.shipping.notify_one();
        self.note(disposition, total);
        Some(seq)
    }

    fn call(&self, disposition: Disposition, total_nanos: u64) -> Call {
        let ip = match self.facts.client {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        Call {
            request_id: self.facts.request.bytes().to_vec(),
            org_id: self.entry.org.bytes().to_vec(),
            api_key_id: self.entry.key.bytes().to_vec(),
            user_id: self.entry.user.bytes().to_vec(),
            service_id: self
                .service_id
                .map(|id| id.bytes().to_vec())
                .unwrap_or_default(),
            service: self.service.clone(),
            test: self.entry.test,
            endpoint: record::cut(&self.facts.endpoint, ENDPOINT_BYTES_MAX),
            method: record::cut(self.facts.method.as_str(), METHOD_BYTES_MAX),
            status: u32::from(self.status),
            duration_micros: total_nanos / 1_000,
            upstream_micros: self.upstream_nanos / 1_000,
            ip,
            country: self.facts.country.as_str().to_owned(),
            user_agent: self.facts.user_agent.clone(),
            disposition: disposition.into(),
            code: self.code.to_owned(),
            traceparent: self.facts.span.traceparent(),
            price_version: self.price_version,
            units: self.units.clone(),
            request_bytes: self.upload.as_ref().map_or(0, |upload| upload.bytes.get()),
            response_bytes: self.response_bytes,
        }
    }

    /// Metrics and the end of the span.
    fn note(&self, disposition: Disposition, total: u64) {
        let mut digits = [0; 3];
        let code = if self.code.is_empty() {
            status_text(self.status, &mut digits)
        } else {
            self.code
        };
        // From the first look at the request to the question to the upstream.
        let added = match self.upstream_began {
            0 => total,
            began => began.saturating_sub(self.facts.started),
        };
        self.edge.metrics.call(&self.service, code, added);
        let span = &self.facts.span;
        if span.is_some() {
            span.set("http.response.status_code", i64::from(self.status));
            span.set("tollgate.cost", self.cost);
            span.set("tollgate.org_id", self.entry.org.to_string());
            span.set("tollgate.service", self.service.clone());
            span.set("tollgate.disposition", disposition.as_str_name());
            if self.status >= 500 {
                span.fail(code.to_owned());
            }
        }
        let edge = &self.edge;
        // An outage fails thousands of calls a second; a few of them say what there is to say.
        let ours = self.status >= 500 && !self.code.is_empty();
        if ours
            && edge
                .complaints
                .admit(COMPLAINTS, edge.clock.monotonic_nanos())
                .is_ok()
        {
            tracing::warn!(
                request_id = %self.facts.request,
                org_id = %self.entry.org,
                trace_id = span.trace_id(),
                service = self.service,
                code,
                "a call failed"
            );
        }
    }
}

/// The use of a permit, without its number: that is given under the journal's lock.
fn permit(hold: &Hold) -> Permit {
    Permit {
        lease_id: hold.lease_id().bytes().to_vec(),
        cum: 0,
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Reached only by a call that was cut off: the client is gone, or a handler died.
        self.record(Disposition::ClientAborted);
    }
}

fn status_text(status: u16, digits: &mut [u8; 3]) -> &str {
    let mut rest = status;
    for digit in digits.iter_mut().rev() {
        *digit = b'0'.saturating_add(u8::try_from(rest % 10).unwrap_or(0));
        rest /= 10;
    }
    std::str::from_utf8(digits).unwrap_or("000")
}

/// Reads the units an upstream reports. Untrusted: what is malformed or too much is left out.
pub(crate) fn units(head: &HeaderMap) -> Vec<Unit> {
    let Some(value) = head.get(USAGE).and_then(|value| value.to_str().ok()) else {
        return Vec::new();
    };
    let parse = |pair: &str| {
        let (name, count) = pair.split_once('=')?;
        let name = name.trim();
        let right = !name.is_empty()
            && name.len() <= UNIT_NAME_BYTES_MAX
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let count: u64 = count.trim().parse().ok()?;
        (right && i64::try_from(count).is_ok()).then(|| Unit {
            name: name.to_owned(),
            count,
        })
    };
    value.split(',').take(UNITS_MAX).filter_map(parse).collect()
}
