//! Records that an operator has kept from a consumer: what it would have made of them.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use prost::Message;
use uuid::Uuid;

use super::records::{CALL, Call, Record};
use super::rows::{Period, Rows, Sums};

/// The part of a batch that is audited.
#[derive(Clone, PartialEq, Eq, Message)]
struct Batch {
    #[prost(message, repeated, tag = "2")]
    records: Vec<Record>,
}

/// Calls that one consumer never applies, by journal and number.
#[derive(Debug, Default)]
pub(super) struct Discards {
    pub(super) calls: BTreeMap<(Uuid, u64), Record>,
    /// All of its records, calls or not.
    pub(super) records: u64,
}

impl Discards {
    /// Adds what is kept of a letter.
    pub(super) fn add(&mut self, journal: Uuid, batch: &[u8]) {
        let Ok(batch) = Batch::decode(batch) else {
            return;
        };
        for record in batch.records {
            self.records += 1;
            if record.kind == CALL && record.call.is_some() {
                self.calls.insert((journal, record.seq), record);
            }
        }
    }

    /// Requests and costs.
    pub(super) fn costs(&self) -> impl Iterator<Item = (Uuid, i64)> {
        let calls = self.calls.values();
        calls.filter_map(|record| Some((record.request()?, record.cost)))
    }

    /// Credits by lease.
    pub(super) fn by_lease(&self) -> HashMap<Uuid, i128> {
        let mut sums: HashMap<Uuid, i128> = HashMap::new();
        for record in self.calls.values() {
            if let Some(lease) = record.lease() {
                *sums.entry(lease).or_default() += i128::from(record.cost);
            }
        }
        sums
    }

    /// Permits by lease.
    pub(super) fn by_permit(&self) -> HashMap<Uuid, i64> {
        let mut sums: HashMap<Uuid, i64> = HashMap::new();
        for permit in self.calls.values().flat_map(|record| &record.permits) {
            if let Ok(lease) = Uuid::from_slice(&permit.lease_id) {
                *sums.entry(lease).or_default() += 1;
            }
        }
        sums
    }

    /// What the calls would be in the totals; those that say no time or organisation are nothing.
    pub(super) fn hours(&self) -> impl Iterator<Item = (Period, Sums)> {
        self.calls.values().filter_map(|record| {
            let call = record.call.as_ref()?;
            Some((period(record, call)?, sums(record, call)))
        })
    }
}

fn period(record: &Record, call: &Call) -> Option<Period> {
    let org = Uuid::from_slice(&call.org_id).ok()?;
    let at = Timestamp::from_microsecond(record.at_unix_micros).ok()?;
    let hour = at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H");
    let environment = if call.test { "test" } else { "production" };
    let service = match call.service_id.is_empty() {
        true => "(unknown)".to_owned(),
        false => call.service.clone(),
    };
    Some((org, hour.to_string(), environment.to_owned(), service))
}

fn sums(record: &Record, call: &Call) -> Sums {
    let is_success = call.status == 101 || (200..400).contains(&call.status);
    Sums {
        calls: 1,
        credits: record.cost.into(),
        successes: is_success.into(),
    }
}

impl Rows {
    /// Calls that an operator has kept from being rows are known all the same: what others have
    /// made of them is held against what is left of their letters.
    pub(super) fn add_discards(&mut self) {
        for record in self.inbox.discards.calls.values() {
            let Some(call) = &record.call else { continue };
            let id = |bytes: &[u8]| Uuid::from_slice(bytes).ok();
            let org = id(&call.org_id);
            if let Some(lease) = record.lease() {
                let spend = self.spend.entry(lease).or_default();
                spend.credits += i128::from(record.cost);
                spend.calls += 1;
                include(&mut spend.organisations, org);
                include(&mut spend.users, id(&call.user_id));
                include(&mut spend.is_test, Some(call.test));
            }
            for permit in &record.permits {
                if let Some(lease) = id(&permit.lease_id) {
                    let uses = self.uses.entry(lease).or_default();
                    uses.calls += 1;
                    include(&mut uses.organisations, org);
                }
            }
            if let Some(request) = record.request() {
                self.by_request.entry(request).or_insert(1);
            }
        }
        for (period, sums) in self.inbox.discards.hours() {
            *self.hours.entry(period).or_default() += sums;
        }
    }
}

fn include<T: PartialEq>(all: &mut Vec<T>, one: Option<T>) {
    if let Some(one) = one
        && !all.contains(&one)
    {
        all.push(one);
    }
}
