//! Gateways and their journals around one wallet, in any interleaving.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use types::{Credits, LeaseId};

use super::{NOON, batch, credits, journal, lease, lease_id, tables::Tables};
use crate::domain::*;

/// What a gateway and its journal would do, next to the tables of the wallet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Lend {
        owner: u128,
        want: i64,
        minimum: i64,
    },
    Spend {
        lease: usize,
        cost: i64,
    },
    GiveBack {
        lease: usize,
    },
    Heartbeat {
        lease: usize,
        stale: bool,
    },
    Ship {
        from: usize,
        count: usize,
    },
    Close {
        lease: usize,
    },
    Silence {
        lease: usize,
    },
    WriteOff {
        lease: usize,
    },
    Wait {
        days: i64,
    },
    /// Only quotas change.
    Requota {
        quota: i64,
    },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let lease = 0_usize..8;
    prop_oneof![
        4 => (1_u128..4, 1_i64..60, 1_i64..12)
            .prop_map(|(owner, more, minimum)| Step::Lend { owner, want: minimum + more, minimum }),
        8 => (lease.clone(), 0_i64..9).prop_map(|(lease, cost)| Step::Spend { lease, cost }),
        2 => lease.clone().prop_map(|lease| Step::GiveBack { lease }),
        4 => (lease.clone(), any::<bool>())
            .prop_map(|(lease, stale)| Step::Heartbeat { lease, stale }),
        6 => (0_usize..64, 1_usize..9).prop_map(|(from, count)| Step::Ship { from, count }),
        1 => lease.clone().prop_map(|lease| Step::Close { lease }),
        1 => lease.clone().prop_map(|lease| Step::Silence { lease }),
        1 => lease.prop_map(|lease| Step::WriteOff { lease }),
        1 => (1_i64..70).prop_map(|days| Step::Wait { days }),
        1 => (1_i64..120).prop_map(|quota| Step::Requota { quota }),
    ]
}

/// The owner's side of a lease.
#[derive(Clone, Debug, Default)]
struct Holding {
    owner: u128,
    granted_cum: i64,
    returned: i64,
    spent: i64,
    is_closed: bool,
    heard: Vec<Report>,
}

pub(super) struct World {
    pub(super) tables: Tables,
    now: Timestamp,
    holdings: BTreeMap<LeaseId, Holding>,
    journal: Vec<Batch>,
}

impl World {
    pub(super) fn new(id: WalletId, balance: i64) -> Self {
        let tables = Tables::new(id, balance);
        Self {
            tables,
            now: NOON,
            holdings: BTreeMap::new(),
            journal: Vec::new(),
        }
    }

    fn pick(&self, index: usize) -> Option<LeaseId> {
        self.holdings
            .keys()
            .nth(index % self.holdings.len().max(1))
            .copied()
    }

    fn write(&mut self, book: Book) {
        self.tables.write(book.into_changes());
        self.tables.check();
    }

    fn roll_over(&mut self) {
        let mut book = self.tables.book();
        let next = book.roll_over(self.tables.wallet.id, self.now);
        if let Some(next) = next {
            self.tables.wallet.epoch = Some(next);
        }
        self.write(book);
    }

    fn lend(&mut self, owner: u128, want: i64, minimum: i64) {
        self.roll_over();
        let available = self.tables.wallet.available();
        let Some(size) = size(credits(want), credits(minimum), available, 3) else {
            return;
        };
        let epoch = self.tables.wallet.epoch.map_or(0, |epoch| epoch.number);
        let open = self.tables.leases.values().find(|lease| {
            lease.journal == journal(owner)
                && lease.epoch == epoch
                && matches!(lease.state, LeaseState::Active | LeaseState::Orphaned)
        });
        let id = open.map_or_else(
            || lease_id(u128::try_from(self.holdings.len()).expect("small") + 100),
            |lease| lease.id,
        );
        let wallet = self.tables.wallet.id;
        let fresh = || Lease {
            id,
            wallet,
            epoch,
            ..lease(0, owner, 0)
        };
        self.tables.leases.entry(id).or_insert_with(fresh);
        let mut book = self.tables.book();
        book.lend(id, size);
        let granted_cum = book.lease(id).expect("there").granted_cum().get();
        let holding = self.holdings.entry(id).or_default();
        (holding.owner, holding.granted_cum) = (owner, granted_cum);
        self.write(book);
    }

    fn spend(&mut self, id: LeaseId, cost: i64) {
        let holding = self.holdings.get_mut(&id).expect("picked");
        let left = holding.granted_cum - holding.returned - holding.spent;
        if holding.is_closed || left < cost {
            return;
        }
        holding.spent += cost;
        let record = Spend {
            lease: id,
            cost: credits(cost),
            cum: credits(holding.spent),
            is_final: false,
        };
        self.journal.push(batch(holding.owner, &[record]));
    }

    fn give_back(&mut self, id: LeaseId) {
        let holding = self.holdings.get_mut(&id).expect("picked");
        let left = holding.granted_cum - holding.returned - holding.spent;
        if !holding.is_closed {
            holding.returned += left / 2;
        }
        let (owner, returned) = (journal(holding.owner), credits(holding.returned));
        let report = Report {
            journal: owner,
            lease: id,
            cum: Credits::ZERO,
            returned_cum: returned,
        };
        self.report(report);
    }

    fn heartbeat(&mut self, id: LeaseId, stale: bool) {
        let holding = self.holdings.get_mut(&id).expect("picked");
        let report = Report {
            journal: journal(holding.owner),
            lease: id,
            cum: credits(holding.spent),
            returned_cum: credits(holding.returned),
        };
        holding.heard.push(report);
        let told = if stale { holding.heard[0] } else { report };
        self.report(told);
    }

    fn report(&mut self, report: Report) {
        let mut book = self.tables.book();
        book.report(&report)
            .expect("an honest owner breaks no rule");
        self.write(book);
    }

    fn ship(&mut self, from: usize, count: usize) {
        let messages = self
            .journal
            .iter()
            .cycle()
            .skip(from)
            .take(count.min(self.journal.len()));
        let messages: Vec<Batch> = messages.cloned().collect();
        let mut book = self.tables.book();
        book.settle(&messages)
            .expect("an honest journal breaks no rule");
        self.write(book);
    }

    fn close(&mut self, id: LeaseId) {
        let holding = self.holdings.get_mut(&id).expect("picked");
        if !holding.is_closed {
            holding.is_closed = true;
            let last = Spend {
                lease: id,
                cost: Credits::ZERO,
                cum: credits(holding.spent),
                is_final: true,
            };
            self.journal.push(batch(holding.owner, &[last]));
        }
    }

    fn silence(&mut self, id: LeaseId) {
        let lease = self.tables.leases.get_mut(&id).expect("picked");
        if matches!(lease.state, LeaseState::Active | LeaseState::Draining) {
            lease.state = LeaseState::Orphaned;
        }
    }

    fn write_off(&mut self, id: LeaseId) {
        if self.tables.leases[&id].state == LeaseState::Orphaned {
            let mut book = self.tables.book();
            book.write_off(id);
            self.write(book);
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        let lease = match step {
            Step::Lend {
                owner,
                want,
                minimum,
            } => return self.lend(owner, want, minimum),
            Step::Ship { from, count } => return self.ship(from, count),
            Step::Requota { quota } => return self.tables.requota(quota),
            Step::Wait { days } => {
                self.now = self
                    .now
                    .checked_add(SignedDuration::from_hours(24 * days))
                    .expect("ok");
                return;
            }
            Step::Spend { lease, .. }
            | Step::GiveBack { lease }
            | Step::Heartbeat { lease, .. }
            | Step::Close { lease }
            | Step::Silence { lease }
            | Step::WriteOff { lease } => lease,
        };
        let Some(id) = self.pick(lease) else { return };
        match step {
            Step::Spend { cost, .. } => self.spend(id, cost),
            Step::GiveBack { .. } => self.give_back(id),
            Step::Heartbeat { stale, .. } => self.heartbeat(id, stale),
            Step::Close { .. } => self.close(id),
            Step::Silence { .. } => self.silence(id),
            _ => self.write_off(id),
        }
    }

    /// Every owner closes, everything arrives: nothing is lost, double or stranded.
    pub(super) fn finish(&mut self) {
        let ids: Vec<LeaseId> = self.holdings.keys().copied().collect();
        ids.iter().for_each(|id| self.close(*id));
        self.ship(0, self.journal.len());
        for (id, holding) in &self.holdings {
            let lease = &self.tables.leases[id];
            assert_eq!(lease.settled_cum.get(), holding.spent, "I5");
            assert!(!lease.is_open(), "nothing is stranded");
        }
        assert_eq!(self.tables.wallet.reserved, Credits::ZERO);
        let spent: i64 = self.holdings.values().map(|holding| holding.spent).sum();
        let late: i64 = self.tables.late.values().sum();
        assert_eq!(
            self.tables.used,
            spent - late,
            "each credit is debited once"
        );
    }
}
