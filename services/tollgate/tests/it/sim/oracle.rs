//! What must hold after each step, and what in the end.

use std::collections::BTreeMap;

use gateway::{
    cores::{Line, Payer},
    journal::Limits,
};

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
        (self.faults.loss, self.faults.repeat) = (0, 0);
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

    /// It runs, and what earlier lives have left is gone. A journal with a gap stays, but what can
    /// be read of it is applied and its leases have their final counts.
    fn is_alone(&self, slot: &Slot) -> bool {
        let Some(running) = &slot.running else {
            return false;
        };
        let is_concluded = |line: &Line| running.concluded.contains(&line.id());
        let mut old = running.life.old.iter();
        old.all(|line| self.damaged && is_concluded(line) && self.is_applied(line))
    }

    /// Every record that can be read is applied by every consumer.
    fn is_applied(&self, line: &Line) -> bool {
        let mut reader = line.journal.reader(0);
        while let Ok(Some(batch)) = reader.next_batch(Limits::before(u64::MAX)) {
            let seqs = (batch.first_seq..).zip(&batch.records);
            let mut seqs = seqs.map(|(seq, _)| seq);
            let has = |it: &Consumer, seq| {
                let ranges = it.inbox.get(&line.id());
                ranges.is_some_and(|ranges| ranges.contains(seq))
            };
            if !seqs.all(|seq| self.consumers.iter().all(|it| has(it, seq))) {
                return false;
            }
        }
        true
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
            if !is_written && self.noted.get(call) != Some(cost) {
                return Err(format!("invented: {journal}/{seq}, call {call}"));
            }
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
            if !may_be_lost {
                return Err(format!("lost: {done:?}"));
            }
            lost += 1;
        }
        self.figures.lost_with_power += lost;
        let rows = self.effects.rows.len();
        let costs: i64 = by_call.values().sum();
        let totals = (u64::try_from(rows).unwrap(), costs);
        if self.effects.totals != totals {
            return Err(format!(
                "I7: totals {:?}, rows {totals:?}",
                self.effects.totals
            ));
        }
        self.balance(costs)
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
        let mut written = self.written.iter();
        let is_whole = written.all(|(key, row)| kept(key, row));
        let noted: i64 = self.noted.values().sum();
        let written: i64 = self.written.values().map(|(_, cost)| cost).sum();
        // Each credit has its row. What was written and lost with the power may have been debited
        // all the same, when a later total or a heartbeat had told it; what never was may not.
        let is_right = match self.unsynced_from.is_empty() {
            true => used + late == costs && is_whole,
            false => costs <= used + late && used + late <= written + noted,
        };
        match is_right {
            true => Ok(()),
            false => Err(format!(
                "used {used}, late {late}, rows {costs}, written {written}"
            )),
        }
    }
}
