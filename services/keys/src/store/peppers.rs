//! Hashes of keys while the pepper changes, and who has which pepper.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::{KeyHash, KeyId};
use uuid::Uuid;

use super::{Store, Tx};
use crate::{
    domain::pepper::{Ids, Move},
    error::Result,
};

/// A process of this service.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) id: Uuid,
    pub(crate) peppers: Ids,
}

impl Store {
    /// Stores a key under its hash with the next pepper, unless somebody else was faster. Its
    /// version stays: nothing a gateway acts on is different. A change of the key that commits
    /// before is in what is read afterwards, one that commits later is announced under both hashes.
    pub(crate) async fn rehash(&self, key: KeyId, it: &Move) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.api_keys
               set previous_key_hash = key_hash, key_hash = $3,
                   previous_report_hash = report_hash, report_hash = $4, pepper_id = $5
             where id = $1 and key_hash = $2"#,
            key.uuid(),
            &it.from.bytes()[..],
            &it.to.bytes()[..],
            &it.report.bytes()[..],
            it.pepper_id,
        );
        update.execute(&self.pool).await?;
        Ok(())
    }

    /// The key of a plain hash, hashed with the pepper and the one before.
    pub(crate) async fn key_of_report(
        &self,
        (report, previous): (KeyHash, Option<KeyHash>),
    ) -> Result<Option<KeyId>> {
        let hashes: Vec<_> = [Some(report), previous]
            .into_iter()
            .flatten()
            .map(|hash| hash.bytes().to_vec())
            .collect();
        let select = sqlx::query_scalar!(
            r#"
            select id
              from keys.api_keys
             where report_hash = any($1) or previous_report_hash = any($1)"#,
            &hashes,
        );
        Ok(select.fetch_optional(&self.pool).await?.map(KeyId::new))
    }

    /// Counts the keys that are not revoked, by pepper.
    pub(crate) async fn pepper_counts(&self) -> Result<Vec<(String, i64)>> {
        let select = sqlx::query!(
            r#"
            select pepper_id, count(*) as "keys!"
              from keys.api_keys
             where revoked_at is null
             group by pepper_id
             order by pepper_id"#,
        );
        let rows = select.fetch_all(&self.pool).await?.into_iter();
        Ok(rows.map(|row| (row.pepper_id, row.keys)).collect())
    }

    /// Forgets the hashes with the pepper before, of keys that have moved to this one.
    pub(crate) async fn forget_previous_hashes(&self, pepper: &str) -> Result<u64> {
        let update = sqlx::query!(
            r#"
            update keys.api_keys
               set previous_key_hash = null, previous_report_hash = null
             where pepper_id = $1 and previous_key_hash is not null"#,
            pepper,
        );
        Ok(update.execute(&self.pool).await?.rows_affected())
    }

    /// Notes that a process of this service lives, and what it hashes keys with.
    pub(crate) async fn note_instance(&self, instance: &Instance, now: Timestamp) -> Result<()> {
        let upsert = sqlx::query!(
            r#"
            insert into keys.instances (id, pepper_id, previous_pepper_id, seen_at)
            values ($1, $2, $3, $4)
            on conflict (id) do update
               set pepper_id = excluded.pepper_id,
                   previous_pepper_id = excluded.previous_pepper_id,
                   seen_at = excluded.seen_at"#,
            instance.id,
            instance.peppers.0,
            instance.peppers.1,
            now.to_sqlx(),
        );
        upsert.execute(&self.pool).await?;
        Ok(())
    }

    /// The processes of this service seen since a moment.
    pub(crate) async fn instances_since(&self, seen: Timestamp) -> Result<Vec<Instance>> {
        let select = sqlx::query!(
            r#"
            select id, pepper_id, previous_pepper_id
              from keys.instances
             where seen_at >= $1
             order by id"#,
            seen.to_sqlx(),
        );
        let rows = select.fetch_all(&self.pool).await?.into_iter();
        let instances = rows.map(|row| Instance {
            id: row.id,
            peppers: (row.pepper_id, row.previous_pepper_id),
        });
        Ok(instances.collect())
    }

    /// Forgets processes that were not seen since a moment.
    pub(crate) async fn forget_instances(&self, seen: Timestamp) -> Result<u64> {
        let delete = sqlx::query!(
            "delete from keys.instances where seen_at < $1",
            seen.to_sqlx()
        );
        Ok(delete.execute(&self.pool).await?.rows_affected())
    }
}

impl Tx {
    /// Names the peppers that were loaded last, and the ones before them; `None`: these are the
    /// first. Whoever else loads some waits until this transaction ends.
    pub(crate) async fn load_peppers(&mut self, ids: &Ids) -> Result<Option<Ids>> {
        let insert = sqlx::query!(
            r#"
            insert into keys.peppers (pepper_id, previous_pepper_id)
            values ($1, $2)
            on conflict (one) do nothing"#,
            ids.0,
            ids.1,
        );
        if insert.execute(&mut *self.inner).await?.rows_affected() == 1 {
            return Ok(None);
        }
        let select =
            sqlx::query!("select pepper_id, previous_pepper_id from keys.peppers for update");
        let before = select.fetch_one(&mut *self.inner).await?;
        let update = sqlx::query!(
            "update keys.peppers set pepper_id = $1, previous_pepper_id = $2",
            ids.0,
            ids.1,
        );
        update.execute(&mut *self.inner).await?;
        Ok(Some((before.pepper_id, before.previous_pepper_id)))
    }
}
