//! Anomalies: written once, announced, listed, resolved.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use proto::events::v1::AnomalyFlagged;
use runtime::Tenant;
use types::{AnomalyId, KeyId, OrgId};
use uuid::Uuid;

use super::{Connection, Store, micros, time};
use crate::{
    domain::{Finding, Micros, Rule},
    error::Result,
};

/// Anomalies announced in one run.
const PUBLISH_ROWS_MAX: i64 = 100;

/// A row of `anomalies`.
pub(crate) struct Anomaly {
    pub(crate) id: Uuid,
    pub(crate) org_id: Option<Uuid>,
    pub(crate) key_id: Option<Uuid>,
    pub(crate) key_ids: Vec<Uuid>,
    pub(crate) kind: String,
    pub(crate) summary: String,
    pub(crate) details: String,
    pub(crate) at: jiff_sqlx::Timestamp,
    pub(crate) resolved_at: Option<jiff_sqlx::Timestamp>,
    pub(crate) resolved_by: Option<String>,
}

/// Which anomalies are listed.
pub(crate) struct Filter {
    /// None: all, for operators.
    pub(crate) org: Option<OrgId>,
    /// Only those that were dealt with, or only the others.
    pub(crate) resolved: Option<bool>,
    /// Only older ones.
    pub(crate) before: Option<AnomalyId>,
}

/// An anomaly to be announced.
pub(crate) struct Unpublished {
    pub(crate) id: AnomalyId,
    pub(crate) message: AnomalyFlagged,
    pub(crate) traceparent: String,
}

/// Open anomalies of one kind.
pub(crate) struct Open {
    pub(crate) kind: String,
    pub(crate) count: i64,
}

fn uuids(keys: &[KeyId]) -> Vec<Uuid> {
    keys.iter().map(|key| key.uuid()).collect()
}

/// Writes an anomaly; it is announced later. False when it is known already.
pub(crate) async fn flag(
    connection: &mut Connection,
    id: AnomalyId,
    finding: &Finding,
    traceparent: &str,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        r#"
        insert into anomaly_detector.anomalies (
            id, org_id, key_id, key_ids, kind, identity, summary, details, window_from, at,
            traceparent, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            on conflict (kind, identity) do nothing"#,
        id.uuid(),
        finding.org.map(OrgId::uuid),
        finding.key().map(KeyId::uuid),
        &uuids(&finding.keys),
        finding.rule.as_str(),
        finding.identity,
        finding.summary,
        finding.evidence,
        time(finding.from) as jiff_sqlx::Timestamp,
        time(finding.at) as jiff_sqlx::Timestamp,
        traceparent,
        now.to_sqlx() as jiff_sqlx::Timestamp,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Corrects an anomaly by what came later. It stays the same one; it is announced again only when
/// it concerns more keys by now. What was dealt with stays as it was.
pub(crate) async fn rewrite(
    connection: &mut Connection,
    id: AnomalyId,
    finding: &Finding,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update anomaly_detector.anomalies
           set key_id = $2, key_ids = $3, identity = $4, summary = $5, details = $6,
               window_from = $7, at = $8
         where id = $1
           and resolved_at is null
           and (key_ids, identity) is distinct from ($3, $4)"#,
        id.uuid(),
        finding.key().map(KeyId::uuid),
        &uuids(&finding.keys),
        finding.identity,
        finding.summary,
        finding.evidence,
        time(finding.from) as jiff_sqlx::Timestamp,
        time(finding.at) as jiff_sqlx::Timestamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What a rule has flagged already in an organisation, not before a moment.
pub(crate) async fn known(
    connection: &mut Connection,
    rule: Rule,
    org: OrgId,
    since: Micros,
) -> sqlx::Result<Vec<(AnomalyId, Micros)>> {
    let rows = sqlx::query!(
        r#"
        select id, at
          from anomaly_detector.anomalies
         where org_id = $1 and kind = $2 and at >= $3
         order by at"#,
        org.uuid(),
        rule.as_str(),
        time(since.max(0)) as jiff_sqlx::Timestamp,
    )
    .fetch_all(connection)
    .await?;
    let known = rows.into_iter();
    Ok(known
        .map(|row| (AnomalyId::new(row.id), micros(row.at)))
        .collect())
}

impl Store {
    /// Anomalies, newest first.
    pub(crate) async fn list(&self, filter: &Filter, limit: i64) -> Result<Vec<Anomaly>> {
        let mut tx = self.tenants.begin(tenant(filter.org)).await?;
        let anomalies = sqlx::query_as!(
            Anomaly,
            r#"
            select id, org_id, key_id, key_ids, kind, summary, details::text as "details!", at,
                   resolved_at, resolved_by
              from anomaly_detector.anomalies
             where ($1::uuid is null or org_id = $1)
               and ($2::bool is null or (resolved_at is not null) = $2)
               and ($3::uuid is null or id < $3)
             order by id desc
             limit $4"#,
            filter.org.map(OrgId::uuid) as Option<Uuid>,
            filter.resolved as Option<bool>,
            filter.before.map(AnomalyId::uuid) as Option<Uuid>,
            limit,
        );
        Ok(anomalies.fetch_all(&mut *tx).await?)
    }

    /// Open anomalies by kind; of all organisations and the platform when none is named.
    pub(crate) async fn open(&self, org: Option<OrgId>) -> Result<Vec<Open>> {
        let mut tx = self.tenants.begin(tenant(org)).await?;
        let open = sqlx::query_as!(
            Open,
            r#"
            select kind, count(*) as "count!"
              from anomaly_detector.anomalies
             where resolved_at is null and ($1::uuid is null or org_id = $1)
             group by kind
             order by kind"#,
            org.map(OrgId::uuid) as Option<Uuid>,
        );
        Ok(open.fetch_all(&mut *tx).await?)
    }

    /// Marks an anomaly as dealt with, the first time; false when there is none such.
    pub(crate) async fn resolve(
        &self,
        id: AnomalyId,
        org: Option<OrgId>,
        by: &str,
        now: Timestamp,
    ) -> Result<bool> {
        let mut tx = self.tenants.begin(tenant(org)).await?;
        let done = sqlx::query!(
            r#"
            update anomaly_detector.anomalies
               set resolved_at = coalesce(resolved_at, $4),
                   resolved_by = coalesce(resolved_by, $3)
             where id = $1 and ($2::uuid is null or org_id = $2)"#,
            id.uuid(),
            org.map(OrgId::uuid) as Option<Uuid>,
            by,
            now.to_sqlx() as jiff_sqlx::Timestamp,
        );
        let found = done.execute(&mut *tx).await?.rows_affected() == 1;
        tx.commit().await?;
        Ok(found)
    }

    /// Anomalies not announced yet, or not with all their keys, oldest first.
    pub(crate) async fn unpublished(&self) -> sqlx::Result<Vec<Unpublished>> {
        let rows = sqlx::query!(
            r#"
            select id, org_id, key_id, key_ids, kind, summary, at, traceparent
              from anomaly_detector.anomalies
             where published_keys is distinct from cardinality(key_ids)
             order by id
             limit $1"#,
            PUBLISH_ROWS_MAX,
        )
        .fetch_all(&self.pool)
        .await?;
        let unpublished = rows.into_iter().map(|row| Unpublished {
            id: AnomalyId::new(row.id),
            message: AnomalyFlagged {
                anomaly_id: AnomalyId::new(row.id).to_string(),
                org_id: text(row.org_id.map(OrgId::new)),
                key_id: text(row.key_id.map(KeyId::new)),
                kind: row.kind,
                summary: row.summary,
                key_ids: row
                    .key_ids
                    .into_iter()
                    .map(|key| KeyId::new(key).to_string())
                    .collect(),
                at_unix_micros: micros(row.at),
            },
            traceparent: row.traceparent,
        });
        Ok(unpublished.collect())
    }

    /// Notes that an anomaly was announced with so many keys; true for the first time.
    pub(crate) async fn published(
        &self,
        id: AnomalyId,
        keys: usize,
        now: Timestamp,
    ) -> sqlx::Result<bool> {
        let was_known = sqlx::query_scalar!(
            r#"
            with before as (
                select id, published_at
                  from anomaly_detector.anomalies
                 where id = $1
                   for update)
            update anomaly_detector.anomalies a
               set published_at = coalesce(a.published_at, $3), published_keys = $2
              from before
             where a.id = before.id and a.published_keys is distinct from $2
            returning before.published_at is not null as "was_known!""#,
            id.uuid(),
            i32::try_from(keys).unwrap_or(i32::MAX),
            now.to_sqlx() as jiff_sqlx::Timestamp,
        );
        let was_known = was_known.fetch_optional(&self.pool).await?;
        // Nothing: another instance has noted it.
        Ok(was_known == Some(false))
    }
}

fn tenant(org: Option<OrgId>) -> Tenant {
    org.map_or(Tenant::Every, Tenant::Org)
}

fn text(id: Option<impl std::fmt::Display>) -> String {
    id.map_or_else(String::new, |id| id.to_string())
}
