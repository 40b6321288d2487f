//! Settlement against a naive ledger: of each lease the highest total anybody has told.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use proptest::prelude::*;
use proto::events::v1::{Call, Permit, Record, RecordKind};
use runtime::Delivery;
use types::{JournalId, KeyId, LeaseId, OrgId};
use uuid::Uuid;

use super::{NOON, journal, lease_id};
use crate::cores::{Account, Answer, Ask, Bank};

const GIVEN: i64 = 2_000;

/// One lease of the plan: whose, from what, and the costs of its calls.
#[derive(Clone, Debug)]
struct Plan {
    owner: u128,
    account: Account,
    costs: Vec<i64>,
}

/// What may happen to a delivery, or instead of it.
#[derive(Clone, Debug)]
enum Event {
    /// Deliveries from one on, in one transaction.
    Deliver(prop::sample::Index, usize),
    /// One that breaks a rule stands behind a good one.
    Malformed(prop::sample::Index, Malice),
    /// What an owner says of its lease: all it has spent so far, of what is planned.
    Report(prop::sample::Index, prop::sample::Index),
    /// Its owner is given up, though it may come back.
    GiveUp(prop::sample::Index),
}

#[derive(Clone, Copy, Debug)]
enum Malice {
    UnknownLease,
    OthersLease,
    BeyondGrant,
    NegativeCost,
    LessThanItsCost,
    CloseOfNothing,
    PermitOfNoCall,
    CostWithoutLease,
}

fn accounts() -> [Account; 3] {
    let org = |n| Account::Credits(OrgId::new(Uuid::from_u128(n)));
    let key = KeyId::new(Uuid::from_u128(3));
    [org(1), org(2), Account::Permits(key)]
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let account = (0..3_usize).prop_map(|index| accounts()[index]);
    let plan = (1..4_u128, account, prop::collection::vec(0..20_i64, 1..10));
    let plan = plan.prop_map(|(owner, account, costs)| Plan {
        owner,
        costs: match account {
            // A permit is always one.
            Account::Permits(_) => vec![1; costs.len()],
            Account::Credits(_) => costs,
        },
        account,
    });
    prop::collection::vec(plan, 1..7)
}

fn event() -> impl Strategy<Value = Event> {
    let malice = prop_oneof![
        Just(Malice::UnknownLease),
        Just(Malice::OthersLease),
        Just(Malice::BeyondGrant),
        Just(Malice::NegativeCost),
        Just(Malice::LessThanItsCost),
        Just(Malice::CloseOfNothing),
        Just(Malice::PermitOfNoCall),
        Just(Malice::CostWithoutLease),
    ];
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => (index(), 1..5_usize).prop_map(|(from, count)| Event::Deliver(from, count)),
        3 => (index(), malice).prop_map(|(good, malice)| Event::Malformed(good, malice)),
        2 => (index(), index()).prop_map(|(lease, call)| Event::Report(lease, call)),
        1 => index().prop_map(Event::GiveUp),
    ]
}

fn call(lease: LeaseId, account: Account, cost: i64, cum: i64) -> Record {
    let lease_id = lease.bytes().to_vec();
    let record = Record {
        kind: RecordKind::Call.into(),
        call: Some(Call::default()),
        ..Record::default()
    };
    match account {
        Account::Credits(_) => Record {
            lease_id,
            cost,
            cum,
            ..record
        },
        Account::Permits(_) => Record {
            permits: vec![Permit { lease_id, cum }],
            ..record
        },
    }
}

fn close(lease: LeaseId, cum: i64) -> Record {
    Record {
        kind: RecordKind::Close.into(),
        lease_id: lease.bytes().to_vec(),
        cum,
        ..Record::default()
    }
}

fn malformed(malice: Malice, lease: LeaseId, owner: JournalId, granted: i64) -> Delivery {
    let [credits, ..] = accounts();
    let record = match malice {
        Malice::UnknownLease => call(lease_id(999), credits, 1, 1),
        Malice::OthersLease => call(lease, credits, 1, 1),
        Malice::BeyondGrant => call(lease, credits, 1, granted + 1),
        Malice::NegativeCost => call(lease, credits, -1, 1),
        Malice::LessThanItsCost => call(lease, credits, 5, 4),
        Malice::CloseOfNothing => Record {
            lease_id: Vec::new(),
            ..close(lease, 1)
        },
        Malice::PermitOfNoCall => Record {
            permits: call(lease, accounts()[2], 1, 1).permits,
            ..close(lease, 1)
        },
        Malice::CostWithoutLease => Record {
            lease_id: Vec::new(),
            ..call(lease, credits, 1, 1)
        },
    };
    let journal = match malice {
        Malice::OthersLease => journal(77),
        _ => owner,
    };
    Delivery {
        journal,
        records: vec![record],
    }
}

/// The naive ledger.
#[derive(Default)]
struct Reference {
    /// Highest total delivered, by lease.
    told: BTreeMap<LeaseId, i64>,
    /// Highest total reported while its owner was not given up.
    reported: BTreeMap<LeaseId, i64>,
    /// What was debited when the owner was given up.
    given_up: BTreeMap<LeaseId, i64>,
    closed: BTreeSet<LeaseId>,
}

impl Reference {
    fn deliver(&mut self, lease: LeaseId, delivery: &Delivery) {
        for record in &delivery.records {
            let cum = record.permits.first().map_or(record.cum, |it| it.cum);
            let told = self.told.entry(lease).or_default();
            *told = cum.max(*told);
            if record.kind == i32::from(RecordKind::Close) && !self.given_up.contains_key(&lease) {
                self.closed.insert(lease);
            }
        }
    }

    /// What the customer pays for a lease, and what the provider does.
    fn debits(&self, lease: LeaseId) -> (i64, i64) {
        let told = self.told.get(&lease).copied().unwrap_or(0);
        match self.given_up.get(&lease) {
            Some(then) => (*then, (told - then).max(0)),
            None => (told, 0),
        }
    }
}

struct Rig {
    bank: Bank,
    reference: Reference,
    leases: Vec<(LeaseId, Plan)>,
    /// Each with the lease it is about.
    deliveries: Vec<(LeaseId, Delivery)>,
}

impl Rig {
    fn new(plans: Vec<Plan>) -> Self {
        let mut rig = Self {
            bank: Bank::new(accounts().map(|account| (account, GIVEN))),
            reference: Reference::default(),
            leases: Vec::new(),
            deliveries: Vec::new(),
        };
        for (index, plan) in plans.into_iter().enumerate() {
            let number = u128::try_from(index).expect("small") + 100;
            let want = plan.costs.iter().sum::<i64>() + 3;
            // A life of its own each, so that none extends another's lease.
            let journal = journal(plan.owner * 1_000 + number);
            let ask = Ask {
                account: plan.account,
                nonce: number.to_be_bytes(),
                want,
                minimum: want,
            };
            let answers = rig.bank.acquire(journal, &[ask], || lease_id(number), NOON);
            assert!(matches!(*answers, [Answer::Lent { .. }]), "{answers:?}");
            let (id, mut cum) = (lease_id(number), 0);
            let mut add = |record| {
                let records = vec![record];
                let delivery = Delivery { journal, records };
                rig.deliveries.push((id, delivery));
            };
            for cost in &plan.costs {
                cum += cost;
                add(call(id, plan.account, *cost, cum));
            }
            add(close(id, cum));
            rig.leases.push((id, plan));
        }
        rig
    }

    fn journal(&self, lease: LeaseId) -> JournalId {
        let mut own = self.deliveries.iter().filter(|(id, _)| *id == lease);
        own.next().expect("it closes at least").1.journal
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Deliver(from, count) => {
                let from = from.index(self.deliveries.len());
                let to = self.deliveries.len().min(from + count);
                self.deliver(from..to);
            }
            Event::Malformed(good, malice) => {
                let (lease, good) = &self.deliveries[good.index(self.deliveries.len())];
                let granted = self.bank.lease(*lease).expect("lent").granted;
                let bad = malformed(*malice, *lease, good.journal, granted);
                let before = format!("{:?}", self.bank);
                let refused = self.bank.settle(&[good.clone(), bad]).expect_err("a rule");
                assert_eq!(refused.0, 1, "the one that broke it is named");
                assert_eq!(before, format!("{:?}", self.bank), "nothing has changed");
            }
            Event::Report(lease, call) => {
                let (id, plan) = &self.leases[lease.index(self.leases.len())];
                let calls = call.index(plan.costs.len());
                let cum = plan.costs.iter().take(calls).sum();
                let is_open = !self.reference.closed.contains(id)
                    && !self.reference.given_up.contains_key(id);
                let (id, owner) = (*id, self.journal(*id));
                self.bank.heartbeat(owner, &[(id, cum, 0)], NOON);
                if is_open {
                    let reported = self.reference.reported.entry(id).or_default();
                    *reported = cum.max(*reported);
                }
            }
            Event::GiveUp(lease) => {
                let (id, _) = self.leases[lease.index(self.leases.len())];
                self.give_up(id);
            }
        }
    }

    fn deliver(&mut self, range: std::ops::Range<usize>) {
        let chosen = &self.deliveries[range];
        let deliveries: Vec<Delivery> = chosen.iter().map(|(_, it)| it.clone()).collect();
        self.bank.settle(&deliveries).expect("no rule is broken");
        for (lease, delivery) in chosen {
            self.reference.deliver(*lease, delivery);
        }
    }

    /// Its owner was silent for too long, however it comes back afterwards.
    fn give_up(&mut self, lease: LeaseId) {
        let is_open = |id: &LeaseId| {
            !self.reference.closed.contains(id) && !self.reference.given_up.contains_key(id)
        };
        if !is_open(&lease) {
            return;
        }
        self.bank.orphan(lease, NOON);
        assert_eq!(self.bank.write_off(NOON + SignedDuration::from_secs(1)), 1);
        let told = self.reference.told.get(&lease).copied().unwrap_or(0);
        let reported = self.reference.reported.get(&lease).copied().unwrap_or(0);
        self.reference.given_up.insert(lease, told.max(reported));
    }

    fn check(&self) {
        self.bank.check().expect("I1 to I4");
        for account in accounts() {
            let own = self.leases.iter().filter(|(_, it)| it.account == account);
            let debits = own.map(|(id, _)| self.reference.debits(*id));
            let (used, late) = debits.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
            assert_eq!(self.bank.sums(account).used, used, "{account:?}");
            assert_eq!(self.bank.late(account), late, "{account:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn settlement_is_what_a_naive_ledger_says(
        plans in plans(),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut rig = Rig::new(plans);
        for event in &events {
            rig.event(event);
            rig.check();
        }
        // Whatever came so far: once everything has come, in whatever order, it is all the same.
        for index in (0..rig.deliveries.len()).rev() {
            rig.deliver(index..index + 1);
        }
        rig.check();
        prop_assert_eq!(rig.bank.open_leases(), Vec::new());
        for account in accounts() {
            prop_assert_eq!(rig.bank.sums(account).reserved, 0);
        }
    }
}
