//! What must hold after each step, and what in the end.

use std::collections::BTreeMap;

use gateway::cores::Payer;
use runtime::USAGE_CONSUMERS;
use types::JournalId;

use super::{
    Mutation,
    gateway::{Call, Durability, Slot, Stage},
    stream::Consumer,
    world::{World, payers},
};

/// Steps until everything must be quiet, faults being over.
const STEPS_TO_QUIET_MAX: usize = 60_000;

impl World {
    /// I1 to I4 at the wallet, I3 at the gateways against it, and that nothing is let go of that
    /// a consumer has not applied.
    pub(super) fn check(&self) -> Result<(), String> {
        self.bank.check()?;
        if let Some(breach) = self.bank.breaches().first() {
            return Err(format!("an honest gateway is accused: {breach}"));
        }
        if let Some(reason) = self.effects.dead_letters.first() {
            return Err(format!("an honest batch is a dead letter: {reason}"));
        }
        if let Some((consumer, journal, seq)) = self.effects.overtaken.first() {
            return Err(format!(
                "{consumer} had noted {journal}/{seq} as lost when it came"
            ));
        }
        for running in self.slots.iter().filter_map(|slot| slot.running.as_ref()) {
            for it in running.life.figures() {
                let in_hand = it.remaining + it.held + it.cum;
                // This mutation is to be found out by what it does to a customer.
                if self.mutation == Mutation::NumberBeforeRecord {
                    continue;
                }
                let adds_up = it.granted_cum == in_hand + it.returned_cum;
                if it.remaining < 0 || it.held < 0 || !adds_up {
                    return Err(format!("I3: a lease does not add up: {it:?}"));
                }
                let lent = self.bank.lease(it.lease).ok_or("lent by nobody")?;
                if in_hand > lent.granted {
                    return Err(format!("I3: {it:?} of {lent:?}"));
                }
            }
            for line in running.life.old.iter().chain([&running.life.own]) {
                let let_go = line.journal.watermark();
                let lacks = |it: &&Consumer| it.watermark(line.id()) < let_go;
                if let Some(consumer) = self.consumers.iter().find(lacks) {
                    let (id, name) = (line.id(), consumer.name);
                    return Err(format!("{id} let go of {let_go}, {name} has it not"));
                }
            }
        }
        Ok(())
    }

    /// Lets everything come to rest: faults end, everybody is started, then stopped in order.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        (self.faults.loss, self.faults.repeat, self.faults.short) = (0, 0, 0);
        for slot in &self.slots {
            slot.disk.revive();
        }
        // The clock is put right before anybody is given up for it.
        self.clock = jiff::SignedDuration::ZERO;
        for step in 0..STEPS_TO_QUIET_MAX {
            self.step(true);
            self.check()?;
            if step % 50 != 0 {
                continue;
            }
            if !self.is_resting {
                self.is_resting = self.slots.iter().all(|slot| self.is_alone(slot));
            } else if self.unquiet().is_empty() {
                return self.audit();
            } else {
                self.drain_all();
            }
        }
        Err(format!("never quiet: {}", self.unquiet()))
    }

    /// It runs, and what earlier lives have left is gone.
    fn is_alone(&self, slot: &Slot) -> bool {
        let running = slot.running.as_ref();
        running.is_some_and(|running| running.life.old.is_empty())
    }

    fn drain_all(&mut self) {
        for running in self.slots.iter_mut().filter_map(|it| it.running.as_mut()) {
            running.is_draining = true;
            let waits = |call: &Call| matches!(call.stage, Stage::Admission);
            running.calls.retain(|call| !waits(call));
        }
    }

    /// What is still on its way; nothing when the world is quiet.
    fn unquiet(&self) -> String {
        let mut why = Vec::new();
        let open = self.bank.open_leases();
        if !open.is_empty() {
            why.push(format!("{} leases are open, {}", open.len(), open[0]));
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(running) = &slot.running else {
                continue;
            };
            let (id, written) = (running.life.own.id(), running.life.own.journal.next_seq());
            why.push(format!("{index}: still runs as {id}, {written} written"));
        }
        if self.consumers.iter().any(|consumer| !consumer.is_idle()) {
            why.push("messages are not applied".to_owned());
        }
        why.join("; ")
    }

    /// Nothing lost, nothing double, nothing overspent, nothing stranded.
    fn audit(&mut self) -> Result<(), String> {
        let mut by_call: BTreeMap<u64, i64> = BTreeMap::new();
        for ((journal, seq), (call, cost)) in &self.effects.rows {
            if by_call.insert(*call, *cost).is_some() {
                return Err(format!(
                    "double: call {call} has another row, {journal}/{seq}"
                ));
            }
            let is_written = self.written.get(&(*journal, *seq)) == Some(&(*call, *cost));
            let noted = self.noted.get(call);
            let is_noted = noted.is_some_and(|(_, dues)| dues.contains(cost));
            if !is_written && !is_noted {
                return Err(format!("invented: {journal}/{seq}, call {call}"));
            }
            self.figures.ended_by_successor += u64::from(!is_written);
        }
        let mut lost = 0;
        for done in &self.done {
            let row = self.effects.rows.get(&(done.journal, done.seq));
            if row == Some(&(done.call, done.cost)) {
                continue;
            }
            let unsynced_from = self.unsynced_from.get(&done.journal);
            let may_be_lost = done.durability == Durability::Process
                && unsynced_from.is_some_and(|from| *from <= done.seq);
            if self.is_noted_as_lost(done.journal, done.seq) {
                continue;
            }
            if !may_be_lost {
                return Err(format!("lost: {done:?}"));
            }
            lost += 1;
        }
        self.figures.lost_with_power += lost;
        self.noted_calls(&by_call)?;
        self.gaps()?;
        self.totals()?;
        self.balance(by_call.values().sum())
    }

    /// I7: the totals are those of the rows, but for records that one of both consumers had when
    /// they were lost to the other.
    fn totals(&self) -> Result<(), String> {
        let (rows, counted) = (&self.effects.rows, &self.effects.counted);
        let sums = (
            u64::try_from(counted.len()).unwrap(),
            counted.values().sum(),
        );
        if self.effects.totals != sums {
            let totals = self.effects.totals;
            return Err(format!("I7: totals {totals:?} of records {sums:?}"));
        }
        let row_of = |key| rows.get(key).map(|(_, cost)| *cost);
        let lacks = |consumer, key: &&(JournalId, u64)| !self.effects.is_gap(consumer, **key);
        let mut without_row = counted.keys().filter(|key| row_of(key).is_none());
        let mut uncounted = rows.keys().filter(|key| !counted.contains_key(key));
        let mut both = counted.iter();
        let differs = |(key, cost): &(_, &i64)| row_of(*key).is_some_and(|row| row != **cost);
        match (
            without_row.find(|key| lacks("usage-ingest", key)),
            uncounted.find(|key| lacks("stats-aggregator", key)),
            both.find(differs),
        ) {
            (None, None, None) => Ok(()),
            odd => Err(format!("I7: totals are not of the rows: {odd:?}")),
        }
    }

    /// It was damaged, and is recorded as a gap.
    fn is_noted_as_lost(&self, journal: JournalId, seq: u64) -> bool {
        self.hit.contains(&(journal, seq)) && self.effects.is_gap("usage-ingest", (journal, seq))
    }

    /// A call that its gateway did not end is ended by the next life, by what was noted last; once,
    /// and never when it has ended already.
    fn noted_calls(&self, rows: &BTreeMap<u64, i64>) -> Result<(), String> {
        let recorded: BTreeMap<u64, (JournalId, u64)> = self
            .written
            .iter()
            .map(|((journal, seq), (call, _))| (*call, (*journal, *seq)))
            .collect();
        for (call, (journal, dues)) in &self.noted {
            let is_whole = !self.unsynced_from.contains_key(journal);
            if let Some((journal, seq)) = recorded.get(call) {
                let is_lost = is_whole && self.is_noted_as_lost(*journal, *seq);
                if is_lost && rows.contains_key(call) {
                    return Err(format!("double: call {call} is paid and ended once more"));
                }
                continue;
            }
            let is_whole = is_whole && !self.damaged_journals.contains(journal);
            if is_whole && rows.get(call) != dues.last() {
                let row = rows.get(call);
                return Err(format!(
                    "call {call} was due {dues:?}, its row says {row:?}"
                ));
            }
        }
        Ok(())
    }

    /// What is noted as lost was lost, and what an owner had told of it is paid.
    fn gaps(&mut self) -> Result<(), String> {
        let mut lost = 0;
        for (consumer, gaps) in &self.effects.gaps {
            for (journal, from, below) in gaps {
                let unsynced_from = self.unsynced_from.get(journal).copied();
                for seq in *from..*below {
                    let may_be_lost = unsynced_from.is_some_and(|from| from <= seq);
                    if !may_be_lost && !self.hit.contains(&(*journal, seq)) {
                        return Err(format!("{consumer} lacks {journal}/{seq}, which was there"));
                    }
                }
                lost += below - from;
            }
        }
        self.figures.noted_as_lost += lost / u64::try_from(USAGE_CONSUMERS.len()).unwrap();
        if !self.unsynced_from.is_empty() {
            return Ok(()); // what was told may have been lost before it was promised
        }
        let leases = self.bank.leases().filter_map(|id| self.bank.lease(id));
        for lease in leases {
            if lease.settled_cum < lease.known_cum {
                return Err(format!("told and not paid: {lease:?}"));
            }
        }
        Ok(())
    }

    /// The customers have paid for their calls, and for nothing else.
    fn balance(&self, costs: i64) -> Result<(), String> {
        let (mut used, mut late) = (0, 0);
        for (payer, account, _) in payers() {
            let sums = self.bank.sums(account);
            if sums.reserved != 0 {
                return Err(format!("stranded: {} of {account:?}", sums.reserved));
            }
            if matches!(payer, Payer::Credits(_)) {
                used += sums.used;
                late += self.bank.late(account);
            }
        }
        let kept = |key, row| self.effects.rows.get(key) == Some(row);
        let lost = |(journal, seq): &(JournalId, u64)| self.is_noted_as_lost(*journal, *seq);
        let mut written = self.written.iter();
        let is_whole = written.all(|(key, row)| kept(key, row) || lost(key));
        let unitemised = self.written.iter().filter(|(key, _)| lost(key));
        let unitemised: i64 = unitemised.map(|(_, (_, cost))| cost).sum();
        let most = |(_, dues): &(JournalId, Vec<i64>)| dues.iter().max().copied();
        // A call whose successor wrote its record costs what that says, and nothing on top.
        let rows = self.effects.rows.iter();
        let ended = rows.filter(|(key, row)| self.written.get(key) != Some(row));
        let ended: i64 = ended.map(|(_, (_, cost))| cost).sum();
        // What a successor has written may be lost as well, to the life after it.
        let damaged = self.noted.values();
        let damaged = damaged.filter(|(journal, _)| self.damaged_journals.contains(journal));
        let unitemised = unitemised + damaged.filter_map(most).sum::<i64>();
        let written: i64 = self.written.values().map(|(_, cost)| cost).sum();
        // What the journal and the stream have both lost may have a row, and no debit.
        let is_unpaid = |key| self.hit.contains(key) && self.effects.is_gap("wallet", *key);
        let rows = self.effects.rows.iter().filter(|(key, _)| is_unpaid(key));
        let unpaid: i64 = rows.map(|(_, (_, cost))| cost).sum();
        // Each credit has its row, or is of a call whose record is known to be lost: a later total
        // pays for it, or what its owner had told. What was written and lost with the power may
        // have been debited all the same, when either knew of it; what never was may not.
        let paid = used + late;
        let is_right = match self.unsynced_from.is_empty() {
            true => (costs - unpaid..=costs + unitemised).contains(&paid) && is_whole,
            false => (costs..=written + ended).contains(&paid),
        };
        match is_right {
            true => Ok(()),
            false => Err(format!(
                "used {used}, late {late}, rows {costs}, written {written}"
            )),
        }
    }
}
