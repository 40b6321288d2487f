//! What a ticket writes: its record, the notes before it, and the figures behind it.

use std::{borrow::Cow, net::IpAddr};

use proto::events::v1::{Disposition, RecordKind};
use runtime::crash_point;
use types::{Charge, Rate};

use super::{Open, PERMITS, Ticket};
use crate::{
    charge::Reached,
    journal::Reservation,
    lease::Hold,
    record::{self, Call, CallRecord, ENDPOINT_BYTES_MAX, METHOD_BYTES_MAX},
};

/// Failed calls that are logged.
const COMPLAINTS: Rate = Rate {
    per_second: 10,
    burst: 10,
};

impl Ticket {
    /// Writes what a successor would charge if this process died now. Returns the note's number.
    pub(super) fn note_progress(&mut self, kind: RecordKind, reservation: Reservation) -> u64 {
        let now = self.edge.clock.monotonic_nanos();
        let charge = match self.is_priced() || self.reached == Reached::Tunnel {
            true => self.charge(Disposition::GatewayAborted),
            // It is noted for its key alone: nobody charges a call at a fixed price whose gateway
            // dies before it has recorded it.
            false => Charge::default(),
        };
        let total = now.saturating_sub(self.facts.started);
        let call = self.call(Disposition::GatewayAborted, total, charge);
        // A tunnel of a free route holds nothing.
        let hold = self.hold.as_ref();
        let mut record = CallRecord {
            seq: 0,
            kind,
            at_unix_micros: self.edge.clock.now().as_microsecond(),
            lease: hold.map(Hold::lease_id),
            cost: 0,
            cum: 0,
            held: hold.map_or(0, Hold::credits),
            call: &call,
            due: hold.map_or(0, |_| charge.cost),
        };
        let journal = &self.edge.journal;
        let (seq, kept) = reservation.append(|slot| {
            record.seq = slot.seq;
            // What was spent before may be trimmed when a successor counts.
            record.cum = hold.map_or(0, Hold::total);
            let permits = self.permits.iter();
            let permits = permits.map(|hold| (hold.lease_id(), hold.total()));
            // Before anybody can have applied it.
            (record.write(permits, slot.buf), journal.keep(slot.seq))
        });
        self.open = Some(Open {
            kept,
            at: now,
            bytes: self.response_bytes,
        });
        seq
    }

    /// Writes the record, once. Returns its number and the call's cost.
    pub(super) fn record(&mut self, disposition: Disposition) -> Option<(u64, i64)> {
        let reservation = self.reservation.take()?;
        let hold = self.hold.take();
        let mut permits = std::mem::take(&mut self.permits);
        if self.upload.is_none() || disposition == Disposition::Refused {
            permits.clear(); // the upstream was not asked: they go back
        }
        let now = self.edge.clock.monotonic_nanos();
        let total = now.saturating_sub(self.facts.started);
        // Without a hold nothing can be charged: the route is free, or the call was refused.
        let charge = match &hold {
            Some(_) => self.charge(disposition),
            None => Charge::default(),
        };
        let cost = charge.cost;
        let call = self.call(disposition, total, charge);
        // A call that costs nothing leaves its lease alone: its record names none.
        let charged = hold.as_ref().filter(|_| cost > 0);
        let mut record = CallRecord {
            seq: 0,
            kind: RecordKind::Call,
            at_unix_micros: self.edge.clock.now().as_microsecond(),
            lease: charged.map(Hold::lease_id),
            cost,
            cum: 0,
            held: 0,
            call: &call,
            due: 0,
        };
        let (seq, ()) = reservation.append(|slot| {
            record.seq = slot.seq;
            record.cum = charged.map_or(0, |hold| hold.spend(cost));
            let used = permits.iter();
            let used = used.map(|hold| (hold.lease_id(), hold.spend(PERMITS)));
            (record.write(used, slot.buf), ())
        });
        crash_point!("gateway.appended");
        if let Some(keyed) = &self.facts.keyed {
            let is_complete = disposition == Disposition::Completed && self.refusal.is_none();
            keyed.ended(&self.edge, cost > 0, is_complete);
            let is_replayed = self.replay_of.is_some();
            self.edge.metrics.keyed(is_replayed, self.refusal);
        }
        if let Some(hold) = hold {
            hold.settle(cost);
        }
        for hold in permits {
            hold.settle(PERMITS);
        }
        self.open = None;
        self.note(disposition, total, charge);
        Some((seq, cost))
    }

    /// The call as a record holds it.
    fn call(&self, disposition: Disposition, total_nanos: u64, charge: Charge) -> Vec<u8> {
        let facts = &self.facts;
        let (v4, v6);
        let ip: &[u8] = match facts.client {
            IpAddr::V4(address) => {
                v4 = address.octets();
                &v4
            }
            IpAddr::V6(address) => {
                v6 = address.octets();
                &v6
            }
        };
        let service = self.service.as_ref();
        let had = facts.keyed.as_ref().and_then(|keyed| keyed.had());
        let call = Call {
            request: facts.request.bytes(),
            org: self.entry.org.bytes(),
            key: self.entry.key.bytes(),
            user: self.entry.user.bytes(),
            service_id: service.map_or(&[], |service| service.id.bytes()),
            service: self.service_name(),
            test: self.entry.test,
            endpoint: record::cut(&facts.endpoint, ENDPOINT_BYTES_MAX),
            method: record::cut(facts.method.as_str(), METHOD_BYTES_MAX),
            status: self.status,
            duration_micros: total_nanos / 1_000,
            upstream_micros: self.upstream_nanos / 1_000,
            ip,
            country: facts.country.as_str(),
            user_agent: &facts.user_agent,
            disposition,
            code: self.code(),
            traceparent: &facts.span.traceparent(),
            price_version: service.map_or(0, |service| service.price_version),
            units: self.units.all(),
            request_bytes: self.upload.as_ref().map_or(0, |upload| upload.bytes.get()),
            response_bytes: self.response_bytes,
            overrun: charge.overrun,
            estimated: charge.estimated,
            idempotency: had
                .as_ref()
                .map_or([&[], &[]], |it| it.each_ref().map(|of| of.as_slice())),
            replay_of: self.replay_of.as_ref().map_or(&[], |id| id.bytes()),
        };
        call.encode()
    }

    /// The refusal's code, else the status.
    fn outcome(&self) -> Cow<'static, str> {
        match self.refusal {
            None => self.status.to_string().into(),
            Some(refusal) => refusal.as_str().into(),
        }
    }

    /// Metrics and the end of the span.
    fn note(&self, disposition: Disposition, total: u64, charge: Charge) {
        // From the first look at the request to the question to the upstream.
        let added = match self.upstream_began {
            0 => total,
            began => began.saturating_sub(self.facts.started),
        };
        match &self.service {
            Some(service) if self.refusal.is_none() => {
                self.edge.metrics.answered(service, self.status, added);
            }
            _ => self
                .edge
                .metrics
                .refused(self.service_name(), &self.outcome(), added),
        }
        self.edge
            .metrics
            .overrun
            .inc_by(charge.overrun.unsigned_abs());
        let span = &self.facts.span;
        if span.is_some() {
            span.set("http.response.status_code", i64::from(self.status));
            span.set("tollgate.cost", charge.cost);
            span.set("tollgate.org_id", self.entry.org.to_string());
            span.set("tollgate.service", self.service_name().to_owned());
            span.set("tollgate.disposition", disposition.as_str_name());
            if self.status >= 500 {
                span.fail(self.outcome());
            }
        }
        let edge = &self.edge;
        // An outage fails thousands of calls a second; a few of them say what there is to say.
        let ours = self.status >= 500 && self.refusal.is_some();
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
                service = self.service_name(),
                code = self.code(),
                "a call failed"
            );
        }
    }
}
