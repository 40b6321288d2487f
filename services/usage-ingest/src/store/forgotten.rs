//! What a database that was failed over or restored has forgotten of idempotency keys: nobody gets
//! one before it is known again who has them. And calls that will never have the row that tells.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;

use super::Connection;
use crate::domain::{
    Row,
    idempotency::{expiry, remembered},
};

/// After a change of the server nobody gets a key for so long at least: calls that had one may be
/// under way, for a minute unless their route says otherwise, and journals ship again what nobody
/// has applied for 10 seconds.
const FORGOTTEN_SECONDS: i64 = 70;

/// Whether everybody who has a key is known: the server is the one that the inbox follows, all that
/// it may have lost was read again, and calls that were under way then have had time to end and to
/// be shipped again from their journals.
pub(super) async fn knows_all(connection: &mut Connection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"
        select o.timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8)
               and o.system_identifier = (select c.system_identifier from pg_control_system() c)
               and (o.moved_at is null
                    or (o.caught_up_at is not null
                        and o.moved_at <= now() - $1::bigint * interval '1 second')) as "it!"
          from usage_ingest.origin o"#,
        FORGOTTEN_SECONDS,
    )
    .fetch_one(connection)
    .await
}

/// Makes sure that charged calls have their keys, as they had when they ended: a database that was
/// failed over or restored may have forgotten it. Their answers are gone then.
pub(crate) async fn remember(
    connection: &mut Connection,
    rows: &[Row],
    now: Timestamp,
) -> sqlx::Result<()> {
    let (mut orgs, mut environments, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let (mut requests, mut journals, mut heads) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ends, mut expiries) = (Vec::new(), Vec::new());
    for row in rows {
        let Some(claim) = row.claim.filter(|_| remembered(row, now)) else {
            continue;
        };
        orgs.push(row.org.uuid());
        environments.push(row.environment.as_str());
        keys.push(claim.key.to_vec());
        requests.push(row.request.uuid());
        journals.push(row.journal.uuid());
        heads.push(claim.head.to_vec());
        ends.push(row.at.to_sqlx());
        expiries.push(expiry(row.at).to_sqlx());
    }
    if orgs.is_empty() {
        return Ok(());
    }
    sqlx::query_file!(
        "src/remember_keys.sql",
        &orgs,
        &environments as &[&str],
        &keys,
        &requests,
        &journals,
        &heads,
        &ends as &[jiff_sqlx::Timestamp],
        &expiries as &[jiff_sqlx::Timestamp],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes sure that charged calls that will never have a row keep their keys: the end of their
/// journal would free them.
pub(crate) async fn keep_without_row(
    connection: &mut Connection,
    rows: &[Row],
    now: Timestamp,
) -> sqlx::Result<()> {
    remember(connection, rows, now).await?;
    let charged = rows.iter().filter(|row| remembered(row, now));
    let requests: Vec<uuid::Uuid> = charged.map(|row| row.request.uuid()).collect();
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
