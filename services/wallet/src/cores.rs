//! The wallet without its tables: the same decisions on rows in memory, each call a transaction
//! that commits. For the simulator, the fuzz targets and property tests. It keeps the checks that
//! the schema has, and the invariants as plain sums.

mod lending;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proto::wallet::v1 as wire;
use runtime::Delivery;
use types::{Credits, JournalId, LeaseId};

pub use self::lending::{Account, Answer, Ask};
use crate::{
    domain::{
        Batch, Book, Changes, Lease, LeaseState, Level, Nonce, Report, Wallet, WalletId, permits,
    },
    events,
};

/// A lease as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Lent now.
    pub granted: i64,
    /// Debited, or known to be spent after a write-off.
    pub settled_cum: i64,
    /// The highest total its owner has told.
    pub known_cum: i64,
    /// As in the table.
    pub state: &'static str,
}

/// The sums of a wallet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sums {
    /// Everything ever put in.
    pub given: i64,
    /// Debited.
    pub used: i64,
    /// Lent and not spent.
    pub reserved: i64,
}

#[derive(Clone, Debug)]
struct Row {
    wallet: Wallet,
    sums: Sums,
    booked: i64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    heartbeat_at: Timestamp,
    is_retired: bool,
}

/// The tables.
#[derive(Clone, Debug, Default)]
pub struct Bank {
    rows: BTreeMap<WalletId, Row>,
    leases: BTreeMap<LeaseId, Lease>,
    journals: BTreeMap<JournalId, Known>,
    /// By the nonces of their asks: by which lease something was lent, and how much.
    acquisitions: BTreeMap<(JournalId, Nonce), (LeaseId, i64)>,
    orphaned_at: BTreeMap<LeaseId, Timestamp>,
    late: BTreeMap<LeaseId, i64>,
    /// Reports that broke a rule.
    breaches: Vec<String>,
    /// See [`Bank::forget_within_requests`].
    forgets_within_requests: bool,
}

impl Bank {
    /// Wallets with so many credits, quotas of so many permits.
    pub fn new(accounts: impl IntoIterator<Item = (Account, i64)>) -> Self {
        let row = |(account, given): (Account, i64)| {
            let id = account.wallet();
            let (balance, reserved) = (Credits::new(given), Credits::ZERO);
            let level = matches!(id, WalletId::Live(_)).then(|| Level::after(balance));
            let wallet = Wallet {
                id,
                epoch: None,
                balance,
                reserved,
                level,
            };
            let sums = Sums {
                given,
                ..Sums::default()
            };
            let booked = given;
            (
                id,
                Row {
                    wallet,
                    sums,
                    booked,
                },
            )
        };
        Self {
            rows: accounts.into_iter().map(row).collect(),
            ..Self::default()
        }
    }

    /// Merges a heartbeat: lease, total spent, total given back. The leases to end; `None`: the
    /// journal has ended.
    pub fn heartbeat(
        &mut self,
        journal: JournalId,
        reports: &[(LeaseId, i64, i64)],
        now: Timestamp,
    ) -> Option<Vec<LeaseId>> {
        let known = self.journals.entry(journal).or_insert(Known {
            heartbeat_at: now,
            is_retired: false,
        });
        if known.is_retired {
            return None;
        }
        known.heartbeat_at = known.heartbeat_at.max(now);
        self.report(journal, reports);
        let must_drain = |lease: &LeaseId| {
            let own = self.leases.get(lease).filter(|it| it.journal == journal);
            own.is_none_or(Lease::must_drain)
        };
        let told = reports.iter().map(|(lease, _, _)| *lease);
        Some(told.filter(must_drain).collect())
    }

    /// Merges the answer to a recall.
    pub fn take_back(&mut self, journal: JournalId, lease: LeaseId, returned_cum: i64) {
        self.report(journal, &[(lease, 0, returned_cum)]);
    }

    fn report(&mut self, journal: JournalId, reports: &[(LeaseId, i64, i64)]) {
        let leases: BTreeSet<LeaseId> = reports.iter().map(|(lease, _, _)| *lease).collect();
        let mut book = self.book(&leases);
        for (lease, cum, returned_cum) in reports {
            let report = Report {
                journal,
                lease: *lease,
                cum: Credits::new(*cum),
                returned_cum: Credits::new(*returned_cum),
            };
            let breach = book.report(&report).err();
            self.breaches
                .extend(breach.map(|breach| breach.to_string()));
        }
        self.write(book.into_changes());
    }

    /// Ends a journal: nothing is lent to it any more. Its open leases, with what is settled and
    /// what was told of them.
    pub fn retire(&mut self, journal: JournalId, now: Timestamp) -> Vec<wire::Lease> {
        let known = self.journals.entry(journal).or_insert(Known {
            heartbeat_at: now,
            is_retired: true,
        });
        known.is_retired = true;
        known.heartbeat_at = known.heartbeat_at.max(now);
        let open = self.leases.values_mut();
        let open = open.filter(|lease| lease.journal == journal && lease.is_open());
        let drained = open.map(|lease| {
            lease.state = LeaseState::Draining;
            wire::Lease {
                lease_id: lease.id.bytes().to_vec(),
                settled_cum: lease.settled_cum.get(),
                known_cum: lease.known_cum.get(),
                ..wire::Lease::default()
            }
        });
        drained.collect()
    }

    /// Settles what is new, in one transaction.
    ///
    /// # Errors
    /// One delivery breaks a rule: its position and the reason. Nothing has changed.
    pub fn settle(&mut self, fresh: &[Delivery]) -> Result<(), (usize, String)> {
        let mut batches: Vec<Batch> = Vec::with_capacity(fresh.len());
        for (index, delivery) in fresh.iter().enumerate() {
            batches.push(events::batch(delivery).map_err(|reason| (index, reason))?);
        }
        let claims = batches.iter().flat_map(|batch| batch.claims.keys());
        let mut book = self.book(&claims.copied().collect());
        book.settle(&batches)
            .map_err(|(index, breach)| (index, breach.to_string()))?;
        self.write(book.into_changes());
        Ok(())
    }

    /// Marks the leases of journals that were not heard of since `heard`.
    pub fn mark_orphans(&mut self, heard: Timestamp, now: Timestamp) {
        for lease in self.leases.values_mut() {
            let known = self.journals.get(&lease.journal);
            if known.is_some_and(|known| known.heartbeat_at < heard) {
                orphan(lease, &mut self.orphaned_at, now);
            }
        }
    }

    /// Marks one lease.
    pub fn orphan(&mut self, lease: LeaseId, now: Timestamp) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            orphan(lease, &mut self.orphaned_at, now);
        }
    }

    /// Gives up leases that have been orphaned since `since` or longer; how many.
    pub fn write_off(&mut self, since: Timestamp) -> u64 {
        let is_overdue = |lease: &&Lease| {
            let at = self.orphaned_at.get(&lease.id);
            lease.state == LeaseState::Orphaned && at.is_some_and(|at| *at <= since)
        };
        let overdue: Vec<LeaseId> = self
            .leases
            .values()
            .filter(is_overdue)
            .map(|it| it.id)
            .collect();
        for lease in &overdue {
            let mut book = self.book(&BTreeSet::from([*lease]));
            book.write_off(*lease);
            self.write(book.into_changes());
        }
        u64::try_from(overdue.len()).unwrap_or(u64::MAX)
    }

    /// Gives what a lease has left back to its wallet as if that were safe: what the protocol
    /// never does, for those who prove that it is not.
    pub fn release_untold(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.is_open()) else {
            return;
        };
        lease.state = LeaseState::Closed;
        lease.final_cum = Some(lease.settled_cum);
        let rest = lease.granted.get().saturating_sub(lease.settled_cum.get());
        if let Some(row) = self.rows.get_mut(&lease.wallet) {
            row.sums.reserved = row.sums.reserved.saturating_sub(rest);
            row.wallet.reserved = Credits::new(row.sums.reserved);
        }
    }

    fn book(&self, leases: &BTreeSet<LeaseId>) -> Book {
        let leases: Vec<Lease> = leases
            .iter()
            .filter_map(|id| self.leases.get(id).cloned())
            .collect();
        let wallets: BTreeSet<WalletId> = leases.iter().map(|lease| lease.wallet).collect();
        let rows = wallets.iter().filter_map(|id| self.rows.get(id));
        Book::new(rows.map(|row| row.wallet.clone()), leases)
    }

    fn write(&mut self, changes: Changes) {
        for lease in changes.leases.into_values() {
            if let Some(before) = self.leases.get(&lease.id) {
                assert!(before.settled_cum <= lease.settled_cum, "I4: it decreased");
                assert!(before.granted_cum() <= lease.granted_cum(), "it decreased");
            }
            self.leases.insert(lease.id, lease);
        }
        for (id, moved) in changes.movements {
            let row = self.rows.get_mut(&id).expect("it was locked");
            let sums = &mut row.sums;
            sums.given = sums.given.saturating_add(moved.granted.get());
            sums.used = sums.used.saturating_add(moved.used.get());
            sums.reserved = sums.reserved.saturating_add(moved.reserved.get());
            row.wallet = match id {
                WalletId::Quota(bucket) => permits(
                    bucket,
                    Credits::new(sums.given),
                    Credits::new(sums.used),
                    Credits::new(sums.reserved),
                ),
                _ => Wallet {
                    balance: Credits::new(sums.given.saturating_sub(sums.used)),
                    reserved: Credits::new(sums.reserved),
                    level: changes.levels.get(&id).copied().or(row.wallet.level),
                    ..row.wallet.clone()
                },
            };
        }
        for entry in changes.entries {
            assert!(!entry.balance_after.is_negative(), "no wallet below zero");
            let row = self.rows.get_mut(&entry.wallet).expect("it was locked");
            row.booked = row.booked.saturating_add(entry.credits.get());
        }
        for (lease, spent) in changes.late_spends {
            let sum = self.late.entry(lease).or_default();
            *sum = sum.saturating_add(spent.get());
        }
    }

    /// I1 to I4, as plain sums.
    ///
    /// # Errors
    /// The first that is broken, in words.
    pub fn check(&self) -> Result<(), String> {
        for (id, row) in &self.rows {
            let Sums {
                given,
                used,
                reserved,
            } = row.sums;
            let balance = given.saturating_sub(used);
            if matches!(id, WalletId::Live(_)) && row.booked != balance {
                return Err(format!("I1: {id:?} holds {balance}, booked {}", row.booked));
            }
            let own = || self.leases.values().filter(|lease| lease.wallet == *id);
            let lent = |lease: &Lease| lease.granted.get().saturating_sub(lease.settled_cum.get());
            let open: i64 = own().filter(|lease| lease.is_open()).map(lent).sum();
            if reserved != open || reserved < 0 || balance < reserved {
                return Err(format!(
                    "I2: {id:?} has {balance}, reserves {reserved}, its leases hold {open}"
                ));
            }
            let settled: i64 = own().map(|lease| lease.settled_cum.get()).sum();
            let late: i64 = own().filter_map(|lease| self.late.get(&lease.id)).sum();
            if used != settled.saturating_sub(late) {
                return Err(format!("I4: {id:?} used {used} of {settled} settled"));
            }
        }
        let over = self.leases.values().find(|it| it.granted < it.spent());
        match over {
            Some(lease) => Err(format!("I3: {} is overspent", lease.id)),
            None => self.check_lending(),
        }
    }

    /// A lease as it stands.
    pub fn lease(&self, id: LeaseId) -> Option<Standing> {
        self.leases.get(&id).map(|lease| Standing {
            granted: lease.granted.get(),
            settled_cum: lease.settled_cum.get(),
            known_cum: lease.known_cum.get(),
            state: lease.state.as_str(),
        })
    }

    /// All leases.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    /// Leases that lack their final count and whose owners are not given up.
    pub fn open_leases(&self) -> Vec<LeaseId> {
        let open = self.leases.values().filter(|lease| lease.is_open());
        open.map(|lease| lease.id).collect()
    }

    /// The sums of a wallet or quota.
    pub fn sums(&self, account: Account) -> Sums {
        let row = self.rows.get(&account.wallet());
        row.map_or(Sums::default(), |row| row.sums)
    }

    /// Spent from leases that had been given up: the provider's loss, not the customer's.
    pub fn late(&self, account: Account) -> i64 {
        let own = |id: &LeaseId| {
            let lease = self.leases.get(id);
            lease.is_some_and(|lease| lease.wallet == account.wallet())
        };
        let late = self.late.iter().filter(|(id, _)| own(id));
        late.map(|(_, spent)| spent).sum()
    }

    /// Reports that broke a rule.
    pub fn breaches(&self) -> &[String] {
        &self.breaches
    }
}

fn orphan(lease: &mut Lease, at: &mut BTreeMap<LeaseId, Timestamp>, now: Timestamp) {
    if matches!(lease.state, LeaseState::Active | LeaseState::Draining) {
        lease.state = LeaseState::Orphaned;
        at.insert(lease.id, now);
    }
}
