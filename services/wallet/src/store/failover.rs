//! Which server the database is on, what a change of it may have taken, and taking it over again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx;
use types::{Credits, JournalId, LeaseId};
use uuid::Uuid;

use super::{
    Connection, Store,
    owners::{self, Source},
    rows,
};
use crate::{
    domain::{Book, Lent, Told, WalletId, made_at, may_be_lost},
    error::Result,
};

/// Where lending stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Lending goes on.
    Open,
    /// The server has changed just now.
    FailedOver {
        /// The timeline that was known.
        from: String,
        /// The present one.
        to: String,
    },
    /// Nothing is lent before these many journals have told their leases.
    Frozen {
        /// How many.
        awaited: i64,
    },
    /// Everybody has told his leases, just now.
    Thawed,
}

/// When the last failover was noticed. One that nobody has noticed yet is noticed now.
pub(super) async fn failed_over(
    connection: &mut Connection,
    now: Timestamp,
) -> sqlx::Result<Option<Timestamp>> {
    let row = sqlx::query!(
        r#"
        select timeline <> left(pg_walfile_name(pg_current_wal_lsn()), 8)
               or system_identifier <> (select c.system_identifier from pg_control_system() c)
                   as "is_changed!",
               failed_over_at as "failed_over_at: jiff_sqlx::Timestamp"
          from wallet.freeze"#,
    )
    .fetch_one(connection)
    .await?;
    let noticed = row.failed_over_at.map(jiff_sqlx::Timestamp::to_jiff);
    Ok(if row.is_changed { Some(now) } else { noticed })
}

impl Store {
    /// Looks whether the database is where it was, and lets lending go on once everybody who lives
    /// has told his leases since.
    pub(crate) async fn watch_failover(
        &self,
        orphan: Duration,
        now: Timestamp,
    ) -> Result<Standing> {
        if let Some((from, to)) = self.freeze(orphan, now).await? {
            return Ok(Standing::FailedOver { from, to });
        }
        let row = sqlx::query!(
            r#"
            select f.failed_over_at as "failed_over_at: jiff_sqlx::Timestamp",
                   f.thawed_at is not null as "is_thawed!",
                   (select count(*)
                      from wallet.journals j
                     where j.retired_at is null
                       and (j.told_all_at is null or j.told_all_at < f.failed_over_at)
                       and j.heartbeat_at >= f.failed_over_at) as "awaited!",
                   (select count(*)
                      from wallet.journals j
                     where j.retired_at is null
                       and (j.told_all_at is null or j.told_all_at < f.failed_over_at)
                       and j.heartbeat_at >= f.alive_since) as "alive_before!"
              from wallet.freeze f"#,
        )
        .fetch_one(&self.pool)
        .await?;
        let Some(failed_over_at) = row.failed_over_at.filter(|_| !row.is_thawed) else {
            return Ok(Standing::Open);
        };
        let failed_over_at = failed_over_at.to_jiff();
        let told = Told {
            failed_over_at,
            untold: row.awaited,
            alive_before: row.alive_before,
        };
        if !told.is_enough(orphan, now) {
            let awaited = row.alive_before.max(row.awaited);
            return Ok(Standing::Frozen { awaited });
        }
        let thawed = sqlx::query!(
            r#"
            update wallet.freeze
               set thawed_at = $1
             where thawed_at is null
               and failed_over_at = $2"#,
            now.to_sqlx() as _,
            failed_over_at.to_sqlx() as _,
        )
        .execute(&self.pool)
        .await?;
        Ok(match thawed.rows_affected() {
            1 => Standing::Thawed,
            _ => Standing::Open,
        })
    }

    /// Notes that the server has changed: the timeline known before, and the present one.
    async fn freeze(&self, orphan: Duration, now: Timestamp) -> Result<Option<(String, String)>> {
        let orphan = SignedDuration::try_from(orphan).unwrap_or(SignedDuration::MAX);
        let changed = sqlx::query!(
            r#"
            with present as (
                select left(pg_walfile_name(pg_current_wal_lsn()), 8) as timeline,
                       system_identifier
                  from pg_control_system()),
            known as (
                select timeline from wallet.freeze)
            update wallet.freeze f
               set system_identifier = p.system_identifier,
                   timeline = p.timeline,
                   failed_over_at = $1,
                   thawed_at = null,
                   alive_since = (select max(j.heartbeat_at) - $2::bigint * interval '1 second'
                                    from wallet.journals j)
              from present p, known k
             where (f.timeline, f.system_identifier) <> (p.timeline, p.system_identifier)
            returning k.timeline as "known!", p.timeline as "present!""#,
            now.to_sqlx() as _,
            orphan.as_secs(),
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(changed.map(|row| (row.known, row.present)))
    }
}

/// Locks the leases and their wallets, and takes over what a failover has forgotten of them. Says
/// when that was.
pub(crate) async fn lock_book_and_take_over(
    connection: &mut Connection,
    leases: &BTreeSet<LeaseId>,
    lent: &[Lent],
    new_id: impl Fn() -> Uuid,
    now: Timestamp,
) -> sqlx::Result<(Book, Option<Timestamp>)> {
    let ids: Vec<Uuid> = leases.iter().map(|lease| lease.uuid()).collect();
    let Some(failed_over_at) = failed_over(connection, now).await? else {
        let book = super::lock_book(connection, leases).await?;
        return Ok((book, None));
    };
    let known = known(connection, &ids).await?;
    let is_forgotten =
        |it: &&Lent| !known.contains(&it.lease) && may_be_lost(it.lease, failed_over_at);
    let forgotten: Vec<(&Lent, Timestamp)> = lent
        .iter()
        .filter(is_forgotten)
        .map(|it| (it, made_at(it.lease).unwrap_or(now)))
        .collect();
    insert_journals(connection, &forgotten).await?;
    let accounts: Vec<_> = forgotten.iter().map(|(it, at)| (it.account, *at)).collect();
    let sources = owners::find(connection, &accounts, new_id, now).await?;
    let others = rows::wallets_of(connection, &ids).await?;
    let (mut book, ended) = sources.lock(connection, others, now).await?;
    for ((it, made), source) in forgotten.into_iter().zip(&sources.found) {
        let Some(Source { wallet, .. }) = *source else {
            continue;
        };
        let epoch = book
            .wallet(wallet)
            .epoch
            .map_or(0, |epoch| epoch.number_at(made));
        insert(connection, it, wallet, epoch, made, now).await?;
    }
    let leases = leases.iter().copied();
    ended.lock_with(connection, &mut book, leases).await?;
    for it in lent
        .iter()
        .filter(|it| may_be_lost(it.lease, failed_over_at))
    {
        let missing = book.take_over(it);
        if missing > Credits::ZERO {
            tracing::error!(
                lease.id = %it.lease,
                journal.id = %it.journal,
                %missing,
                "a lease that the database had forgotten is not covered by its wallet"
            );
        }
    }
    Ok((book, Some(failed_over_at)))
}

async fn known(connection: &mut Connection, leases: &[Uuid]) -> sqlx::Result<BTreeSet<LeaseId>> {
    let known = sqlx::query_scalar!("select id from wallet.leases where id = any($1)", leases)
        .fetch_all(connection)
        .await?;
    Ok(known.into_iter().map(LeaseId::new).collect())
}

/// Makes a forgotten lease again, with nothing lent yet. Its owner must close it where the database
/// knows another one of his that it may extend.
async fn insert(
    connection: &mut Connection,
    it: &Lent,
    wallet: WalletId,
    epoch: i64,
    made: Timestamp,
    now: Timestamp,
) -> sqlx::Result<()> {
    let [live, test, quota] = rows::owner(wallet);
    sqlx::query!(
        r#"
        insert into wallet.leases
               (id, wallet_id, test_wallet_id, quota_bucket_id, epoch, journal_id, granted, state,
                created_at, updated_at)
        select $1, $2, $3, $4, $5, $6, 0,
               case when exists (
                         select
                           from wallet.leases l
                          where l.journal_id = $6
                            and coalesce(l.wallet_id, l.test_wallet_id, l.quota_bucket_id)
                                = coalesce($2::uuid, $3::uuid, $4::uuid)
                            and l.epoch = $5
                            and l.state in ('active', 'orphaned'))
                    then 'draining' else 'active' end,
               $7, $8
        on conflict (id) do nothing"#,
        it.lease.uuid(),
        live,
        test,
        quota,
        epoch,
        it.journal.uuid(),
        made.to_sqlx() as _,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes the journals of forgotten leases known that are forgotten too, and holds off their
/// retirement, as lending does: by id, and before anything of theirs is locked. Each was heard of
/// when it was lent to, and may be dead since.
async fn insert_journals(
    connection: &mut Connection,
    forgotten: &[(&Lent, Timestamp)],
) -> sqlx::Result<()> {
    let mut heard: BTreeMap<JournalId, Timestamp> = BTreeMap::new();
    for (it, made) in forgotten {
        let at = heard.entry(it.journal).or_insert(*made);
        *at = (*at).max(*made);
    }
    let ids: Vec<Uuid> = heard.keys().map(|journal| journal.uuid()).collect();
    let heard: Vec<_> = heard.values().map(|at| at.to_sqlx()).collect();
    sqlx::query!(
        r#"
        insert into wallet.journals (id, gateway, heartbeat_at)
        select u.id, '', u.heard
          from unnest($1::uuid[], $2::timestamptz[]) as u (id, heard)
         order by u.id
            on conflict (id) do nothing"#,
        &ids,
        &heard as &[jiff_sqlx::Timestamp],
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query_scalar!(
        "select id from wallet.journals where id = any($1) order by id for key share",
        &ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}
