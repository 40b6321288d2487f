//! Changes that wait to be published, and the state of the peppers.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::KeyId;

use super::{Store, Tx};
use crate::error::Result;

/// A change nobody has published yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) change: i64,
    /// `None`: the catalogue.
    pub(crate) key: Option<KeyId>,
    pub(crate) at: Timestamp,
}

/// How many keys that are not revoked wait for a new hash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peppers {
    /// Hashed with the previous pepper: they change at their first use.
    pub(crate) waiting: i64,
    /// Hashed with a pepper nobody has any more: they cannot be used.
    pub(crate) lost: i64,
}

impl Tx {
    /// Takes the oldest unpublished changes that no other instance is publishing.
    pub(crate) async fn claim_pending(&mut self, limit: i64) -> Result<Vec<Pending>> {
        let select = sqlx::query!(
            r#"
            select id, key_id, at
              from keys.changes
             where published_at is null
             order by id
             limit $1
               for update skip locked"#,
            limit,
        );
        let rows = select.fetch_all(&mut *self.inner).await?;
        let pending = rows.into_iter().map(|row| Pending {
            change: row.id,
            key: row.key_id.map(KeyId::new),
            at: row.at.to_jiff(),
        });
        Ok(pending.collect())
    }

    /// Marks changes as published.
    pub(crate) async fn mark_published(&mut self, changes: &[i64], now: Timestamp) -> Result<()> {
        let update = sqlx::query!(
            "update keys.changes set published_at = $2 where id = any($1)",
            changes,
            now.to_sqlx() as _,
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }
}

impl Store {
    /// Counts the keys that are not hashed with the current pepper.
    pub(crate) async fn peppers(&self, current: &str, previous: Option<&str>) -> Result<Peppers> {
        let select = sqlx::query_as!(
            Peppers,
            r#"
            select count(*) filter (where pepper_id = $2) as "waiting!",
                   count(*) filter (where pepper_id is distinct from $2) as "lost!"
              from keys.api_keys
             where revoked_at is null and pepper_id <> $1"#,
            current,
            previous,
        );
        Ok(select.fetch_one(&self.pool).await?)
    }
}
