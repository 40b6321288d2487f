//! One gateway: a journal directory in which lives follow each other, and the calls they serve.

use std::{collections::BTreeMap, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use gateway::{
    cores::{Beat, Held, Lent, Life, Line, Parcel, Payer, Route, Taken, Way},
    journal::{Error, Kept, Reservation},
};
use proto::{
    events::v1::{Call as Facts, Disposition, RecordKind},
    wallet::v1::Lease,
};
use types::JournalId;

use super::{Figures, Mutation, dice::Dice, disk::SimDisk, stream::request_id};

/// Fillings of records: so long that segments are full soon.
const FILLING_BYTES: (i64, i64) = (1_000, 3_800);

/// When a client may have the last byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Durability {
    Process,
    Disk,
}

/// A call on its way.
pub(super) struct Call {
    pub(super) id: u64,
    pub(super) payer: Payer,
    /// Its key's quota, when it has one.
    pub(super) quota: Option<Payer>,
    pub(super) most: i64,
    /// Of a call whose upstream says what it costs.
    pub(super) route: Option<Rc<Route>>,
    pub(super) durability: Durability,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    /// Wants credits, and room for its record.
    Admission,
    /// At the upstream.
    Forwarded {
        reservation: Reservation,
        hold: Held,
        permit: Option<Held>,
        /// Mutation: cost and total, numbered before there is a record.
        early: Option<(i64, i64)>,
        /// What a successor would charge is noted, for a call that takes its time.
        open: Option<Kept>,
        way: Way,
    },
    /// The record is written, the last byte has not left.
    Recorded { seq: u64, cost: i64 },
}

/// What was asked of the wallet and not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) payer: Payer,
    pub(super) nonce: [u8; 16],
    pub(super) minimum: i64,
    pub(super) want: i64,
}

/// A process life.
pub(super) struct Running {
    pub(super) life: Life,
    pub(super) calls: Vec<Call>,
    pub(super) asked: BTreeMap<[u8; 16], Asked>,
    /// Those that go with the next request; one may be there twice.
    pub(super) queue: Vec<[u8; 16]>,
    pub(super) beat: Option<(u64, Beat)>,
    /// Earlier journals that were retired, and concluded since; of these, those with no open lease
    /// when everything was applied.
    pub(super) concluded: Vec<JournalId>,
    pub(super) ended: Vec<JournalId>,
    pub(super) is_draining: bool,
    /// The own journal was retired.
    pub(super) is_retired: bool,
}

/// What a call has left behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) call: u64,
    pub(super) cost: i64,
    pub(super) journal: JournalId,
    pub(super) seq: u64,
    pub(super) durability: Durability,
}

/// A place where a gateway runs.
pub(super) struct Slot {
    pub(super) dir: PathBuf,
    pub(super) disk: Arc<SimDisk>,
    pub(super) running: Option<Running>,
    /// Journals of lives that have ended since the last recovery, and how far each was synced.
    pub(super) ended: Vec<(JournalId, u64)>,
}

/// What a step of a call has led to.
pub(super) enum Progress {
    Waits,
    /// What it costs if its life ends before it does.
    Noted(u64, i64),
    /// Something is to be asked of the wallet first.
    Asks(Payer, i64),
    /// Its record is written: its number, cost, and the lease's total would be in it.
    Recorded(u64, i64, u64),
    Done(Done),
    Gone,
}

impl Slot {
    pub(super) fn start(&mut self, id: JournalId, now: Duration) -> Result<(), Error> {
        self.disk.revive();
        let life = Life::open(self.disk.clone(), &self.dir, id, now)?;
        // Recovery has synced what it has read.
        self.ended.clear();
        self.running = Some(Running {
            life,
            calls: Vec::new(),
            asked: BTreeMap::new(),
            queue: Vec::new(),
            beat: None,
            concluded: Vec::new(),
            ended: Vec::new(),
            is_draining: false,
            is_retired: false,
        });
        Ok(())
    }

    pub(super) fn line(&mut self, journal: JournalId) -> Option<&mut Line> {
        let life = &mut self.running.as_mut()?.life;
        let old = life.old.iter_mut();
        old.chain([&mut life.own]).find(|line| line.id() == journal)
    }
}

impl Call {
    /// What it costs if it ends so.
    fn cost(&self, end: Disposition) -> i64 {
        match (&self.stage, &self.route) {
            (Stage::Forwarded { way, .. }, Some(route)) => route.cost(end, way),
            _ => 0,
        }
    }
}

impl Running {
    /// Moves a call one step.
    pub(super) fn advance(
        &mut self,
        index: usize,
        now: Duration,
        mutation: Mutation,
        dice: &mut Dice,
    ) -> Progress {
        match &self.calls[index].stage {
            Stage::Admission => self.admit(index, now, mutation, dice),
            Stage::Forwarded { .. } => self.go_on(index, dice),
            Stage::Recorded { seq, cost } => {
                let (seq, cost) = (*seq, *cost);
                let call = &self.calls[index];
                let is_durable = match call.durability {
                    Durability::Process => true,
                    Durability::Disk => self.life.own.journal.synced_seq() > seq,
                };
                if !is_durable {
                    return Progress::Waits;
                }
                let done = Done {
                    call: call.id,
                    cost,
                    journal: self.life.own.id(),
                    seq,
                    durability: call.durability,
                };
                self.calls.swap_remove(index);
                Progress::Done(done)
            }
        }
    }

    /// Room, then permits, then credits; what an earlier step took goes back if a later one waits.
    fn admit(
        &mut self,
        index: usize,
        now: Duration,
        mutation: Mutation,
        dice: &mut Dice,
    ) -> Progress {
        let Call {
            payer, quota, most, ..
        } = self.calls[index];
        let Some(reservation) = self.life.reserve() else {
            self.calls.swap_remove(index);
            return Progress::Gone;
        };
        let permit = quota.map(|quota| (quota, self.life.hold(quota, 1, now)));
        if let Some((quota, None)) = permit {
            return Progress::Asks(quota, 1);
        }
        let permit = permit.and_then(|(_, held)| held);
        let Some(hold) = self.life.hold(payer, most, now) else {
            return Progress::Asks(payer, most);
        };
        let early = (mutation == Mutation::NumberBeforeRecord).then(|| {
            let cost = dice.between(1, most);
            (cost, hold.spend_early(cost))
        });
        self.calls[index].stage = Stage::Forwarded {
            reservation,
            hold,
            permit,
            early,
            open: None,
            way: Way::forwarded(),
        };
        match &self.calls[index].route {
            // The upstream is asked when the note is there.
            Some(_) => self.write_note(index, RecordKind::Open),
            None => Progress::Waits,
        }
    }

    /// A step of a call at the upstream.
    fn go_on(&mut self, index: usize, dice: &mut Dice) -> Progress {
        let call = &mut self.calls[index];
        let (Stage::Forwarded { open, way, .. }, Some(_)) = (&mut call.stage, &call.route) else {
            // Some calls are not charged: their upstream failed.
            let is_charged = dice.chance(900);
            let cost = match is_charged {
                true => dice.between(1, call.most),
                false => 0,
            };
            return self.finish(index, cost, dice);
        };
        if open.is_none() {
            return self.write_note(index, RecordKind::Open);
        }
        let end = match (way.is_answered(), dice.below(24)) {
            (false, 0..=19) => {
                way.answered(200);
                return Progress::Waits;
            }
            (false, 20..=21) => {
                way.answered(500);
                return Progress::Waits;
            }
            (false, 22) => Disposition::UpstreamFailed,
            (true, 0..=19) => {
                way.sent(dice.between(1, 4_000).unsigned_abs());
                if dice.chance(300) {
                    let report = format!("tokens={}", dice.between(0, 150));
                    way.reported(&report.parse().expect("a header's value"));
                }
                // When enough has left, or time has passed.
                return match dice.chance(80) {
                    true => self.write_note(index, RecordKind::Progress),
                    false => Progress::Waits,
                };
            }
            (true, 20..=21) => Disposition::Completed,
            (true, 22) => Disposition::UpstreamAborted,
            _ => Disposition::ClientAborted,
        };
        let cost = self.calls[index].cost(end);
        self.finish(index, cost, dice)
    }

    /// Notes what a call costs if this life ends first. Without room the note before has to do.
    fn write_note(&mut self, index: usize, kind: RecordKind) -> Progress {
        let Some(room) = self.life.reserve() else {
            return Progress::Waits;
        };
        let call = &mut self.calls[index];
        let (id, due) = (call.id, call.cost(Disposition::GatewayAborted));
        let Stage::Forwarded {
            hold, permit, open, ..
        } = &mut call.stage
        else {
            unreachable!("only forwarded calls are noted");
        };
        let holds = (&*hold, permit.as_ref());
        let kept = self.life.note(kind, room, holds, due, facts(id, 0));
        *open = Some(kept);
        Progress::Noted(id, due)
    }

    fn finish(&mut self, index: usize, cost: i64, dice: &mut Dice) -> Progress {
        let call = &mut self.calls[index];
        let placeholder = Stage::Recorded { seq: 0, cost: 0 };
        let Stage::Forwarded {
            reservation,
            hold,
            permit,
            early,
            open,
            ..
        } = std::mem::replace(&mut call.stage, placeholder)
        else {
            unreachable!("only forwarded calls end");
        };
        let cost = early.map_or(cost, |(cost, _)| cost);
        let filling = dice.between(FILLING_BYTES.0, FILLING_BYTES.1);
        let facts = facts(call.id, filling);
        let id = call.id;
        let total = early.map(|(_, total)| total);
        let seq = self
            .life
            .finish(reservation, (hold, permit), cost, total, facts);
        drop(open);
        self.calls[index].stage = Stage::Recorded { seq, cost };
        Progress::Recorded(seq, cost, id)
    }

    /// Takes what was lent, and part of it at once for a call that waits for nothing else.
    pub(super) fn take(&mut self, payer: Payer, lent: Lent, now: Duration) -> Result<(), Error> {
        let waits = |call: &&mut Call| {
            matches!(call.stage, Stage::Admission) && call.payer == payer && call.quota.is_none()
        };
        let waiting = self.calls.iter_mut().find(waits);
        let most = waiting.as_ref().map_or(0, |call| call.most);
        let taken = self.life.take(payer, lent, most, now)?;
        if let (Some(call), Taken::More(Some(hold))) = (waiting, taken)
            && let Some(reservation) = self.life.reserve()
        {
            call.stage = Stage::Forwarded {
                reservation,
                hold,
                permit: None,
                early: None,
                open: None,
                way: Way::forwarded(),
            };
        }
        Ok(())
    }

    /// Ends the calls that wait for credits or permits which cannot be had.
    pub(super) fn refuse(&mut self, payer: Payer) {
        self.calls.retain(|call| {
            let waits = matches!(call.stage, Stage::Admission);
            !(waits && (call.payer == payer || call.quota == Some(payer)))
        });
    }

    /// The next message of a journal: its own, or an earlier one's.
    pub(super) fn next_parcel(
        &mut self,
        mutation: Mutation,
        short: usize,
        dice: &mut Dice,
    ) -> Result<Option<(JournalId, Parcel)>, Error> {
        let lines = self.life.old.len() + 1;
        let line = match dice.below(lines) {
            0 => &mut self.life.own,
            // What is due of an earlier life is written before any of it can be applied and go.
            n if !self.concluded.contains(&self.life.old[n - 1].id()) => return Ok(None),
            n => &mut self.life.old[n - 1],
        };
        let before = match mutation {
            Mutation::ShipUnsynced => line.journal.next_seq(),
            _ => line.journal.synced_seq(),
        };
        // The next records make a message of their own, as behind a long backlog.
        let before = match dice.chance(short) {
            true => before.saturating_sub(u64::try_from(dice.below(8)).expect("below 8")),
            false => before,
        };
        let parcel = line.next(before)?;
        Ok(parcel.map(|parcel| (line.id(), parcel)))
    }

    /// Does what is due for each journal, and removes what has come to its end. True when the life
    /// is over.
    pub(super) fn work(&mut self, now: Duration, figures: &mut Figures) -> Result<bool, Error> {
        let in_haste = self.is_draining;
        let concluded = &self.concluded;
        let old = self.life.old.iter_mut();
        for line in old.filter(|line| concluded.contains(&line.id())) {
            figures.reshipped += u64::from(line.work(now, true)?);
        }
        let bytes = self.life.own.journal.stats().bytes;
        figures.reshipped += u64::from(self.life.own.work(now, in_haste)?);
        figures.let_go += u64::from(self.life.own.journal.stats().bytes < bytes);
        let mut kept = Vec::new();
        for line in self.life.old.drain(..) {
            match self.ended.contains(&line.id()) && line.is_done() {
                true => line.journal.remove()?,
                false => kept.push(line),
            }
        }
        self.life.old = kept;
        if self.is_retired && self.life.own.is_done() {
            self.life.own.journal.remove()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Ends what can be ended while draining. True when only the wallet is waited for.
    pub(super) fn drain(&mut self, now: Duration) -> Result<bool, Error> {
        if !self.calls.is_empty() {
            return Ok(false);
        }
        self.life.drain_all();
        self.life.close_spent(now)?;
        Ok(self.life.is_empty() && !self.is_retired)
    }

    /// The wallet has retired a journal, of which these leases are open.
    pub(super) fn retired(
        &mut self,
        journal: JournalId,
        open: &[Lease],
        now: Duration,
        mutation: Mutation,
    ) -> anyhow::Result<()> {
        if self.life.own.id() == journal {
            self.is_retired |= self.life.retire(open, now)?;
            return Ok(());
        }
        let is_first = !self.concluded.contains(&journal);
        let line = self.life.old.iter_mut().find(|line| line.id() == journal);
        if let Some(line) = line.filter(|line| is_first || line.is_due()) {
            if !is_first && open.is_empty() {
                self.ended.push(journal);
            }
            let untold = |lease: &Lease| Lease {
                known_cum: 0,
                ..lease.clone()
            };
            match mutation {
                Mutation::CloseWithoutFinalCount => {}
                Mutation::ForgetWhatWasTold => {
                    let open: Vec<Lease> = open.iter().map(untold).collect();
                    line.conclude(&open, is_first, now)?;
                }
                Mutation::CountOnSettled => {
                    line.count_on_settled(open)?;
                    line.conclude(open, is_first, now)?;
                }
                _ => line.conclude(open, is_first, now)?,
            }
            self.concluded.push(journal);
        }
        Ok(())
    }
}

/// What a record says of a call; the filling is of no meaning.
fn facts(call: u64, filling: i64) -> Facts {
    Facts {
        request_id: request_id(call),
        org_id: vec![1; 16],
        disposition: Disposition::Completed.into(),
        user_agent: "x".repeat(usize::try_from(filling).unwrap()),
        ..Facts::default()
    }
}
