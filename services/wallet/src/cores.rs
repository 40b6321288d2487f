//! The wallet without its tables: the same decisions on rows in memory, each call a transaction
//! that commits. For the simulator, the fuzz targets and property tests. It keeps the checks that
//! the schema has, and the invariants as plain sums.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proto::wallet::v1 as wire;
use runtime::Delivery;
use types::{Credits, Id, JournalId, KeyId, LeaseId, OrgId};

use crate::{
    domain::{
        Batch, Book, Changes, Decision, Lease, LeaseState, Level, Report, Round, Wallet, WalletId,
        Wish, alive_since, permits,
    },
    events,
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
    fn wallet(self) -> WalletId {
        match self {
            Self::Credits(org) => WalletId::Live(Id::new(org.uuid())),
            Self::Permits(key) => WalletId::Quota(Id::new(key.uuid())),
        }
    }
}

/// A gateway's request to be lent something.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Of what.
    pub account: Account,
    /// To whom.
    pub journal: JournalId,
    /// The same nonce gets the same answer.
    pub nonce: [u8; 16],
    /// At least `minimum`.
    pub want: i64,
    /// At least 1.
    pub minimum: i64,
}

/// What a request is answered.
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
    acquisitions: BTreeMap<(JournalId, [u8; 16]), LeaseId>,
    orphaned_at: BTreeMap<LeaseId, Timestamp>,
    late: BTreeMap<LeaseId, i64>,
    /// Reports that broke a rule.
    breaches: Vec<String>,
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

    /// Lends, once per nonce.
    pub fn acquire(&mut self, ask: &Ask, new_lease: LeaseId, now: Timestamp) -> Answer {
        let first = Known {
            heartbeat_at: now,
            is_retired: false,
        };
        let is_retired = self.journals.entry(ask.journal).or_insert(first).is_retired;
        let id = ask.account.wallet();
        let Some(row) = self.rows.get(&id) else {
            return Answer::Short(Vec::new());
        };
        let is_open = |lease: &&Lease| {
            let state = matches!(lease.state, LeaseState::Active | LeaseState::Orphaned);
            lease.journal == ask.journal && lease.wallet == id && state
        };
        let nonce = (ask.journal, ask.nonce);
        let replayed = self.acquisitions.get(&nonce).copied();
        let open = self.leases.values().find(is_open).map(|lease| lease.id);
        let mut round = Round {
            is_retired,
            is_frozen: false,
            live_gateways: self.live_gateways(now),
            replayed: replayed
                .map(|lease| (ask.nonce, lease))
                .into_iter()
                .collect(),
            open: open.map(|lease| (id, lease)).into_iter().collect(),
        };
        let open = open.and_then(|open| self.leases.get(&open).cloned());
        let mut book = Book::new([row.wallet.clone()], open);
        let wish = Wish {
            nonce: ask.nonce,
            want: Credits::new(ask.want),
            minimum: Credits::new(ask.minimum),
        };
        let new = |wallet: &Wallet| Lease::new(new_lease, wallet, None, ask.journal, now);
        let decision = round.answer(&mut book, wish, Some(id), new);
        match decision {
            Decision::Retired => Answer::Retired,
            Decision::Replay(lease) => self.lent(lease, now),
            Decision::Lend(Some(lease), _) => {
                self.write(book.into_changes());
                self.acquisitions.insert(nonce, lease);
                self.lent(lease, now)
            }
            Decision::Lend(None, _) | Decision::Short | Decision::Frozen => {
                Answer::Short(self.holders(ask.journal, id))
            }
        }
    }

    fn lent(&self, id: LeaseId, now: Timestamp) -> Answer {
        let lease = self.leases.get(&id).expect("lent before");
        let left = |end: Timestamp| end.duration_since(now).as_micros();
        Answer::Lent {
            lease: id,
            granted_cum: lease.granted_cum().get(),
            spend_for_micros: lease
                .spend_until()
                .map(|end| i64::try_from(left(end)).unwrap_or(i64::MAX)),
        }
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
            None => Ok(()),
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
