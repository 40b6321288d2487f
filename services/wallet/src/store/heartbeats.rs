//! What owners say of their leases: heartbeats, and answers to recalls.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::{JournalId, LeaseId};
use uuid::Uuid;

use super::{
    Connection, Store, failover, lending::live_gateways, lock_book_and_take_over, rows, write,
};
use crate::{
    domain::{self, Book, Breach, Lease, Report, WalletId, is_awaited, is_forgotten},
    error::{Error, Result},
};

/// What a heartbeat is answered.
#[derive(Debug)]
pub(crate) struct Heard {
    /// Leases to stop and close.
    pub(crate) drain: Vec<LeaseId>,
    pub(crate) live_gateways: u32,
    /// The owner has to tell all its leases.
    pub(crate) tell_all: bool,
    /// Reports that break a rule. They were not applied.
    pub(crate) breaches: Vec<Breach>,
}

/// What a gateway says of itself and its leases.
pub(crate) struct Heartbeat<'a> {
    pub(crate) journal: JournalId,
    pub(crate) gateway: &'a str,
    pub(crate) reports: &'a [Report],
    /// The same leases, with what was lent in all and to whom.
    pub(crate) lent: &'a [domain::Lent],
    /// With this, all its leases are told.
    pub(crate) tells_all: bool,
}

impl Store {
    /// Merges what a gateway says about its leases, and tells which of them it must end. What a
    /// failover has forgotten of them is taken over from `heartbeat.lent`.
    pub(crate) async fn heartbeat(
        &self,
        heartbeat: &Heartbeat<'_>,
        new_id: impl Fn() -> Uuid,
        now: Timestamp,
    ) -> Result<Heard> {
        let (journal, reports) = (heartbeat.journal, heartbeat.reports);
        let mut tx = runtime::begin(&self.pool).await?;
        let told_before = hear(&mut tx, heartbeat, now).await?;
        // Whoever is alive tells his leases within a heartbeat or two.
        let failed_over_at = failover::failed_over(&mut tx, now)
            .await?
            .filter(|at| is_awaited(*at, now));
        let (book, breaches) = match failed_over_at {
            Some(_) if !heartbeat.lent.is_empty() => {
                let leases = reports.iter().map(|report| report.lease).collect();
                let (mut book, _) =
                    lock_book_and_take_over(&mut tx, &leases, heartbeat.lent, new_id, now).await?;
                let breaches = report_all(&mut book, reports);
                (book, breaches)
            }
            _ => merge(&mut tx, reports).await?,
        };
        let lease_of = |report: &Report| {
            let lease = book.lease(report.lease);
            lease.filter(|lease| lease.journal == journal)
        };
        let is_lost = |report: &Report| {
            failed_over_at
                .is_some_and(|at| is_forgotten(book.lease(report.lease), report.lease, at))
        };
        let must_drain =
            |report: &&Report| !is_lost(report) && lease_of(report).is_none_or(Lease::must_drain);
        let has_told = heartbeat.tells_all
            || failed_over_at.is_none_or(|at| told_before.is_some_and(|told| told >= at));
        let tell_all = !has_told || (reports.iter().any(is_lost) && !heartbeat.tells_all);
        let drain = reports
            .iter()
            .filter(must_drain)
            .map(|report| report.lease)
            .collect();
        let live_gateways = live_gateways(&mut tx, now).await?;
        write(&mut tx, &book.into_changes(), now).await?;
        tx.commit().await?;
        Ok(Heard {
            drain,
            live_gateways,
            tell_all,
            breaches,
        })
    }

    /// Merges answers to a recall.
    pub(crate) async fn take_back(
        &self,
        reports: &[Report],
        now: Timestamp,
    ) -> Result<Vec<Breach>> {
        let mut tx = runtime::begin(&self.pool).await?;
        let (book, breaches) = merge(&mut tx, reports).await?;
        write(&mut tx, &book.into_changes(), now).await?;
        tx.commit().await?;
        Ok(breaches)
    }
}

/// Locks what the reports are about and merges them. A wallet is locked when credits come back to
/// it, and only then: heartbeats must not queue behind the debits of a busy wallet.
async fn merge(
    connection: &mut Connection,
    reports: &[Report],
) -> sqlx::Result<(Book, Vec<Breach>)> {
    let leases: Vec<Uuid> = reports.iter().map(|report| report.lease.uuid()).collect();
    let returned: Vec<i64> = reports
        .iter()
        .map(|report| report.returned_cum.get())
        .collect();
    let rows = sqlx::query!(
        r#"
        select distinct l.wallet_id, l.test_wallet_id, l.quota_bucket_id
          from wallet.leases l
          join unnest($1::uuid[], $2::bigint[]) as u (id, returned_cum) on u.id = l.id
         where u.returned_cum > l.returned_cum"#,
        &leases,
        &returned,
    )
    .fetch_all(&mut *connection)
    .await?;
    let wallets: sqlx::Result<BTreeSet<WalletId>> = rows
        .into_iter()
        .map(|row| rows::wallet_id(row.wallet_id, row.test_wallet_id, row.quota_bucket_id))
        .collect();
    let wallets = rows::lock_wallets(connection, &wallets?).await?;
    let mut book = Book::new(wallets, rows::lock_leases(connection, &leases).await?);
    let breaches = report_all(&mut book, reports);
    Ok((book, breaches))
}

fn report_all(book: &mut Book, reports: &[Report]) -> Vec<Breach> {
    let refused = |report: &Report| book.report(report).err();
    reports.iter().filter_map(refused).collect()
}

/// Notes that a journal's owner is alive; when it told all its leases before.
async fn hear(
    connection: &mut Connection,
    heartbeat: &Heartbeat<'_>,
    now: Timestamp,
) -> Result<Option<Timestamp>> {
    let journal = heartbeat.journal;
    let told_before = sqlx::query_scalar!(
        r#"select told_all_at as "told: jiff_sqlx::Timestamp" from wallet.journals where id = $1"#,
        journal.uuid(),
    )
    .fetch_optional(&mut *connection)
    .await?;
    let alive = sqlx::query!(
        r#"
        insert into wallet.journals as j (id, gateway, heartbeat_at, told_all_at)
        values ($1, $2, $3::timestamptz, case when $4 then $3::timestamptz end)
        on conflict (id) do update
           set heartbeat_at = greatest(j.heartbeat_at, excluded.heartbeat_at),
               told_all_at = coalesce(excluded.told_all_at, j.told_all_at)
         where j.retired_at is null"#,
        journal.uuid(),
        heartbeat.gateway,
        now.to_sqlx() as _,
        heartbeat.tells_all,
    )
    .execute(connection)
    .await?;
    if alive.rows_affected() == 0 {
        return Err(Error::JournalRetired { journal });
    }
    Ok(told_before.flatten().map(jiff_sqlx::Timestamp::to_jiff))
}
