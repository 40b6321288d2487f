//! A database that was failed over or restored may have forgotten what it lent last. Those it was
//! lent to say so: in their heartbeats, and by the grants in their journals.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use types::{Credits, JournalId, LeaseId};

use super::{Account, Batch, Book, Lease, minus, plus};

/// Living gateways tell all their leases within so long after a failover: five heartbeats.
const TELL_SECONDS: u64 = 5;
/// Records of a lease that is forgotten wait so long for its owner to tell of it.
pub(crate) const PATIENCE_SECONDS: i64 = 3_600;

/// What somebody was lent, as its journal has it.
#[derive(Clone, Debug)]
pub(crate) struct Lent {
    pub(crate) lease: LeaseId,
    pub(crate) journal: JournalId,
    pub(crate) account: Account,
    pub(crate) granted_cum: Credits,
    pub(crate) returned_cum: Credits,
}

/// When a lease was made: the wallet's clock is in its id.
pub(crate) fn made_at(lease: LeaseId) -> Option<Timestamp> {
    let (seconds, nanos) = lease.uuid().get_timestamp()?.to_unix();
    let (seconds, nanos) = (i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?);
    Timestamp::new(seconds, nanos).ok()
}

/// Whether a failover may have taken the lease: nothing that was made later can be forgotten.
pub(crate) fn may_be_lost(lease: LeaseId, failed_over_at: Timestamp) -> bool {
    made_at(lease).is_some_and(|made| made <= failed_over_at)
}

/// Whether records of a forgotten lease still wait. Later they are put aside.
pub(crate) fn is_awaited(failed_over_at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(failed_over_at) < SignedDuration::from_secs(PATIENCE_SECONDS)
}

/// Whether living gateways have had time to tell their leases.
fn had_time(failed_over_at: Timestamp, time: Duration, now: Timestamp) -> bool {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    now.duration_since(failed_over_at) >= time
}

/// Who has told all its leases since a failover, and who has not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) failed_over_at: Timestamp,
    /// Journals that are heard of since and have not told.
    pub(crate) untold: i64,
    /// Journals that were alive before and have not told, heard of or not.
    pub(crate) alive_before: i64,
}

impl Told {
    /// Whether lending may go on. Who was alive before and is not heard of is dead once its leases
    /// would be orphaned; its journal tells what it held.
    pub(crate) fn is_enough(&self, orphan: Duration, now: Timestamp) -> bool {
        let has_time = |time| had_time(self.failed_over_at, time, now);
        self.untold == 0
            && (self.alive_before == 0 || has_time(orphan))
            && has_time(Duration::from_secs(TELL_SECONDS))
    }
}

impl Book {
    /// Takes over what the database has forgotten of a lease that is known by now, if only with
    /// nothing. Its credits are reserved as far as they are there, so that I2 holds; what is
    /// missing is returned. It may be there later: credits that came back before the failover are
    /// replayed, and an operator can grant again what was bought and lost.
    pub(crate) fn take_over(&mut self, it: &Lent) -> Credits {
        self.raise(it.lease, it.journal, it.granted_cum, it.returned_cum)
    }

    /// As [`Book::take_over`], by what records say: who has spent so much was lent so much.
    pub(crate) fn cover(&mut self, batches: &[Batch], failed_over_at: Timestamp) {
        for batch in batches {
            for (id, claim) in &batch.claims {
                let returned = match self.lease(*id) {
                    Some(lease) if may_be_lost(*id, failed_over_at) => lease.returned_cum,
                    _ => continue,
                };
                if let Some(granted) = claim.cum.checked_add(returned) {
                    self.raise(*id, batch.journal, granted, returned);
                }
            }
        }
    }

    fn raise(
        &mut self,
        id: LeaseId,
        journal: JournalId,
        granted_cum: Credits,
        returned_cum: Credits,
    ) -> Credits {
        let Some(known) = self.lease(id).cloned() else {
            return Credits::ZERO;
        };
        let is_news = known.granted_cum() < granted_cum;
        if !is_news || !known.is_open() || known.journal != journal {
            return Credits::ZERO;
        }
        let mut lease = known.clone();
        lease.returned_cum = known.returned_cum.max(returned_cum);
        // All it holds or has spent; never less than what is known to be spent.
        let wanted = minus(granted_cum, lease.returned_cum).max(known.spent());
        let mut more = minus(wanted, known.granted);
        if lease.is_current() {
            more = more.min(self.wallet(lease.wallet).available());
            self.reserve(lease.wallet, more);
        }
        lease.granted = plus(known.granted, more);
        let missing = minus(wanted, lease.granted);
        self.put(lease);
        missing
    }
}

/// Whether the owner of a lease has to be asked for all it was lent.
pub(crate) fn is_forgotten(lease: Option<&Lease>, id: LeaseId, failed_over_at: Timestamp) -> bool {
    lease.is_none() && may_be_lost(id, failed_over_at)
}
