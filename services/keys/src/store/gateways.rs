//! Gateways: what each has applied, and what it has to be told.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::{JournalId, KeyHash, OrgId};
use uuid::Uuid;

use super::{Store, corrupt};
use crate::{
    domain::{changes::CHANGES_MAX, pepper::Ids},
    error::Result,
};

/// What a gateway says of itself.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) journal: JournalId,
    pub(crate) gateway: String,
    pub(crate) applied: i64,
    pub(crate) peppers: Ids,
}

/// A gateway that was seen lately.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub(crate) journal: JournalId,
    pub(crate) name: String,
    pub(crate) applied: i64,
    pub(crate) peppers: Ids,
}

/// The origins of an organisation.
#[derive(Debug)]
pub(crate) struct Origins {
    pub(crate) org: OrgId,
    pub(crate) allowed: Vec<String>,
    pub(crate) change: i64,
}

struct GatewayRow {
    journal_id: Uuid,
    gateway: String,
    applied_change: i64,
    pepper_id: String,
    previous_pepper_id: Option<String>,
}

impl From<GatewayRow> for Gateway {
    fn from(row: GatewayRow) -> Self {
        Self {
            journal: JournalId::new(row.journal_id),
            name: row.gateway,
            applied: row.applied_change,
            peppers: (row.pepper_id, row.previous_pepper_id),
        }
    }
}

impl Store {
    /// Notes what a gateway has applied, and that it lives.
    pub(crate) async fn note_gateway(&self, report: &Report, now: Timestamp) -> Result<()> {
        let upsert = sqlx::query!(
            r#"
            insert into keys.gateways
                (journal_id, gateway, applied_change, pepper_id, previous_pepper_id, seen_at)
            values ($1, $2, $3, $4, $5, $6)
            on conflict (journal_id) do update
               set gateway = excluded.gateway,
                   applied_change = excluded.applied_change,
                   pepper_id = excluded.pepper_id,
                   previous_pepper_id = excluded.previous_pepper_id,
                   seen_at = excluded.seen_at"#,
            report.journal.uuid(),
            report.gateway,
            report.applied,
            report.peppers.0,
            report.peppers.1,
            now.to_sqlx(),
        );
        upsert.execute(&self.pool).await?;
        Ok(())
    }

    /// Forgets lives that have ended.
    pub(crate) async fn end_gateways(&self, ended: &[JournalId]) -> Result<()> {
        if ended.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = ended.iter().map(|journal| journal.uuid()).collect();
        let delete = sqlx::query!("delete from keys.gateways where journal_id = any($1)", &ids);
        delete.execute(&self.pool).await?;
        Ok(())
    }

    /// The gateways seen since a moment, by name.
    pub(crate) async fn gateways_since(&self, seen: Timestamp) -> Result<Vec<Gateway>> {
        let select = sqlx::query_as!(
            GatewayRow,
            r#"
            select journal_id, gateway, applied_change, pepper_id, previous_pepper_id
              from keys.gateways
             where seen_at >= $1
             order by gateway, journal_id"#,
            seen.to_sqlx(),
        );
        let rows = select.fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(Gateway::from).collect())
    }

    /// How far these gateways are now, by name.
    pub(crate) async fn gateways_of(&self, journals: &[JournalId]) -> Result<Vec<Gateway>> {
        let ids: Vec<_> = journals.iter().map(|journal| journal.uuid()).collect();
        let select = sqlx::query_as!(
            GatewayRow,
            r#"
            select journal_id, gateway, applied_change, pepper_id, previous_pepper_id
              from keys.gateways
             where journal_id = any($1)
             order by gateway, journal_id"#,
            &ids,
        );
        let rows = select.fetch_all(&self.pool).await?;
        Ok(rows.into_iter().map(Gateway::from).collect())
    }

    /// Forgets gateways that were not seen since a moment.
    pub(crate) async fn forget_gateways(&self, seen: Timestamp) -> Result<u64> {
        let delete = sqlx::query!(
            "delete from keys.gateways where seen_at < $1",
            seen.to_sqlx()
        );
        Ok(delete.execute(&self.pool).await?.rows_affected())
    }

    /// Key changes behind `applied` and up to `position`; one more than a gateway is told.
    pub(crate) async fn changed_keys(
        &self,
        applied: i64,
        position: i64,
    ) -> Result<Vec<(KeyHash, i64)>> {
        let limit = i64::try_from(CHANGES_MAX + 1).unwrap_or(i64::MAX);
        let select = sqlx::query!(
            r#"
            select key_hash as "key_hash!", version as "version!"
              from keys.changes
             where id > $1 and id <= $2 and key_hash is not null
             order by id
             limit $3"#,
            applied,
            position,
            limit,
        );
        let mut changed = Vec::new();
        for row in select.fetch_all(&self.pool).await? {
            let hash = KeyHash::from_slice(&row.key_hash)
                .ok_or_else(|| corrupt("key_hash", "not 32 bytes"))?;
            changed.push((hash, row.version));
        }
        Ok(changed)
    }

    /// Organisations whose origins changed behind `known` and up to `position`, at most `limit`,
    /// each with its change, in the order of the changes.
    pub(crate) async fn origins(
        &self,
        known: i64,
        position: i64,
        limit: usize,
    ) -> Result<Vec<Origins>> {
        let select = sqlx::query!(
            r#"
            select id, allowed_origins, origins_change as "origins_change!"
              from keys.organisations
             where origins_change > $1 and origins_change <= $2
             order by origins_change
             limit $3"#,
            known,
            position,
            i64::try_from(limit).unwrap_or(i64::MAX),
        );
        let rows = select.fetch_all(&self.pool).await?;
        let origins = rows.into_iter().map(|row| Origins {
            org: OrgId::new(row.id),
            allowed: row.allowed_origins,
            change: row.origins_change,
        });
        Ok(origins.collect())
    }
}
