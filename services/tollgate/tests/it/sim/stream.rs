//! The stream that loses and repeats, and its four consumers, each with an inbox.

use std::collections::{BTreeMap, BTreeSet};

use proto::events::v1::{Record, RecordKind};
use runtime::{Delivery, USAGE_CONSUMERS, batch};
use types::JournalId;
use wallet::cores::Bank;

use super::{Mutation, dice::Dice};

/// Messages of one transaction at most.
const MESSAGES_MAX: usize = 4;

/// What is in the stream; a lost message leaves its number.
#[derive(Default)]
pub(super) struct Stream {
    messages: Vec<Option<(String, Vec<u8>)>>,
}

/// One durable consumer.
pub(super) struct Consumer {
    pub(super) name: &'static str,
    pub(super) inbox: BTreeMap<JournalId, batch::Ranges>,
    /// Messages it has not acknowledged.
    pending: BTreeSet<usize>,
}

/// What the consumers have made of usage.
#[derive(Default)]
pub(super) struct Effects {
    /// Call and cost by journal and number.
    pub(super) rows: BTreeMap<(JournalId, u64), (u64, i64)>,
    /// Calls and costs, in all, and of which records.
    pub(super) totals: (u64, i64),
    pub(super) counted: BTreeMap<(JournalId, u64), i64>,
    pub(super) dead_letters: Vec<String>,
    /// What each consumer has noted as lost: journal, from, below.
    pub(super) gaps: BTreeMap<&'static str, Vec<(JournalId, u64, u64)>>,
    /// Records that came to a consumer after it had noted them as lost.
    pub(super) overtaken: Vec<(&'static str, JournalId, u64)>,
}

impl Effects {
    /// Whether a consumer will never have this record.
    pub(super) fn is_gap(&self, consumer: &str, (journal, seq): (JournalId, u64)) -> bool {
        let gaps = self.gaps.get(consumer).into_iter().flatten();
        let covers = |(of, from, below): &(JournalId, u64, u64)| {
            *of == journal && (*from..*below).contains(&seq)
        };
        gaps.into_iter().any(covers)
    }
}

impl Stream {
    /// Stores a message and hands it to everybody.
    pub(super) fn store(&mut self, consumers: &mut [Consumer], subject: &str, payload: &[u8]) {
        let number = self.messages.len();
        self.messages
            .push(Some((subject.to_owned(), payload.to_vec())));
        for consumer in consumers {
            consumer.pending.insert(number);
        }
    }

    /// Loses one of the last messages, or all.
    pub(super) fn lose(&mut self, dice: &mut Dice) {
        if dice.chance(100) {
            self.messages.iter_mut().for_each(|message| *message = None);
        } else if let Some(last) = self.messages.len().checked_sub(1) {
            let lost = last - dice.below(self.messages.len().min(8));
            self.messages[lost] = None;
        }
    }

    /// Hands an old message to a consumer once more.
    pub(super) fn repeat(&self, consumer: &mut Consumer, dice: &mut Dice) {
        consumer.pending.insert(dice.below(self.messages.len()));
    }
}

/// The watermarks that a consumer tells: consumer, journal, number.
pub(super) type Told = Vec<(&'static str, JournalId, u64)>;

impl Consumer {
    pub(super) fn all() -> Vec<Self> {
        let consumer = |name: &&'static str| Self {
            name,
            inbox: BTreeMap::new(),
            pending: BTreeSet::new(),
        };
        USAGE_CONSUMERS.iter().map(consumer).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn watermark(&self, journal: JournalId) -> u64 {
        self.inbox.get(&journal).map_or(0, batch::Ranges::watermark)
    }

    /// What an instance tells when it begins.
    pub(super) fn begin(&self) -> Told {
        let journals = self.inbox.iter();
        let told = journals.map(|(journal, ranges)| (self.name, *journal, ranges.watermark()));
        told.collect()
    }

    /// One transaction on a few messages, in any order. It commits; then the instance may die
    /// before it acknowledges.
    pub(super) fn step(
        &mut self,
        stream: &Stream,
        bank: &mut Bank,
        effects: &mut Effects,
        mutation: Mutation,
        dice: &mut Dice,
    ) -> Told {
        let mut taken = Vec::new();
        for _ in 0..=dice.below(MESSAGES_MAX) {
            let Some(number) = self.pending.iter().nth(dice.below(self.pending.len())) else {
                break;
            };
            if !taken.contains(number) {
                taken.push(*number);
            }
        }
        let mut inbox = self.inbox.clone();
        let mut fresh: Vec<(usize, Delivery)> = Vec::new();
        let mut lost = Vec::new();
        let mut journals = BTreeSet::new();
        let (mut applied, mut overtaken) = (Vec::new(), Vec::new());
        for number in &taken {
            let Some((subject, payload)) = stream.messages.get(*number).and_then(Option::as_ref)
            else {
                self.pending.remove(number); // lost
                continue;
            };
            let opened = batch::open(subject, payload);
            let (journal, mut batch) = opened.expect("gateways ship well-formed batches");
            let has_older = self.pending.range(..number).next().is_some();
            if !batch.gaps.is_empty() && has_older && mutation != Mutation::GapsOvertake {
                batch.gaps.clear(); // what is older may bring what is lost
            } else {
                applied.push(*number);
            }
            let name = self.name;
            let seqs = batch.records.iter().map(|record| record.seq);
            let came_late = seqs.filter(|seq| effects.is_gap(name, (journal, *seq)));
            overtaken.extend(came_late.map(|seq| (name, journal, seq)));
            journals.insert(journal);
            let ranges = inbox.entry(journal).or_default();
            let unseen = batch::unseen(ranges, &batch);
            let unreadable = batch::unreadable(ranges, &batch).into_iter();
            lost.extend(unreadable.map(|(from, below, _)| (journal, from, below)));
            if let (Mutation::GapsSwallowRecords, Some(gap)) = (mutation, batch.gaps.first()) {
                ranges.cover(0, gap.below);
            }
            let adds_all = mutation == Mutation::AddWithoutInbox && self.name == "stats-aggregator";
            let records = if adds_all { batch.records } else { unseen };
            if !records.is_empty() {
                fresh.push((*number, Delivery { journal, records }));
            }
        }
        if dice.chance(60) {
            return Vec::new(); // rolled back
        }
        let deliveries: Vec<Delivery> = fresh.iter().map(|(_, it)| it.clone()).collect();
        if self.name == "wallet"
            && let Err((index, reason)) = bank.settle(&deliveries)
        {
            effects.dead_letters.push(reason);
            self.pending.remove(&fresh[index].0);
            return Vec::new();
        }
        deliveries.iter().for_each(|it| self.apply(it, effects));
        self.inbox = inbox;
        effects.overtaken.extend(overtaken);
        effects.gaps.entry(self.name).or_default().extend(lost);
        if dice.chance(100) {
            return self.begin(); // died before it acknowledged; its successor begins
        }
        applied.iter().for_each(|number| {
            self.pending.remove(number);
        });
        let told = journals.into_iter();
        told.map(|journal| (self.name, journal, self.watermark(journal)))
            .collect()
    }

    fn apply(&self, delivery: &Delivery, effects: &mut Effects) {
        let is_call = |record: &&Record| record.kind == i32::from(RecordKind::Call);
        for record in delivery.records.iter().filter(is_call) {
            match self.name {
                "usage-ingest" => {
                    let key = (delivery.journal, record.seq);
                    let row = (call_of(record), record.cost);
                    let before = effects.rows.insert(key, row);
                    assert!(before.is_none(), "{key:?} has a row already");
                }
                "stats-aggregator" => {
                    effects.totals.0 += 1;
                    effects.totals.1 += record.cost;
                    let key = (delivery.journal, record.seq);
                    effects.counted.insert(key, record.cost);
                }
                _ => {}
            }
        }
    }
}

/// The number of a call, which travels as its request id.
pub(super) fn request_id(call: u64) -> Vec<u8> {
    u128::from(call).to_be_bytes().to_vec()
}

/// The number of a record's call.
fn call_of(record: &Record) -> u64 {
    let call = record.call.as_ref().expect("a call");
    let id: [u8; 16] = call.request_id.as_slice().try_into().expect("16 bytes");
    u64::try_from(u128::from_be_bytes(id)).expect("ours")
}
