//! What a database that was failed over or restored has forgotten of idempotency keys: nobody gets
//! one before it is known again who has them. And calls that will never have the row that tells.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use uuid::Uuid;

use super::Connection;
use crate::domain::{
    Row,
    idempotency::{Had, Note, expiry, remembered, told},
};

/// After a change of the server, and after what the stream had then was read again, nobody gets a
/// key for so long at least: gateways that were cut off from the stream ship what they have, and
/// journals ship again what nobody has applied for 10 seconds.
const FORGOTTEN_SECONDS: i64 = 70;

/// Whether everybody who has a key is known: the server is the one that the inbox follows, all that
/// it may have lost was read again, and gateways have had time to ship again from their journals
/// what the stream may have lost too.
pub(super) async fn knows_all(connection: &mut Connection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"
        select o.timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8)
               and o.system_identifier = (select c.system_identifier from pg_control_system() c)
               and (o.moved_at is null
                    or (o.caught_up_at is not null
                        and o.caught_up_at <= now() - $1::bigint * interval '1 second')) as "it!"
          from usage_ingest.origin o"#,
        FORGOTTEN_SECONDS,
    )
    .fetch_one(connection)
    .await
}

/// Makes sure that calls have their keys, charged ones as they had when they ended, and those under
/// way as they had when they were noted: a database that was failed over or restored may have
/// forgotten it. Answers that were kept are gone then.
pub(crate) async fn remember(
    connection: &mut Connection,
    rows: &[Row],
    notes: &[Note],
    now: Timestamp,
) -> sqlx::Result<()> {
    let moved = match notes {
        [] => None,
        _ => moved_at(connection).await?,
    };
    let told = told(rows, notes, moved, now);
    if told.is_empty() {
        return Ok(());
    }
    let mut c = Columns::default();
    for Had { by, state } in told {
        c.orgs.push(by.org.uuid());
        c.environments.push(by.environment.as_str());
        c.keys.push(by.claim.key.to_vec());
        c.requests.push(by.request.uuid());
        c.journals.push(by.journal.uuid());
        c.heads.push(by.claim.head.to_vec());
        c.states.push(state.as_str());
        c.moments.push(by.at.to_sqlx());
        c.expiries.push(expiry(by.at).to_sqlx());
    }
    sqlx::query_file!(
        "src/remember_keys.sql",
        &c.orgs,
        &c.environments as &[&str],
        &c.keys,
        &c.requests,
        &c.journals,
        &c.heads,
        &c.states as &[&str],
        &c.moments as &[jiff_sqlx::Timestamp],
        &c.expiries as &[jiff_sqlx::Timestamp],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// When the server was changed last, if ever.
async fn moved_at(connection: &mut Connection) -> sqlx::Result<Option<Timestamp>> {
    let moved = sqlx::query_scalar!(
        r#"select moved_at as "at: jiff_sqlx::Timestamp" from usage_ingest.origin"#
    );
    let moved = moved.fetch_one(connection).await?;
    Ok(moved.map(jiff_sqlx::Timestamp::to_jiff))
}

/// Keys and who had them by column, as one statement takes them.
#[derive(Default)]
struct Columns {
    orgs: Vec<Uuid>,
    environments: Vec<&'static str>,
    keys: Vec<Vec<u8>>,
    requests: Vec<Uuid>,
    journals: Vec<Uuid>,
    heads: Vec<Vec<u8>>,
    states: Vec<&'static str>,
    moments: Vec<jiff_sqlx::Timestamp>,
    expiries: Vec<jiff_sqlx::Timestamp>,
}

/// Makes sure that charged calls that will never have a row keep their keys: the end of their
/// journal would free them.
pub(crate) async fn keep_without_row(
    connection: &mut Connection,
    rows: &[Row],
    notes: &[Note],
    now: Timestamp,
) -> sqlx::Result<()> {
    remember(connection, rows, notes, now).await?;
    let charged = rows.iter().filter(|row| remembered(row, now));
    let requests: Vec<Uuid> = charged.map(|row| row.request.uuid()).collect();
    sqlx::query!(
        r#"
        update usage_ingest.idempotency_keys
           set state = 'not_kept', request_body_sha256 = null, status = null, header_names = null,
               header_values = null, body = null
         where request_id = any($1)
           and state = 'open'"#,
        &requests,
    )
    .execute(connection)
    .await?;
    Ok(())
}
