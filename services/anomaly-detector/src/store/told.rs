//! What other services have told: keys made, wallets that fell, unknown keys that were sighted.
//! Each is kept once, by its content.

use types::{JournalId, KeyId, OrgId};

use super::{Connection, micros, time};
use crate::domain::{
    Micros,
    key_mass_creation::Created,
    unknown_key_spray::Minutes,
    wallet_drain::{Crossing, Fall},
};

/// Keeps that a key was made.
pub(crate) async fn add_created(
    connection: &mut Connection,
    org: OrgId,
    created: Created,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into anomaly_detector.created_keys (key_id, org_id, created_at)
        values ($1, $2, $3)
            on conflict (key_id) do nothing"#,
        created.key.uuid(),
        org.uuid(),
        time(created.at) as jiff_sqlx::Timestamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The keys made in an organisation, as far as they are kept.
pub(crate) async fn created(connection: &mut Connection, org: OrgId) -> sqlx::Result<Vec<Created>> {
    let rows = sqlx::query!(
        r#"
        select key_id, created_at
          from anomaly_detector.created_keys
         where org_id = $1
         order by created_at, key_id"#,
        org.uuid(),
    )
    .fetch_all(connection)
    .await?;
    let created = rows.into_iter().map(|row| Created {
        key: KeyId::new(row.key_id),
        at: micros(row.created_at),
    });
    Ok(created.collect())
}

/// Keeps that a wallet has fallen to a share.
pub(crate) async fn add_crossing(
    connection: &mut Connection,
    fall: &Fall,
    crossing: Crossing,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into anomaly_detector.crossings (
            org_id, reference_at, percent, reference, balance, at)
        values ($1, $2, $3, $4, $5, $6)
            on conflict (org_id, reference_at, percent) do nothing"#,
        fall.org.uuid(),
        time(fall.reference_at) as jiff_sqlx::Timestamp,
        i32::try_from(crossing.percent).unwrap_or(i32::MAX),
        fall.reference,
        crossing.balance,
        time(crossing.at) as jiff_sqlx::Timestamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The shares a wallet has fallen to since credits came in at that moment.
pub(crate) async fn crossings(
    connection: &mut Connection,
    org: OrgId,
    reference_at: Micros,
) -> sqlx::Result<Vec<Crossing>> {
    let rows = sqlx::query!(
        r#"
        select percent, balance, at
          from anomaly_detector.crossings
         where org_id = $1 and reference_at = $2"#,
        org.uuid(),
        time(reference_at) as jiff_sqlx::Timestamp,
    )
    .fetch_all(connection)
    .await?;
    let crossings = rows.into_iter().map(|row| Crossing {
        percent: u32::try_from(row.percent).unwrap_or(0),
        balance: row.balance,
        at: micros(row.at),
    });
    Ok(crossings.collect())
}

/// Keeps how many calls with unknown keys a gateway has seen from an address in a minute. What is
/// told again counts once.
pub(crate) async fn add_spray(
    connection: &mut Connection,
    address: &str,
    minute: Micros,
    journal: JournalId,
    calls: i64,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into anomaly_detector.sprays as s (address, minute, journal_id, calls)
        values ($1, $2, $3, $4)
            on conflict (address, minute, journal_id) do update
           set calls = greatest(s.calls, excluded.calls)"#,
        address,
        time(minute) as jiff_sqlx::Timestamp,
        journal.uuid(),
        calls,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What all gateways have seen from an address between two minutes.
pub(crate) async fn sprays(
    connection: &mut Connection,
    address: &str,
    from: Micros,
    to: Micros,
) -> sqlx::Result<Minutes> {
    let rows = sqlx::query!(
        r#"
        select minute, sum(calls)::bigint as "calls!"
          from anomaly_detector.sprays
         where address = $1 and minute between $2 and $3
         group by minute"#,
        address,
        time(from.max(0)) as jiff_sqlx::Timestamp,
        time(to) as jiff_sqlx::Timestamp,
    )
    .fetch_all(connection)
    .await?;
    let minutes = rows.into_iter();
    Ok(minutes.map(|row| (micros(row.minute), row.calls)).collect())
}
