//! Idempotency keys. Whoever decides on a key has its row locked.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use types::{JournalId, RequestId};

use super::{Connection, Store, forgotten::knows_all};
use crate::{
    domain::{
        day_of,
        idempotency::{
            Asker, Holder, Key, ORG_BYTES_MAX, State, Trace, Verdict, ended_forgotten, expiry,
            judge, standing,
        },
    },
    error::{Error, Result},
};

/// A key that is freed each time somebody looks is asked for so often.
const ROUNDS_MAX: u32 = 4;
/// Expired keys that are erased in one transaction.
const ERASE_ROWS_MAX: i64 = 500;
/// Days before its beginning in which the row of a call is looked for: clocks differ.
const DAYS_BACK: i64 = 1;

/// An answer as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    pub(crate) status: i32,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) request_body: Vec<u8>,
}

/// What a call is told that asks for a key.
#[derive(Debug)]
pub(crate) enum Told {
    Verdict(Verdict),
    /// What another call was told, and which.
    Answer(RequestId, Box<Kept>),
    /// The organisation has too many keys.
    Full,
}

/// A key's row, locked.
struct Found {
    holder: Holder,
    journal: JournalId,
    begun_at: Timestamp,
}

impl Store {
    /// Gives a key to a call, or says who has it. One call at a time has it: the row is the lock,
    /// and it is committed before anything is forwarded.
    pub(crate) async fn begin_keyed(
        &self,
        key: &Key,
        asker: &Asker,
        now: Timestamp,
    ) -> Result<Told> {
        let mut tx = runtime::begin(&self.pool).await?;
        // On this very connection: another server would end it.
        if !knows_all(&mut tx).await? {
            return Err(Error::KeysForgotten);
        }
        for _ in 0..ROUNDS_MAX {
            if insert(&mut tx, key, asker, now).await? {
                tx.commit().await?;
                return Ok(Told::Verdict(Verdict::First));
            }
            let Some(found) = lock(&mut tx, key).await? else {
                if is_full(&mut tx, key).await? {
                    return Ok(Told::Full);
                }
                continue; // it was freed between the two
            };
            // A statement of its own, after the lock.
            let trace = trace(&mut tx, &found).await?;
            let verdict = judge(&found.holder, asker, trace, now);
            let told = match verdict {
                Verdict::First => {
                    take_over(&mut tx, key, asker, now).await?;
                    Told::Verdict(verdict)
                }
                Verdict::Answered => {
                    settle(&mut tx, key, &found.holder, trace, now).await?;
                    let kept = kept(&mut tx, key).await?;
                    Told::Answer(found.holder.request, Box::new(kept))
                }
                Verdict::NotKept => {
                    settle(&mut tx, key, &found.holder, trace, now).await?;
                    Told::Verdict(verdict)
                }
                Verdict::InFlight | Verdict::Reused => Told::Verdict(verdict),
            };
            tx.commit().await?;
            return Ok(told);
        }
        // Whoever asks again finds it free, or had.
        Ok(Told::Verdict(Verdict::InFlight))
    }

    /// Keeps the answer of the call that has the key, a day from now on; false when it does
    /// not have it any more.
    pub(crate) async fn keep_answer(
        &self,
        key: &Key,
        request: RequestId,
        answer: Kept,
        now: Timestamp,
    ) -> Result<bool> {
        let (names, values): (Vec<String>, Vec<Vec<u8>>) = answer.headers.into_iter().unzip();
        let done = sqlx::query!(
            r#"
            update usage_ingest.idempotency_keys
               set status = $5, header_names = $6, header_values = $7, body = $8,
                   request_body_sha256 = $9, expires_at = $10
             where org_id = $1 and environment = $2 and key_sha256 = $3
               and request_id = $4 and state = 'open'"#,
            key.org.uuid(),
            key.environment.as_str(),
            &key.sha256,
            request.uuid(),
            answer.status,
            &names,
            &values,
            &answer.body,
            &answer.request_body,
            expiry(now).to_sqlx() as _,
        );
        Ok(done.execute(&self.pool).await?.rows_affected() == 1)
    }

    /// Notes what the row of the call that has the key is going to say. Lost, the row says it.
    pub(crate) async fn end_keyed(
        &self,
        key: &Key,
        request: RequestId,
        counts: bool,
        now: Timestamp,
    ) -> Result<()> {
        if !counts {
            sqlx::query!(
                r#"
                delete from usage_ingest.idempotency_keys
                 where org_id = $1 and environment = $2 and key_sha256 = $3
                   and request_id = $4 and state = 'open'"#,
                key.org.uuid(),
                key.environment.as_str(),
                &key.sha256,
                request.uuid(),
            )
            .execute(&self.pool)
            .await?;
            return Ok(());
        }
        let mut tx = runtime::begin(&self.pool).await?;
        // Nothing is lost with it, so nobody waits for the disk.
        sqlx::query!("set local synchronous_commit = off")
            .execute(&mut *tx)
            .await?;
        sqlx::query!(
            r#"
            update usage_ingest.idempotency_keys
               set state = case when status is null then 'not_kept' else 'answered' end,
                   expires_at = $5
             where org_id = $1 and environment = $2 and key_sha256 = $3
               and request_id = $4 and state = 'open'"#,
            key.org.uuid(),
            key.environment.as_str(),
            &key.sha256,
            request.uuid(),
            expiry(now).to_sqlx() as _,
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Notes that a journal has ended. Refused while a record below `next_seq` is not applied: what
    /// is concluded from a missing row must be true.
    pub(crate) async fn end_journal(
        &self,
        journal: JournalId,
        next_seq: i64,
        now: Timestamp,
    ) -> Result<()> {
        let done = sqlx::query!(
            r#"
            insert into usage_ingest.ended_journals (journal_id, next_seq, ended_at)
            select $1::uuid, $2::bigint, $3::timestamptz
             where $2::bigint = 0
                or exists (select
                             from usage_ingest.inbox i
                            where i.journal_id = $1 and i.applied @> int8range(0, $2::bigint))
            on conflict (journal_id) do update set next_seq = excluded.next_seq"#,
            journal.uuid(),
            next_seq,
            now.to_sqlx() as _,
        );
        match done.execute(&self.pool).await?.rows_affected() {
            1 => Ok(()),
            _ => Err(Error::JournalUnapplied { journal }),
        }
    }

    /// Erases keys whose time has come, with their answers, and forgets journals that ended long
    /// ago; the keys erased.
    pub(crate) async fn erase_expired_keys(&self, now: Timestamp) -> sqlx::Result<u64> {
        let mut total = 0_u64;
        loop {
            let done = sqlx::query!(
                r#"
                delete from usage_ingest.idempotency_keys
                 where ctid = any (array(
                       select ctid
                         from usage_ingest.idempotency_keys
                        where expires_at <= $1
                        order by expires_at
                        limit $2
                          for update skip locked))"#,
                now.to_sqlx() as _,
                ERASE_ROWS_MAX,
            );
            let rows = done.execute(&self.pool).await?.rows_affected();
            total = total.saturating_add(rows);
            if rows < ERASE_ROWS_MAX.unsigned_abs() {
                break;
            }
        }
        sqlx::query!(
            "delete from usage_ingest.ended_journals where ended_at < $1",
            ended_forgotten(now).to_sqlx() as _,
        )
        .execute(&self.pool)
        .await?;
        Ok(total)
    }

    /// Counts keys and bytes of each organisation, and notes those that have too many.
    pub(crate) async fn count_keys(&self, keys_max: i64) -> sqlx::Result<()> {
        let mut tx = runtime::begin(&self.pool).await?;
        // One instance at a time replaces the list. Any constant will do, once.
        sqlx::query!("select pg_advisory_xact_lock(4472093816254730217)")
            .execute(&mut *tx)
            .await?;
        sqlx::query!("delete from usage_ingest.idempotency_full")
            .execute(&mut *tx)
            .await?;
        sqlx::query!(
            r#"
            insert into usage_ingest.idempotency_full (org_id, keys, bytes)
            select org_id, count(*), coalesce(sum(octet_length(body)), 0)
              from usage_ingest.idempotency_keys
             group by org_id
            having count(*) >= $1 or sum(octet_length(body)) >= $2"#,
            keys_max,
            ORG_BYTES_MAX,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}

/// Takes a key that nobody has, unless its organisation has too many.
async fn insert(
    connection: &mut Connection,
    key: &Key,
    asker: &Asker,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        r#"
        insert into usage_ingest.idempotency_keys
               (org_id, environment, key_sha256, request_id, journal_id, head_sha256, begun_at,
                expires_at)
        select $1, $2, $3, $4, $5, $6, $7, $8
         where not exists (select from usage_ingest.idempotency_full f where f.org_id = $1)
        on conflict (org_id, environment, key_sha256) do nothing"#,
        key.org.uuid(),
        key.environment.as_str(),
        &key.sha256,
        asker.request.uuid(),
        asker.journal.uuid(),
        &asker.head,
        now.to_sqlx() as _,
        expiry(now).to_sqlx() as _,
    );
    Ok(done.execute(connection).await?.rows_affected() == 1)
}

/// Locks a key's row.
async fn lock(connection: &mut Connection, key: &Key) -> Result<Option<Found>> {
    let row = sqlx::query!(
        r#"
        select request_id, journal_id, head_sha256, state, status, begun_at, expires_at
          from usage_ingest.idempotency_keys
         where org_id = $1 and environment = $2 and key_sha256 = $3
           for update"#,
        key.org.uuid(),
        key.environment.as_str(),
        &key.sha256,
    );
    let Some(row) = row.fetch_optional(connection).await? else {
        return Ok(None);
    };
    let head = row.head_sha256.try_into().ok();
    let head = head.ok_or_else(|| anyhow::anyhow!("a digest of another length is stored"));
    Ok(Some(Found {
        holder: Holder {
            request: RequestId::new(row.request_id),
            head: head.map_err(Error::Internal)?,
            state: State::read(&row.state),
            kept: row.status,
            expires_at: row.expires_at.to_jiff(),
        },
        journal: JournalId::new(row.journal_id),
        begun_at: row.begun_at.to_jiff(),
    }))
}

async fn is_full(connection: &mut Connection, key: &Key) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from usage_ingest.idempotency_full where org_id = $1) as "it!""#,
        key.org.uuid(),
    )
    .fetch_one(connection)
    .await
}

/// What is known of the holder's record. One statement: whoever sees the journal's end in it sees
/// every row of that journal too.
async fn trace(connection: &mut Connection, found: &Found) -> sqlx::Result<Trace> {
    let from = day_of(found.begun_at).saturating_sub(jiff::Span::new().days(DAYS_BACK));
    let seen = sqlx::query!(
        r#"
        select call.credits_used as "credits?", call.status_code as "status?",
               (call.disposition = 'completed' and call.code = '') as is_complete, ended.journal_id is not null as "has_ended!"
          from (select $2::uuid as journal_id) holder
          left join usage_ingest.api_usage_logs call
            on call.request_id = $1 and call.day >= $3
          left join usage_ingest.ended_journals ended
            on ended.journal_id = holder.journal_id
         limit 1"#,
        found.holder.request.uuid(),
        found.journal.uuid(),
        from.to_sqlx() as jiff_sqlx::Date,
    )
    .fetch_one(connection)
    .await?;
    Ok(match (seen.credits, seen.status) {
        (Some(credits), Some(status)) => Trace::Row {
            credits,
            status,
            is_complete: seen.is_complete.unwrap_or(false),
        },
        _ if seen.has_ended => Trace::Never,
        _ => Trace::Unknown,
    })
}

/// Gives the key to another call. What was kept for the one before is gone.
async fn take_over(
    connection: &mut Connection,
    key: &Key,
    asker: &Asker,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update usage_ingest.idempotency_keys
           set request_id = $4, journal_id = $5, head_sha256 = $6, state = 'open',
               request_body_sha256 = null, status = null, header_names = null,
               header_values = null, body = null, begun_at = $7, expires_at = $8
         where org_id = $1 and environment = $2 and key_sha256 = $3"#,
        key.org.uuid(),
        key.environment.as_str(),
        &key.sha256,
        asker.request.uuid(),
        asker.journal.uuid(),
        &asker.head,
        now.to_sqlx() as _,
        expiry(now).to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes down what the row has told, so that nobody looks for it again. From now on a day.
async fn settle(
    connection: &mut Connection,
    key: &Key,
    holder: &Holder,
    trace: Trace,
    now: Timestamp,
) -> sqlx::Result<()> {
    let Some(state) = standing(holder, trace).filter(|state| *state != holder.state) else {
        return Ok(());
    };
    sqlx::query!(
        r#"
        update usage_ingest.idempotency_keys
           set state = $4, expires_at = $5
         where org_id = $1 and environment = $2 and key_sha256 = $3"#,
        key.org.uuid(),
        key.environment.as_str(),
        &key.sha256,
        state.as_str(),
        expiry(now).to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The answer that is kept under a key.
async fn kept(connection: &mut Connection, key: &Key) -> sqlx::Result<Kept> {
    let row = sqlx::query!(
        r#"
        select status as "status!", header_names as "names!", header_values as "values!",
               body as "body!", request_body_sha256 as "request_body!"
          from usage_ingest.idempotency_keys
         where org_id = $1 and environment = $2 and key_sha256 = $3"#,
        key.org.uuid(),
        key.environment.as_str(),
        &key.sha256,
    )
    .fetch_one(connection)
    .await?;
    Ok(Kept {
        status: row.status,
        headers: row.names.into_iter().zip(row.values).collect(),
        body: row.body,
        request_body: row.request_body,
    })
}
