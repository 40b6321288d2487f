//! Wallets and leases under lock, and what was decided about them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use types::{Credits, LeaseId};

use super::{Epoch, Fallen, Lease, LeaseState, Level, TEST_CREDITS, Wallet, WalletId, minus, plus};

/// Why a balance changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EntryKind {
    /// Given.
    Grant,
    /// Spent.
    Usage,
    /// Gone with the end of an epoch; positive when it turns out to have been used before.
    Expiry,
}

impl EntryKind {
    /// As in the table.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::Usage => "usage",
            Self::Expiry => "expiry",
        }
    }
}

/// One change of one balance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) wallet: WalletId,
    pub(crate) epoch: i64,
    pub(crate) kind: EntryKind,
    /// Positive adds, negative takes.
    pub(crate) credits: Credits,
    pub(crate) balance_after: Credits,
    pub(crate) lease: Option<LeaseId>,
    /// Usage: the lease's settled total after the entry.
    pub(crate) cum_to: Option<Credits>,
    pub(crate) reason: String,
    pub(crate) actor: String,
    pub(crate) idempotency_key: Option<String>,
}

/// By how much the sums of a wallet change. Its balance changes by granted − used − expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Movement {
    pub(crate) granted: Credits,
    pub(crate) used: Credits,
    pub(crate) expired: Credits,
    pub(crate) reserved: Credits,
}

/// What has to be written, in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) movements: BTreeMap<WalletId, Movement>,
    /// Leases as they are afterwards.
    pub(crate) leases: BTreeMap<LeaseId, Lease>,
    /// Those of them that are new.
    pub(crate) opened: BTreeSet<LeaseId>,
    /// In the order of the balances they state.
    pub(crate) entries: Vec<Entry>,
    /// Leases given up, with the credits that went back to their wallet.
    pub(crate) write_offs: BTreeMap<LeaseId, Credits>,
    /// Spend of leases given up before.
    pub(crate) late_spends: BTreeMap<LeaseId, Credits>,
    /// How far watched wallets have fallen afterwards, where that is not as it was.
    pub(crate) levels: BTreeMap<WalletId, Level>,
    /// Watched wallets that credits have come into.
    pub(crate) refilled: BTreeSet<WalletId>,
    /// Shares that wallets have fallen to.
    pub(crate) fallen: Vec<Fallen>,
}

impl Changes {
    /// Credits the customers have spent by this; permits are none.
    pub(crate) fn used(&self) -> Credits {
        let credits = |id: &WalletId| !matches!(id, WalletId::Quota(_));
        self.movements
            .iter()
            .filter(|(id, _)| credits(id))
            .fold(Credits::ZERO, |sum, (_, movement)| plus(sum, movement.used))
    }
}

/// Wallets and leases as read under lock, changed by decisions.
#[derive(Debug, Default)]
pub(crate) struct Book {
    wallets: BTreeMap<WalletId, Wallet>,
    pub(super) leases: BTreeMap<LeaseId, Lease>,
    pub(super) changes: Changes,
}

impl Book {
    /// Begins with what the store has locked: the wallets, and leases of theirs.
    pub(crate) fn new(
        wallets: impl IntoIterator<Item = Wallet>,
        leases: impl IntoIterator<Item = Lease>,
    ) -> Self {
        let mut book = Self::default();
        wallets.into_iter().for_each(|wallet| book.hold(wallet));
        leases.into_iter().for_each(|lease| book.hold_lease(lease));
        book
    }

    /// Adds a wallet that has been locked.
    pub(crate) fn hold(&mut self, wallet: Wallet) {
        assert!(
            wallet.reserved <= wallet.balance,
            "I2 holds in what was read"
        );
        self.wallets.insert(wallet.id, wallet);
    }

    /// Adds a lease that has been locked.
    pub(crate) fn hold_lease(&mut self, lease: Lease) {
        assert!(lease.spent() <= lease.granted, "I3 holds in what was read");
        self.leases.insert(lease.id, lease);
    }

    /// Adds a lease that is new, with nothing lent by it yet.
    pub(crate) fn open(&mut self, lease: Lease) -> LeaseId {
        let id = lease.id;
        self.hold_lease(lease);
        self.changes.opened.insert(id);
        id
    }

    /// A wallet as it is by now.
    pub(crate) fn wallet(&self, id: WalletId) -> &Wallet {
        self.wallets
            .get(&id)
            .expect("a wallet is locked before its leases")
    }

    /// A lease as it is by now.
    pub(crate) fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// Ends the decisions.
    pub(crate) fn into_changes(self) -> Changes {
        for id in self.changes.movements.keys() {
            let wallet = self.wallet(*id);
            assert!(
                !wallet.reserved.is_negative(),
                "I2: {id:?} reserves less than nothing"
            );
            assert!(
                wallet.reserved <= wallet.balance,
                "I2: {id:?} lends more than it holds"
            );
        }
        self.changes
    }

    /// Gives credits to a live wallet; `key` makes it happen once.
    pub(crate) fn grant(
        &mut self,
        id: WalletId,
        credits: Credits,
        reason: &str,
        actor: &str,
        key: &str,
    ) {
        assert!(Credits::ZERO < credits, "a grant adds");
        let line = Line {
            reason,
            actor,
            key: Some(key),
            ..Line::default()
        };
        self.enter(id, EntryKind::Grant, credits, line);
    }

    /// Begins the first epoch of a new test wallet.
    pub(crate) fn begin_epochs(&mut self, id: WalletId) {
        let line = Line {
            reason: "test credits",
            ..Line::default()
        };
        self.enter(id, EntryKind::Grant, TEST_CREDITS, line);
    }

    /// Ends the epoch of a test wallet when it is over: the rest expires, the next is granted.
    /// Its leases are not reserved any more; they settle in their own epoch.
    pub(crate) fn roll_over(&mut self, id: WalletId, now: Timestamp) -> Option<Epoch> {
        let Wallet {
            epoch,
            balance,
            reserved,
            ..
        } = *self.wallet(id);
        let ended = epoch?;
        let next = ended.at(now);
        if next == ended {
            return None;
        }
        self.reserve(id, minus(Credits::ZERO, reserved));
        let rest = Line {
            epoch: ended.number,
            reason: "end of the epoch",
            ..Line::default()
        };
        if Credits::ZERO < balance {
            self.enter(id, EntryKind::Expiry, minus(Credits::ZERO, balance), rest);
        }
        let fresh = Line {
            epoch: next.number,
            reason: "test credits",
            ..Line::default()
        };
        self.enter(id, EntryKind::Grant, TEST_CREDITS, fresh);
        self.wallet_mut(id).epoch = Some(next);
        Some(next)
    }

    /// Ends what can be spent of the leases that are held and whose epoch is over. They count as
    /// reserved no more.
    pub(crate) fn drain_ended(&mut self) {
        let is_ended = |it: &&Lease| it.state == LeaseState::Active && !it.is_current();
        let ended: Vec<Lease> = self.leases.values().filter(is_ended).cloned().collect();
        for mut lease in ended {
            lease.state = LeaseState::Draining;
            self.put(lease);
        }
    }

    /// Lends more (or, negative, less) of a wallet.
    pub(super) fn reserve(&mut self, id: WalletId, credits: Credits) {
        let wallet = self.wallet_mut(id);
        wallet.reserved = plus(wallet.reserved, credits);
        let movement = self.changes.movements.entry(id).or_default();
        movement.reserved = plus(movement.reserved, credits);
    }

    /// Enters a change of a balance into the ledger. The only way a balance changes, so I1 holds:
    /// the sums move by what the entries say. Permits are counted, the ledger knows credits only.
    pub(super) fn enter(
        &mut self,
        id: WalletId,
        kind: EntryKind,
        credits: Credits,
        line: Line<'_>,
    ) {
        let wallet = self.wallet_mut(id);
        wallet.balance = plus(wallet.balance, credits);
        assert!(
            !wallet.balance.is_negative(),
            "no wallet goes below zero: {id:?}"
        );
        let balance_after = wallet.balance;
        self.watch(id, credits);
        let movement = self.changes.movements.entry(id).or_default();
        match kind {
            EntryKind::Grant => movement.granted = plus(movement.granted, credits),
            EntryKind::Usage => movement.used = minus(movement.used, credits),
            EntryKind::Expiry => movement.expired = minus(movement.expired, credits),
        }
        if matches!(id, WalletId::Quota(_)) {
            return;
        }
        self.changes.entries.push(Entry {
            wallet: id,
            epoch: line.epoch,
            kind,
            credits,
            balance_after,
            lease: line.lease,
            cum_to: line.cum_to,
            reason: line.reason.to_owned(),
            actor: line.actor.to_owned(),
            idempotency_key: line.key.map(str::to_owned),
        });
    }

    /// Notes what a change of its balance means for a wallet that is watched for running dry.
    fn watch(&mut self, id: WalletId, credits: Credits) {
        let wallet = self.wallet_mut(id);
        let balance = wallet.balance;
        let (WalletId::Live(live), Some(mut level)) = (id, wallet.level) else {
            return;
        };
        let is_refill = Credits::ZERO < credits;
        let shares = match is_refill {
            true => {
                level = Level::after(balance);
                Vec::new()
            }
            false => level.fall(balance),
        };
        wallet.level = Some(level);
        if is_refill {
            self.changes.refilled.insert(id);
        }
        if is_refill || !shares.is_empty() {
            self.changes.levels.insert(id, level);
        }
        let fallen = shares.into_iter().map(|percent| Fallen {
            wallet: live,
            percent,
            reference: level.reference,
            balance,
        });
        self.changes.fallen.extend(fallen);
    }

    /// Puts a changed lease back.
    pub(super) fn put(&mut self, lease: Lease) {
        assert!(
            lease.spent() <= lease.granted,
            "I3: {} is overspent",
            lease.id
        );
        self.changes.leases.insert(lease.id, lease.clone());
        self.leases.insert(lease.id, lease);
    }

    fn wallet_mut(&mut self, id: WalletId) -> &mut Wallet {
        self.wallets
            .get_mut(&id)
            .expect("a wallet is locked before its leases")
    }
}

/// What an entry says besides its amount.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) epoch: i64,
    pub(super) lease: Option<LeaseId>,
    pub(super) cum_to: Option<Credits>,
    pub(super) reason: &'a str,
    pub(super) actor: &'a str,
    pub(super) key: Option<&'a str>,
}

impl Default for Line<'_> {
    fn default() -> Self {
        Self {
            epoch: 0,
            lease: None,
            cum_to: None,
            reason: "",
            actor: "system",
            key: None,
        }
    }
}
