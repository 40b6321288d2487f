//! Every statement.

use std::collections::BTreeMap;

use jiff::{Timestamp, civil::Date};
use jiff_sqlx::ToSqlx as _;
use runtime::{Tenant, Tenants};
use sqlx::PgPool;
use types::{JournalId, OrgId};

use crate::{
    domain::{Changes, Daily, DailyKey, HourlyKey, Sums},
    error::{Error, Result},
};

/// A connection inside the host's transaction.
pub(crate) type Connection = sqlx::PgConnection;

/// Hours answered at most.
const HOURS_ROWS_MAX: i64 = 10_000;

/// The schema `stats_aggregator`.
#[derive(Clone)]
pub(crate) struct Store {
    pool: PgPool,
    tenants: Tenants,
}

/// A row of `daily_stats`.
pub(crate) struct DailyRow {
    pub(crate) date: jiff_sqlx::Date,
    pub(crate) environment: String,
    pub(crate) total_requests: i64,
    pub(crate) total_credits: i64,
    pub(crate) successful_requests: i64,
    pub(crate) success_rate: String,
    pub(crate) services_breakdown: String,
}

/// A row of `hourly_stats`.
pub(crate) struct HourlyRow {
    pub(crate) hour: jiff_sqlx::Timestamp,
    pub(crate) environment: String,
    pub(crate) service: String,
    pub(crate) total_requests: i64,
    pub(crate) total_credits: i64,
    pub(crate) successful_requests: i64,
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(error.into())
    }
}

impl Store {
    pub(crate) fn new(pool: PgPool, tenants: Tenants) -> Self {
        Self { pool, tenants }
    }

    /// Days of an organisation, newest first.
    pub(crate) async fn daily(&self, org: OrgId, from: Date, to: Date) -> Result<Vec<DailyRow>> {
        let mut tx = self.tenants.begin(Tenant::Org(org)).await?;
        let rows = sqlx::query_as!(
            DailyRow,
            r#"
            select date, environment, total_requests, total_credits, successful_requests,
                   success_rate::text as "success_rate!",
                   services_breakdown::text as "services_breakdown!"
              from stats_aggregator.daily_stats
             where org_id = $1 and date between $2 and $3
             order by date desc, environment"#,
            org.uuid(),
            from.to_sqlx() as jiff_sqlx::Date,
            to.to_sqlx() as jiff_sqlx::Date,
        );
        Ok(rows.fetch_all(&mut *tx).await?)
    }

    /// Hours of an organisation, newest first.
    pub(crate) async fn hourly(&self, org: OrgId, from: Timestamp) -> Result<Vec<HourlyRow>> {
        let mut tx = self.tenants.begin(Tenant::Org(org)).await?;
        let rows = sqlx::query_as!(
            HourlyRow,
            r#"
            select hour, environment, service, total_requests, total_credits, successful_requests
              from stats_aggregator.hourly_stats
             where org_id = $1 and hour >= $2
             order by hour desc, environment, service
             limit $3"#,
            org.uuid(),
            from.to_sqlx() as jiff_sqlx::Timestamp,
            HOURS_ROWS_MAX,
        );
        Ok(rows.fetch_all(&mut *tx).await?)
    }

    /// Whether a record is inside the totals.
    pub(crate) async fn is_applied(&self, journal: JournalId, seq: i64) -> Result<bool> {
        let applied = sqlx::query_scalar!(
            r#"
            select applied @> $2::bigint as "applied!"
              from stats_aggregator.inbox
             where journal_id = $1"#,
            journal.uuid(),
            seq,
        );
        Ok(applied.fetch_optional(&self.pool).await?.unwrap_or(false))
    }
}

/// Adds changes to the totals, days before hours and both in the order of their keys, so that two
/// instances lock rows in one order (I7).
pub(crate) async fn add(
    connection: &mut Connection,
    changes: &Changes,
    now: Timestamp,
) -> sqlx::Result<()> {
    if changes.hours().is_empty() {
        return Ok(());
    }
    add_days(connection, changes.days(), now).await?;
    add_hours(connection, changes.hours()).await
}

async fn add_days(
    connection: &mut Connection,
    days: BTreeMap<DailyKey, Daily>,
    now: Timestamp,
) -> sqlx::Result<()> {
    let (mut orgs, mut dates, mut environments) = (Vec::new(), Vec::new(), Vec::new());
    let (mut requests, mut credits, mut successful) = (Vec::new(), Vec::new(), Vec::new());
    let mut breakdowns = Vec::with_capacity(days.len());
    for ((org, date, environment), Daily { sums, services }) in days {
        orgs.push(org.uuid());
        dates.push(date.to_sqlx());
        environments.push(environment.as_str());
        requests.push(sums.requests);
        credits.push(sums.credits.get());
        successful.push(sums.successful);
        breakdowns.push(serde_json::Value::from_iter(services));
    }
    sqlx::query_file!(
        "src/add_days.sql",
        &orgs,
        &dates as &[jiff_sqlx::Date],
        &environments as &[&str],
        &requests,
        &credits,
        &successful,
        &breakdowns,
        now.to_sqlx() as jiff_sqlx::Timestamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn add_hours(
    connection: &mut Connection,
    changes: &BTreeMap<HourlyKey, Sums>,
) -> sqlx::Result<()> {
    let (mut orgs, mut hours, mut environments) = (Vec::new(), Vec::new(), Vec::new());
    let (mut requests, mut credits, mut successful) = (Vec::new(), Vec::new(), Vec::new());
    let mut services: Vec<&str> = Vec::with_capacity(changes.len());
    for ((org, hour, environment, service), sums) in changes {
        orgs.push(org.uuid());
        hours.push(hour.to_sqlx());
        environments.push(environment.as_str());
        services.push(service);
        requests.push(sums.requests);
        credits.push(sums.credits.get());
        successful.push(sums.successful);
    }
    sqlx::query!(
        r#"
        insert into stats_aggregator.hourly_stats as h (
            org_id, hour, environment, service, total_requests, total_credits,
            successful_requests)
        select org_id, hour, environment, service, requests, credits, successful
          from unnest(
                   $1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::bigint[],
                   $6::bigint[], $7::bigint[]
               ) change (org_id, hour, environment, service, requests, credits, successful)
         order by org_id, hour, environment, service
            on conflict (org_id, hour, environment, service) do update
           set total_requests = h.total_requests + excluded.total_requests,
               total_credits = h.total_credits + excluded.total_credits,
               successful_requests = h.successful_requests + excluded.successful_requests"#,
        &orgs,
        &hours as &[jiff_sqlx::Timestamp],
        &environments as &[&str],
        &services as &[&str],
        &requests,
        &credits,
        &successful,
    )
    .execute(connection)
    .await?;
    Ok(())
}
