//! Everything together: gateways, network, stream, consumers and wallet, moved by one dice.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use proto::{
    keys::v1::{self as keys, UnitPrice},
    wallet::v1::Lease,
};
use tempfile::TempDir;
use types::{JournalId, KeyId, LeaseId, OrgId};
use uuid::Uuid;
use wallet::cores::{Account, Answer, Ask, Bank};

use gateway::cores::{Lent, Payer, Route};

use super::{
    Faults, Figures, Mutation, Scenario,
    copies::Shelved,
    dice::Dice,
    gateway::{Asked, Done, Running, Slot},
    stream::{Consumer, Effects, Stream},
};

/// Steps that are printed when something is wrong.
const TRACE_STEPS: usize = 60;
/// Packets under way at most; more are lost.
const PACKETS_MAX: usize = 40;
/// Recalls before an ask is refused.
const RECALLS_MAX: u32 = 2;
/// Asks of one payer that are not answered.
const ASKED_MAX: usize = 2;
/// So many of a thousand do not wait for the answer to an earlier ask.
const HASTY: usize = 200;
/// So many of a thousand requests go at once, with what waits.
const GOES: usize = 500;
/// What each organisation holds at the beginning, and each key may call.
pub(super) const CREDITS: i64 = 600;
pub(super) const PERMITS: i64 = 120;
pub(super) const ORGS: u128 = 2;
/// The most that a call costs whose upstream reports it.
const PRICED_MAX: i64 = 12;

/// What travels between gateways and wallet, and from consumers to gateways.
#[derive(Clone, Debug)]
pub(super) enum Packet {
    /// Asks that travel together, and how often others were asked to give back for them.
    Acquire(JournalId, Vec<Ask>, u32),
    /// To one of them: answers come one by one, and each may be lost.
    Answer(JournalId, [u8; 16], Answer),
    Heartbeat(JournalId, u64, Vec<(LeaseId, i64, i64)>),
    Heard(JournalId, u64, Vec<LeaseId>),
    Recall(JournalId, LeaseId),
    Recalled(JournalId, LeaseId, i64),
    /// With the life that asks, which alone gets the answer.
    Retire(JournalId, JournalId),
    Retired(JournalId, JournalId, Vec<Lease>),
    Applied(&'static str, JournalId, u64),
}

/// The simulated world.
pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) mutation: Mutation,
    pub(super) faults: Faults,
    pub(super) now: Duration,
    /// The wallet's clock, against the true time.
    pub(super) clock: SignedDuration,
    pub(super) slots: Vec<Slot>,
    pub(super) bank: Bank,
    pub(super) stream: Stream,
    pub(super) consumers: Vec<Consumer>,
    pub(super) effects: Effects,
    pub(super) packets: Vec<Packet>,
    /// What clients have got in full.
    pub(super) done: Vec<Done>,
    /// Records written: call and cost, by journal and number as they were in memory.
    pub(super) written: BTreeMap<(JournalId, u64), (u64, i64)>,
    /// What a call costs if its gateway dies, as noted again and again, and in whose journal.
    pub(super) noted: BTreeMap<u64, (JournalId, Vec<i64>)>,
    /// First number that a power failure may have taken, by journal.
    pub(super) unsynced_from: BTreeMap<JournalId, u64>,
    pub(super) figures: Figures,
    pub(super) trace: VecDeque<String>,
    /// Of all that has happened.
    pub(super) digest: u64,
    pub(super) ids: u128,
    pub(super) damaged: bool,
    /// Records that were damaged, and the journals that they were in.
    pub(super) hit: BTreeSet<(JournalId, u64)>,
    pub(super) damaged_journals: BTreeSet<JournalId>,
    pub(super) routes: Vec<Rc<Route>>,
    /// Copies of journals that nobody has found yet.
    pub(super) shelf: Vec<Shelved>,
    /// Who has stopped in order stays away.
    pub(super) is_resting: bool,
    dir: TempDir,
}

pub(super) fn payers() -> impl Iterator<Item = (Payer, Account, i64)> {
    let orgs = (1..=ORGS).map(|n| {
        let org = OrgId::new(Uuid::from_u128(n));
        (Payer::Credits(org), Account::Credits(org), CREDITS)
    });
    let key = KeyId::new(Uuid::from_u128(9));
    orgs.chain([(Payer::Permits(key), Account::Permits(key), PERMITS)])
}

fn account(payer: Payer) -> Account {
    match payer {
        Payer::Credits(org) => Account::Credits(org),
        Payer::Permits(key) => Account::Permits(key),
    }
}

/// Routes whose calls cost what their upstreams report: each policy for calls that break off, each
/// for what is not reported.
fn routes() -> Vec<Rc<Route>> {
    let policies = [
        ("max_cost", "answered", "answered"),
        ("estimate", "answered", "answered"),
        ("estimate", "forwarded", "free"),
        ("base", "free", "answered"),
    ];
    let route = |(unreported, on_client_abort, on_server_abort): (&str, &str, &str)| {
        let route = keys::Route {
            unit_prices: vec![UnitPrice {
                unit: "tokens".to_owned(),
                credits: 1,
                per: 10,
                bytes_per_unit: 100,
                ..UnitPrice::default()
            }],
            max_cost: PRICED_MAX,
            unreported: unreported.to_owned(),
            on_client_abort: on_client_abort.to_owned(),
            on_server_abort: on_server_abort.to_owned(),
            ..keys::Route::default()
        };
        Rc::new(Route::new(route, 1).expect("it makes sense"))
    };
    policies.into_iter().map(route).collect()
}

/// In memory where that can be had: the disk that matters is the simulated one.
fn place() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    match tempfile::tempdir_in(memory) {
        Ok(dir) => dir,
        Err(_) => tempfile::tempdir().expect("a place"),
    }
}

impl World {
    pub(super) fn new(seed: u64, scenario: &Scenario) -> Self {
        let dir = place();
        let slot = |n: usize| Slot {
            dir: dir.path().join(format!("{n}")),
            disk: std::sync::Arc::default(),
            running: None,
            ended: Vec::new(),
        };
        let mut bank = Bank::new(payers().map(|(_, account, given)| (account, given)));
        if scenario.mutation == Mutation::ForgetWithinRequests {
            bank.forget_within_requests();
        }
        Self {
            dice: Dice::new(seed),
            mutation: scenario.mutation,
            faults: scenario.faults,
            now: Duration::from_secs(1),
            clock: SignedDuration::ZERO,
            slots: (0..scenario.gateways).map(slot).collect(),
            bank,
            stream: Stream::default(),
            consumers: Consumer::all(),
            effects: Effects::default(),
            packets: Vec::new(),
            done: Vec::new(),
            written: BTreeMap::new(),
            noted: BTreeMap::new(),
            unsynced_from: BTreeMap::new(),
            figures: Figures::default(),
            trace: VecDeque::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            ids: 1_000,
            damaged: false,
            hit: BTreeSet::new(),
            damaged_journals: BTreeSet::new(),
            routes: routes(),
            shelf: Vec::new(),
            is_resting: false,
            dir,
        }
    }

    pub(super) fn shelf_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("shelf")
    }

    /// Notes a step, for who has to understand a failure.
    pub(super) fn note(&mut self, what: String) {
        for byte in what.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.trace.len() == TRACE_STEPS {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>12.3?} {what}", self.now));
    }

    pub(super) fn new_id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    /// The wallet's wall clock.
    pub(super) fn wallet_time(&self) -> Timestamp {
        let since = SignedDuration::try_from(self.now).expect("short");
        let noon = Timestamp::constant(1_800_000_000, 0);
        noon.checked_add(since + self.clock).expect("in range")
    }

    pub(super) fn send(&mut self, packet: Packet) {
        if self.packets.len() < PACKETS_MAX && !self.dice.chance(self.faults.loss) {
            self.packets.push(packet);
        }
    }

    /// Delivers any of the packets under way; it may come again.
    pub(super) fn deliver(&mut self) {
        if self.packets.is_empty() {
            return;
        }
        let index = self.dice.below(self.packets.len());
        let packet = match self.dice.chance(self.faults.repeat) {
            true => self.packets[index].clone(),
            false => self.packets.swap_remove(index),
        };
        self.note(format!("{packet:?}"));
        match packet {
            Packet::Acquire(journal, asks, recalls) => self.acquire(journal, &asks, recalls),
            Packet::Heartbeat(journal, number, reports) => {
                let now = self.wallet_time();
                if let Some(drain) = self.bank.heartbeat(journal, &reports, now) {
                    self.send(Packet::Heard(journal, number, drain));
                }
            }
            Packet::Recalled(journal, lease, returned) => {
                self.bank.take_back(journal, lease, returned);
            }
            Packet::Retire(journal, by) => {
                let open = self.bank.retire(journal, self.wallet_time());
                if self.mutation == Mutation::CloseWithoutFinalCount {
                    let ids = open
                        .iter()
                        .map(|lease| LeaseId::from_slice(&lease.lease_id));
                    ids.for_each(|id| self.bank.release_untold(id.expect("an id")));
                }
                self.send(Packet::Retired(journal, by, open));
            }
            Packet::Answer(..)
            | Packet::Heard(..)
            | Packet::Recall(..)
            | Packet::Retired(..)
            | Packet::Applied(..) => self.arrive(packet),
        }
    }

    /// One transaction for all asks of a request. What others may give back is asked of them, and
    /// keeps no other answer waiting.
    fn acquire(&mut self, journal: JournalId, asks: &[Ask], recalls: u32) {
        let (now, ids) = (self.wallet_time(), &mut self.ids);
        let new_lease = || {
            *ids += 1;
            LeaseId::new(Uuid::from_u128(*ids))
        };
        let answers = self.bank.acquire(journal, asks, new_lease, now);
        self.figures.requests += 1;
        self.figures.asks += u64::try_from(asks.len()).expect("a few");
        if self.dice.chance(self.faults.loss) {
            self.note("the wallet dies before it answers".to_owned());
            return;
        }
        let mut waiting = Vec::new();
        for (ask, answer) in asks.iter().zip(answers) {
            match answer {
                Answer::Short(holders) if !holders.is_empty() && recalls < RECALLS_MAX => {
                    for (journal, lease) in holders {
                        self.send(Packet::Recall(journal, lease));
                    }
                    waiting.push(*ask);
                }
                answer => self.send(Packet::Answer(journal, ask.nonce, answer)),
            }
        }
        if !waiting.is_empty() {
            self.packets
                .push(Packet::Acquire(journal, waiting, recalls + 1));
        }
    }

    /// Something arrives at a gateway, if it still lives.
    fn arrive(&mut self, packet: Packet) {
        let (now, mutation) = (self.now, self.mutation);
        let journal = match &packet {
            Packet::Answer(journal, ..)
            | Packet::Heard(journal, ..)
            | Packet::Recall(journal, ..)
            | Packet::Retired(journal, ..)
            | Packet::Applied(_, journal, _) => *journal,
            _ => unreachable!("for the wallet"),
        };
        if let Packet::Applied(consumer, _, watermark) = packet {
            for slot in &mut self.slots {
                if let Some(line) = slot.line(journal) {
                    line.applied(consumer, watermark, now);
                }
            }
            return;
        }
        let by = match &packet {
            Packet::Retired(_, by, _) => *by,
            _ => journal,
        };
        let is_its = |slot: &Slot| {
            let running = slot.running.as_ref();
            running.is_some_and(|running| running.life.own.id() == by)
        };
        let Some(index) = self.slots.iter().position(is_its) else {
            return;
        };
        let running = self.slots[index].running.as_mut().expect("just found");
        let mut reply = None;
        let fate = match packet {
            Packet::Retired(_, _, open) => running.retired(journal, &open, now, mutation),
            Packet::Answer(_, nonce, answer) => answered(running, nonce, answer, now),
            Packet::Heard(_, number, drain) => {
                running.life.drain(&drain);
                if let Some((_, beat)) = running.beat.take_if(|(sent, _)| *sent == number) {
                    running.life.was_taken(&beat);
                }
                Ok(())
            }
            Packet::Recall(_, lease) => {
                let returned = running.life.give_back(lease);
                reply = returned.map(|returned| Packet::Recalled(journal, lease, returned));
                Ok(())
            }
            _ => Ok(()),
        };
        if let Some(reply) = reply {
            self.send(reply);
        }
        self.died(index, fate.is_err());
    }

    /// A disk operation has failed: the process is dead, or it is a bug.
    pub(super) fn died(&mut self, index: usize, has_failed: bool) {
        if has_failed || self.slots[index].disk.is_dead() {
            assert!(self.slots[index].disk.is_dead(), "only a dying disk fails");
            self.end(index, "at an operation of its disk");
        }
    }

    /// Asks the wallet for credits. As in the product, what is unanswered is repeated with its
    /// nonce before anything else is asked for the same payer; but a few do not wait for that. What
    /// is asked travels with what was asked before and is not on its way yet; some of it twice.
    pub(super) fn ask(&mut self, index: usize, payer: Payer, minimum: i64, again: bool) {
        let nonce = u128::from(self.dice.next()).to_be_bytes();
        let want = minimum * self.dice.between(1, 6);
        let (chosen, is_hasty) = (self.dice.below(ASKED_MAX), self.dice.chance(HASTY));
        let (goes, is_double) = (self.dice.chance(GOES), self.dice.chance(self.faults.repeat));
        let Some(running) = &mut self.slots[index].running else {
            return;
        };
        if running.is_draining {
            return;
        }
        let own = running.asked.values().filter(|it| it.payer == payer);
        let own: Vec<Asked> = own.copied().collect();
        let asked = match own.get(chosen % own.len().max(1)) {
            Some(asked) if again => *asked,
            Some(_) if !is_hasty || own.len() == ASKED_MAX => return,
            _ => Asked {
                payer,
                nonce,
                minimum,
                want,
            },
        };
        running.asked.insert(asked.nonce, asked);
        running.queue.push(asked.nonce);
        if is_double {
            running.queue.push(asked.nonce);
        }
        if !goes {
            return;
        }
        let asks = std::mem::take(&mut running.queue).into_iter();
        // Who has its answer by now asks no more.
        let asks = asks.filter_map(|nonce| running.asked.get(&nonce));
        let asks = asks.map(|asked| Ask {
            account: account(asked.payer),
            nonce: asked.nonce,
            want: asked.want,
            minimum: asked.minimum,
        });
        let (journal, asks) = (running.life.own.id(), asks.collect());
        self.send(Packet::Acquire(journal, asks, 0));
    }
}

/// The wallet has answered an ask.
fn answered(
    running: &mut Running,
    nonce: [u8; 16],
    answer: Answer,
    now: Duration,
) -> anyhow::Result<()> {
    let Some(Asked { payer, .. }) = running.asked.remove(&nonce) else {
        return Ok(()); // nobody waits for it any more
    };
    match answer {
        Answer::Lent {
            lease,
            granted_cum,
            spend_for_micros,
        } => {
            let lent = Lent {
                lease,
                granted_cum,
                spend_for_micros,
            };
            running.take(payer, lent, now)?;
        }
        // Whoever waits for credits is told that there are none.
        Answer::Short(_) | Answer::Retired => running.refuse(payer),
    }
    Ok(())
}
