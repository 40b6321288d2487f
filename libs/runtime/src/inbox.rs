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

use proto::events::v1::GapCause;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use types::JournalId;

use crate::batch::Ranges;

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
        GapCause::Discarded => "discarded",
        GapCause::Damaged | GapCause::Unspecified => "damaged",
    }
}
