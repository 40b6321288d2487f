//! Dead letters and discards in PostgreSQL: one implementation for the tables of all schemas.
#![expect(
    clippy::disallowed_methods,
    reason = "one table in all schemas; the schema's name is a constant, never input"
)]

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgRow};
use types::JournalId;

use crate::batch;

/// The columns of a letter but for its payload.
const COLUMNS: &str = "id, subject, stream_seq, journal_id, from_seq, below_seq, reason, at,
                       last_at, times, octet_length(payload)::int8 as bytes";

/// What others have locked is waited for so long. A trial takes locks record by record, not in the
/// order of the consumer and of acquisitions, so it gives way before PostgreSQL sees a deadlock.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '200ms'";

/// What is put aside.
pub(crate) struct Buried<'a> {
    pub(crate) subject: &'a str,
    pub(crate) stream_seq: u64,
    pub(crate) reason: &'a str,
    pub(crate) payload: &'a [u8],
}

/// A letter as it is kept.
pub(crate) struct Letter {
    pub(crate) id: i64,
    pub(crate) subject: String,
    /// Of its message when it came first.
    pub(crate) stream_seq: u64,
    /// The journal, the first number, and the one after the last.
    pub(crate) extent: Option<(JournalId, u64, u64)>,
    pub(crate) reason: String,
    pub(crate) first_at: Timestamp,
    pub(crate) last_at: Timestamp,
    pub(crate) times: i64,
    pub(crate) bytes: i64,
}

/// What became of a letter.
pub(crate) struct Discard<'a> {
    pub(crate) letter: &'a Letter,
    /// Its payload, of which the digest is kept.
    pub(crate) payload: &'a [u8],
    /// Numbers that count as applied by it: from, below.
    pub(crate) records: &'a [(u64, u64)],
    /// Those records, without what is about people.
    pub(crate) batch: &'a [u8],
    pub(crate) applied: u64,
    pub(crate) why: &'a str,
    pub(crate) by: &'a str,
    pub(crate) address: &'a str,
    pub(crate) at: Timestamp,
}

/// A decision that was made: records discarded, records applied, when.
pub(crate) struct Decided {
    pub(crate) discarded: u64,
    pub(crate) applied: u64,
    pub(crate) at: Timestamp,
}

fn wide(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn narrow(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn time(row: &PgRow, column: &str) -> sqlx::Result<Timestamp> {
    Ok(row.try_get::<jiff_sqlx::Timestamp, _>(column)?.to_jiff())
}

fn read(row: &PgRow) -> sqlx::Result<Letter> {
    let journal: Option<uuid::Uuid> = row.try_get("journal_id")?;
    let from: Option<i64> = row.try_get("from_seq")?;
    let below: Option<i64> = row.try_get("below_seq")?;
    let extent = journal.zip(from.zip(below));
    Ok(Letter {
        id: row.try_get("id")?,
        subject: row.try_get("subject")?,
        stream_seq: narrow(row.try_get("stream_seq")?),
        extent: extent.map(|(id, (from, below))| (JournalId::new(id), narrow(from), narrow(below))),
        reason: row.try_get("reason")?,
        first_at: time(row, "at")?,
        last_at: time(row, "last_at")?,
        times: row.try_get("times")?,
        bytes: row.try_get("bytes")?,
    })
}

/// Keeps what breaks a rule, with its reason, once. True when it was not there.
pub(crate) async fn bury(
    connection: &mut PgConnection,
    schema: &'static str,
    it: &Buried<'_>,
) -> sqlx::Result<bool> {
    let extent = batch::read(it.subject, it.payload).ok();
    let extent = extent.and_then(|(journal, read)| Some((journal, batch::extent(&read)?)));
    let statement = format!(
        "insert into {schema}.dead_letters as d
                (subject, stream_seq, reason, payload, at, last_at, journal_id, from_seq, below_seq)
         values ($1, $2, $3, $4, now(), now(), $5, $6, $7)
         on conflict (payload_sha256) do update
            set reason = excluded.reason, last_at = excluded.last_at, times = d.times + 1
         returning times"
    );
    let row = sqlx::query(AssertSqlSafe(statement))
        .bind(it.subject)
        .bind(wide(it.stream_seq))
        .bind(it.reason)
        .bind(it.payload)
        .bind(extent.map(|(journal, _)| journal.uuid()))
        .bind(extent.map(|(_, (from, _))| wide(from)))
        .bind(extent.map(|(_, (_, below))| wide(below)))
        .fetch_one(connection)
        .await?;
    Ok(row.try_get::<i64, _>("times")? == 1)
}

/// Takes away the letters of which every record is applied by now; how many. One that a declared
/// gap meets stays: it may be the last that has those records, and the inbox does not tell.
pub(crate) async fn sweep(
    connection: &mut PgConnection,
    schema: &'static str,
) -> sqlx::Result<u64> {
    let statement = format!(
        "delete from {schema}.dead_letters d
          using {schema}.inbox i
          where i.journal_id = d.journal_id
            and i.applied @> int8range(d.from_seq, d.below_seq)
            and not exists (select from {schema}.gaps g
                             where g.journal_id = d.journal_id
                               and g.cause <> 'discarded'
                               and g.from_seq < d.below_seq
                               and d.from_seq < g.below_seq)"
    );
    let done = sqlx::query(AssertSqlSafe(statement))
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// The records that letters have of a journal between two numbers: from, below.
pub(crate) async fn records_between(
    connection: &mut PgConnection,
    schema: &'static str,
    journal: JournalId,
    (from, below): (u64, u64),
) -> sqlx::Result<Vec<(u64, u64)>> {
    let statement = format!(
        "select subject, payload from {schema}.dead_letters
          where journal_id = $1 and from_seq < $3 and $2 < below_seq"
    );
    let rows = sqlx::query(AssertSqlSafe(statement))
        .bind(journal.uuid())
        .bind(wide(from))
        .bind(wide(below))
        .fetch_all(connection)
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let (subject, payload): (String, Vec<u8>) =
            (row.try_get("subject")?, row.try_get("payload")?);
        let read = batch::read(&subject, &payload).ok();
        found.extend(read.and_then(|(_, batch)| batch::span(&batch)));
    }
    Ok(found)
}

/// Takes away the letter with this payload: it was applied.
pub(crate) async fn take_away(
    connection: &mut PgConnection,
    schema: &'static str,
    payload: &[u8],
) -> sqlx::Result<()> {
    let statement = format!("delete from {schema}.dead_letters where payload_sha256 = sha256($1)");
    sqlx::query(AssertSqlSafe(statement))
        .bind(payload)
        .execute(connection)
        .await?;
    Ok(())
}

/// The letters behind one, the oldest first.
pub(crate) async fn list(
    connection: &mut PgConnection,
    schema: &'static str,
    after: i64,
    limit: i64,
) -> sqlx::Result<Vec<Letter>> {
    let statement =
        format!("select {COLUMNS} from {schema}.dead_letters where id > $1 order by id limit $2");
    let rows = sqlx::query(AssertSqlSafe(statement))
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

/// Keeps the transaction from waiting long for any lock.
pub(crate) async fn bound_waits(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query(LOCK_TIMEOUT).execute(connection).await?;
    Ok(())
}

/// Locks a letter and reads it with its payload.
pub(crate) async fn lock(
    connection: &mut PgConnection,
    schema: &'static str,
    id: i64,
) -> sqlx::Result<Option<(Letter, Vec<u8>)>> {
    let statement =
        format!("select {COLUMNS}, payload from {schema}.dead_letters where id = $1 for update");
    let row = sqlx::query(AssertSqlSafe(statement))
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok((read(&row)?, row.try_get("payload")?)))
        .transpose()
}

/// Takes a letter away.
pub(crate) async fn delete(
    connection: &mut PgConnection,
    schema: &'static str,
    id: i64,
) -> sqlx::Result<()> {
    let statement = format!("delete from {schema}.dead_letters where id = $1");
    sqlx::query(AssertSqlSafe(statement))
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes for good what was decided about a letter.
pub(crate) async fn note_discard(
    connection: &mut PgConnection,
    schema: &'static str,
    it: &Discard<'_>,
) -> sqlx::Result<()> {
    let (lows, highs): (Vec<i64>, Vec<i64>) = it
        .records
        .iter()
        .map(|(from, below)| (wide(*from), wide(*below)))
        .unzip();
    let statement = format!(
        "insert into {schema}.discards
                (letter_id, subject, reason, payload_sha256, journal_id, records, batch, applied,
                 why, discarded_by, address, at)
         values ($1, $2, $3, sha256($4), $5,
                 coalesce((select range_agg(int8range(low, high))
                             from unnest($6::int8[], $7::int8[]) u (low, high)), '{{}}'),
                 $8, $9, $10, $11, $12, $13)"
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(it.letter.id)
        .bind(&it.letter.subject)
        .bind(&it.letter.reason)
        .bind(it.payload)
        .bind(it.letter.extent.map(|(journal, _, _)| journal.uuid()))
        .bind(&lows)
        .bind(&highs)
        .bind(it.batch)
        .bind(wide(it.applied))
        .bind(it.why)
        .bind(it.by)
        .bind(it.address)
        .bind(it.at.to_sqlx())
        .execute(connection)
        .await?;
    Ok(())
}

/// What was decided about a letter that is gone.
pub(crate) async fn decided(
    connection: &mut PgConnection,
    schema: &'static str,
    id: i64,
) -> sqlx::Result<Option<Decided>> {
    let statement = format!(
        "select coalesce((select sum(upper(r) - lower(r)) from unnest(records) r), 0)::int8
                    as discarded,
                applied, at
           from {schema}.discards where letter_id = $1"
    );
    let row = sqlx::query(AssertSqlSafe(statement))
        .bind(id)
        .fetch_optional(connection)
        .await?;
    let decided = |row: PgRow| {
        Ok(Decided {
            discarded: narrow(row.try_get("discarded")?),
            applied: narrow(row.try_get("applied")?),
            at: time(&row, "at")?,
        })
    };
    row.map(decided).transpose()
}
