//! The inbox: per consumer and journal the set of applied records, as ranges in PostgreSQL.
//!
//! Reading locks the journal's row until the transaction ends, so two instances of a consumer
//! cannot apply the same record; merging happens in the transaction of the effect itself.
//!
//! The statements are built from the consumer's schema, a constant of the program, because one
//! implementation serves every consumer and `query!` knows neither that nor multiranges.
#![expect(
    clippy::disallowed_methods,
    reason = "one inbox for all schemas; the schema's name is a constant, never input"
)]

use std::collections::BTreeMap;

use proto::events::v1::{Gap, GapCause, UsageBatch};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use types::JournalId;

/// Gaps of one batch. A journal's owner sends one before the records it lies before.
const GAPS_MAX: usize = 64;
/// Records of one gap; a journal with that many would be larger than any high-water mark.
const GAP_RECORDS_MAX: u64 = 1 << 32;
/// Numbers are `int8` in the inbox.
const SEQ_MAX: u64 = 1 << 62;

/// Half-open ranges of sequence numbers, sorted and disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    pub(crate) fn contains(&self, seq: u64) -> bool {
        let after = self.0.partition_point(|(low, _)| *low <= seq);
        after > 0 && self.0.get(after - 1).is_some_and(|(_, high)| seq < *high)
    }

    /// The first number that is missing.
    pub(crate) fn watermark(&self) -> u64 {
        match self.0.first() {
            Some((0, high)) => *high,
            _ => 0,
        }
    }

    /// Adds a number; false when it was there.
    pub(crate) fn insert(&mut self, seq: u64) -> bool {
        if self.contains(seq) {
            return false;
        }
        let at = self.0.partition_point(|(low, _)| *low <= seq);
        let joins_left = at > 0 && self.0.get(at - 1).is_some_and(|(_, high)| *high == seq);
        let joins_right = self.0.get(at).is_some_and(|(low, _)| *low == seq + 1);
        match (joins_left, joins_right) {
            (true, true) => {
                let (_, high) = self.0.remove(at);
                if let Some(left) = self.0.get_mut(at - 1) {
                    left.1 = high;
                }
            }
            (true, false) => {
                if let Some(left) = self.0.get_mut(at - 1) {
                    left.1 = seq + 1;
                }
            }
            (false, true) => {
                if let Some(right) = self.0.get_mut(at) {
                    right.0 = seq;
                }
            }
            (false, false) => self.0.insert(at, (seq, seq + 1)),
        }
        true
    }

    /// Adds a range; the parts of it that were not there.
    pub(crate) fn cover(&mut self, from: u64, below: u64) -> Vec<(u64, u64)> {
        let first = self.0.partition_point(|(_, high)| *high < from);
        let behind = self.0.partition_point(|(low, _)| *low <= below);
        let (mut low, mut high, mut next) = (from, below, from);
        let mut new = Vec::new();
        for (known_low, known_high) in self.0.drain(first..behind) {
            if next < known_low {
                new.push((next, known_low));
            }
            next = next.max(known_high);
            (low, high) = (low.min(known_low), high.max(known_high));
        }
        if next < below {
            new.push((next, below));
        }
        self.0.insert(first, (low, high));
        new
    }
}

fn bound(text: Option<i64>) -> u64 {
    text.and_then(|bound| u64::try_from(bound).ok())
        .unwrap_or(0)
}

/// Locks the inboxes of the journals in id order and reads what is applied. With it, the server's
/// timeline: what was committed on another one may not be here.
pub(crate) async fn lock(
    connection: &mut PgConnection,
    schema: &'static str,
    journals: &[JournalId],
) -> sqlx::Result<(String, BTreeMap<JournalId, Ranges>)> {
    let mut ids: Vec<uuid::Uuid> = journals.iter().map(|journal| journal.uuid()).collect();
    ids.sort_unstable();
    ids.dedup();
    let insert = format!(
        "insert into {schema}.inbox (journal_id, applied, updated_at)
         select id, '{{}}'::int8multirange, now() from unnest($1::uuid[]) id order by id
         on conflict (journal_id) do nothing"
    );
    sqlx::query(AssertSqlSafe(insert))
        .bind(&ids)
        .execute(&mut *connection)
        .await?;
    let lock = format!(
        "select left(pg_walfile_name(pg_current_wal_lsn()), 8) as timeline from {schema}.inbox
          where journal_id = any($1) order by journal_id for update"
    );
    let locked = sqlx::query(AssertSqlSafe(lock))
        .bind(&ids)
        .fetch_all(&mut *connection)
        .await?;
    let timeline = locked.first().map(|row| row.try_get("timeline"));
    let read = format!(
        "select i.journal_id, lower(r) as low, upper(r) as high
           from {schema}.inbox i, unnest(i.applied) r
          where i.journal_id = any($1) order by i.journal_id, lower(r)"
    );
    let rows = sqlx::query(AssertSqlSafe(read))
        .bind(&ids)
        .fetch_all(&mut *connection)
        .await?;
    let mut found: BTreeMap<JournalId, Ranges> = ids
        .iter()
        .map(|id| (JournalId::new(*id), Ranges::default()))
        .collect();
    for row in rows {
        let journal = JournalId::new(row.try_get("journal_id")?);
        let range = (bound(row.try_get("low")?), bound(row.try_get("high")?));
        found.entry(journal).or_default().0.push(range);
    }
    Ok((timeline.transpose()?.unwrap_or_default(), found))
}

/// Writes the ranges back. The rows are locked by this transaction.
pub(crate) async fn save(
    connection: &mut PgConnection,
    schema: &'static str,
    inbox: &BTreeMap<JournalId, Ranges>,
) -> sqlx::Result<()> {
    let (mut journals, mut lows, mut highs) = (Vec::new(), Vec::new(), Vec::new());
    for (journal, ranges) in inbox {
        for (low, high) in &ranges.0 {
            journals.push(journal.uuid());
            lows.push(i64::try_from(*low).unwrap_or(i64::MAX));
            highs.push(i64::try_from(*high).unwrap_or(i64::MAX));
        }
    }
    let statement = format!(
        "update {schema}.inbox i
            set applied = i.applied + n.applied, updated_at = now()
           from (select journal_id, range_agg(int8range(low, high)) as applied
                   from unnest($1::uuid[], $2::int8[], $3::int8[]) u (journal_id, low, high)
                  group by journal_id) n
          where i.journal_id = n.journal_id"
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(&journals)
        .bind(&lows)
        .bind(&highs)
        .execute(connection)
        .await?;
    Ok(())
}

/// The watermarks of the journals that were applied to last.
pub(crate) async fn watermarks(
    connection: &mut PgConnection,
    schema: &'static str,
    limit: i64,
) -> sqlx::Result<Vec<(JournalId, u64)>> {
    let statement = format!(
        "select journal_id, case when applied @> 0::int8
                                 then (select min(upper(r)) from unnest(applied) r) else 0 end
                            as watermark
           from {schema}.inbox order by updated_at desc limit $1"
    );
    let rows = sqlx::query(AssertSqlSafe(statement))
        .bind(limit)
        .fetch_all(connection)
        .await?;
    let read = |row: &sqlx::postgres::PgRow| {
        let journal = JournalId::new(row.try_get("journal_id")?);
        Ok((journal, bound(row.try_get("watermark")?)))
    };
    rows.iter().map(read).collect()
}

/// Notes for good what will never come. Each part is new to the inbox, so it is noted once.
pub(crate) async fn note_gaps(
    connection: &mut PgConnection,
    schema: &'static str,
    lost: &[Lost],
) -> sqlx::Result<()> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let column = |column: fn(&Lost) -> u64| -> Vec<i64> {
        lost.iter().map(|gap| number(column(gap))).collect()
    };
    let journals: Vec<uuid::Uuid> = lost.iter().map(|gap| gap.journal.uuid()).collect();
    let causes: Vec<&str> = lost.iter().map(|gap| cause(gap.cause)).collect();
    let statement = format!(
        "insert into {schema}.gaps (journal_id, from_seq, below_seq, cause, at)
         select journal_id, from_seq, below_seq, cause, now()
           from unnest($1::uuid[], $2::int8[], $3::int8[], $4::text[])
                u (journal_id, from_seq, below_seq, cause)"
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(&journals)
        .bind(column(|gap| gap.from))
        .bind(column(|gap| gap.below))
        .bind(&causes)
        .execute(connection)
        .await?;
    Ok(())
}

/// Records that a consumer will never see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) journal: JournalId,
    pub(crate) from: u64,
    pub(crate) below: u64,
    pub(crate) cause: GapCause,
}

/// As in the table.
pub(crate) fn cause(cause: GapCause) -> &'static str {
    match cause {
        GapCause::Missing => "missing",
        GapCause::Damaged | GapCause::Unspecified => "damaged",
    }
}

/// Keeps a batch that breaks a rule, with its reason, once.
pub(crate) async fn bury(
    connection: &mut PgConnection,
    schema: &'static str,
    subject: &str,
    stream_seq: u64,
    reason: &str,
    payload: &[u8],
) -> sqlx::Result<bool> {
    let statement = format!(
        "insert into {schema}.dead_letters (subject, stream_seq, reason, payload, at)
         values ($1, $2, $3, $4, now())
         on conflict (payload_sha256) do nothing"
    );
    let done = sqlx::query(AssertSqlSafe(statement))
        .bind(subject)
        .bind(i64::try_from(stream_seq).unwrap_or(i64::MAX))
        .bind(reason)
        .bind(payload)
        .execute(connection)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Checks the shape every batch must have: a journal, consecutive sequence numbers, gaps apart from
/// them and from each other.
pub(crate) fn check(batch: &UsageBatch) -> Result<JournalId, String> {
    let journal =
        JournalId::from_slice(&batch.journal_id).map_err(|error| format!("journal_id: {error}"))?;
    if batch.records.is_empty() && batch.gaps.is_empty() {
        return Err("the batch has no records".to_owned());
    }
    let first = batch.records.first().map_or(0, |record| record.seq);
    for (expected, record) in (first..).zip(&batch.records) {
        if record.seq != expected {
            return Err(format!(
                "record {} stands where {expected} should",
                record.seq
            ));
        }
    }
    check_gaps(batch)?;
    Ok(journal)
}

/// A gap is believed: what it covers is never applied. So one that makes no sense is none.
fn check_gaps(batch: &UsageBatch) -> Result<(), String> {
    if GAPS_MAX < batch.gaps.len() {
        return Err(format!("{} gaps in one batch", batch.gaps.len()));
    }
    let records = batch.records.first().zip(batch.records.last());
    let records = records.map(|(first, last)| (first.seq, last.seq));
    let mut before = 0;
    for Gap { from, below, .. } in &batch.gaps {
        let gap = format!("gap [{from}, {below})");
        if below <= from {
            return Err(format!("{gap} is empty"));
        }
        if GAP_RECORDS_MAX < below - from || SEQ_MAX < *below {
            return Err(format!("{gap} is too long"));
        }
        if *from < before {
            return Err(format!("{gap} begins before {before}"));
        }
        if records.is_some_and(|(first, last)| *from <= last && first < *below) {
            return Err(format!("{gap} covers records of its own batch"));
        }
        before = *below;
    }
    Ok(())
}
