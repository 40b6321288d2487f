//! Leases of silent owners, and what can be forgotten.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx;
use types::{Credits, JournalId, LeaseId};
use uuid::Uuid;

use super::{Connection, Store, lock_book, write};
use crate::{domain::WalletId, error::Result};

/// Leases written off by one run; the next takes the rest.
const WRITE_OFFS_MAX: i64 = 100;
/// A nonce is repeated within seconds or never.
const ACQUISITIONS_KEPT_HOURS: i64 = 24;
/// Rows forgotten by one run; the next takes the rest.
const ACQUISITIONS_FORGOTTEN_MAX: i64 = 10_000;

/// What a lease given up meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrittenOff {
    /// Debited although no record has come: the owner had told it.
    pub(crate) debited: Credits,
    /// Back in the wallet.
    pub(crate) released: Credits,
    /// True when it is about permits, not credits.
    pub(crate) is_permits: bool,
}

impl Store {
    /// Marks the leases of journals not heard of since `heard`. They stay reserved.
    pub(crate) async fn mark_orphans(
        &self,
        heard: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<LeaseId>> {
        let orphans = sqlx::query_scalar!(
            r#"
            with silent as (
                select l.id
                  from wallet.leases l
                  join wallet.journals j on j.id = l.journal_id
                 where l.state in ('active', 'draining')
                   and j.heartbeat_at < $1
                 order by l.id
                   for update of l)
            update wallet.leases l
               set state = 'orphaned', orphaned_at = $2, updated_at = $2
              from silent
             where l.id = silent.id
            returning l.id"#,
            heard.to_sqlx() as _,
            now.to_sqlx() as _,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(orphans.into_iter().map(LeaseId::new).collect())
    }

    /// Leases that have been orphaned since `since` or longer.
    pub(crate) async fn overdue_orphans(&self, since: Timestamp) -> Result<Vec<LeaseId>> {
        let overdue = sqlx::query_scalar!(
            r#"
            select id
              from wallet.leases
             where state = 'orphaned'
               and orphaned_at <= $1
             order by orphaned_at
             limit $2"#,
            since.to_sqlx() as _,
            WRITE_OFFS_MAX,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(overdue.into_iter().map(LeaseId::new).collect())
    }

    /// Gives up a lease, unless its owner has come back meanwhile.
    pub(crate) async fn write_off(
        &self,
        lease: LeaseId,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<WrittenOff>> {
        let mut tx = runtime::begin(&self.pool).await?;
        let mut book = lock_book(&mut tx, &BTreeSet::from([lease])).await?;
        let is_overdue = sqlx::query_scalar!(
            r#"
            select state = 'orphaned' and orphaned_at <= $2 as "is_overdue!"
              from wallet.leases
             where id = $1"#,
            lease.uuid(),
            since.to_sqlx() as _,
        )
        .fetch_one(&mut *tx)
        .await?;
        if !is_overdue {
            return Ok(None);
        }
        book.write_off(lease);
        let changes = book.into_changes();
        write(&mut tx, &changes, now).await?;
        tx.commit().await?;
        runtime::crash_point!("wallet.writeoff_committed");
        let wallet = changes.leases.get(&lease).map(|lease| lease.wallet);
        let released = changes.write_offs.get(&lease).copied().unwrap_or_default();
        Ok(Some(WrittenOff {
            debited: changes.used(),
            released,
            is_permits: wallet.is_some_and(|wallet| matches!(wallet, WalletId::Quota(_))),
        }))
    }

    /// Forgets nonces nobody will repeat. A reply states totals, so even a repetition after this
    /// would only lend more to the same lease.
    pub(crate) async fn forget_acquisitions(&self, now: Timestamp) -> Result<()> {
        let kept = SignedDuration::from_hours(ACQUISITIONS_KEPT_HOURS);
        let before = now.checked_sub(kept).unwrap_or(Timestamp::MIN);
        sqlx::query!(
            r#"
            with old as (
                select journal_id, nonce
                  from wallet.acquisitions
                 where at < $1
                 order by at
                 limit $2)
            delete from wallet.acquisitions a
             using old
             where a.journal_id = old.journal_id
               and a.nonce = old.nonce"#,
            before.to_sqlx() as _,
            ACQUISITIONS_FORGOTTEN_MAX,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Leases by state; closed ones, the only state without an end, are not counted.
    pub(crate) async fn count_leases(&self) -> Result<Vec<(String, i64)>> {
        let rows = sqlx::query!(
            r#"
            select state, count(*) as "leases!"
              from wallet.leases
             where state <> 'closed'
             group by state"#,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.state, row.leases))
            .collect())
    }
}

/// Those of the leases that a journal may spend no more because it is retired.
pub(crate) async fn retired_leases(
    connection: &mut Connection,
    journal: JournalId,
    leases: &BTreeSet<LeaseId>,
) -> sqlx::Result<BTreeSet<LeaseId>> {
    let ids: Vec<Uuid> = leases.iter().map(|lease| lease.uuid()).collect();
    let found = sqlx::query_scalar!(
        r#"
        select l.id
          from wallet.leases l, wallet.journals j
         where l.id = any($1)
           and l.journal_id = $2
           and j.id = l.journal_id
           and j.retired_at is not null"#,
        &ids,
        journal.uuid(),
    )
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(LeaseId::new).collect())
}
