//! Changes and new keys that wait to be published.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::{KeyHash, KeyId, OrgId, UserId};

use super::Tx;
use crate::error::Result;

/// A change nobody has published yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) change: i64,
    /// `None`: the catalogue.
    pub(crate) key: Option<KeyId>,
    /// What gateways know the key by.
    pub(crate) hash: Option<KeyHash>,
    pub(crate) at: Timestamp,
}

/// A key that was made, and that nobody has been told of.
#[derive(Clone, Debug)]
pub(crate) struct Created {
    pub(crate) key: KeyId,
    pub(crate) org: OrgId,
    pub(crate) created_by: UserId,
    pub(crate) environment: String,
    pub(crate) at: Timestamp,
}

impl Tx {
    /// Takes the oldest unpublished changes that no other instance is publishing.
    pub(crate) async fn claim_pending(&mut self, limit: i64) -> Result<Vec<Pending>> {
        let select = sqlx::query!(
            r#"
            select id, key_id, key_hash, at
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
            hash: row.key_hash.as_deref().and_then(KeyHash::from_slice),
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

    /// Announces, once this transaction has committed, that a key was made.
    pub(crate) async fn announce_created(&mut self, key: KeyId) -> Result<()> {
        let insert = sqlx::query!(
            "insert into keys.outbox_created (key_id) values ($1)",
            key.uuid(),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Takes the oldest new keys that no other instance is announcing.
    pub(crate) async fn claim_created(&mut self, limit: i64) -> Result<Vec<Created>> {
        let select = sqlx::query!(
            r#"
            select k.id, k.org_id, k.created_by, k.environment, k.created_at
              from keys.outbox_created o
              join keys.api_keys k on k.id = o.key_id
             order by o.key_id
             limit $1
               for update of o skip locked"#,
            limit,
        );
        let rows = select.fetch_all(&mut *self.inner).await?;
        let created = rows.into_iter().map(|row| Created {
            key: KeyId::new(row.id),
            org: OrgId::new(row.org_id),
            created_by: UserId::new(row.created_by),
            environment: row.environment,
            at: row.created_at.to_jiff(),
        });
        Ok(created.collect())
    }

    /// Forgets new keys that were announced.
    pub(crate) async fn forget_created(&mut self, keys: &[KeyId]) -> Result<()> {
        let ids: Vec<_> = keys.iter().map(|key| key.uuid()).collect();
        let delete = sqlx::query!(
            "delete from keys.outbox_created where key_id = any($1)",
            &ids
        );
        delete.execute(&mut *self.inner).await?;
        Ok(())
    }
}
