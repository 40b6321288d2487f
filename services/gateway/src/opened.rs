//! Calls that a dead gateway had begun and not ended, among those that it had noted before: their
//! cost is known only afterwards, or they have an idempotency key. Its successor ends each with one
//! record, by what the last note of it says.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    events::v1::{Disposition, Permit, Record, RecordKind},
    wallet::v1::Lease,
};
use types::{LeaseId, RequestId};

use crate::{meter::PERMITS, recovery::Total};

/// The last note of each call that has no record yet.
#[derive(Debug, Default)]
pub(crate) struct Opened(BTreeMap<RequestId, Record>);

impl Opened {
    /// Takes the next record of the journal.
    ///
    /// # Errors
    /// The call has no id.
    pub(crate) fn read(&mut self, record: &Record) -> anyhow::Result<()> {
        let Some(call) = &record.call else {
            return Ok(());
        };
        match record.kind() {
            RecordKind::Open | RecordKind::Progress => {
                let request = RequestId::from_slice(&call.request_id)?;
                self.0.insert(request, record.clone());
            }
            RecordKind::Call if !self.0.is_empty() => {
                self.0.remove(&RequestId::from_slice(&call.request_id)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// True when there is one.
    #[cfg(test)]
    pub(crate) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// The records that end them, without their numbers, in the order of the calls; `totals` grow
    /// by what they cost. `open` is what the wallet says of leases.
    ///
    /// # Errors
    /// A lease has no id.
    pub(crate) fn end(
        self,
        totals: &mut BTreeMap<LeaseId, Total>,
        open: &[Lease],
        now_micros: i64,
    ) -> anyhow::Result<Vec<Record>> {
        let elsewhere = self.charged_elsewhere(totals, open)?;
        let mut records = Vec::with_capacity(self.0.len());
        for (_, note) in self.0 {
            let mut record = Record {
                kind: RecordKind::Call.into(),
                at_unix_micros: now_micros,
                ..Record::default()
            };
            if let Some((lease, cost)) = due(&note)?.filter(|(id, _)| !elsewhere.contains(id)) {
                record.cost = cost;
                record.cum = totals.entry(lease).or_default().spend(cost);
                record.lease_id = note.lease_id;
            }
            // It was forwarded, or was about to be: its permits are used.
            for permit in note.permits {
                let lease = LeaseId::from_slice(&permit.lease_id)?;
                if !elsewhere.contains(&lease) {
                    let cum = totals.entry(lease).or_default().spend(PERMITS);
                    record.permits.push(Permit { cum, ..permit });
                }
            }
            record.call = note.call.map(|mut call| {
                call.set_disposition(Disposition::GatewayAborted);
                call
            });
            records.push(record);
        }
        Ok(records)
    }

    /// Leases of which more is settled than the journal knows of, and not by the ends of these
    /// calls, which another copy may have written already: this one lacks records. They may have
    /// charged the calls, which are not charged again; what is unknown is not the customer's loss.
    fn charged_elsewhere(
        &self,
        totals: &BTreeMap<LeaseId, Total>,
        open: &[Lease],
    ) -> anyhow::Result<BTreeSet<LeaseId>> {
        let mut sums: BTreeMap<LeaseId, Vec<i64>> = BTreeMap::new();
        for note in self.0.values() {
            let mut charges = Vec::from_iter(due(note)?);
            for permit in &note.permits {
                charges.push((LeaseId::from_slice(&permit.lease_id)?, PERMITS));
            }
            for (lease, cost) in charges {
                let total = totals.get(&lease).map_or(0, |total| total.cum);
                let sums = sums.entry(lease).or_insert_with(|| vec![total]);
                let before = sums.last().copied().unwrap_or(total);
                sums.push(before.saturating_add(cost));
            }
        }
        let mut elsewhere = BTreeSet::new();
        for lease in open {
            let id = LeaseId::from_slice(&lease.lease_id)?;
            let settled = lease.settled_cum;
            let is_explained = |sums: &Vec<i64>| {
                sums.contains(&settled) || sums.first().is_some_and(|total| settled < *total)
            };
            if !sums.get(&id).is_none_or(is_explained) {
                elsewhere.insert(id);
            }
        }
        Ok(elsewhere)
    }
}

/// What a call costs by the last note of it, and whose credits.
fn due(note: &Record) -> anyhow::Result<Option<(LeaseId, i64)>> {
    let cost = note.due.clamp(0, note.held.max(0));
    if cost == 0 {
        return Ok(None);
    }
    Ok(Some((LeaseId::from_slice(&note.lease_id)?, cost)))
}

#[cfg(test)]
mod tests;
