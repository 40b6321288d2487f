//! What accounts are lent from, of many owners at once: wallets, test wallets, buckets of permits.
//!
//! What is missing is made before anything is locked, in the order of its owners by everybody, and
//! the rest is read only; what is there is changed once all of it is locked.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::{Id, LeaseId, OrgId, Period, UserId};
use uuid::Uuid;

use super::{Connection, rows};
use crate::domain::{Account, Book, Epoch, Quota, WalletId};

/// Where an account's credits are, or its permits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) wallet: WalletId,
    /// Permits: when their period ends.
    pub(super) period_end: Option<Timestamp>,
}

/// Where the credits and permits of accounts are.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// By the place of the account. An organisation that was never given credits has none.
    pub(super) found: Vec<Option<Source>>,
    /// Test wallets made just now.
    made: BTreeSet<WalletId>,
    /// Buckets whose quota is not the newest.
    stale: BTreeMap<WalletId, Quota>,
}

/// A bucket that is there, and which version of which key has stated its quota.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    id: Uuid,
    stated: (Uuid, i64),
}

/// Finds what accounts are lent from at `at`, and makes test wallets and buckets that are missing.
/// Nothing is locked but what is new.
pub(super) async fn find(
    connection: &mut Connection,
    accounts: &[(Account, Timestamp)],
    new_id: impl Fn() -> Uuid,
    now: Timestamp,
) -> sqlx::Result<Sources> {
    let (mut orgs, mut users, mut quotas) = (Vec::new(), BTreeSet::new(), Vec::new());
    for (account, at) in accounts {
        match account {
            Account::Org(org) => orgs.push(*org),
            Account::User(user) => drop(users.insert(*user)),
            Account::Quota(quota) => quotas.push((*quota, quota.kind.period(*at))),
        }
    }
    let orgs = live(connection, &orgs).await?;
    let (users, made) = test(connection, &users, &new_id, now).await?;
    let mut buckets = buckets(connection, &quotas, &new_id, now)
        .await?
        .into_iter();
    let mut quotas = quotas.into_iter();
    let mut sources = Sources::default();
    let of = |wallet, period_end| Source { wallet, period_end };
    for (account, _) in accounts {
        let source = match account {
            Account::Org(org) => {
                let id = orgs.get(org);
                id.map(|id| of(WalletId::Live(Id::new(*id)), None))
            }
            Account::User(user) => {
                let id = users.get(user).ok_or(sqlx::Error::RowNotFound)?;
                let wallet = WalletId::Test(Id::new(*id));
                if made.contains(user) {
                    sources.made.insert(wallet);
                }
                Some(of(wallet, None))
            }
            Account::Quota(_) => {
                let bucket = buckets.next().ok_or(sqlx::Error::RowNotFound)?;
                let (quota, period) = quotas.next().ok_or(sqlx::Error::RowNotFound)?;
                let wallet = WalletId::Quota(Id::new(bucket.id));
                sources.note_statement(wallet, bucket, quota);
                Some(of(wallet, Some(period.end)))
            }
        };
        sources.found.push(source);
    }
    Ok(sources)
}

impl Sources {
    /// All of them, in the order in which they are locked.
    fn wallets(&self) -> BTreeSet<WalletId> {
        let found = self.found.iter().flatten();
        found.map(|source| source.wallet).collect()
    }

    /// Notes a quota that is newer than the one of the bucket and of those noted before.
    fn note_statement(&mut self, wallet: WalletId, bucket: Bucket, quota: Quota) {
        let newest = self.stale.get(&wallet).map_or(bucket.stated, stated);
        if newest < stated(&quota) {
            self.stale.insert(wallet, quota);
        }
    }

    /// Locks the wallets together with `others`, and brings them up to date: the first epoch of
    /// what is new, the epoch of `now`, the newest quotas. What that changes of the book has to be
    /// written with the rest of it.
    pub(super) async fn lock(
        &self,
        connection: &mut Connection,
        others: BTreeSet<WalletId>,
        now: Timestamp,
    ) -> sqlx::Result<(Book, Ended)> {
        let own = self.wallets();
        let all = others.into_iter().chain(own.iter().copied()).collect();
        let mut book = Book::new(rows::lock_wallets(connection, &all).await?, []);
        let mut ended = Vec::new();
        for wallet in own {
            let WalletId::Test(_) = wallet else { continue };
            if self.made.contains(&wallet) {
                book.begin_epochs(wallet);
            } else if let Some(next) = book.roll_over(wallet, now) {
                ended.extend(begin_epoch(connection, wallet, next).await?);
            }
        }
        if !self.stale.is_empty() {
            state(connection, &self.stale, now).await?;
            let stated: BTreeSet<WalletId> = self.stale.keys().copied().collect();
            let stated = rows::lock_wallets(connection, &stated).await?;
            stated.into_iter().for_each(|bucket| book.hold(bucket));
        }
        Ok((book, Ended(ended)))
    }
}

/// Leases of epochs that have ended because their wallets were brought up to date.
#[must_use = "they are spent from until they drain"]
pub(super) struct Ended(Vec<Uuid>);

impl Ended {
    /// Locks them together with `others`, which are all else that the transaction changes, and ends
    /// what can be spent of them.
    pub(super) async fn lock_with(
        self,
        connection: &mut Connection,
        book: &mut Book,
        others: impl Iterator<Item = LeaseId>,
    ) -> sqlx::Result<()> {
        let others = others.map(|lease| lease.uuid());
        let leases: Vec<Uuid> = self.0.into_iter().chain(others).collect();
        let leases = rows::lock_leases(connection, &leases).await?;
        leases.into_iter().for_each(|lease| book.hold_lease(lease));
        book.drain_ended();
        Ok(())
    }
}

/// Newer keys of a lineage have higher ids.
fn stated(quota: &Quota) -> (Uuid, i64) {
    (quota.stated_by.uuid(), quota.key_version)
}

/// The wallets of organisations that have one.
async fn live(connection: &mut Connection, orgs: &[OrgId]) -> sqlx::Result<BTreeMap<OrgId, Uuid>> {
    if orgs.is_empty() {
        return Ok(BTreeMap::new());
    }
    let orgs: Vec<Uuid> = orgs.iter().map(|org| org.uuid()).collect();
    let rows = sqlx::query!(
        "select org_id, id from wallet.wallets where org_id = any($1)",
        &orgs,
    )
    .fetch_all(connection)
    .await?;
    let found = rows.into_iter().map(|row| (OrgId::new(row.org_id), row.id));
    Ok(found.collect())
}

/// The test wallets of users, and who had none.
async fn test(
    connection: &mut Connection,
    users: &BTreeSet<UserId>,
    new_id: impl Fn() -> Uuid,
    now: Timestamp,
) -> sqlx::Result<(BTreeMap<UserId, Uuid>, BTreeSet<UserId>)> {
    if users.is_empty() {
        return Ok((BTreeMap::new(), BTreeSet::new()));
    }
    let found = known_test(connection, users).await?;
    let missing: Vec<UserId> = users
        .iter()
        .filter(|user| !found.contains_key(user))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok((found, BTreeSet::new()));
    }
    let made = insert_test(connection, &missing, new_id, now).await?;
    Ok((known_test(connection, users).await?, made))
}

async fn known_test(
    connection: &mut Connection,
    users: &BTreeSet<UserId>,
) -> sqlx::Result<BTreeMap<UserId, Uuid>> {
    let users: Vec<Uuid> = users.iter().map(|user| user.uuid()).collect();
    let rows = sqlx::query!(
        "select user_id, id from wallet.test_wallets where user_id = any($1)",
        &users,
    )
    .fetch_all(connection)
    .await?;
    let found = rows
        .into_iter()
        .map(|row| (UserId::new(row.user_id), row.id));
    Ok(found.collect())
}

/// Those for whom nobody else was faster.
async fn insert_test(
    connection: &mut Connection,
    users: &[UserId],
    new_id: impl Fn() -> Uuid,
    now: Timestamp,
) -> sqlx::Result<BTreeSet<UserId>> {
    let epoch = Epoch::first(now);
    let ids: Vec<Uuid> = users.iter().map(|_| new_id()).collect();
    let users: Vec<Uuid> = users.iter().map(|user| user.uuid()).collect();
    let made = sqlx::query_scalar!(
        r#"
        insert into wallet.test_wallets (id, user_id, epoch, reset_at, created_at, updated_at)
        select u.id, u.user_id, $3, $4, $5, $5
          from unnest($1::uuid[], $2::uuid[]) as u (id, user_id)
         order by u.user_id
            on conflict (user_id) do nothing
        returning user_id"#,
        &ids,
        &users,
        epoch.number,
        epoch.reset_at.to_sqlx() as _,
        now.to_sqlx() as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(made.into_iter().map(UserId::new).collect())
}

/// Begins an epoch of a locked test wallet. Its leases of the epochs before are named, and not
/// locked yet: others with lower ids may have to be, and who locks leases by id must not wait for
/// who does not.
async fn begin_epoch(
    connection: &mut Connection,
    id: WalletId,
    epoch: Epoch,
) -> sqlx::Result<Vec<Uuid>> {
    let WalletId::Test(id) = id else {
        return Ok(Vec::new());
    };
    sqlx::query!(
        r#"
        update wallet.test_wallets
           set epoch = $2, reset_at = $3
         where id = $1"#,
        id.uuid(),
        epoch.number,
        epoch.reset_at.to_sqlx() as _,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query_scalar!(
        r#"
        select id
          from wallet.leases
         where test_wallet_id = $1
           and epoch < $2
           and state = 'active'"#,
        id.uuid(),
        epoch.number,
    )
    .fetch_all(connection)
    .await
}

/// The bucket of each quota and period, made when this is its first permit.
async fn buckets(
    connection: &mut Connection,
    quotas: &[(Quota, Period)],
    new_id: impl Fn() -> Uuid,
    now: Timestamp,
) -> sqlx::Result<Vec<Bucket>> {
    if quotas.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = known_buckets(connection, quotas).await?;
    let missing = quotas.iter().zip(&found);
    let missing: Vec<(Quota, Period)> = missing
        .filter(|(_, bucket)| bucket.is_none())
        .map(|(quota, _)| *quota)
        .collect();
    if !missing.is_empty() {
        insert_buckets(connection, &missing, new_id, now).await?;
        found = known_buckets(connection, quotas).await?;
    }
    let found: Option<Vec<Bucket>> = found.into_iter().collect();
    found.ok_or(sqlx::Error::RowNotFound)
}

/// Each is looked up for itself: the plan of a join that was made while the table was small would
/// go on reading all of it until there are new statistics.
async fn known_buckets(
    connection: &mut Connection,
    quotas: &[(Quota, Period)],
) -> sqlx::Result<Vec<Option<Bucket>>> {
    let (keys, kinds, starts, _) = columns(quotas);
    let rows = sqlx::query!(
        r#"
        select b.id as "id?", b.stated_by as "stated_by?", b.key_version as "key_version?"
          from unnest($1::uuid[], $2::text[], $3::timestamptz[])
               with ordinality as u (key_id, kind, period_start, position)
          left join lateral (
            select id, stated_by, key_version
              from wallet.quota_buckets
             where key_id = u.key_id
               and kind = u.kind
               and period_start = u.period_start
             limit 1) b on true
         order by u.position"#,
        &keys,
        &kinds as &[&str],
        &starts as &[jiff_sqlx::Timestamp],
    )
    .fetch_all(connection)
    .await?;
    let found = rows.into_iter().map(|row| {
        Some(Bucket {
            id: row.id?,
            stated: row.stated_by.zip(row.key_version)?,
        })
    });
    Ok(found.collect())
}

/// Keys, kinds, starts and ends.
type Columns = (
    Vec<Uuid>,
    Vec<&'static str>,
    Vec<jiff_sqlx::Timestamp>,
    Vec<jiff_sqlx::Timestamp>,
);

fn columns(quotas: &[(Quota, Period)]) -> Columns {
    let keys = quotas.iter().map(|(quota, _)| quota.key.uuid());
    let kinds = quotas.iter().map(|(quota, _)| quota.kind.as_str());
    let starts = quotas.iter().map(|(_, period)| period.start.to_sqlx());
    let ends = quotas.iter().map(|(_, period)| period.end.to_sqlx());
    (
        keys.collect(),
        kinds.collect(),
        starts.collect(),
        ends.collect(),
    )
}

/// Makes buckets, unless somebody else was faster.
async fn insert_buckets(
    connection: &mut Connection,
    quotas: &[(Quota, Period)],
    new_id: impl Fn() -> Uuid,
    now: Timestamp,
) -> sqlx::Result<()> {
    let (keys, kinds, starts, ends) = columns(quotas);
    let ids: Vec<Uuid> = quotas.iter().map(|_| new_id()).collect();
    let quota = quotas.iter().map(|(quota, _)| quota);
    let orgs: Vec<Uuid> = quota.clone().map(|quota| quota.org.uuid()).collect();
    let calls: Vec<i64> = quota.clone().map(|quota| quota.calls).collect();
    let stated_by: Vec<Uuid> = quota.clone().map(|quota| quota.stated_by.uuid()).collect();
    let versions: Vec<i64> = quota.map(|quota| quota.key_version).collect();
    sqlx::query!(
        r#"
        insert into wallet.quota_buckets
               (id, key_id, org_id, kind, period_start, period_end, quota, stated_by, key_version,
                quota_max, created_at, updated_at)
        select u.id, u.key_id, u.org_id, u.kind, u.period_start, u.period_end, u.quota,
               u.stated_by, u.key_version, u.quota, $10, $10
          from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[],
                      $6::timestamptz[], $7::bigint[], $8::uuid[], $9::bigint[])
            as u (id, key_id, org_id, kind, period_start, period_end, quota, stated_by,
                  key_version)
         order by u.key_id, u.kind, u.period_start
            on conflict (key_id, kind, period_start) do nothing"#,
        &ids,
        &keys,
        &orgs,
        &kinds as &[&str],
        &starts as &[jiff_sqlx::Timestamp],
        &ends as &[jiff_sqlx::Timestamp],
        &calls,
        &stated_by,
        &versions,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// States the quotas of locked buckets, unless somebody has stated one as new meanwhile.
async fn state(
    connection: &mut Connection,
    quotas: &BTreeMap<WalletId, Quota>,
    now: Timestamp,
) -> sqlx::Result<()> {
    let buckets = quotas.keys();
    let ids: Vec<Uuid> = buckets.filter_map(|it| rows::owner(*it)[2]).collect();
    let calls: Vec<i64> = quotas.values().map(|quota| quota.calls).collect();
    let stated_by: Vec<Uuid> = quotas.values().map(|it| it.stated_by.uuid()).collect();
    let versions: Vec<i64> = quotas.values().map(|quota| quota.key_version).collect();
    sqlx::query!(
        r#"
        update wallet.quota_buckets b
           set quota = u.quota,
               stated_by = u.stated_by,
               key_version = u.key_version,
               quota_max = greatest(b.quota_max, u.quota),
               updated_at = $5
          from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bigint[])
            as u (id, quota, stated_by, key_version)
         where b.id = u.id
           and (b.stated_by, b.key_version) < (u.stated_by, u.key_version)"#,
        &ids,
        &calls,
        &stated_by,
        &versions,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}
