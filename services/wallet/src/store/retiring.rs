//! The end of a journal.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::JournalId;
use uuid::Uuid;

use super::{Connection, Store, rows};
use crate::{
    domain::Lease,
    error::{Error, Result},
};

impl Store {
    /// Ends a journal for good and returns its open leases: what they still hold comes back by
    /// their final counts only. The lock excludes every [`Store::acquire`] of the journal, so none
    /// can lend after this has answered. A journal that was heard of since `unless_heard_since` is
    /// left alone.
    pub(crate) async fn retire(
        &self,
        journal: JournalId,
        unless_heard_since: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Vec<Lease>> {
        let mut tx = runtime::begin(&self.pool).await?;
        // One that nobody knows was never heard of.
        sqlx::query!(
            r#"
            insert into wallet.journals (id, gateway, heartbeat_at)
            values ($1, '', '-infinity')
            on conflict (id) do nothing"#,
            journal.uuid(),
        )
        .execute(&mut *tx)
        .await?;
        let is_alive = sqlx::query_scalar!(
            r#"
            select retired_at is null and heartbeat_at >= $2 as "is_alive!"
              from wallet.journals
             where id = $1
               for update"#,
            journal.uuid(),
            unless_heard_since.unwrap_or(now).to_sqlx() as _,
        )
        .fetch_one(&mut *tx)
        .await?;
        if unless_heard_since.is_some() && is_alive {
            return Err(Error::JournalAlive { journal });
        }
        sqlx::query!(
            r#"
            update wallet.journals
               set retired_at = coalesce(retired_at, $2),
                   heartbeat_at = greatest(heartbeat_at, $2)
             where id = $1"#,
            journal.uuid(),
            now.to_sqlx() as _,
        )
        .execute(&mut *tx)
        .await?;
        let open = drain_leases(&mut tx, journal, now).await?;
        let leases = rows::lock_leases(&mut tx, &open).await?;
        tx.commit().await?;
        Ok(leases)
    }
}

/// Open leases of a journal, none of them spendable any more. Each of the two kinds has its index.
async fn drain_leases(
    connection: &mut Connection,
    journal: JournalId,
    now: Timestamp,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"
        with open as (
            select id
              from wallet.leases
             where journal_id = $1
               and (state in ('active', 'orphaned') or state = 'draining')
             order by id
               for update)
        update wallet.leases l
           set state = 'draining', orphaned_at = null, updated_at = $2
          from open
         where l.id = open.id
        returning l.id"#,
        journal.uuid(),
        now.to_sqlx() as _,
    )
    .fetch_all(connection)
    .await
}
