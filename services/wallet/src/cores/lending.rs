//! Lending without tables: the asks of one request, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use types::{Credits, Id, JournalId, KeyId, LeaseId, OrgId};

use super::{Bank, Known};
use crate::domain::{
    Book, Decision, Lease, LeaseState, Round, Wallet, WalletId, Wish, alive_since,
};

/// What is lent from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Account {
    /// An organisation's credits.
    Credits(OrgId),
    /// A key's permits, all of one period.
    Permits(KeyId),
}

impl Account {
    pub(super) fn wallet(self) -> WalletId {
        match self {
            Self::Credits(org) => WalletId::Live(Id::new(org.uuid())),
            Self::Permits(key) => WalletId::Quota(Id::new(key.uuid())),
        }
    }
}

/// What a gateway asks to be lent, one of the asks of its request.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Of what.
    pub account: Account,
    /// The same nonce gets the same answer.
    pub nonce: [u8; 16],
    /// At least `minimum`.
    pub want: i64,
    /// At least 1.
    pub minimum: i64,
}

/// What an ask is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Lent, now or before by the same nonce.
    Lent {
        /// By which lease.
        lease: LeaseId,
        /// Everything ever lent by it.
        granted_cum: i64,
        /// Microseconds for which it may be spent from.
        spend_for_micros: Option<i64>,
    },
    /// There is too little; these may give something back.
    Short(Vec<(JournalId, LeaseId)>),
    /// The journal has ended.
    Retired,
}

impl Bank {
    /// Lends to a journal, ask by ask and once per nonce; the answers are in the order of the asks.
    pub fn acquire(
        &mut self,
        journal: JournalId,
        asks: &[Ask],
        mut new_lease: impl FnMut() -> LeaseId,
        now: Timestamp,
    ) -> Vec<Answer> {
        self.journals.entry(journal).or_insert(Known {
            heartbeat_at: now,
            is_retired: false,
        });
        let mut round = self.round(journal, asks, now);
        let before = round.clone();
        let mut book = self.book_of(&round, asks);
        let (mut answers, mut lent) = (Vec::with_capacity(asks.len()), Vec::new());
        for ask in asks {
            let wallet = ask.account.wallet();
            let wallet = self.rows.contains_key(&wallet).then_some(wallet);
            let wish = Wish {
                nonce: ask.nonce,
                want: Credits::new(ask.want),
                minimum: Credits::new(ask.minimum),
            };
            if self.forgets_within_requests {
                round.clone_from(&before);
            }
            let new = |wallet: &Wallet| Lease::new(new_lease(), wallet, None, journal, now);
            let decision = round.answer(&mut book, wish, wallet, new);
            answers.push(match decision {
                Decision::Retired => Answer::Retired,
                Decision::Replay(lease) => told(&book, lease, now),
                Decision::Lend(Some(lease), credits) => {
                    lent.push((ask.nonce, lease, credits.get()));
                    told(&book, lease, now)
                }
                Decision::Lend(None, _) | Decision::Short | Decision::Frozen => {
                    Answer::Short(self.holders(journal, ask.account.wallet()))
                }
            });
        }
        self.write(book.into_changes());
        for (nonce, lease, credits) in lent {
            self.acquisitions.insert((journal, nonce), (lease, credits));
        }
        answers
    }

    /// From now on no ask knows what those before it in its request were lent: what the protocol
    /// never does, for those who prove that it is found out.
    pub fn forget_within_requests(&mut self) {
        self.forgets_within_requests = true;
    }

    /// What there is to know of the asks before they are decided.
    fn round(&self, journal: JournalId, asks: &[Ask], now: Timestamp) -> Round {
        let replayed = |ask: &Ask| {
            let (lease, _) = self.acquisitions.get(&(journal, ask.nonce))?;
            Some((ask.nonce, *lease))
        };
        let open = |wallet: WalletId| {
            let is_open = |it: &&Lease| it.journal == journal && it.wallet == wallet && spends(it);
            let lease = self.leases.values().find(is_open)?;
            Some((wallet, lease.id))
        };
        let wallets = asks.iter().map(|ask| ask.account.wallet());
        Round {
            is_retired: self.journals.get(&journal).is_some_and(|it| it.is_retired),
            is_frozen: false,
            live_gateways: self.live_gateways(now),
            replayed: asks.iter().filter_map(replayed).collect(),
            open: wallets.filter_map(open).collect(),
        }
    }

    /// The wallets of the asks, and the leases that may be told or extended.
    fn book_of(&self, round: &Round, asks: &[Ask]) -> Book {
        let wallets: BTreeSet<WalletId> = asks.iter().map(|ask| ask.account.wallet()).collect();
        let rows = wallets.iter().filter_map(|wallet| self.rows.get(wallet));
        let leases = round.replayed.values().chain(round.open.values());
        let leases = leases.filter_map(|lease| self.leases.get(lease).cloned());
        Book::new(rows.map(|row| row.wallet.clone()), leases)
    }

    fn live_gateways(&self, now: Timestamp) -> u32 {
        let since = alive_since(now);
        let is_live = |known: &&Known| since <= known.heartbeat_at && !known.is_retired;
        u32::try_from(self.journals.values().filter(is_live).count()).unwrap_or(u32::MAX)
    }

    fn holders(&self, journal: JournalId, wallet: WalletId) -> Vec<(JournalId, LeaseId)> {
        let holds = |lease: &&Lease| {
            let is_others = lease.journal != journal && lease.wallet == wallet;
            is_others && lease.state == LeaseState::Active && lease.settled_cum < lease.granted
        };
        let holders = self.leases.values().filter(holds);
        holders.map(|lease| (lease.journal, lease.id)).collect()
    }

    /// What was lent was asked for, once by each nonce, and by one lease at a time.
    pub(super) fn check_lending(&self) -> Result<(), String> {
        let mut asked: BTreeMap<LeaseId, i64> = BTreeMap::new();
        for (lease, credits) in self.acquisitions.values() {
            let sum = asked.entry(*lease).or_default();
            *sum = sum.saturating_add(*credits);
        }
        let mut spending: BTreeSet<(JournalId, WalletId)> = BTreeSet::new();
        for lease in self.leases.values() {
            let (lent, asked) = (lease.granted_cum().get(), asked.get(&lease.id));
            if asked != Some(&lent) {
                return Err(format!(
                    "{} was lent {lent}, asked were {asked:?}",
                    lease.id
                ));
            }
            if spends(lease) && !spending.insert((lease.journal, lease.wallet)) {
                return Err(format!("{} is the second of its journal", lease.id));
            }
        }
        Ok(())
    }
}

/// The owner of such a lease may spend it, or come back to.
fn spends(lease: &Lease) -> bool {
    matches!(lease.state, LeaseState::Active | LeaseState::Orphaned)
}

/// What its owner is told of a lease, as it is by now.
fn told(book: &Book, id: LeaseId, now: Timestamp) -> Answer {
    let lease = book.lease(id).expect("held, as it is told");
    let left = |end: Timestamp| end.duration_since(now).as_micros();
    Answer::Lent {
        lease: id,
        granted_cum: lease.granted_cum().get(),
        spend_for_micros: lease
            .spend_until()
            .map(|end| i64::try_from(left(end)).unwrap_or(i64::MAX)),
    }
}
