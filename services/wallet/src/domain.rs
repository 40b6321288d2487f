//! The rules of the money, as values: a [`Book`] is read under lock, decided upon, written back.

mod book;
mod epoch;
mod failover;
mod lending;
mod low;
mod quota;
mod settlement;

use jiff::Timestamp;
use types::{Credits, Id, JournalId, Kind, LeaseId, OrgId, UserId};

pub(crate) use book::{Book, Changes, Entry, EntryKind, Movement};
pub(crate) use epoch::{Epoch, TEST_CREDITS};
pub(crate) use failover::{Lent, Told, is_awaited, is_forgotten, made_at, may_be_lost};
#[cfg(feature = "cores")]
pub(crate) use lending::Nonce;
pub(crate) use lending::{Ask, Decision, Report, Round, Wish, alive_since, before, kept_since};
#[cfg(test)]
pub(crate) use lending::{Situation, decide, size};
pub(crate) use low::{Fallen, Level};
pub(crate) use quota::{Quota, permits};
pub(crate) use settlement::{Batch, Spend, claims};

/// Credits of one grant at most. A million grants of this size still fit an `i64`.
pub(crate) const GRANT_CREDITS_MAX: Credits = Credits::new(1_000_000_000_000);

/// The wallet of an organisation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Live;
impl Kind for Live {
    const PREFIX: &'static str = "wal";
}

/// The test wallet of a user.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Test;
impl Kind for Test {
    const PREFIX: &'static str = "twl";
}

/// The permits of one quota for one period.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Bucket;
impl Kind for Bucket {
    const PREFIX: &'static str = "qta";
}

/// What is lent from: a wallet of either kind, or permits, which are lent like credits but not
/// booked. Ordered as rows are locked: live ones first, each kind by id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum WalletId {
    /// Of an organisation.
    Live(Id<Live>),
    /// Of a user, for test calls.
    Test(Id<Test>),
    /// Of a key, for its calls of a day or month.
    Quota(Id<Bucket>),
}

/// Whose credits are asked for, or which permits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Account {
    /// The wallet of an organisation.
    Org(OrgId),
    /// The test wallet of a user.
    User(UserId),
    /// The permits of a key for the present period.
    Quota(Quota),
}

/// What a wallet holds, or a bucket of permits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wallet {
    pub(crate) id: WalletId,
    /// Test wallets live in epochs, live ones have none.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) balance: Credits,
    pub(crate) reserved: Credits,
    /// Live wallets are watched for running dry, others are not.
    pub(crate) level: Option<Level>,
}

impl Wallet {
    /// Credits not lent to anybody.
    pub(crate) fn available(&self) -> Credits {
        minus(self.balance, self.reserved)
    }
}

/// Where a lease is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LeaseState {
    /// Its owner may spend it.
    Active,
    /// Its owner must stop and close it.
    Draining,
    /// Its final count is settled, the rest is back in the wallet.
    Closed,
    /// Its owner is silent; it stays reserved.
    Orphaned,
    /// Its owner is given up; what may turn up later is the provider's loss.
    WrittenOff,
}

impl LeaseState {
    /// As in the table.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Closed => "closed",
            Self::Orphaned => "orphaned",
            Self::WrittenOff => "written_off",
        }
    }
}

/// Credits or permits lent to a journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    pub(crate) wallet: WalletId,
    /// Epoch whose credits these are; 0 for all but test wallets.
    pub(crate) epoch: i64,
    /// The epoch its test wallet is in by now.
    pub(crate) wallet_epoch: Option<Epoch>,
    /// Permits: when the period they are for ends.
    pub(crate) period_end: Option<Timestamp>,
    pub(crate) journal: JournalId,
    /// Lent now: everything granted less everything returned.
    pub(crate) granted: Credits,
    pub(crate) returned_cum: Credits,
    pub(crate) settled_cum: Credits,
    pub(crate) known_cum: Credits,
    pub(crate) final_cum: Option<Credits>,
    pub(crate) state: LeaseState,
    pub(crate) created_at: Timestamp,
}

impl Lease {
    /// A new one, with nothing lent by it yet.
    pub(crate) fn new(
        id: LeaseId,
        wallet: &Wallet,
        period_end: Option<Timestamp>,
        journal: JournalId,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            wallet: wallet.id,
            epoch: wallet.epoch.map_or(0, |epoch| epoch.number),
            wallet_epoch: wallet.epoch,
            period_end,
            journal,
            granted: Credits::ZERO,
            returned_cum: Credits::ZERO,
            settled_cum: Credits::ZERO,
            known_cum: Credits::ZERO,
            final_cum: None,
            state: LeaseState::Active,
            created_at: now,
        }
    }

    /// Everything ever granted; never decreases, whatever was returned since.
    pub(crate) fn granted_cum(&self) -> Credits {
        plus(self.granted, self.returned_cum)
    }

    /// True while its owner owes a final count.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.state, LeaseState::Closed | LeaseState::WrittenOff)
    }

    /// True when it is of the epoch its wallet is in. Only such leases are reserved.
    pub(crate) fn is_current(&self) -> bool {
        self.wallet_epoch
            .is_none_or(|epoch| epoch.number == self.epoch)
    }

    /// True when its owner must stop spending it and close it.
    pub(crate) fn must_drain(&self) -> bool {
        !self.is_current() || !matches!(self.state, LeaseState::Active | LeaseState::Orphaned)
    }

    /// When its owner has to stop; `None`: no end.
    pub(crate) fn spend_until(&self) -> Option<Timestamp> {
        if self.must_drain() {
            // In the past by any clock: a reply that is repeated late opens nothing again.
            return Some(self.created_at);
        }
        let epoch_end = self.wallet_epoch.map(|epoch| epoch.reset_at);
        epoch_end.or(self.period_end)
    }

    /// The highest total anybody has reported.
    pub(crate) fn spent(&self) -> Credits {
        self.settled_cum.max(self.known_cum)
    }
}

/// A rule that was broken by what a gateway reported.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Breach {
    #[error("lease {lease} is unknown")]
    UnknownLease { lease: LeaseId },
    #[error("lease {lease} belongs to {owner}, not to {journal}")]
    OtherJournal {
        lease: LeaseId,
        owner: JournalId,
        journal: JournalId,
    },
    #[error("lease {lease} was granted {granted} but its total is {cum}")]
    OverGranted {
        lease: LeaseId,
        granted: Credits,
        cum: Credits,
    },
    #[error("lease {lease} returns {returned} in all, more than it can have left")]
    OverReturned { lease: LeaseId, returned: Credits },
    #[error("lease {lease} costs {cost} with a total of {cum} after {before}")]
    Inconsistent {
        lease: LeaseId,
        before: Credits,
        cost: Credits,
        cum: Credits,
    },
    #[error("lease {lease} ends at {final_cum} although {settled} are settled")]
    FinalBelowSettled {
        lease: LeaseId,
        final_cum: Credits,
        settled: Credits,
    },
    #[error("lease {lease} ended at {final_cum} but its total is {cum}")]
    BeyondFinal {
        lease: LeaseId,
        final_cum: Credits,
        cum: Credits,
    },
}

/// The sum of two amounts of one wallet.
pub(crate) fn plus(left: Credits, right: Credits) -> Credits {
    left.checked_add(right)
        .expect("bounded by what a wallet was ever given")
}

/// The difference of two amounts of one wallet.
pub(crate) fn minus(left: Credits, right: Credits) -> Credits {
    left.checked_sub(right)
        .expect("bounded by what a wallet was ever given")
}
