//! Wallets that run dry: what waits to be published.

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx;
use types::{Credits, OrgId};
use uuid::Uuid;

use super::Store;
use crate::error::Result;

/// Rows published by one run; the next takes the rest.
const PUBLISHED_MAX: i64 = 100;
/// Hours for which a published row is kept, for people who look.
const KEPT_HOURS: i64 = 30 * 24;
/// Rows forgotten by one run; the next takes the rest.
const FORGOTTEN_MAX: i64 = 10_000;

/// A share that a wallet has fallen to, as it is announced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Low {
    wallet: Uuid,
    pub(crate) org: OrgId,
    pub(crate) reference_at: Timestamp,
    pub(crate) percent: u32,
    pub(crate) reference: Credits,
    pub(crate) balance: Credits,
    pub(crate) at: Timestamp,
}

impl Store {
    /// What is not published yet, oldest first.
    pub(crate) async fn unpublished_lows(&self) -> Result<Vec<Low>> {
        let rows = sqlx::query!(
            r#"
            select l.wallet_id, w.org_id, l.reference_at, l.percent, l.reference, l.balance, l.at
              from wallet.lows l
              join wallet.wallets w on w.id = l.wallet_id
             where l.published_at is null
             order by l.at, l.percent desc
             limit $1"#,
            PUBLISHED_MAX,
        )
        .fetch_all(&self.pool)
        .await?;
        let lows = rows.into_iter().map(|row| Low {
            wallet: row.wallet_id,
            org: OrgId::new(row.org_id),
            reference_at: row.reference_at.to_jiff(),
            percent: u32::try_from(row.percent).unwrap_or(0),
            reference: Credits::new(row.reference),
            balance: Credits::new(row.balance),
            at: row.at.to_jiff(),
        });
        Ok(lows.collect())
    }

    /// Notes that one was published.
    pub(crate) async fn published_low(&self, low: &Low, now: Timestamp) -> Result<()> {
        sqlx::query!(
            r#"
            update wallet.lows
               set published_at = $4
             where wallet_id = $1
               and reference_at = $2
               and percent = $3
               and published_at is null"#,
            low.wallet,
            low.reference_at.to_sqlx() as _,
            i16::try_from(low.percent).unwrap_or(0),
            now.to_sqlx() as _,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Forgets what was published long ago.
    pub(crate) async fn forget_lows(&self, now: Timestamp) -> Result<()> {
        let kept = SignedDuration::from_hours(KEPT_HOURS);
        let before = now.checked_sub(kept).unwrap_or(Timestamp::MIN);
        sqlx::query!(
            r#"
            with old as (
                select wallet_id, reference_at, percent
                  from wallet.lows
                 where published_at < $1
                 order by published_at
                 limit $2)
            delete from wallet.lows l
             using old
             where l.wallet_id = old.wallet_id
               and l.reference_at = old.reference_at
               and l.percent = old.percent"#,
            before.to_sqlx() as _,
            FORGOTTEN_MAX,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
