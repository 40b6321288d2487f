//! What a journal owes in the end: the total of each lease, from its records and from what the
//! wallet knows.

use std::collections::BTreeMap;

use prost::Message as _;
use proto::{
    events::v1::{Record, RecordKind},
    wallet::v1::Lease,
};
use types::LeaseId;

use crate::{
    journal::{Journal, Limits},
    opened::Opened,
};

/// The final counts that a journal owes, of what the wallet calls open. What it has closed or
/// written off needs none: nothing of it is reserved, and a count below what was written off would
/// be a dead letter.
///
/// # Errors
/// A lease has no id.
pub(crate) fn finals(
    totals: &BTreeMap<LeaseId, Total>,
    open: &[Lease],
    has_gaps: bool,
    is_first: bool,
) -> anyhow::Result<Vec<(LeaseId, i64)>> {
    let mut finals = Vec::with_capacity(open.len());
    for lease in open {
        let id = LeaseId::from_slice(&lease.lease_id)?;
        let total = totals.get(&id);
        // Its final count is on its way. Still open when all is applied, another record has taken
        // that one's number.
        if !is_first || !total.is_some_and(|total| total.closed) {
            finals.push((id, final_cum(total, lease, has_gaps)));
        }
    }
    Ok(finals)
}

/// What a lease has cost in the end. Lent, but the reply never came: nothing was spent. All its
/// calls applied, and their records gone: what is settled is what was spent. Its last calls lost
/// with a gap: what its owner had told of them was spent.
pub(super) fn final_cum(total: Option<&Total>, lease: &Lease, has_gaps: bool) -> i64 {
    let readable = total.map_or(0, |total| total.cum);
    let known = if has_gaps { lease.known_cum } else { 0 };
    readable.max(lease.settled_cum).max(known)
}

/// What a journal says of a lease.
#[derive(Debug, Default)]
pub(crate) struct Total {
    pub(crate) cum: i64,
    closed: bool,
    pub(super) is_permits: bool,
}

impl Total {
    /// Adds a call that had no record; returns the total with it.
    pub(crate) fn spend(&mut self, cost: i64) -> i64 {
        self.cum = self.cum.saturating_add(cost);
        self.cum
    }
}

/// What is known of a lease that has spent so much.
#[cfg(test)]
pub(crate) fn has_spent(cum: i64) -> Total {
    Total {
        cum,
        ..Total::default()
    }
}

/// What a journal says of its leases, and of the calls that it does not end. Blocks.
pub(crate) fn read_totals(journal: &Journal) -> anyhow::Result<(BTreeMap<LeaseId, Total>, Opened)> {
    let (mut reader, end) = (journal.reader(0), journal.next_seq());
    let mut totals: BTreeMap<LeaseId, Total> = BTreeMap::new();
    let mut opened = Opened::default();
    let mut expected = None;
    while let Some(batch) = reader.next_batch(Limits::before(end))? {
        // The records that are lost may have ended what was open before them: a call that may
        // have been charged is not charged again.
        if expected
            .replace(batch.next_seq())
            .is_some_and(|seq| seq != batch.first_seq)
        {
            opened = Opened::default();
        }
        for bytes in batch.records {
            let record = Record::decode(bytes)?;
            opened.read(&record)?;
            for permit in &record.permits {
                let lease = LeaseId::from_slice(&permit.lease_id)?;
                let total = totals.entry(lease).or_default();
                total.cum = total.cum.max(permit.cum);
                total.is_permits = true;
            }
            if record.lease_id.is_empty() {
                continue;
            }
            let lease = LeaseId::from_slice(&record.lease_id)?;
            let total = totals.entry(lease).or_default();
            total.cum = total.cum.max(record.cum);
            total.closed |= record.kind == i32::from(RecordKind::Close);
        }
    }
    Ok((totals, opened))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(settled_cum: i64, known_cum: i64) -> Lease {
        Lease {
            settled_cum,
            known_cum,
            ..Lease::default()
        }
    }

    #[test]
    fn a_final_count_is_what_was_certainly_spent() {
        let total = Total {
            cum: 12,
            ..Total::default()
        };
        assert_eq!(final_cum(None, &lease(0, 0), false), 0);
        assert_eq!(final_cum(Some(&total), &lease(5, 9), false), 12);
        assert_eq!(final_cum(Some(&total), &lease(15, 15), false), 15);
        // Reported and not readable: lost with the power before it was promised to anybody, unless
        // the journal is known to have lost what it had promised.
        assert_eq!(final_cum(Some(&total), &lease(5, 14), false), 12);
        assert_eq!(final_cum(Some(&total), &lease(5, 14), true), 14);
    }
}
