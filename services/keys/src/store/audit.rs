//! Reading the audit log.

use jiff::Timestamp;
use serde_json::Value;
use types::OrgId;

use super::Store;
use crate::error::Result;

/// An entry of the audit log.
#[derive(Debug)]
pub(crate) struct AuditEntry {
    pub(crate) id: i64,
    pub(crate) actor: String,
    pub(crate) action: String,
    pub(crate) target: String,
    pub(crate) details: Value,
    pub(crate) at: Timestamp,
}

/// What to read; `None` does not limit.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditFilter {
    pub(crate) org: Option<OrgId>,
    pub(crate) actor: Option<String>,
    /// A `like` pattern.
    pub(crate) action: Option<&'static str>,
}

impl Store {
    /// Reads entries below `before`, newest first.
    pub(crate) async fn audit_log(
        &self,
        filter: &AuditFilter,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<AuditEntry>> {
        let select = sqlx::query!(
            r#"
            select id, actor, action, target, details, at
              from keys.audit_log
             where ($1::uuid is null or org_id = $1)
               and ($2::text is null or actor = $2)
               and ($3::text is null or action like $3)
               and ($4::bigint is null or id < $4)
             order by id desc
             limit $5"#,
            filter.org.map(OrgId::uuid),
            filter.actor,
            filter.action,
            before,
            limit,
        );
        let rows = select.fetch_all(&self.pool).await?;
        let entries = rows.into_iter().map(|row| AuditEntry {
            id: row.id,
            actor: row.actor,
            action: row.action,
            target: row.target,
            details: row.details,
            at: row.at.to_jiff(),
        });
        Ok(entries.collect())
    }
}
