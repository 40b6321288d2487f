//! Leases: lending, reports of their owners, the end of a journal.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx;
use types::{Credits, JournalId, LeaseId};
use uuid::Uuid;

use super::{
    Connection, Store, failover, lock_book_and_take_over, quotas, rows,
    wallets::{hold_test_wallet, live_wallet},
    write,
};
use crate::{
    domain::{
        self, Account, Ask, Book, Breach, Lease, Report, WalletId, is_awaited, is_forgotten, size,
    },
    error::{Error, Result},
};

/// A journal counts as live when its last heartbeat is no older.
const LIVE_SECONDS: i64 = 5;
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

/// What decides about an `Ask`, besides its wallet.
struct Situation {
    is_retired: bool,
    /// The database may have forgotten what it has lent.
    is_frozen: bool,
    live_gateways: u32,
    /// Lease that the nonce has been answered with.
    replayed: Option<Uuid>,
    /// Lease that can be extended.
    open: Option<Uuid>,
}

impl Store {
    /// Lends credits once per nonce. Keeps I2 by the wallet's lock, and the fence of a retired
    /// journal by the journal's.
    pub(crate) async fn acquire(
        &self,
        ask: &Ask,
        new_ids: (Uuid, LeaseId),
        now: Timestamp,
    ) -> Result<Lent> {
        let (new_wallet, new_lease) = new_ids;
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
        if situation.is_retired {
            return Err(Error::JournalRetired {
                journal: ask.journal,
            });
        }
        let Some(wallet) = wallet else {
            if situation.is_frozen {
                return Err(Error::Frozen);
            }
            tx.commit().await?;
            return Ok(Lent::Short {
                available: Credits::ZERO,
                holders: Vec::new(),
            });
        };
        let lent = lend(&mut tx, &mut book, ask, wallet, &situation, new_lease, now).await?;
        write(&mut tx, &book.into_changes(), now).await?;
        tx.commit().await?;
        runtime::crash_point!("wallet.acquire_committed");
        Ok(lent)
    }

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

    /// Ends a journal for good and returns its open leases: what they still hold comes back by
    /// their final counts only. The lock excludes every [`Store::acquire`] of the journal, so none
    /// can lend after this has answered. With `unless_alive`, a journal that is heard of is left
    /// alone.
    pub(crate) async fn retire(
        &self,
        journal: JournalId,
        unless_alive: bool,
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
            alive_since(now).to_sqlx() as _,
        )
        .fetch_one(&mut *tx)
        .await?;
        if unless_alive && is_alive {
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
    let (is_retired, replayed, open) = (row.is_retired, row.replayed, row.open);
    Ok(Situation {
        is_retired,
        is_frozen: row.is_frozen,
        live_gateways,
        replayed,
        open,
    })
}

/// Decides on an ask whose journal and wallet are locked.
async fn lend(
    connection: &mut Connection,
    book: &mut Book,
    ask: &Ask,
    wallet: WalletId,
    situation: &Situation,
    new_lease: LeaseId,
    now: Timestamp,
) -> Result<Lent> {
    if let Some(replayed) = situation.replayed {
        let lease = rows::lock_leases(connection, &[replayed]).await?;
        let lease = lease.into_iter().next().ok_or(sqlx::Error::RowNotFound)?;
        // A reply that was lost before midnight is repeated after it: permits of the day before.
        if lease.wallet != wallet && !quotas::is_same(connection, lease.wallet, wallet).await? {
            return Err(Error::NonceReused);
        }
        let available = book.wallet(wallet).available();
        return Ok(Lent::Lease {
            lease: Box::new(lease),
            available,
        });
    }
    if situation.is_frozen {
        return Err(Error::Frozen);
    }
    let available = book.wallet(wallet).available();
    let Some(credits) = size(ask.want, ask.minimum, available, situation.live_gateways) else {
        let holders = holders(connection, ask, wallet).await?;
        return Ok(Lent::Short { available, holders });
    };
    let id = match situation.open {
        Some(open) => LeaseId::new(open),
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

/// Who was heard of since then is alive.
fn alive_since(now: Timestamp) -> Timestamp {
    now.checked_sub(SignedDuration::from_secs(LIVE_SECONDS))
        .unwrap_or(now)
}

/// Journals heard of in the last seconds.
async fn live_gateways(connection: &mut Connection, now: Timestamp) -> sqlx::Result<u32> {
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
