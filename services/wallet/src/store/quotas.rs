//! Buckets of permits, by key, kind and period.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::Tenant;
use types::{Credits, Id, KeyId, OrgId, Period};
use uuid::Uuid;

use super::{Connection, Store};
use crate::{
    domain::{Quota, WalletId},
    error::Result,
};

/// Permits of one quota in its present period.
#[derive(Clone, Debug)]
pub(crate) struct QuotaUse {
    pub(crate) key: KeyId,
    /// As in the table.
    pub(crate) kind: String,
    pub(crate) used: Credits,
    pub(crate) reserved: Credits,
    pub(crate) ends_at: Timestamp,
}

impl Store {
    /// Reads what keys of an organisation have used of their quotas in the periods of `now`.
    pub(crate) async fn quota_use(
        &self,
        org: OrgId,
        keys: &[KeyId],
        now: Timestamp,
    ) -> Result<Vec<QuotaUse>> {
        let mut tx = self.tenants.begin(Tenant::Org(org)).await?;
        let keys: Vec<Uuid> = keys.iter().map(|key| key.uuid()).collect();
        let rows = sqlx::query!(
            r#"
            select key_id, kind, used, reserved, period_end as "period_end: jiff_sqlx::Timestamp"
              from wallet.quota_buckets
             where org_id = $1
               and key_id = any($2)
               and period_start <= $3
               and period_end > $3
             order by key_id, kind"#,
            org.uuid(),
            &keys,
            now.to_sqlx() as _,
        )
        .fetch_all(&mut *tx)
        .await?;
        let uses = rows.into_iter().map(|row| QuotaUse {
            key: KeyId::new(row.key_id),
            kind: row.kind,
            used: Credits::new(row.used),
            reserved: Credits::new(row.reserved),
            ends_at: row.period_end.to_jiff(),
        });
        Ok(uses.collect())
    }
}

/// The bucket of the period `now` is in, made when this is its first permit, and with the newest
/// quota. Nobody else is waited for unless the quota changes.
pub(super) async fn bucket(
    connection: &mut Connection,
    quota: &Quota,
    new_bucket: Uuid,
    now: Timestamp,
) -> sqlx::Result<WalletId> {
    let period = quota.kind.period(now);
    let stated = (quota.stated_by.uuid(), quota.key_version);
    if let Some((id, by)) = known(connection, quota, period.start).await?
        && stated <= by
    {
        return Ok(id);
    }
    state(connection, quota, period, new_bucket, now).await?;
    let now_known = known(connection, quota, period.start).await?;
    now_known.map(|(id, _)| id).ok_or(sqlx::Error::RowNotFound)
}

/// A bucket that is there, and which version of which key has stated its quota.
async fn known(
    connection: &mut Connection,
    quota: &Quota,
    start: Timestamp,
) -> sqlx::Result<Option<(WalletId, (Uuid, i64))>> {
    let found = sqlx::query!(
        r#"
        select id, stated_by, key_version
          from wallet.quota_buckets
         where key_id = $1
           and kind = $2
           and period_start = $3"#,
        quota.key.uuid(),
        quota.kind.as_str(),
        start.to_sqlx() as _,
    )
    .fetch_optional(connection)
    .await?;
    let known = found.map(|it| {
        (
            WalletId::Quota(Id::new(it.id)),
            (it.stated_by, it.key_version),
        )
    });
    Ok(known)
}

/// Makes the bucket or states its quota, unless somebody has stated one as new meanwhile.
async fn state(
    connection: &mut Connection,
    quota: &Quota,
    Period { start, end }: Period,
    new_bucket: Uuid,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into wallet.quota_buckets as b
               (id, key_id, org_id, kind, period_start, period_end, quota, stated_by, key_version,
                quota_max, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $7, $10, $10)
        on conflict (key_id, kind, period_start) do update
           set quota = excluded.quota,
               stated_by = excluded.stated_by,
               key_version = excluded.key_version,
               quota_max = greatest(b.quota_max, excluded.quota),
               updated_at = excluded.updated_at
         where (b.stated_by, b.key_version) < (excluded.stated_by, excluded.key_version)"#,
        new_bucket,
        quota.key.uuid(),
        quota.org.uuid(),
        quota.kind.as_str(),
        start.to_sqlx() as _,
        end.to_sqlx() as _,
        quota.calls,
        quota.stated_by.uuid(),
        quota.key_version,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// True for two periods of one quota.
pub(super) async fn is_same(
    connection: &mut Connection,
    left: WalletId,
    right: WalletId,
) -> sqlx::Result<bool> {
    let (WalletId::Quota(left), WalletId::Quota(right)) = (left, right) else {
        return Ok(false);
    };
    sqlx::query_scalar!(
        r#"
        select exists (
            select
              from wallet.quota_buckets a
              join wallet.quota_buckets b on b.key_id = a.key_id and b.kind = a.kind
             where a.id = $1
               and b.id = $2) as "is_same!""#,
        left.uuid(),
        right.uuid(),
    )
    .fetch_one(connection)
    .await
}
