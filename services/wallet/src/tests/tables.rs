//! The tables in memory: what the store writes, and the invariants as plain sums.

use std::collections::{BTreeMap, BTreeSet};

use types::{Credits, LeaseId};

use super::{NOON, credits, live_wallet};
use crate::domain::*;

/// The tables, and what the store does to them. Keeps the checks the schema has.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub(super) wallet: Wallet,
    pub(super) given: i64,
    pub(super) used: i64,
    pub(super) expired: i64,
    pub(super) leases: BTreeMap<LeaseId, Lease>,
    pub(super) ledger: Vec<Entry>,
    pub(super) late: BTreeMap<LeaseId, i64>,
    pub(super) written_off: BTreeSet<LeaseId>,
    /// Shares that were announced, with the balance then.
    pub(super) fallen: Vec<Fallen>,
    /// Of a bucket of permits: the quota in force, and the highest it had.
    pub(super) quota: Option<(i64, i64)>,
}

impl Tables {
    pub(super) fn new(id: WalletId, balance: i64) -> Self {
        let epoch = matches!(id, WalletId::Test(_)).then(|| Epoch::first(NOON));
        let (balance, reserved) = (credits(balance), Credits::ZERO);
        Self {
            wallet: Wallet {
                id,
                epoch,
                balance,
                reserved,
                level: matches!(id, WalletId::Live(_)).then(|| Level::after(balance)),
            },
            given: balance.get(),
            used: 0,
            expired: 0,
            leases: BTreeMap::new(),
            ledger: Vec::new(),
            late: BTreeMap::new(),
            written_off: BTreeSet::new(),
            fallen: Vec::new(),
            quota: matches!(id, WalletId::Quota(_)).then(|| (balance.get(), balance.get())),
        }
    }

    /// Another quota from now on. What the store would read then is put in place.
    pub(super) fn requota(&mut self, quota: i64) {
        let WalletId::Quota(id) = self.wallet.id else {
            return;
        };
        let max = self.quota.map_or(quota, |(_, max)| max.max(quota));
        self.quota = Some((quota, max));
        self.wallet = permits(id, credits(quota), credits(self.used), self.wallet.reserved);
    }

    pub(super) fn with(leases: impl IntoIterator<Item = Lease>, balance: i64) -> Self {
        let mut tables = Self::new(live_wallet(), balance);
        for lease in leases {
            tables.wallet.reserved = credits(tables.wallet.reserved.get() + lease.granted.get());
            tables.leases.insert(lease.id, lease);
        }
        tables
    }

    pub(super) fn book(&self) -> Book {
        let leases = self.leases.values().cloned();
        let epoch = self.wallet.epoch;
        Book::new(
            [self.wallet.clone()],
            leases.map(|lease| Lease {
                wallet_epoch: epoch,
                ..lease
            }),
        )
    }

    pub(super) fn write(&mut self, changes: Changes) {
        for lease in changes.leases.into_values() {
            if let Some(before) = self.leases.get(&lease.id) {
                assert!(
                    before.settled_cum <= lease.settled_cum,
                    "settled_cum decreased"
                );
                assert!(
                    before.granted_cum() <= lease.granted_cum(),
                    "granted_cum decreased"
                );
            }
            self.leases.insert(lease.id, lease);
        }
        for (id, moved) in changes.movements {
            assert_eq!(id, self.wallet.id);
            self.given += moved.granted.get();
            self.used += moved.used.get();
            self.expired += moved.expired.get();
            self.wallet.reserved = credits(self.wallet.reserved.get() + moved.reserved.get());
        }
        match self.quota {
            Some((quota, _)) => self.requota(quota),
            None => self.wallet.balance = credits(self.given - self.used - self.expired),
        }
        if let Some(level) = changes.levels.get(&self.wallet.id) {
            self.wallet.level = Some(*level);
        }
        self.fallen.extend(changes.fallen);
        for entry in &changes.entries {
            assert!(!entry.balance_after.is_negative());
        }
        self.ledger.extend(changes.entries);
        for lease in changes.write_offs.into_keys() {
            assert!(self.written_off.insert(lease), "written off once");
        }
        for (lease, spent) in changes.late_spends {
            assert!(self.written_off.contains(&lease));
            *self.late.entry(lease).or_default() += spent.get();
        }
    }

    /// I1 to I4, as plain sums.
    pub(super) fn check(&self) {
        let booked: i64 = self.ledger.iter().map(|entry| entry.credits.get()).sum();
        let grants = self
            .ledger
            .iter()
            .filter(|entry| entry.kind == EntryKind::Grant);
        let first = self.given - grants.map(|entry| entry.credits.get()).sum::<i64>();
        let balance = self.wallet.balance.get();
        match self.quota {
            Some((_, max)) => {
                assert!(self.ledger.is_empty(), "permits are not booked");
                assert!(
                    self.used + self.wallet.reserved.get() <= max,
                    "issued beyond the quota"
                );
            }
            None => assert_eq!(balance, first + booked, "I1"),
        }
        if let Some(last) = self.ledger.last() {
            assert_eq!(last.balance_after.get(), balance, "I1");
        }
        let epoch = self.wallet.epoch.map_or(0, |epoch| epoch.number);
        let reserved: i64 = self
            .leases
            .values()
            .filter(|lease| lease.is_open() && lease.epoch == epoch)
            .map(|lease| lease.granted.get() - lease.settled_cum.get())
            .sum();
        assert_eq!(self.wallet.reserved.get(), reserved, "I2");
        assert!(0 <= reserved && reserved <= balance, "I2");
        for lease in self.leases.values() {
            assert!(lease.settled_cum <= lease.granted, "I3");
        }
        let settled: i64 = self
            .leases
            .values()
            .map(|lease| lease.settled_cum.get())
            .sum();
        let late: i64 = self.late.values().sum();
        assert_eq!(self.used, settled - late, "I4");
    }
}
