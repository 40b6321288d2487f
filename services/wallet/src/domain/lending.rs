//! How much is lent, and what comes back.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use types::{Credits, JournalId, LEASE_CALLS_MIN, LEASE_SMALL_PARTS, LeaseId, lease_part};

use super::{Account, Book, Breach, Lease, LeaseState, Wallet, WalletId, minus, plus};

/// Random; stands for one ask of a journal.
pub(crate) type Nonce = [u8; 16];

/// A gateway's request for credits.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// Whose credits.
    pub(crate) account: Account,
    pub(crate) wish: Wish,
}

/// How much a gateway asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// The same nonce gets the same answer.
    pub(crate) nonce: Nonce,
    /// At least `minimum`.
    pub(crate) want: Credits,
    /// What the call at hand needs; at least 1.
    pub(crate) minimum: Credits,
}

/// A gateway's word about one of its leases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Report {
    pub(crate) journal: JournalId,
    pub(crate) lease: LeaseId,
    /// Spent so far; 0 when it is not told.
    pub(crate) cum: Credits,
    /// Given back so far.
    pub(crate) returned_cum: Credits,
}

/// Credits to lend: what is wanted or a few calls' worth, no less than needed, and no more than a
/// fair share, so that the last credits of a wallet are not all with one of several gateways.
/// `None`: the wallet cannot lend what is needed.
pub(crate) fn size(
    want: Credits,
    minimum: Credits,
    available: Credits,
    live_gateways: u32,
) -> Option<Credits> {
    assert!(
        Credits::ZERO < minimum && minimum <= want,
        "checked where the request is read"
    );
    if available < minimum {
        return None;
    }
    let part = |parts| Credits::new(lease_part(available.get(), parts, live_gateways));
    let block =
        Credits::new(minimum.get().saturating_mul(LEASE_CALLS_MIN)).min(part(LEASE_SMALL_PARTS));
    Some(want.max(block).min(part(2).max(minimum)))
}

/// What there is to know for an ask, with its wallet and its journal locked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    /// The journal has ended.
    pub(crate) is_retired: bool,
    /// The database may have forgotten what it has lent.
    pub(crate) is_frozen: bool,
    pub(crate) live_gateways: u32,
    /// Lease that the nonce has been answered with.
    pub(crate) replayed: Option<LeaseId>,
    /// Lease of the journal and wallet that can be extended.
    pub(crate) open: Option<LeaseId>,
}

/// What is done about an ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// Nothing is lent to a journal that has ended.
    Retired,
    /// Nothing is lent that might be lent already.
    Frozen,
    /// What the nonce was answered with is said again; that lends nothing.
    Replay(LeaseId),
    /// There is too little; others may have something to give back.
    Short,
    /// So much is lent, by this lease or a new one.
    Lend(Option<LeaseId>, Credits),
}

/// Decides on an ask for credits of a wallet that has so many available.
pub(crate) fn decide(
    want: Credits,
    minimum: Credits,
    available: Credits,
    situation: &Situation,
) -> Decision {
    if situation.is_retired {
        return Decision::Retired;
    }
    if let Some(lease) = situation.replayed {
        return Decision::Replay(lease);
    }
    if situation.is_frozen {
        return Decision::Frozen;
    }
    match size(want, minimum, available, situation.live_gateways) {
        Some(credits) => Decision::Lend(situation.open, credits),
        None => Decision::Short,
    }
}

/// Asks of one journal, decided one after the other with their wallets and the journal locked: each
/// knows what those before it were lent.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    /// The journal has ended.
    pub(crate) is_retired: bool,
    /// The database may have forgotten what it has lent.
    pub(crate) is_frozen: bool,
    pub(crate) live_gateways: u32,
    /// Leases that nonces have been answered with.
    pub(crate) replayed: BTreeMap<Nonce, LeaseId>,
    /// Leases of the journal that can be extended, each of its wallet's present epoch.
    pub(crate) open: BTreeMap<WalletId, LeaseId>,
}

impl Round {
    /// Decides on an ask for credits of a wallet and, if there is something to lend, lends it: by
    /// the lease that is open, or else by the one that `new_lease` makes. Without a wallet there
    /// is nothing.
    pub(crate) fn answer(
        &mut self,
        book: &mut Book,
        wish: Wish,
        wallet: Option<WalletId>,
        new_lease: impl FnOnce(&Wallet) -> Lease,
    ) -> Decision {
        let available = wallet.map_or(Credits::ZERO, |wallet| book.wallet(wallet).available());
        let situation = Situation {
            is_retired: self.is_retired,
            is_frozen: self.is_frozen,
            live_gateways: self.live_gateways,
            replayed: self.replayed.get(&wish.nonce).copied(),
            open: wallet.and_then(|wallet| self.open.get(&wallet).copied()),
        };
        let decision = decide(wish.want, wish.minimum, available, &situation);
        let (Decision::Lend(open, credits), Some(wallet)) = (decision, wallet) else {
            return decision;
        };
        let lease = match open {
            Some(lease) => lease,
            None => {
                let lease = new_lease(book.wallet(wallet));
                book.open(lease)
            }
        };
        book.lend(lease, credits);
        self.open.insert(wallet, lease);
        self.replayed.insert(wish.nonce, lease);
        Decision::Lend(Some(lease), credits)
    }
}

/// A journal counts as live when its last heartbeat is no older.
const LIVE_SECONDS: u64 = 5;

/// Who was heard of since then is alive.
pub(crate) fn alive_since(now: Timestamp) -> Timestamp {
    before(now, Duration::from_secs(LIVE_SECONDS))
}

/// Whose owner was heard of since then may not be taken over from a copy: by design it serves from
/// its leases while it is cut off, and what it records after a takeover is never settled. It keeps
/// its journal for as long as its leases are not orphaned.
pub(crate) fn kept_since(now: Timestamp, orphan: Duration) -> Timestamp {
    before(now, orphan).min(alive_since(now))
}

/// The moment so long ago.
pub(crate) fn before(now: Timestamp, age: Duration) -> Timestamp {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    now.checked_sub(age).unwrap_or(Timestamp::MIN)
}

impl Book {
    /// Lends credits of the lease's wallet to its owner, who is alive: it asked.
    pub(crate) fn lend(&mut self, lease: LeaseId, credits: Credits) {
        let mut lease = self
            .leases
            .get(&lease)
            .expect("locked before it is extended")
            .clone();
        assert!(
            credits <= self.wallet(lease.wallet).available(),
            "I2: more than there is"
        );
        assert!(
            Credits::ZERO < credits && !lease.must_drain(),
            "only open leases grow"
        );
        self.reserve(lease.wallet, credits);
        lease.granted = plus(lease.granted, credits);
        lease.state = LeaseState::Active;
        self.put(lease);
    }

    /// Merges what an owner says about its lease: both counters only grow, so reports may be
    /// repeated and overtake each other.
    pub(crate) fn report(&mut self, report: &Report) -> Result<(), Breach> {
        let Report {
            journal,
            lease: id,
            cum,
            returned_cum,
        } = *report;
        let known = self
            .leases
            .get(&id)
            .ok_or(Breach::UnknownLease { lease: id })?;
        if known.journal != journal {
            return Err(Breach::OtherJournal {
                lease: id,
                owner: known.journal,
                journal,
            });
        }
        if !known.is_open() {
            return Ok(());
        }
        let lease = merged(known, cum, returned_cum)?;
        if lease == *known {
            return Ok(());
        }
        let returned = minus(lease.returned_cum, known.returned_cum);
        if Credits::ZERO < returned && lease.is_current() {
            self.reserve(lease.wallet, minus(Credits::ZERO, returned));
        }
        self.put(lease);
        Ok(())
    }
}

fn merged(known: &Lease, cum: Credits, returned_cum: Credits) -> Result<Lease, Breach> {
    let over_returned = || Breach::OverReturned {
        lease: known.id,
        returned: returned_cum,
    };
    let mut lease = known.clone();
    lease.known_cum = known.known_cum.max(cum);
    lease.returned_cum = known.returned_cum.max(returned_cum);
    if known.granted_cum() < lease.returned_cum {
        return Err(over_returned());
    }
    lease.granted = minus(known.granted_cum(), lease.returned_cum);
    if known.granted < cum {
        return Err(Breach::OverGranted {
            lease: known.id,
            granted: known.granted,
            cum,
        });
    }
    if lease.granted < lease.spent() {
        return Err(over_returned());
    }
    lease.state = match known.state {
        LeaseState::Active | LeaseState::Orphaned if !known.is_current() => LeaseState::Draining,
        LeaseState::Orphaned => LeaseState::Active,
        state => state,
    };
    Ok(lease)
}
