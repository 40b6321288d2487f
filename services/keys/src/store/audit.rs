//! Reading the audit log.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::Value;
use types::OrgId;

use super::{Store, Tx, corrupt};
use crate::{
    domain::{
        audit_chain::{Hash, Head, Row, Verifier},
        rights::OrgScope,
    },
    error::Result,
};

/// An entry of the audit log.
#[derive(Debug)]
pub(crate) struct AuditEntry {
    pub(crate) id: i64,
    pub(crate) actor: String,
    pub(crate) action: String,
    pub(crate) target: String,
    pub(crate) details: Value,
    pub(crate) at: Timestamp,
    pub(crate) address: Option<IpAddr>,
}

/// What to read; `None` does not limit.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditFilter {
    pub(crate) org: Option<OrgId>,
    pub(crate) actor: Option<String>,
    /// A `like` pattern.
    pub(crate) action: Option<&'static str>,
}

fn hash(bytes: &[u8]) -> Result<Hash> {
    bytes.try_into().map_err(|error| corrupt("hash", error))
}

impl Tx {
    /// Locks the end of the chain until the transaction ends: writers of both logs take turns here.
    pub(super) async fn hold_audit_head(&mut self) -> Result<Head> {
        let select = sqlx::query!("select id, entries, hash from keys.audit_head for update");
        let row = select.fetch_one(&mut *self.inner).await?;
        Ok(Head {
            id: row.id,
            entries: row.entries,
            hash: hash(&row.hash)?,
        })
    }

    /// Reads the whole log along its chain, at one moment; the result, and where it ends.
    pub(crate) async fn walk_audit_log(&mut self) -> Result<(Verifier, Head)> {
        let snapshot = sqlx::query!("set transaction isolation level repeatable read, read only");
        snapshot.execute(&mut *self.inner).await?;
        let head = sqlx::query!("select id, entries, hash from keys.audit_head");
        let head = head.fetch_one(&mut *self.inner).await?;
        let head = Head {
            id: head.id,
            entries: head.entries,
            hash: hash(&head.hash)?,
        };
        let select = sqlx::query!(
            r#"
            select id, org_id, actor, action, target, details, at, prev_hash, hash,
                   address as "address: IpNet"
              from keys.audit_log
             order by id"#,
        );
        let mut verifier = Verifier::default();
        let mut rows = select.fetch(&mut *self.inner);
        while let Some(row) = rows.try_next().await? {
            let fields = Row {
                id: row.id,
                org: row.org_id,
                actor: &row.actor,
                action: &row.action,
                target: &row.target,
                details: &row.details,
                at: row.at.to_jiff(),
                address: row.address.map(|net| net.addr()),
            };
            verifier.row(&fields, hash(&row.prev_hash)?, hash(&row.hash)?);
        }
        Ok((verifier, head))
    }
}

impl Store {
    /// Reads entries below `before`, newest first.
    pub(crate) async fn audit_log(
        &self,
        scope: OrgScope,
        filter: &AuditFilter,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<AuditEntry>> {
        let select = sqlx::query!(
            r#"
            select id, actor, action, target, details, at, address as "address: IpNet"
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
        let rows = select.fetch_all(&mut *self.seen(scope).await?).await?;
        let entries = rows.into_iter().map(|row| AuditEntry {
            id: row.id,
            actor: row.actor,
            action: row.action,
            target: row.target,
            details: row.details,
            at: row.at.to_jiff(),
            address: row.address.map(|net| net.addr()),
        });
        Ok(entries.collect())
    }
}
