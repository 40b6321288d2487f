//! The steps of the world: what may happen next, and what then does.

use std::{rc::Rc, time::Duration};

use gateway::cores::Payer;
use jiff::SignedDuration;
use prost::Message as _;
use proto::events::v1::UsageBatch;
use types::JournalId;

use super::{
    Mutation,
    gateway::{Call, Durability, Progress, Stage},
    world::{Packet, World, payers},
};

/// A journal that was not heard of for so long has orphaned its leases.
const ORPHAN: SignedDuration = SignedDuration::from_secs(10);
/// Orphaned leases are given up after so long.
const WRITE_OFF: SignedDuration = SignedDuration::from_hours(24);
/// Calls in flight of one gateway.
const CALLS_MAX: usize = 10;
/// Dearest call.
const COST_MAX: i64 = 12;
/// So often of a thousand times a request that is still unanswered is repeated.
const ASK_AGAIN: usize = 300;
/// So many of a thousand calls cost what their upstream reports.
const STREAMS: usize = 300;
/// A batch without records is shorter.
const EMPTY_BYTES: usize = 20;

/// What may happen.
#[derive(Clone, Copy, Debug)]
enum Step {
    Wait,
    Begin,
    Advance,
    Maintain,
    Publish,
    Work,
    Beat,
    Close,
    Conclude,
    Deliver,
    Consume,
    Watch,
    GiveBack,
    Start,
    Drain,
    Kill,
    LosePower,
    Doom,
    JumpClock,
    LoseMessages,
    RepeatMessage,
    LosePacket,
    Damage,
    Copy,
    LoseCopies,
    Shelve,
    Bring,
}

impl World {
    /// One step of whatever the dice choose. `calms`: no new calls and no more faults.
    pub(super) fn step(&mut self, calms: bool) {
        let faults = self.faults;
        let trouble = |weight: usize| if calms { 0 } else { weight };
        let step = self.dice.weighted(&[
            (60, Step::Wait),
            (trouble(300), Step::Begin),
            (900, Step::Advance),
            (80, Step::Maintain),
            (90, Step::Publish),
            (60, Step::Work),
            (40, Step::Beat),
            (20, Step::Close),
            (30, Step::Conclude),
            (400, Step::Deliver),
            (if calms { 130 } else { faults.consume }, Step::Consume),
            (40, Step::Watch),
            (trouble(6), Step::GiveBack),
            (100, Step::Start),
            (trouble(faults.drain), Step::Drain),
            (trouble(faults.kill), Step::Kill),
            (trouble(faults.power), Step::LosePower),
            (trouble(faults.doom), Step::Doom),
            (trouble(faults.clock), Step::JumpClock),
            (trouble(faults.stream), Step::LoseMessages),
            (trouble(faults.stream), Step::RepeatMessage),
            (trouble(faults.stream), Step::LosePacket),
            (trouble(faults.damage), Step::Damage),
            (trouble(faults.copy), Step::Copy),
            (trouble(faults.copy), Step::LoseCopies),
            (trouble(faults.late), Step::Shelve),
            (trouble(faults.late * 10), Step::Bring),
        ]);
        let index = self.dice.below(self.slots.len());
        match step {
            Step::Wait => self.wait(),
            Step::Begin => self.begin(index),
            Step::Advance => self.advance(index),
            Step::Maintain => self.maintain(index),
            Step::Publish => self.publish(index),
            Step::Work => self.work(index),
            Step::Beat => self.beat(index),
            Step::Close => self.close(index),
            Step::Conclude => self.conclude(index),
            Step::Deliver => self.deliver(),
            Step::Consume => self.consume(),
            Step::Watch => self.watch(),
            Step::GiveBack => self.give_back(index),
            Step::Start => self.start(index),
            Step::Drain => self.drain(index),
            Step::Kill => self.end(index, "killed"),
            Step::LosePower => self.lose_power(index),
            Step::Doom => self.doom(index),
            Step::JumpClock => self.step_clock(),
            Step::LoseMessages => self.lose_messages(),
            Step::RepeatMessage => {
                let consumer = self.dice.below(self.consumers.len());
                let consumer = &mut self.consumers[consumer];
                self.stream.repeat(consumer, &mut self.dice);
            }
            Step::LosePacket if !self.packets.is_empty() => {
                let lost = self.dice.below(self.packets.len());
                self.packets.swap_remove(lost);
            }
            Step::LosePacket => {}
            Step::Damage => self.damage(index),
            Step::Copy => self.copy(index),
            Step::LoseCopies => self.lose_copies(index),
            Step::Shelve => self.shelve(index),
            Step::Bring => self.bring(index),
        }
    }

    /// Mostly milliseconds, now and then longer than anybody's patience.
    fn wait(&mut self) {
        let millis = match self.dice.chance(80) {
            true => self.dice.between(1_000, 8_000),
            false => self.dice.between(1, 20),
        };
        self.now += Duration::from_millis(millis.unsigned_abs());
    }

    fn begin(&mut self, index: usize) {
        let payers: Vec<Payer> = payers().map(|(payer, _, _)| payer).collect();
        let Some((quota, orgs)) = payers.split_last() else {
            return;
        };
        // Some calls take their time, and their upstreams say what they cost.
        let route = self.dice.chance(STREAMS).then(|| {
            let route = self.dice.below(self.routes.len());
            Rc::clone(&self.routes[route])
        });
        let most = match &route {
            Some(route) => route.most(),
            None => self.dice.between(1, COST_MAX),
        };
        let call = Call {
            id: self.figures.calls + 1,
            payer: orgs[self.dice.below(orgs.len())],
            quota: self.dice.chance(150).then_some(*quota),
            most,
            route,
            durability: match self.dice.chance(300) {
                true => Durability::Disk,
                false => Durability::Process,
            },
            stage: Stage::Admission,
        };
        let Some(running) = &mut self.slots[index].running else {
            return;
        };
        if !running.is_draining && running.calls.len() < CALLS_MAX {
            self.figures.calls += 1;
            self.figures.streams += u64::from(call.route.is_some());
            running.calls.push(call);
        }
    }

    fn advance(&mut self, index: usize) {
        let (now, mutation) = (self.now, self.mutation);
        let Some(running) = &mut self.slots[index].running else {
            return;
        };
        if running.calls.is_empty() {
            return;
        }
        let call = self.dice.below(running.calls.len());
        let journal = running.life.own.id();
        let low = running.life.is_low(running.calls[call].payer);
        let payer = running.calls[call].payer;
        match running.advance(call, now, mutation, &mut self.dice) {
            Progress::Waits | Progress::Gone => {}
            Progress::Noted(id, due) => {
                let noted = self.noted.entry(id);
                noted.or_insert((journal, Vec::new())).1.push(due);
            }
            Progress::Asks(payer, minimum) => {
                let again = self.dice.chance(ASK_AGAIN);
                self.ask(index, payer, minimum, again);
            }
            Progress::Recorded(seq, cost, id) => {
                self.written.insert((journal, seq), (id, cost));
                self.note(format!("{index}: call {id} costs {cost}, {journal}/{seq}"));
            }
            Progress::Done(done) => {
                self.note(format!("{index}: {done:?}"));
                self.figures.done += 1;
                self.done.push(done);
            }
        }
        if low {
            self.ask(index, payer, 1, false);
        }
    }

    fn maintain(&mut self, index: usize) {
        let now = u64::try_from(self.now.as_millis()).unwrap();
        let Some(running) = &self.slots[index].running else {
            return;
        };
        let fate = running.life.own.journal.maintain(now);
        self.died(index, fate.is_err());
    }

    /// A message is stored or not, and the gateway hears of it or not.
    fn publish(&mut self, index: usize) {
        let (mutation, short) = (self.mutation, self.faults.short);
        let Some(running) = &mut self.slots[index].running else {
            return;
        };
        let Ok(parcel) = running.next_parcel(mutation, short, &mut self.dice) else {
            assert!(self.damaged, "an undamaged journal can be read");
            return;
        };
        let Some((journal, mut parcel)) = parcel else {
            return;
        };
        if mutation == Mutation::HideGaps {
            let mut batch = UsageBatch::decode(&*parcel.payload).expect("a batch");
            batch.gaps.clear();
            parcel.payload = batch.encode_to_vec();
        }
        let hidden = mutation == Mutation::HideGaps && parcel.payload.len() < EMPTY_BYTES;
        loop {
            // What is not acknowledged is published again, until it is.
            let (is_stored, is_heard) = (
                !self.dice.chance(self.faults.loss),
                !self.dice.chance(self.faults.loss),
            );
            if is_stored && !hidden {
                self.stream
                    .store(&mut self.consumers, &parcel.subject, &parcel.payload);
            }
            if is_stored && is_heard {
                break;
            }
        }
        self.note(format!("{index}: {journal} shipped to {}", parcel.next));
        let now = self.now;
        if let Some(line) = self.slots[index].line(journal) {
            line.published(parcel.next);
            if mutation == Mutation::TrimOnAcknowledgement {
                for consumer in runtime::USAGE_CONSUMERS {
                    line.applied(consumer, parcel.next, now);
                }
            }
        }
    }

    fn work(&mut self, index: usize) {
        let now = self.now;
        let Some(running) = &mut self.slots[index].running else {
            return;
        };
        match running.work(now, &mut self.figures) {
            Ok(true) => {
                self.note(format!("{index}: stopped in order"));
                self.slots[index].running = None;
                self.figures.stops += 1;
            }
            fate => self.died(index, fate.is_err()),
        }
    }

    fn beat(&mut self, index: usize) {
        let number = self.dice.next();
        let now = self.now;
        let Some(running) = &mut self.slots[index].running else {
            return;
        };
        if running.is_retired {
            return;
        }
        if running.beat.take().is_some() {
            running.life.missed();
        }
        let beat = running.life.beat(now);
        let (journal, reports) = (running.life.own.id(), beat.reports());
        running.beat = Some((number, beat));
        let unanswered: Vec<Payer> = running.asked.values().map(|it| it.payer).collect();
        self.send(Packet::Heartbeat(journal, number, reports));
        for payer in unanswered {
            if self.dice.chance(ASK_AGAIN) {
                self.ask(index, payer, 1, true);
            }
        }
    }

    fn close(&mut self, index: usize) {
        let now = self.now;
        let Some(running) = &mut self.slots[index].running else {
            return;
        };
        let fate = running.life.close_spent(now);
        self.died(index, fate.is_err());
    }

    /// Asks the wallet to end what is to be ended: earlier journals, or the own one.
    fn conclude(&mut self, index: usize) {
        let now = self.now;
        let Some(running) = &mut self.slots[index].running else {
            return;
        };
        let own = running.life.own.id();
        let concluded = &running.concluded;
        let old = running.life.old.iter();
        let asks = old.filter(|line| !concluded.contains(&line.id()) || line.is_due());
        let mut ends: Vec<JournalId> = asks.map(|line| line.id()).collect();
        let mut fate = Ok(false);
        if running.is_draining {
            running.asked.clear();
            running.queue.clear();
            fate = running.drain(now);
        }
        if let Ok(true) = fate {
            ends.push(own);
        }
        ends.into_iter()
            .for_each(|journal| self.send(Packet::Retire(journal, own)));
        self.died(index, fate.is_err());
    }

    fn consume(&mut self) {
        let index = self.dice.below(self.consumers.len());
        let told = self.consumers[index].step(
            &self.stream,
            &mut self.bank,
            &mut self.effects,
            self.mutation,
            &mut self.dice,
        );
        for (consumer, journal, watermark) in told {
            self.send(Packet::Applied(consumer, journal, watermark));
        }
    }

    /// The wallet looks for silent owners.
    fn watch(&mut self) {
        let now = self.wallet_time();
        let ago = |span| now.checked_sub(span).unwrap();
        self.bank.mark_orphans(ago(ORPHAN), now);
        if self.mutation == Mutation::ReleaseByTimer {
            let orphaned = |id: &types::LeaseId| {
                let lease = self.bank.lease(*id);
                lease.is_some_and(|lease| lease.state == "orphaned")
            };
            let silent: Vec<_> = self.bank.leases().filter(orphaned).collect();
            silent
                .into_iter()
                .for_each(|id| self.bank.release_untold(id));
        }
        self.figures.write_offs += self.bank.write_off(ago(WRITE_OFF));
    }

    fn give_back(&mut self, index: usize) {
        let payers: Vec<Payer> = payers().map(|(payer, _, _)| payer).collect();
        let payer = payers[self.dice.below(payers.len())];
        let kept = i64::try_from(self.dice.below(4)).expect("below 4");
        if let Some(running) = &mut self.slots[index].running {
            running.life.give_back_idle(payer, kept);
        }
    }

    pub(super) fn start(&mut self, index: usize) {
        if self.slots[index].running.is_some() || self.is_resting {
            return;
        }
        let (id, now) = (JournalId::new(self.new_id()), self.now);
        self.note(format!("{index}: starts as {id}"));
        let fate = self.slots[index].start(id, now);
        if let Some(running) = &self.slots[index].running {
            self.damaged |= !running.life.damage.is_empty();
        }
        self.died(index, fate.is_err());
    }

    fn drain(&mut self, index: usize) {
        if let Some(running) = &mut self.slots[index].running {
            running.is_draining = true;
            running
                .calls
                .retain(|call| !matches!(call.stage, Stage::Admission));
            self.note(format!("{index}: drains"));
        }
    }

    /// The process ends here; what it has written stays.
    pub(super) fn end(&mut self, index: usize, how: &str) {
        let Some(running) = self.slots[index].running.take() else {
            return;
        };
        let journal = &running.life.own.journal;
        let ended = (running.life.own.id(), journal.synced_seq());
        drop(running);
        self.slots[index].ended.push(ended);
        self.figures.kills += 1;
        self.note(format!("{index}: dies {how}"));
        if self.faults.power > 0 && self.dice.chance(500) {
            self.lose_power(index);
        }
    }

    fn lose_power(&mut self, index: usize) {
        if self.slots[index].running.is_some() {
            return self.end(index, "killed");
        }
        let ended = std::mem::take(&mut self.slots[index].ended);
        self.note(format!("{index}: loses power, synced were {ended:?}"));
        self.unsynced_from.extend(ended);
        self.figures.power_failures += 1;
        self.slots[index].disk.lose_power(&mut self.dice);
    }

    fn doom(&mut self, index: usize) {
        let (operations, takes_effect) = (self.dice.below(12), self.dice.chance(500));
        let operations = u64::try_from(operations).unwrap();
        self.slots[index].disk.doom(operations, takes_effect);
        self.figures.faults += 1;
    }

    /// Minutes or days, forwards or backwards.
    fn step_clock(&mut self) {
        let minutes = match self.dice.chance(500) {
            true => self.dice.between(-25 * 60, 25 * 60),
            false => self.dice.between(-5, 5),
        };
        self.clock += SignedDuration::from_mins(minutes);
        self.figures.faults += 1;
        self.note(format!("the wallet's clock is {:#} off", self.clock));
    }

    fn lose_messages(&mut self) {
        self.stream.lose(&mut self.dice);
        self.figures.faults += 1;
        self.note("the stream loses what it had acknowledged".to_owned());
    }
}
