//! Credits held in memory, and who they belong to. Permits of quotas are lent, held and spent the
//! same way: each call takes one.

mod cell;
#[cfg(test)]
mod interleave;
mod sync;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use smallvec::SmallVec;
use types::{KeyId, OrgId, QuotaKind, Refusal, UserId};

pub(crate) use cell::{Hold, Lease};

/// Quotas that a key may have: a day's and a month's.
const QUOTAS_MAX: usize = 2;

/// Where the calls of a key take permits, one for each of its quotas.
pub(crate) type Quotas = SmallVec<[Arc<Account>; QUOTAS_MAX]>;
/// One permit of each.
pub(crate) type Permits = SmallVec<[Hold; QUOTAS_MAX]>;

/// Whose credits pay for a key's calls, or whose permits let them through.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Owner {
    /// A live key: its organisation's wallet.
    Organisation(OrgId),
    /// A test key: the test wallet of the user who made it.
    TestUser(UserId),
    /// A key with a quota, or a lineage of rotated keys under its first: permits for its calls.
    Quota {
        org: OrgId,
        key: KeyId,
        kind: QuotaKind,
    },
}

impl Owner {
    /// What a call is told when nothing is left.
    pub(crate) fn exhausted(self) -> Refusal {
        match self {
            Self::Organisation(_) | Self::TestUser(_) => Refusal::CreditsExhausted,
            Self::Quota { kind, .. } => match kind {
                QuotaKind::Daily => Refusal::DailyQuotaExceeded,
                QuotaKind::Monthly => Refusal::MonthlyQuotaExceeded,
            },
        }
    }
}

/// What a key's record says of its quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stated {
    pub(crate) by: KeyId,
    pub(crate) version: i64,
    /// Calls in one period.
    pub(crate) calls: i64,
}

/// The credits or permits of one owner in this process. Never removed while the process lives: two
/// accounts of one owner would share a lease. So there is one for each wallet, and one for each
/// quota of a key, that this process has served: some 300 bytes each.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) owner: Owner,
    /// Quotas: what the newest record says that has come by.
    stated: Mutex<Option<Stated>>,
    lease: ArcSwapOption<Lease>,
    /// One acquisition at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Acquisitions begun so far.
    begun: AtomicU64,
    /// The last one that failed, how, and what it asked for.
    failed: Mutex<(u64, Refusal, i64)>,
    renewing: AtomicBool,
    /// A renewal has failed: the next one begins a tick later.
    rests: AtomicBool,
    spent: AtomicI64,
    /// Credits a second, lately.
    rate: AtomicI64,
    idle_ticks: AtomicU64,
    /// What the last call held.
    per_call: AtomicI64,
    /// Credits that stay here without a call, as the wallet last stood.
    kept: AtomicI64,
}

impl Account {
    pub(crate) fn new(owner: Owner) -> Self {
        Self {
            owner,
            stated: Mutex::new(None),
            lease: ArcSwapOption::empty(),
            turn: tokio::sync::Mutex::new(()),
            begun: AtomicU64::new(0),
            failed: Mutex::new((0, Refusal::CreditsExhausted, 0)),
            renewing: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            spent: AtomicI64::new(0),
            rate: AtomicI64::new(0),
            idle_ticks: AtomicU64::new(0),
            per_call: AtomicI64::new(0),
            kept: AtomicI64::new(0),
        }
    }

    /// Notes the quota of a key's record. Newer keys of a lineage have higher ids; what the newest
    /// says counts.
    pub(crate) fn state(&self, stated: Stated) {
        let mut known = self.stated.lock();
        if known.is_none_or(|known| (known.by, known.version) < (stated.by, stated.version)) {
            *known = Some(stated);
        }
    }

    pub(crate) fn stated(&self) -> Option<Stated> {
        *self.stated.lock()
    }

    pub(crate) fn lease(&self) -> Option<Arc<Lease>> {
        self.lease.load_full()
    }

    /// Puts another lease in place and returns the one before.
    pub(crate) fn replace(&self, lease: Arc<Lease>) -> Option<Arc<Lease>> {
        self.lease.swap(Some(lease))
    }

    /// Takes credits for a call from the lease in hand.
    pub(crate) fn hold(&self, credits: i64, now: i64) -> Option<Hold> {
        let lease = self.lease.load();
        let hold = lease.as_ref()?.hold(credits, now)?;
        self.took(credits);
        Some(hold)
    }

    /// Credits of the lease in hand that no call holds.
    pub(crate) fn in_hand(&self) -> i64 {
        let lease = self.lease.load();
        let usable = lease.as_ref().filter(|lease| !lease.is_draining());
        usable.map_or(0, |lease| lease.in_hand())
    }

    /// Counts credits taken for a call, for the rate.
    pub(crate) fn took(&self, credits: i64) {
        self.spent.fetch_add(credits, Ordering::Relaxed);
        self.per_call.store(credits, Ordering::Relaxed);
    }

    /// What the last call held; 0 before any.
    pub(crate) fn per_call(&self) -> i64 {
        self.per_call.load(Ordering::Relaxed)
    }

    /// Notes how many credits may stay here without a call.
    pub(crate) fn may_keep(&self, credits: i64) {
        self.kept.store(credits, Ordering::Relaxed);
    }

    pub(crate) fn kept(&self) -> i64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// No call has come for a while: gives back what others may need. The next call finds what it
    /// needs in hand all the same, so a key that is called now and then waits for no wallet; a
    /// recall brings the rest back before anybody is refused for want of it.
    pub(crate) fn give_back_idle(&self) {
        if let Some(lease) = self.lease.load().as_ref() {
            lease.give_back(self.kept());
        }
    }

    /// True for one caller, when it is time to renew in the background.
    pub(crate) fn claim_renewal(&self) -> bool {
        let low = self
            .lease
            .load()
            .as_ref()
            .is_some_and(|lease| lease.is_low());
        low && !self.rests.load(Ordering::Acquire) && !self.renewing.swap(true, Ordering::AcqRel)
    }

    /// A renewal has ended, or was none: another one may begin when it is time.
    pub(crate) fn renewed(&self) {
        self.renewing.store(false, Ordering::Release);
    }

    /// A renewal has failed: every call would begin another one, and make the wallet recall what
    /// others hold, before the next tick.
    pub(crate) fn not_renewed(&self) {
        self.rests.store(true, Ordering::Release);
        self.renewed();
    }

    /// Acquisitions begun so far; an acquisition with a higher number began later.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    pub(crate) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel).saturating_add(1)
    }

    pub(crate) fn fail(&self, attempt: u64, refusal: Refusal, credits: i64) {
        *self.failed.lock() = (attempt, refusal, credits);
    }

    /// How an acquisition ended that began after `seen`, if it failed and that tells something
    /// about `credits`: a wallet too poor for a dear call may still pay a cheap one.
    pub(crate) fn failed_since(&self, seen: u64, credits: i64) -> Option<Refusal> {
        let (attempt, refusal, asked) = *self.failed.lock();
        let tells = refusal != Refusal::CreditsExhausted || credits >= asked;
        (attempt > seen && tells).then_some(refusal)
    }

    /// Once a second: measures the rate, and lets a failed renewal be tried again. Returns for how
    /// many ticks nothing was spent.
    pub(crate) fn tick(&self) -> u64 {
        self.rests.store(false, Ordering::Release);
        let spent = self.spent.swap(0, Ordering::Relaxed);
        let decayed = self.rate.load(Ordering::Relaxed).saturating_mul(4) / 5;
        self.rate.store(spent.max(decayed), Ordering::Relaxed);
        if spent > 0 {
            self.idle_ticks.store(0, Ordering::Relaxed);
            return 0;
        }
        self.idle_ticks
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1)
    }

    pub(crate) fn rate(&self) -> i64 {
        self.rate.load(Ordering::Relaxed)
    }
}
