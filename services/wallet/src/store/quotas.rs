//! Buckets of permits, by key, kind and period.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::Tenant;
use types::{Credits, KeyId, OrgId};
use uuid::Uuid;

use super::{Connection, Store};
use crate::{domain::WalletId, error::Result};

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
