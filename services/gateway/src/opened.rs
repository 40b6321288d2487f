//! Calls that a dead gateway had begun and not ended, among those whose cost is known only
//! afterwards. Its successor ends each with one record, by what the last note of it says.

use std::collections::BTreeMap;

use proto::events::v1::{Disposition, Permit, Record, RecordKind};
use types::{LeaseId, RequestId};

use crate::recovery::Total;

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
    /// by what they cost.
    ///
    /// # Errors
    /// A lease has no id.
    pub(crate) fn end(
        self,
        totals: &mut BTreeMap<LeaseId, Total>,
        now_micros: i64,
    ) -> anyhow::Result<Vec<Record>> {
        let mut records = Vec::with_capacity(self.0.len());
        for (_, note) in self.0 {
            let cost = note.due.clamp(0, note.held.max(0));
            let mut record = Record {
                kind: RecordKind::Call.into(),
                at_unix_micros: now_micros,
                cost,
                ..Record::default()
            };
            if cost > 0 {
                let lease = LeaseId::from_slice(&note.lease_id)?;
                record.cum = totals.entry(lease).or_default().spend(cost);
                record.lease_id = note.lease_id;
            }
            // It was forwarded, or was about to be: its permits are used.
            for permit in note.permits {
                let lease = LeaseId::from_slice(&permit.lease_id)?;
                let cum = totals.entry(lease).or_default().spend(1);
                record.permits.push(Permit { cum, ..permit });
            }
            record.call = note.call.map(|mut call| {
                call.set_disposition(Disposition::GatewayAborted);
                call
            });
            records.push(record);
        }
        Ok(records)
    }
}
