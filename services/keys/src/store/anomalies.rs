//! Anomalies, and the keys they hold.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::{AnomalyId, KeyId, OrgId};

use super::{Store, Tx, corrupt};
use crate::{
    domain::{
        anomaly::{Anomaly, Hold, Restraint},
        rights::OrgScope,
    },
    error::Result,
};

/// What was known of an anomaly when it was heard of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    /// Nothing.
    First,
    /// Nothing, but that somebody has lifted it.
    Lifted,
    /// It is not lifted yet.
    Again,
    /// It is lifted since.
    Over,
}

/// An anomaly somebody wants to lift.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Known {
    /// `None`: it concerns the whole platform.
    pub(crate) org: Option<OrgId>,
    pub(crate) is_lifted: bool,
}

fn restraint(text: &str) -> Result<Restraint> {
    Restraint::parse(text).ok_or_else(|| corrupt("action", text))
}

impl Store {
    /// The organisation an anomaly was flagged for.
    pub(crate) async fn anomaly_org(&self, anomaly: AnomalyId) -> Result<Option<OrgId>> {
        let select = sqlx::query_scalar!(
            "select org_id from keys.anomalies where id = $1",
            anomaly.uuid(),
        );
        let mut tx = self.seen(OrgScope::Every).await?;
        let found = select.fetch_optional(&mut *tx).await?;
        Ok(found.flatten().map(OrgId::new))
    }

    /// Forgets what was lifted before a moment and never heard of.
    pub(crate) async fn forget_anomalies(&self, lifted: Timestamp) -> Result<u64> {
        let delete = sqlx::query!(
            "delete from keys.anomalies where flagged_at is null and lifted_at < $1",
            lifted.to_sqlx() as _,
        );
        Ok(delete.execute(&self.pool).await?.rows_affected())
    }
}

impl Tx {
    /// Notes an anomaly, once. Its organisation is locked.
    pub(crate) async fn hear_of(&mut self, anomaly: &Anomaly) -> Result<Heard> {
        // Only its own organisation lifts an anomaly, before it is heard of too.
        let upsert = sqlx::query_scalar!(
            r#"
            insert into keys.anomalies as a (id, org_id, kind, flagged_at)
            values ($1, $2, $3, $4)
            on conflict (id) do update
               set org_id = excluded.org_id, kind = excluded.kind,
                   flagged_at = excluded.flagged_at,
                   lifted_at = case when a.org_id = excluded.org_id then a.lifted_at end,
                   lifted_by = case when a.org_id = excluded.org_id then a.lifted_by end
             where a.flagged_at is null
            returning lifted_at is not null as "is_lifted!""#,
            anomaly.id.uuid(),
            anomaly.org.map(OrgId::uuid),
            anomaly.kind,
            self.at.to_sqlx() as _,
        );
        match upsert.fetch_optional(&mut *self.inner).await? {
            Some(true) => return Ok(Heard::Lifted),
            Some(false) => return Ok(Heard::First),
            None => {}
        }
        let known = self.lock_anomaly(anomaly.id).await?;
        Ok(match known.is_some_and(|known| known.is_lifted) {
            true => Heard::Over,
            false => Heard::Again,
        })
    }

    /// The keys an anomaly is known to concern.
    pub(crate) async fn keys_of(&mut self, anomaly: AnomalyId) -> Result<Vec<KeyId>> {
        let select = sqlx::query_scalar!(
            "select key_id from keys.anomaly_actions where anomaly_id = $1",
            anomaly.uuid(),
        );
        let keys = select.fetch_all(&mut *self.inner).await?;
        Ok(keys.into_iter().map(KeyId::new).collect())
    }

    /// An anomaly as it is known, locked.
    pub(crate) async fn lock_anomaly(&mut self, anomaly: AnomalyId) -> Result<Option<Known>> {
        let select = sqlx::query!(
            r#"
            select org_id, lifted_at is not null as "is_lifted!"
              from keys.anomalies
             where id = $1
               for update"#,
            anomaly.uuid(),
        );
        let row = select.fetch_optional(&mut *self.inner).await?;
        Ok(row.map(|row| Known {
            org: row.org_id.map(OrgId::new),
            is_lifted: row.is_lifted,
        }))
    }

    /// Notes that an anomaly is lifted. It is locked.
    pub(crate) async fn mark_lifted(&mut self, anomaly: AnomalyId) -> Result<()> {
        let update = sqlx::query!(
            "update keys.anomalies set lifted_at = $2, lifted_by = $3 where id = $1",
            anomaly.uuid(),
            self.at.to_sqlx() as _,
            self.actor,
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Notes that an anomaly is lifted that was not heard of yet; false when it was, for another
    /// organisation.
    pub(crate) async fn lift_unheard(&mut self, anomaly: AnomalyId, org: OrgId) -> Result<bool> {
        let insert = sqlx::query!(
            r#"
            insert into keys.anomalies (id, org_id, lifted_at, lifted_by)
            values ($1, $2, $3, $4)
            on conflict (id) do nothing"#,
            anomaly.uuid(),
            org.uuid(),
            self.at.to_sqlx() as _,
            self.actor,
        );
        Ok(insert.execute(&mut *self.inner).await?.rows_affected() == 1)
    }

    /// The anomalies that hold a key, oldest first. The key is locked.
    pub(crate) async fn holds_on(&mut self, key: KeyId) -> Result<Vec<Hold>> {
        let select = sqlx::query!(
            r#"
            select h.anomaly_id, a.kind as "kind!", h.action
              from keys.anomaly_actions h
              join keys.anomalies a on a.id = h.anomaly_id
             where h.key_id = $1 and h.action <> 'none' and h.lifted_at is null
             order by h.taken_at, h.anomaly_id"#,
            key.uuid(),
        );
        let mut holds = Vec::new();
        for row in select.fetch_all(&mut *self.inner).await? {
            holds.push(Hold {
                anomaly: AnomalyId::new(row.anomaly_id),
                kind: row.kind,
                restraint: restraint(&row.action)?,
            });
        }
        Ok(holds)
    }

    /// The keys an anomaly holds, in the order in which they are locked.
    pub(crate) async fn held_by(&mut self, anomaly: AnomalyId) -> Result<Vec<(KeyId, Restraint)>> {
        let select = sqlx::query!(
            r#"
            select key_id, action
              from keys.anomaly_actions
             where anomaly_id = $1 and action <> 'none' and lifted_at is null
             order by key_id"#,
            anomaly.uuid(),
        );
        let mut held = Vec::new();
        for row in select.fetch_all(&mut *self.inner).await? {
            held.push((KeyId::new(row.key_id), restraint(&row.action)?));
        }
        Ok(held)
    }

    /// Notes that an anomaly concerns a key, and from here on holds it so. The key is locked.
    pub(crate) async fn note_key(
        &mut self,
        anomaly: AnomalyId,
        org: OrgId,
        key: KeyId,
        restraint: Option<Restraint>,
    ) -> Result<()> {
        let insert = sqlx::query!(
            r#"
            insert into keys.anomaly_actions (anomaly_id, key_id, org_id, action, taken_at)
            values ($1, $2, $3, $4, $5)"#,
            anomaly.uuid(),
            key.uuid(),
            org.uuid(),
            restraint.map_or("none", Restraint::as_str),
            self.at.to_sqlx(),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// An anomaly holds nothing any more. Its keys are locked.
    pub(crate) async fn let_go(&mut self, anomaly: AnomalyId) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.anomaly_actions
               set lifted_at = $2, lifted_by = $3
             where anomaly_id = $1 and action <> 'none' and lifted_at is null"#,
            anomaly.uuid(),
            self.at.to_sqlx() as _,
            self.actor,
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// No anomaly holds a key any more, at least none that suspends it. The key is locked.
    pub(crate) async fn free_key(&mut self, key: KeyId, only: Option<Restraint>) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.anomaly_actions
               set lifted_at = $3, lifted_by = $4
             where key_id = $1 and action <> 'none' and lifted_at is null
               and ($2::text is null or action = $2)"#,
            key.uuid(),
            only.map(Restraint::as_str),
            self.at.to_sqlx() as _,
            self.actor,
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }
}
