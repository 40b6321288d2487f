//! Leases: lending, and the end of a journal.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::Clock;
use types::{Credits, JournalId, LeaseId};
use uuid::Uuid;

use super::{
    Connection, Store, quotas, rows,
    wallets::{hold_test_wallet, live_wallet},
    write,
};
use crate::{
    domain::{Account, Ask, Book, Decision, Lease, Situation, WalletId, alive_since, decide},
    error::{Error, Result},
};

/// Holders asked to give back in one round, those with most first; the next round asks again.
const HOLDERS_MAX: i64 = 64;

/// What became of a request for credits.
#[derive(Debug)]
pub(crate) enum Lent {
    /// Lent, now or before by the same nonce.
    Lease {
        /// As it is now.
        lease: Box<Lease>,
        /// Left in the wallet.
        available: Credits,
    },
    /// Less than the minimum is left.
    Short {
        /// Left in the wallet.
        available: Credits,
        /// Who may have something to give back.
        holders: Vec<(JournalId, LeaseId)>,
    },
}

impl Store {
    /// Lends credits once per nonce. Keeps I2 by the wallet's lock, and the fence of a retired
    /// journal by the journal's.
    pub(crate) async fn acquire(
        &self,
        ask: &Ask,
        new_ids: (Uuid, LeaseId),
        clock: &Clock,
    ) -> Result<Lent> {
        let (new_wallet, new_lease) = new_ids;
        let now = clock.now();
        let mut tx = runtime::begin(&self.pool).await?;
        register(&mut tx, ask, now).await?;
        let live_gateways = live_gateways(&mut tx, now).await?;
        let mut book = Book::default();
        let wallet = match ask.account {
            Account::Org(org) => live_wallet(&mut tx, org).await?,
            Account::User(user) => {
                Some(hold_test_wallet(&mut tx, &mut book, user, new_wallet, now).await?)
            }
            Account::Quota(quota) => Some(quotas::bucket(&mut tx, &quota, new_wallet, now).await?),
        };
        if let Some(WalletId::Live(_) | WalletId::Quota(_)) = wallet {
            let ids = wallet.into_iter().collect();
            rows::lock_wallets(&mut tx, &ids)
                .await?
                .into_iter()
                .for_each(|it| book.hold(it));
        }
        // A statement of its own, so that it sees what was committed before the locks were ours.
        let situation = situation(&mut tx, ask, wallet, &book, live_gateways).await?;
        // What is lent is lent now, however long the locks were waited for: a thaw came before it.
        let now = clock.now();
        let available = wallet.map_or(Credits::ZERO, |wallet| book.wallet(wallet).available());
        let lent = match decide(ask.want, ask.minimum, available, &situation) {
            Decision::Retired => {
                let journal = ask.journal;
                return Err(Error::JournalRetired { journal });
            }
            Decision::Frozen => return Err(Error::Frozen),
            Decision::Replay(lease) => replay(&mut tx, lease, wallet, available).await?,
            Decision::Short => short(&mut tx, ask, wallet, available).await?,
            Decision::Lend(open, credits) => {
                let wallet = wallet.ok_or(sqlx::Error::RowNotFound)?;
                let lent = (wallet, credits);
                lend(&mut tx, &mut book, ask, lent, (open, new_lease), now).await?
            }
        };
        write(&mut tx, &book.into_changes(), now).await?;
        tx.commit().await?;
        runtime::crash_point!("wallet.acquire_committed");
        Ok(lent)
    }

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

/// Makes the journal known and holds off its retirement, but neither heartbeats nor other
/// acquisitions.
async fn register(connection: &mut Connection, ask: &Ask, now: Timestamp) -> sqlx::Result<()> {
    for _ in 0..2 {
        let known = sqlx::query!(
            "select id from wallet.journals where id = $1 for key share",
            ask.journal.uuid(),
        );
        if known.fetch_optional(&mut *connection).await?.is_some() {
            return Ok(());
        }
        sqlx::query!(
            r#"
            insert into wallet.journals (id, gateway, heartbeat_at)
            values ($1, $2, $3)
            on conflict (id) do nothing"#,
            ask.journal.uuid(),
            ask.gateway,
            now.to_sqlx() as _,
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn situation(
    connection: &mut Connection,
    ask: &Ask,
    wallet: Option<WalletId>,
    book: &Book,
    live_gateways: u32,
) -> sqlx::Result<Situation> {
    let id = wallet.and_then(|wallet| rows::owner(wallet).into_iter().flatten().next());
    let epoch = wallet
        .and_then(|wallet| book.wallet(wallet).epoch)
        .map_or(0, |it| it.number);
    let row = sqlx::query!(
        r#"
        select j.retired_at is not null as "is_retired!",
               (select a.lease_id
                  from wallet.acquisitions a
                 where a.journal_id = j.id
                   and a.nonce = $2) as replayed,
               (select l.id
                  from wallet.leases l
                 where l.journal_id = j.id
                   and coalesce(l.wallet_id, l.test_wallet_id, l.quota_bucket_id) = $3
                   and l.epoch = $4
                   and l.state in ('active', 'orphaned')) as open,
               f.timeline <> left(pg_walfile_name(pg_current_wal_lsn()), 8)
               or f.system_identifier <> (select c.system_identifier from pg_control_system() c)
               or (f.failed_over_at is not null and f.thawed_at is null) as "is_frozen!"
          from wallet.journals j, wallet.freeze f
         where j.id = $1"#,
        ask.journal.uuid(),
        &ask.nonce,
        id,
        epoch,
    )
    .fetch_one(&mut *connection)
    .await?;
    Ok(Situation {
        is_retired: row.is_retired,
        is_frozen: row.is_frozen,
        live_gateways,
        replayed: row.replayed.map(LeaseId::new),
        open: row.open.map(LeaseId::new),
    })
}

/// Says again what a nonce was answered with.
async fn replay(
    connection: &mut Connection,
    lease: LeaseId,
    wallet: Option<WalletId>,
    available: Credits,
) -> Result<Lent> {
    let lease = rows::lock_leases(connection, &[lease.uuid()]).await?;
    let lease = lease.into_iter().next().ok_or(sqlx::Error::RowNotFound)?;
    let is_own = match wallet {
        // A reply that was lost before midnight is repeated after it: permits of the day before.
        Some(own) => lease.wallet == own || quotas::is_same(connection, lease.wallet, own).await?,
        None => false,
    };
    if !is_own {
        return Err(Error::NonceReused);
    }
    Ok(Lent::Lease {
        lease: Box::new(lease),
        available,
    })
}

async fn short(
    connection: &mut Connection,
    ask: &Ask,
    wallet: Option<WalletId>,
    available: Credits,
) -> sqlx::Result<Lent> {
    let holders = match wallet {
        Some(wallet) => holders(connection, ask, wallet).await?,
        None => Vec::new(),
    };
    Ok(Lent::Short { available, holders })
}

/// Lends so much of a wallet, by the lease that is open or a new one.
async fn lend(
    connection: &mut Connection,
    book: &mut Book,
    ask: &Ask,
    (wallet, credits): (WalletId, Credits),
    (open, new_lease): (Option<LeaseId>, LeaseId),
    now: Timestamp,
) -> Result<Lent> {
    let id = match open {
        Some(open) => open,
        None => insert_lease(connection, book, ask, wallet, new_lease, now).await?,
    };
    let locked = rows::lock_leases(connection, &[id.uuid()]).await?;
    locked.into_iter().for_each(|lease| book.hold_lease(lease));
    book.lend(id, credits);
    insert_acquisition(connection, ask, id, credits, now).await?;
    let lease = book.lease(id).ok_or(sqlx::Error::RowNotFound)?.clone();
    let available = book.wallet(wallet).available();
    Ok(Lent::Lease {
        lease: Box::new(lease),
        available,
    })
}

async fn insert_lease(
    connection: &mut Connection,
    book: &Book,
    ask: &Ask,
    wallet: WalletId,
    id: LeaseId,
    now: Timestamp,
) -> sqlx::Result<LeaseId> {
    let [live, test, quota] = rows::owner(wallet);
    sqlx::query!(
        r#"
        insert into wallet.leases
               (id, wallet_id, test_wallet_id, epoch, journal_id, granted, state,
                created_at, updated_at, quota_bucket_id)
        values ($1, $2, $3, $4, $5, 0, 'active', $6, $6, $7)"#,
        id.uuid(),
        live,
        test,
        book.wallet(wallet).epoch.map_or(0, |epoch| epoch.number),
        ask.journal.uuid(),
        now.to_sqlx() as _,
        quota,
    )
    .execute(connection)
    .await?;
    Ok(id)
}

async fn insert_acquisition(
    connection: &mut Connection,
    ask: &Ask,
    lease: LeaseId,
    credits: Credits,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into wallet.acquisitions (journal_id, nonce, lease_id, credits, at)
        values ($1, $2, $3, $4, $5)"#,
        ask.journal.uuid(),
        &ask.nonce,
        lease.uuid(),
        credits.get(),
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Other journals that may hold unspent credits of the wallet, or permits.
async fn holders(
    connection: &mut Connection,
    ask: &Ask,
    wallet: WalletId,
) -> sqlx::Result<Vec<(JournalId, LeaseId)>> {
    let [live, test, quota] = rows::owner(wallet);
    let rows = sqlx::query!(
        r#"
        select journal_id, id
          from wallet.leases
         where (wallet_id = $1 or test_wallet_id = $2 or quota_bucket_id = $5)
           and journal_id <> $3
           and state = 'active'
           and granted > settled_cum
         order by granted - settled_cum desc
         limit $4"#,
        live,
        test,
        ask.journal.uuid(),
        HOLDERS_MAX,
        quota,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (JournalId::new(row.journal_id), LeaseId::new(row.id)))
        .collect())
}

/// Journals heard of in the last seconds.
pub(super) async fn live_gateways(
    connection: &mut Connection,
    now: Timestamp,
) -> sqlx::Result<u32> {
    let since = alive_since(now);
    let live = sqlx::query_scalar!(
        r#"
        select count(*) as "live!"
          from wallet.journals
         where heartbeat_at >= $1
           and retired_at is null"#,
        since.to_sqlx() as _,
    )
    .fetch_one(connection)
    .await?;
    Ok(u32::try_from(live).unwrap_or(u32::MAX))
}

/// Open leases of a journal, none of them spendable any more.
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
               and state in ('active', 'draining', 'orphaned')
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
