//! What this process has been lent and what may be done with it: decisions only, with what
//! happened and `now` as arguments.
//!
//! - A grant is put to use when it is in the journal, not before.
//! - A lease that drains is never extended, and one that is closed is never opened again: its
//!   total would begin anew.
//! - The final count of a lease is due once nothing can be spent from it any more.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use types::LeaseId;

use crate::lease::{Account, Hold, Lease, Owner};

/// Every so many heartbeats the wallet is told of all leases, so that it can end those it wants.
const FULL_HEARTBEATS: u64 = 30;
/// A lease is closed so long after its period has ended: a wallet whose clock is a little behind
/// may lend from it until then.
const ENDED_MICROS_MIN: i64 = 5_000_000;
/// A closed lease of a period is forgotten so long after the period's end.
const FORGOTTEN_MICROS_MIN: i64 = 3_600_000_000;

/// All leases of this process.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    /// Open leases, current and draining ones, and whose they are.
    open: papaya::HashMap<LeaseId, (Owner, Arc<Lease>)>,
    /// Leases whose final count is written: nothing the wallet says opens them again. With it, the
    /// monotonic microsecond from which the wallet cannot even speak of them: those of a period
    /// that is long over are forgotten, the others are few, since renewals extend.
    closed: papaya::HashMap<LeaseId, i64>,
    heartbeats: AtomicU64,
    /// The wallet has missed a heartbeat, or asks for all: it is told of everything, until it has
    /// taken that.
    missed: AtomicBool,
    /// No lease is opened any more.
    ended: AtomicBool,
}

/// What the wallet says of a lease. All times are microseconds of a monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub(crate) lease: LeaseId,
    /// Everything ever lent.
    pub(crate) granted_cum: i64,
    /// When it ends; the highest number: never.
    pub(crate) spend_until: i64,
}

/// What a grant means here.
#[derive(Debug)]
pub(crate) enum News {
    /// More than was known. To be written to the journal, and then taken.
    More { lease: Arc<Lease>, is_new: bool },
    /// Heard before.
    Old,
    /// It is about a lease that drains or is closed, of which the wallet knows after the next
    /// heartbeat; or this process opens no more, and retiring its journal ends it.
    Ended,
}

/// What a heartbeat says.
#[derive(Clone, Debug)]
pub(crate) struct Bulletin {
    /// It is about all leases: the wallet's database may have lost what it lent.
    pub(crate) tells_all: bool,
    pub(crate) told: Vec<Told>,
}

/// What the wallet is told of a lease.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) owner: Owner,
    pub(crate) lease: Arc<Lease>,
    pub(crate) cum: i64,
    pub(crate) returned_cum: i64,
}

impl Desk {
    /// Judges what the wallet has lent to the owner of an account.
    pub(crate) fn judge(&self, account: &Account, grant: &Grant) -> News {
        let id = grant.lease;
        let current = account
            .lease()
            .filter(|lease| lease.id == id && !lease.is_draining());
        let is_new = current.is_none();
        if is_new && self.is_ended() {
            return News::Ended;
        }
        if is_new && (self.open.pin().contains_key(&id) || self.closed.pin().contains_key(&id)) {
            return News::Ended;
        }
        let lease = current.unwrap_or_else(|| Arc::new(Lease::new(id)));
        match lease.is_news(grant.granted_cum) {
            true => News::More { lease, is_new },
            false => News::Old,
        }
    }

    /// Puts a grant to use that is in the journal by now, and takes `credits` of it for the call
    /// that asked. The lease that it replaces drains.
    pub(crate) fn take(
        &self,
        account: &Account,
        (lease, is_new): (Arc<Lease>, bool),
        grant: &Grant,
        credits: i64,
        now: i64,
    ) -> Option<Hold> {
        if is_new {
            let opened = (account.owner, Arc::clone(&lease));
            self.open.pin().insert(lease.id, opened);
        }
        lease.end_at(grant.spend_until);
        let hold = lease.extend(grant.granted_cum, credits, now);
        if let Some(before) = account.replace(lease).filter(|it| it.id != grant.lease) {
            before.drain();
        }
        hold
    }

    /// Opens no lease from now on: the last ones are being closed. An answer that comes late is not
    /// taken, or its lease would stay open behind them.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends leases whose period is over: by now the wallet has no doubt about it either.
    pub(crate) fn end_periods(&self, now: i64) {
        for (_, lease) in self.open.pin().values() {
            if now >= lease.ends_at().saturating_add(ENDED_MICROS_MIN) {
                lease.drain();
            }
        }
    }

    /// What a heartbeat says: what has changed; now and then, when one was missed, and when the
    /// wallet asks for it, all.
    pub(crate) fn news(&self, now: i64) -> Bulletin {
        let heartbeats = self.heartbeats.fetch_add(1, Ordering::Relaxed);
        let tells_all = self.is_behind() || heartbeats.is_multiple_of(FULL_HEARTBEATS);
        if tells_all {
            self.closed.pin().retain(|_, until| now < *until);
        }
        let told = |(owner, lease): &(Owner, Arc<Lease>)| {
            let (cum, returned_cum) = match tells_all {
                true => (lease.recorded(), lease.returned_cum()),
                false => lease.news()?,
            };
            Some(Told {
                owner: *owner,
                lease: Arc::clone(lease),
                cum,
                returned_cum,
            })
        };
        let mut told: Vec<Told> = self.open.pin().values().filter_map(told).collect();
        told.sort_unstable_by_key(|told| told.lease.id);
        Bulletin { tells_all, told }
    }

    /// The wallet did not take a heartbeat, or asks for all leases.
    pub(crate) fn missed(&self) {
        self.missed.store(true, Ordering::Release);
    }

    /// The wallet has taken a heartbeat that told it of all leases, and asks for no more.
    pub(crate) fn told_all(&self) {
        self.missed.store(false, Ordering::Release);
    }

    /// The wallet has missed a heartbeat, or asked for all leases, and has not been told since:
    /// also while the next heartbeat is under way, which may take long.
    pub(crate) fn is_behind(&self) -> bool {
        self.missed.load(Ordering::Acquire)
    }

    /// The wallet wants these ended.
    pub(crate) fn drain(&self, leases: impl Iterator<Item = LeaseId>) {
        let open = self.open.pin();
        for id in leases {
            if let Some((_, lease)) = open.get(&id) {
                lease.drain();
            }
        }
    }

    /// Gives back everything of a lease that is not held, when the wallet recalls it: the total
    /// given back so far.
    pub(crate) fn give_back(&self, lease: LeaseId) -> Option<i64> {
        Some(self.open.pin().get(&lease)?.1.give_back(0))
    }

    /// Open leases in the order of their ids: what is done to all of them can be repeated.
    pub(crate) fn open(&self) -> Vec<Arc<Lease>> {
        let open = self.open.pin();
        let mut open: Vec<Arc<Lease>> = open.values().map(|(_, it)| Arc::clone(it)).collect();
        open.sort_unstable_by_key(|lease| lease.id);
        open
    }

    pub(crate) fn is_open(&self, lease: LeaseId) -> bool {
        self.open.pin().contains_key(&lease)
    }

    /// Whether a lease that the wallet calls open was never heard of here, because a reply was
    /// lost. One whose final count is on its way was, also when its period is so long over that it
    /// is forgotten: then the wallet was told of spend. A second count of nothing would be poison.
    pub(crate) fn is_unheard(&self, lease: LeaseId, known_cum: i64) -> bool {
        known_cum == 0 && !self.closed.pin().contains_key(&lease)
    }

    /// The final count of a lease is in the journal.
    pub(crate) fn closed(&self, lease: &Lease) {
        let forgotten_at = lease.ends_at().saturating_add(FORGOTTEN_MICROS_MIN);
        self.closed.pin().insert(lease.id, forgotten_at);
        self.open.pin().remove(&lease.id);
    }
}

#[cfg(test)]
mod tests {
    use types::OrgId;
    use uuid::Uuid;

    use super::*;

    fn grant(lease: u128, granted_cum: i64) -> Grant {
        Grant {
            lease: LeaseId::new(Uuid::from_u128(lease)),
            granted_cum,
            spend_until: i64::MAX,
        }
    }

    #[test]
    fn an_answer_that_comes_after_the_last_closing_opens_no_lease() {
        let desk = Desk::default();
        let account = Account::new(Owner::Organisation(OrgId::new(Uuid::from_u128(1))));
        let first = grant(2, 10);
        let News::More { lease, is_new } = desk.judge(&account, &first) else {
            panic!("it is news");
        };
        desk.take(&account, (lease, is_new), &first, 0, 0);
        desk.end();
        // What was begun before may still grow: it is closed with the others.
        let more = desk.judge(&account, &grant(2, 20));
        assert!(matches!(more, News::More { is_new: false, .. }));
        desk.drain([first.lease].into_iter());
        for late in [grant(2, 20), grant(3, 10)] {
            assert!(matches!(desk.judge(&account, &late), News::Ended));
        }
    }

    #[test]
    fn a_final_count_on_its_way_is_not_followed_by_one_of_nothing() {
        let desk = Desk::default();
        let account = Account::new(Owner::Organisation(OrgId::new(Uuid::from_u128(1))));
        let of_a_period = Grant {
            spend_until: 1_000,
            ..grant(2, 10)
        };
        let News::More { lease, is_new } = desk.judge(&account, &of_a_period) else {
            panic!("it is news");
        };
        desk.take(&account, (Arc::clone(&lease), is_new), &of_a_period, 0, 0);
        desk.closed(&lease);
        assert!(!desk.is_unheard(lease.id, 0) && !desk.is_unheard(lease.id, 7));
        // Days later, with consumers that have stood still since.
        desk.news(FORGOTTEN_MICROS_MIN.saturating_mul(24));
        assert!(!desk.is_unheard(lease.id, 7), "it was told to the wallet");
        assert!(desk.is_unheard(LeaseId::new(Uuid::from_u128(3)), 0));
    }
}
