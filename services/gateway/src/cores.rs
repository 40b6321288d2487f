//! A gateway without network, clock and threads: the same journal, leases, desk and course, moved
//! from outside. For the simulator and the fuzz targets, which decide what arrives, when, and what
//! is lost; nothing here decides about money.

mod line;
mod route;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use proto::{
    events::v1::{Call, Permit, Record, RecordKind},
    wallet::v1 as wire,
};
use types::{JournalId, KeyId, LeaseId, OrgId, QuotaKind};
use uuid::Uuid;

pub use self::line::{Line, Parcel};
pub use self::route::{Route, Way};
use crate::{
    journal::{Damage, Disk, Error, Journal, Kept, Options, Reservation, SEGMENT_BYTES_MIN},
    lease::{Account, Hold, Owner},
    lender::desk::{Bulletin, Desk, Grant, News, Told},
    meter, path, record,
};

/// Who pays for a call: with credits, or with permits of a quota.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Payer {
    /// An organisation's wallet.
    Credits(OrgId),
    /// A key's daily quota.
    Permits(KeyId),
}

/// What the wallet says it has lent.
#[derive(Clone, Copy, Debug)]
pub struct Lent {
    /// The lease.
    pub lease: LeaseId,
    /// Everything ever lent by it.
    pub granted_cum: i64,
    /// Microseconds for which it may be spent from; `None`: no end.
    pub spend_for_micros: Option<i64>,
}

/// What became of what the wallet has lent.
#[derive(Debug)]
pub enum Taken {
    /// It is in the journal and in use; with a hold when a call asked for one.
    More(Option<Held>),
    /// It was known, or is about a lease that has ended.
    Nothing,
}

/// Credits or permits that a call holds.
#[derive(Debug)]
pub struct Held(Hold);

impl Held {
    /// Adds a cost to the lease's total before there is a record: what the product never does.
    pub fn spend_early(&self, cost: i64) -> i64 {
        self.0.spend(cost)
    }
}

/// A lease in hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Figures {
    /// The lease.
    pub lease: LeaseId,
    /// Neither held nor spent.
    pub remaining: i64,
    /// Held by calls.
    pub held: i64,
    /// Spent.
    pub cum: i64,
    /// Given back.
    pub returned_cum: i64,
    /// Known to be lent.
    pub granted_cum: i64,
}

/// What a heartbeat says, to be confirmed when the wallet has taken it.
pub struct Beat(Bulletin);

impl Beat {
    /// Lease, total spent, total given back.
    pub fn reports(&self) -> Vec<(LeaseId, i64, i64)> {
        let report = |told: &Told| (told.lease.id, told.cum, told.returned_cum);
        self.0.told.iter().map(report).collect()
    }
}

/// One process life in a journal directory.
pub struct Life {
    /// Its own journal.
    pub own: Line,
    /// What earlier lives have left.
    pub old: Vec<Line>,
    /// What recovery has found damaged.
    pub damage: Vec<Damage>,
    desk: Desk,
    accounts: BTreeMap<Payer, Arc<Account>>,
}

fn millis(now: Duration) -> u64 {
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn micros(now: Duration) -> i64 {
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

impl Life {
    /// Begins a life.
    ///
    /// # Errors
    /// The disk fails.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        id: JournalId,
        now: Duration,
    ) -> Result<Self, Error> {
        let options = Options {
            segment_bytes: SEGMENT_BYTES_MIN,
            room_bytes_min: SEGMENT_BYTES_MIN,
            ..Options::new(dir)
        };
        let (journal, recovered) = Journal::open_on(disk, &options, id.uuid(), millis(now))?;
        let damage = recovered.iter().flat_map(|it| it.damage.clone()).collect();
        Ok(Self {
            own: Line::new(journal, now),
            old: recovered
                .into_iter()
                .map(|it| Line::of_earlier(&it, now))
                .collect(),
            damage,
            desk: Desk::default(),
            accounts: BTreeMap::new(),
        })
    }

    fn account(&mut self, payer: Payer) -> Arc<Account> {
        let owner = match payer {
            Payer::Credits(org) => Owner::Organisation(org),
            Payer::Permits(key) => Owner::Quota {
                org: OrgId::new(Uuid::nil()),
                key,
                kind: QuotaKind::Daily,
            },
        };
        let account = || Arc::new(Account::new(owner));
        Arc::clone(self.accounts.entry(payer).or_insert_with(account))
    }

    /// Room for the record of a call; without it the call is refused.
    pub fn reserve(&self) -> Option<Reservation> {
        self.own.journal.reserve()
    }

    /// Takes from the lease in hand.
    pub fn hold(&mut self, payer: Payer, credits: i64, now: Duration) -> Option<Held> {
        self.account(payer).hold(credits, micros(now)).map(Held)
    }

    /// True when it is time to renew the lease in hand.
    pub fn is_low(&mut self, payer: Payer) -> bool {
        let lease = self.account(payer).lease();
        lease.is_some_and(|lease| lease.is_low() && !lease.is_draining())
    }

    /// Takes what the wallet has lent: first into the journal, then into use.
    ///
    /// # Errors
    /// The disk fails.
    pub fn take(
        &mut self,
        payer: Payer,
        lent: Lent,
        credits: i64,
        now: Duration,
    ) -> Result<Taken, Error> {
        let account = self.account(payer);
        let end = |left: i64| micros(now).saturating_add(left);
        let grant = Grant {
            lease: lent.lease,
            granted_cum: lent.granted_cum,
            spend_until: lent.spend_for_micros.map_or(i64::MAX, end),
        };
        let News::More { lease, is_new } = self.desk.judge(&account, &grant) else {
            return Ok(Taken::Nothing);
        };
        let record = Record {
            kind: RecordKind::Grant.into(),
            lease_id: lent.lease.bytes().to_vec(),
            granted: lent.granted_cum,
            ..Record::default()
        };
        self.own.append_synced(record, now)?;
        let now = micros(now);
        let hold = self
            .desk
            .take(&account, (lease, is_new), &grant, credits, now);
        Ok(Taken::More(hold.map(Held)))
    }

    /// Writes what a successor charges if this life ends before the call does: when it begins, and
    /// as it goes on. The note is kept as long as what this returns.
    pub fn note(
        &mut self,
        kind: RecordKind,
        reservation: Reservation,
        (hold, permit): (&Held, Option<&Held>),
        due: i64,
        call: Call,
    ) -> Kept {
        let mut record = Record {
            kind: kind.into(),
            lease_id: hold.0.lease_id().bytes().to_vec(),
            held: hold.0.credits(),
            due,
            call: Some(call),
            permits: permit.iter().map(|held| permit_of(&held.0)).collect(),
            ..Record::default()
        };
        let journal = &self.own.journal;
        let (_, kept) = reservation.append(|slot| {
            record.seq = slot.seq;
            record.cum = hold.0.total();
            for (used, held) in record.permits.iter_mut().zip(permit) {
                used.cum = held.0.total();
            }
            (record::encode(&record, slot.buf), journal.keep(slot.seq))
        });
        kept
    }

    /// Ends a call with its record: number, totals and record are one step.
    pub fn finish(
        &mut self,
        reservation: Reservation,
        (hold, permit): (Held, Option<Held>),
        cost: i64,
        early: Option<i64>,
        call: Call,
    ) -> u64 {
        let mut record = Record {
            kind: RecordKind::Call.into(),
            cost,
            call: Some(call),
            permits: permit.iter().map(|held| permit_of(&held.0)).collect(),
            ..Record::default()
        };
        if cost > 0 {
            record.lease_id = hold.0.lease_id().bytes().to_vec();
        }
        let (seq, ()) = reservation.append(|slot| {
            record.seq = slot.seq;
            if cost > 0 {
                record.cum = early.unwrap_or_else(|| hold.0.spend(cost));
            }
            for (used, held) in record.permits.iter_mut().zip(&permit) {
                used.cum = held.0.spend(meter::PERMITS);
            }
            (record::encode(&record, slot.buf), ())
        });
        hold.0.settle(cost);
        if let Some(held) = permit {
            held.0.settle(meter::PERMITS);
        }
        seq
    }

    /// What the next heartbeat says.
    pub fn beat(&self, now: Duration) -> Beat {
        self.desk.end_periods(micros(now));
        Beat(self.desk.news(micros(now)))
    }

    /// The wallet has taken a heartbeat.
    pub fn was_taken(&self, beat: &Beat) {
        for told in &beat.0.told {
            told.lease.was_told(told.cum, told.returned_cum);
        }
        if beat.0.tells_all {
            self.desk.told_all();
        }
    }

    /// The wallet did not answer a heartbeat.
    pub fn missed(&self) {
        self.desk.missed();
    }

    /// The wallet wants these ended.
    pub fn drain(&self, leases: &[LeaseId]) {
        self.desk.drain(leases.iter().copied());
    }

    /// All leases drain: no call will come.
    pub fn drain_all(&self) {
        self.desk.open().iter().for_each(|lease| lease.drain());
    }

    /// Gives back what is not held, when the wallet recalls it.
    pub fn give_back(&self, lease: LeaseId) -> Option<i64> {
        self.desk.give_back(lease)
    }

    /// Gives back what is idle, but `kept`.
    pub fn give_back_idle(&mut self, payer: Payer, kept: i64) {
        let account = self.account(payer);
        account.may_keep(kept);
        account.give_back_idle();
    }

    /// Writes the final counts that are due.
    ///
    /// # Errors
    /// The disk fails.
    pub fn close_spent(&mut self, now: Duration) -> Result<(), Error> {
        for lease in self.desk.open() {
            if lease.claim_close() {
                self.own.close(lease.id, now, || lease.cum())?;
                self.desk.closed(&lease);
            }
        }
        Ok(())
    }

    /// Ends the own journal, of which the wallet calls these leases open. `false`: not yet, a lease
    /// is in use.
    ///
    /// # Errors
    /// The disk fails.
    pub fn retire(&mut self, open: &[wire::Lease], now: Duration) -> anyhow::Result<bool> {
        for lent in open {
            let lease = LeaseId::from_slice(&lent.lease_id)?;
            if self.desk.is_open(lease) {
                return Ok(false);
            }
            if self.desk.is_unheard(lease, lent.known_cum) {
                self.own.close(lease, now, || 0)?;
            }
        }
        Ok(true)
    }

    /// True when no lease is in hand.
    pub fn is_empty(&self) -> bool {
        self.desk.open().is_empty()
    }

    /// The leases in hand. Calls must not be under way in other threads.
    pub fn figures(&self) -> Vec<Figures> {
        let open = self.desk.open();
        let figures = open.iter().map(|lease| {
            let (remaining, held, granted_cum) = lease.figures();
            Figures {
                lease: lease.id,
                remaining,
                held,
                cum: lease.cum(),
                returned_cum: lease.returned_cum(),
                granted_cum,
            }
        });
        figures.collect()
    }
}

fn permit_of(hold: &Hold) -> Permit {
    Permit {
        lease_id: hold.lease_id().bytes().to_vec(),
        cum: 0,
    }
}

/// Whether a path is forwarded, and to which service.
pub fn path(text: &str) -> Option<(&str, &str)> {
    path::split(text).filter(|(_, rest)| path::check(rest).is_ok())
}

/// Whether a route with a prefix governs a path.
pub fn governs(prefix: &str, path: &str) -> bool {
    path::matches(prefix, path)
}

/// The units that an upstream's header reports.
pub fn units(header: &http::HeaderValue) -> Vec<(String, u64)> {
    let mut way = Way::forwarded();
    way.reported(header);
    way.units()
}
