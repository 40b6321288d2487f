//! Letters of a consumer of usage: what it would do with each record now, and doing so.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use prost::Message as _;
use proto::{
    convert::timestamp,
    events::v1::{GapCause, Record, RecordKind, UsageBatch},
    letters::v1::{self as wire, Verdict},
};
use sqlx::{Acquire as _, PgConnection, Postgres, Transaction};
use tokio::sync::MutexGuard;
use tonic::{Status, async_trait};
use types::{Code, JournalId, LeaseId, RECORDS_MAX};

use super::{
    BUSY, Decision, Keeper, away, decided, events, is_busy, open, refuse, status,
    table::{self, Discard, Letter},
    take_away_whole, to_wire, unknown,
};
use crate::{
    batch::{self, Ranges},
    consume::{Apply, ApplyError, Delivery, gaps},
    crash_point,
    host::Host,
    inbox::{self, Lost},
    origin,
};

/// A consumer of usage, which one task applies with and operators ask.
pub(crate) struct Desk<A> {
    host: Host,
    pub(crate) consumer: A,
    /// Whoever applies something; the consumer may keep what a transaction needs at its end.
    turn: tokio::sync::Mutex<()>,
    /// Watermarks that operators have moved, for the task that tells them.
    moved: Mutex<BTreeMap<JournalId, u64>>,
}

/// What a letter says, and what would be done about it now.
struct Case {
    journal: JournalId,
    batch: UsageBatch,
    /// What is applied of the journal, before it.
    ranges: Ranges,
    /// Records that were applied in this transaction.
    kept: Vec<Record>,
    verdicts: BTreeMap<u64, (Verdict, String)>,
}

impl Case {
    fn first_with(&self, wanted: Verdict) -> Option<(u64, &str)> {
        let mut found = self.verdicts.iter();
        let (seq, (_, reason)) = found.find(|(_, (verdict, _))| *verdict == wanted)?;
        Some((*seq, reason))
    }

    fn breaking(&self) -> Vec<Record> {
        let breaks = |record: &&Record| {
            let verdict = self.verdicts.get(&record.seq);
            matches!(verdict, Some((Verdict::Breaks, _)))
        };
        self.batch.records.iter().filter(breaks).cloned().collect()
    }
}

impl<A: Apply> Desk<A> {
    pub(crate) fn new(host: Host, consumer: A) -> Self {
        Self {
            host,
            consumer,
            turn: tokio::sync::Mutex::default(),
            moved: Mutex::default(),
        }
    }

    /// Waits until nobody else applies anything in this process.
    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Watermarks to be told, once.
    pub(crate) fn moved(&self) -> BTreeMap<JournalId, u64> {
        std::mem::take(&mut *self.moved.lock())
    }

    /// Applies in a savepoint, and undoes what is refused.
    async fn attempt(
        &self,
        connection: &mut PgConnection,
        journal: JournalId,
        records: &[Record],
    ) -> Result<Result<(), ApplyError>, Status> {
        if records.is_empty() {
            return Ok(Ok(()));
        }
        let fresh = [Delivery {
            journal,
            records: records.to_vec(),
        }];
        let mut savepoint = connection.begin().await.map_err(away)?;
        match self.consumer.apply(&mut savepoint, &fresh).await {
            Ok(()) => {
                savepoint.commit().await.map_err(away)?;
                Ok(Ok(()))
            }
            Err(ApplyError::Failed(error)) => {
                if let Some(error) = error.downcast_ref::<sqlx::Error>()
                    && is_busy(error)
                {
                    return Err(status(Code::Unavailable, BUSY));
                }
                tracing::warn!(error = format!("{error:#}"), "a letter was not applied");
                Err(status(Code::Unavailable, "it was not applied, try again"))
            }
            Err(refusal) => {
                savepoint.rollback().await.map_err(away)?;
                Ok(Err(refusal))
            }
        }
    }

    /// Applies what can be applied: all together, or else what is not refused alone.
    async fn try_out(
        &self,
        connection: &mut PgConnection,
        journal: JournalId,
        mut records: Vec<Record>,
        verdicts: &mut BTreeMap<u64, (Verdict, String)>,
    ) -> Result<Vec<Record>, Status> {
        if let Err(refusal) = self.attempt(connection, journal, &records).await? {
            tracing::debug!(%refusal, "a letter is tried record by record");
            let mut trial = connection.begin().await.map_err(away)?;
            let mut kept = Vec::with_capacity(records.len());
            for record in records {
                let alone = std::slice::from_ref(&record);
                let verdict = match self.attempt(&mut trial, journal, alone).await? {
                    Ok(()) => {
                        kept.push(record);
                        continue;
                    }
                    Err(ApplyError::Later { reason, .. }) => (Verdict::Waits, reason),
                    Err(ApplyError::Poison { reason, .. } | ApplyError::Refused(reason)) => {
                        (Verdict::Breaks, reason)
                    }
                    Err(ApplyError::Failed(error)) => (Verdict::Waits, error.to_string()),
                };
                verdicts.insert(record.seq, verdict);
            }
            trial.rollback().await.map_err(away)?;
            let together = self.attempt(connection, journal, &kept).await?;
            together.map_err(|refusal| refuse(refusal.to_string()))?;
            records = kept;
        }
        for record in &records {
            verdicts.insert(record.seq, (Verdict::Sound, String::new()));
        }
        Ok(records)
    }

    /// Locks the inbox, and applies what does not break a rule.
    async fn judge(
        &self,
        connection: &mut PgConnection,
        (journal, batch): (JournalId, UsageBatch),
    ) -> Result<Case, Status> {
        let server = origin::present(connection).await.map_err(away)?;
        let moved = origin::moved(connection, A::SCHEMA, &server).await;
        let is_behind = origin::is_behind(connection, A::SCHEMA).await;
        if moved.map_err(away)?.is_some() || is_behind.map_err(away)? {
            let text = "PostgreSQL was failed over: wait until the stream is read again";
            return Err(status(Code::Unavailable, text));
        }
        let locked = inbox::lock(connection, A::SCHEMA, &[journal]).await;
        let (_, mut inbox) = locked.map_err(away)?;
        let ranges = inbox.remove(&journal).unwrap_or_default();
        let mut verdicts = BTreeMap::new();
        let mut new = Vec::with_capacity(batch.records.len());
        for record in &batch.records {
            if ranges.contains(record.seq) {
                verdicts.insert(record.seq, (Verdict::Applied, String::new()));
            } else if let Some(flaw) = batch::flaw(record) {
                verdicts.insert(record.seq, (Verdict::Breaks, flaw));
            } else {
                new.push(record.clone());
            }
        }
        let kept = self
            .try_out(connection, journal, new, &mut verdicts)
            .await?;
        Ok(Case {
            journal,
            batch,
            ranges,
            kept,
            verdicts,
        })
    }

    /// A gap must not overtake a record on its way, from a letter either.
    async fn await_older(&self, letter: &Letter, batch: &UsageBatch) -> Result<(), Status> {
        if batch.gaps.is_empty() {
            return Ok(());
        }
        let has_older = gaps::has_older(&self.host, letter.stream_seq).await;
        let text = match has_older {
            Ok(false) => return Ok(()),
            Ok(true) => "it declares a gap, and something older is still on its way: try again",
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "NATS does not say what is older"
                );
                "NATS does not say what is older than it, try again"
            }
        };
        Err(status(Code::Unavailable, text))
    }

    /// Notes what counts as applied from now on, and takes the letter away.
    async fn conclude(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        mut case: Case,
        discard: Option<(&Discard<'_>, &[Record])>,
        letter: i64,
    ) -> Result<(), Status> {
        let journal = case.journal;
        let ranges = &mut case.ranges;
        for record in &case.kept {
            ranges.insert(record.seq);
        }
        let of = (journal, &case.batch);
        let lost = gaps::cover(&mut transaction, A::SCHEMA, ranges, of).await;
        let mut lost = lost.map_err(away)?;
        if let Some((discard, _)) = discard {
            let runs = discard.records.iter();
            lost.extend(runs.map(|(from, below)| Lost {
                journal,
                from: *from,
                below: *below,
                cause: GapCause::Discarded,
            }));
            for (from, below) in discard.records {
                ranges.cover(*from, *below);
            }
        }
        let watermark = case.ranges.watermark();
        let inbox = BTreeMap::from([(journal, case.ranges)]);
        let noted = async {
            if let Some((discard, _)) = discard {
                table::note_discard(&mut transaction, A::SCHEMA, discard).await?;
            }
            if !lost.is_empty() {
                inbox::note_gaps(&mut transaction, A::SCHEMA, &lost).await?;
            }
            inbox::save(&mut transaction, A::SCHEMA, &inbox).await?;
            table::delete(&mut transaction, A::SCHEMA, letter).await
        };
        noted.await.map_err(away)?;
        if let Some((_, records)) = discard {
            let records = records.to_vec();
            let discarded = Delivery { journal, records };
            let told = self.consumer.discarded(&mut transaction, &discarded).await;
            told.map_err(|error| refuse(error.to_string()))?;
            crash_point!("consumer.discard_written");
        }
        transaction.commit().await.map_err(away)?;
        if discard.is_some() {
            crash_point!("consumer.discard_committed");
        }
        let records = case.kept;
        if !records.is_empty() {
            self.consumer.applied(&[Delivery { journal, records }]);
        }
        self.moved.lock().insert(journal, watermark);
        Ok(())
    }

    /// Discards what breaks a rule of a letter that can be read, and applies the rest.
    async fn discard_records(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        (letter, payload): (&Letter, &[u8]),
        read: (JournalId, UsageBatch),
        decision: &Decision,
    ) -> Result<wire::DiscardLetterResponse, Status> {
        self.await_older(letter, &read.1).await?;
        let case = self.judge(&mut transaction, read).await?;
        if let Some((seq, reason)) = case.first_with(Verdict::Waits) {
            return Err(refuse(format!("record {seq} waits: {reason}")));
        }
        let breaking = case.breaking();
        let Some(last) = breaking.last() else {
            return Err(refuse(
                "nothing in it breaks a rule any more: it can be applied by `letters retry`",
            ));
        };
        check_order(&case, last.seq)?;
        let mut runs = Ranges::default();
        for record in &breaking {
            runs.insert(record.seq);
        }
        let kept = UsageBatch {
            journal_id: case.journal.bytes().to_vec(),
            records: breaking.iter().cloned().map(without_person).collect(),
            gaps: Vec::new(),
        };
        let discard = Discard {
            records: &runs.0,
            batch: &kept.encode_to_vec(),
            applied: count(&case.kept),
            ..decision.of_whole(letter, payload, &self.host)
        };
        let (discarded, applied, at) = (count(&breaking), discard.applied, discard.at);
        let journal = case.journal;
        let told = Some((&discard, breaking.as_slice()));
        self.conclude(transaction, case, told, letter.id).await?;
        tracing::warn!(
            consumer = self.host.name(),
            journal.id = %journal,
            letter = letter.id,
            discarded,
            applied,
            why = decision.why,
            by = decision.by,
            "an operator has discarded records, which this consumer never applies"
        );
        self.host
            .shared
            .usage
            .gap_records(self.host.name(), discarded);
        Ok(wire::DiscardLetterResponse {
            discarded,
            applied,
            at: Some(timestamp(at)),
        })
    }
}

#[async_trait]
impl<A: Apply> Keeper for Desk<A> {
    fn host(&self) -> &Host {
        &self.host
    }

    fn schema(&self) -> &'static str {
        A::SCHEMA
    }

    async fn look(&self, id: i64) -> Result<wire::GetLetterResponse, Status> {
        let _turn = self.turn().await;
        let (mut transaction, found) = open(self, id).await?;
        let (letter, payload) = found.ok_or_else(|| unknown(id))?;
        if !is_usage(&letter) {
            return Ok(events::show(&letter));
        }
        let (records, unreadable) = match batch::read(&letter.subject, &payload) {
            Ok(read) => {
                let case = self.judge(&mut transaction, read).await?;
                let show = |record: &Record| {
                    let verdict = case.verdicts.get(&record.seq).cloned();
                    show(record, verdict.unwrap_or_default())
                };
                (case.batch.records.iter().map(show).collect(), String::new())
            }
            Err(reason) => as_far_as_it_goes(&payload, reason),
        };
        transaction.rollback().await.map_err(away)?;
        Ok(wire::GetLetterResponse {
            letter: Some(to_wire(&letter)),
            records,
            unreadable,
        })
    }

    async fn retry(&self, id: i64) -> Result<wire::RetryLetterResponse, Status> {
        let _turn = self.turn().await;
        let (mut transaction, found) = open(self, id).await?;
        let (letter, payload) = found.ok_or_else(|| unknown(id))?;
        if !is_usage(&letter) {
            drop(transaction);
            return events::publish(&self.host, letter, payload).await;
        }
        let read = batch::read(&letter.subject, &payload).map_err(refuse)?;
        self.await_older(&letter, &read.1).await?;
        let case = self.judge(&mut transaction, read).await?;
        let stands = case.first_with(Verdict::Breaks);
        if let Some((seq, reason)) = stands.or_else(|| case.first_with(Verdict::Waits)) {
            return Err(refuse(format!("record {seq}: {reason}")));
        }
        let applied = count(&case.kept);
        self.conclude(transaction, case, None, id).await?;
        Ok(wire::RetryLetterResponse {
            applied,
            is_gone: true,
        })
    }

    async fn discard(&self, decision: &Decision) -> Result<wire::DiscardLetterResponse, Status> {
        let _turn = self.turn().await;
        let (transaction, found) = open(self, decision.id).await?;
        let Some((letter, payload)) = found else {
            return decided(self, transaction, decision.id).await;
        };
        let it = (&letter, payload.as_slice());
        match batch::read(&letter.subject, &payload) {
            Ok(read) if is_usage(&letter) && !decision.is_forged => {
                self.discard_records(transaction, it, read, decision).await
            }
            _ => take_away_whole(self, transaction, it, decision).await,
        }
    }
}

/// Other letters are of events that the service follows.
fn is_usage(letter: &Letter) -> bool {
    letter.subject.starts_with("usage.v1.")
}

fn count(records: &[Record]) -> u64 {
    u64::try_from(records.len()).unwrap_or(u64::MAX)
}

/// What is before the last of them must be applied, or go with it. Else it may be on its way, and
/// what comes later says totals that count on it; or the journal has never come so far.
fn check_order(case: &Case, last: u64) -> Result<(), Status> {
    let mut after = case.ranges.clone();
    for record in &case.batch.records {
        after.insert(record.seq);
    }
    batch::unreadable(&mut after, &case.batch);
    let watermark = after.watermark();
    if last < watermark {
        return Ok(());
    }
    Err(refuse(format!(
        "record {watermark} of {} is not applied yet and comes before record {last}: wait for it, \
         or look after its own letter first; if the journal has never written this one, discard \
         it as forged",
        case.journal
    )))
}

/// What is kept for good says nothing of where a client was, what with, and what it asked for.
fn without_person(mut record: Record) -> Record {
    if let Some(call) = &mut record.call {
        call.ip.clear();
        call.country.clear();
        call.user_agent.clear();
        call.endpoint.clear();
        call.traceparent.clear();
    }
    record
}

/// The first records of what is no batch, no more than one has; and why it is none.
fn as_far_as_it_goes(payload: &[u8], reason: String) -> (Vec<wire::RecordVerdict>, String) {
    let unknown = || (Verdict::Unknown, String::new());
    let mut records = batch::glance(payload, RECORDS_MAX.saturating_add(1));
    let more = match RECORDS_MAX < records.len() {
        true => format!("; more than the first {RECORDS_MAX} records follow"),
        false => String::new(),
    };
    records.truncate(RECORDS_MAX);
    let shown = records.iter().map(|record| show(record, unknown()));
    (shown.collect(), reason + &more)
}

fn show(record: &Record, (verdict, reason): (Verdict, String)) -> wire::RecordVerdict {
    let kind = RecordKind::try_from(record.kind).map_or_else(
        |_| format!("kind {}", record.kind),
        |kind| kind.as_str_name().replace("RECORD_KIND_", ""),
    );
    let lease = LeaseId::from_slice(&record.lease_id).map(|lease| lease.to_string());
    wire::RecordVerdict {
        seq: record.seq,
        kind,
        lease_id: lease.unwrap_or_default(),
        cost: record.cost,
        cum: record.cum,
        verdict: verdict.into(),
        reason,
    }
}
