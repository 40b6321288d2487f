//! Every statement.

pub(crate) mod forgotten;
pub(crate) mod idempotency;

use std::net::IpAddr;

use jiff::{Timestamp, civil::Date};
use jiff_sqlx::ToSqlx as _;
use runtime::{Tenant, Tenants};
use sqlx::PgPool;
use types::{KeyId, OrgId, RequestId};
use uuid::Uuid;

use crate::{
    domain::{Cursor, Row, day_of},
    error::{Error, Result},
};

/// A connection inside the host's transaction.
pub(crate) type Connection = sqlx::PgConnection;

/// Rows whose personal data is erased in one transaction.
const ERASE_ROWS_MAX: i64 = 10_000;

/// The schema `usage_ingest`.
#[derive(Clone)]
pub(crate) struct Store {
    pool: PgPool,
    tenants: Tenants,
}

/// A call as it is read.
pub(crate) struct Call {
    pub(crate) journal_id: Uuid,
    pub(crate) seq: i64,
    pub(crate) request_id: Uuid,
    pub(crate) api_key_id: Option<Uuid>,
    pub(crate) org_id: Uuid,
    pub(crate) service_id: Option<Uuid>,
    pub(crate) service: String,
    pub(crate) endpoint: String,
    pub(crate) method: String,
    pub(crate) status_code: i32,
    pub(crate) response_time_ms: i64,
    pub(crate) credits_used: i64,
    pub(crate) details: String,
    pub(crate) ip_address: Option<String>,
    pub(crate) country: String,
    pub(crate) user_agent: String,
    pub(crate) timestamp: jiff_sqlx::Timestamp,
    pub(crate) environment: String,
    pub(crate) disposition: String,
    pub(crate) code: String,
    pub(crate) lease_id: Option<Uuid>,
    pub(crate) lease_cum: Option<i64>,
    pub(crate) trace_id: String,
    pub(crate) price_version: i64,
    pub(crate) replay_of: Option<Uuid>,
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(error.into())
    }
}

/// Selects calls by a condition: the columns of [`Call`] are written once.
macro_rules! calls {
    ($condition:literal, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Call,
            r#"
            select journal_id, seq, request_id, api_key_id, org_id, service_id, service, endpoint,
                   method, status_code, response_time_ms, credits_used,
                   details::text as "details!", host(ip_address) as ip_address, country,
                   user_agent, timestamp, environment, disposition, code, lease_id, lease_cum,
                   trace_id, price_version, replay_of
              from usage_ingest.api_usage_logs
            "# + $condition,
            $($argument),+
        )
    };
}

impl Store {
    pub(crate) fn new(pool: PgPool, tenants: Tenants) -> Self {
        Self { pool, tenants }
    }

    /// One call; another organisation's does not exist. `org` is absent for operators only.
    pub(crate) async fn call(
        &self,
        request: RequestId,
        org: Option<OrgId>,
    ) -> Result<Option<Call>> {
        let tenant = org.map_or(Tenant::Every, Tenant::Org);
        let mut tx = self.tenants.begin(tenant).await?;
        let call = calls!(
            "where request_id = $1 and ($2::uuid is null or org_id = $2) limit 1",
            request.uuid(),
            org.map(OrgId::uuid) as Option<Uuid>,
        );
        Ok(call.fetch_optional(&mut *tx).await?)
    }

    /// The calls before a cursor, newest first, and where to go on if there are more.
    pub(crate) async fn calls(
        &self,
        org: OrgId,
        key: Option<KeyId>,
        before: Cursor,
        size: i64,
    ) -> Result<(Vec<Call>, Option<Cursor>)> {
        let (at, day) = (before.at.to_sqlx(), day_of(before.at).to_sqlx());
        // One row more than asked for tells whether there is another page.
        let limit = size.saturating_add(1);
        let mut tx = self.tenants.begin(Tenant::Org(org)).await?;
        let mut calls = match key {
            None => {
                calls!(
                    "where org_id = $1 and day <= $2 and (timestamp, journal_id, seq) < ($3, $4, $5)
                     order by timestamp desc, journal_id desc, seq desc
                     limit $6",
                    org.uuid(),
                    day as jiff_sqlx::Date,
                    at as jiff_sqlx::Timestamp,
                    before.journal,
                    before.seq,
                    limit,
                )
                .fetch_all(&mut *tx)
                .await?
            }
            Some(key) => {
                calls!(
                    "where api_key_id = $1 and org_id = $2 and day <= $3
                       and (timestamp, journal_id, seq) < ($4, $5, $6)
                     order by timestamp desc, journal_id desc, seq desc
                     limit $7",
                    key.uuid(),
                    org.uuid(),
                    day as jiff_sqlx::Date,
                    at as jiff_sqlx::Timestamp,
                    before.journal,
                    before.seq,
                    limit,
                )
                .fetch_all(&mut *tx)
                .await?
            }
        };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let more = calls.len() > size;
        calls.truncate(size);
        let next = calls.last().filter(|_| more).map(|last| Cursor {
            at: last.timestamp.to_jiff(),
            journal: last.journal_id,
            seq: last.seq,
        });
        Ok((calls, next))
    }

    /// Gives a day its partition; the rows moved into it, or nothing when it was there.
    pub(crate) async fn make_partition(&self, day: Date) -> sqlx::Result<Option<i64>> {
        sqlx::query_scalar!(
            "select usage_ingest.make_partition($1)",
            day.to_sqlx() as jiff_sqlx::Date,
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Days that have rows in the default partition.
    pub(crate) async fn stray_days(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar!(
            r#"select count(distinct day) as "days!" from usage_ingest.api_usage_logs_default"#
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Erases address and agent of every day before `first_kept`; the rows changed. A day is
    /// noted when it is done: later rows of it are written without them.
    pub(crate) async fn erase_personal_data(
        &self,
        first_kept: Date,
        now: Timestamp,
    ) -> sqlx::Result<u64> {
        let days = sqlx::query_scalar!(
            r#"
            select day::date as "day!"
              from generate_series(
                       (select min(day) from usage_ingest.api_usage_logs),
                       $1::date - 1,
                       '1 day') day
             where day::date not in (select e.day from usage_ingest.erasures e)
             order by day"#,
            first_kept.to_sqlx() as jiff_sqlx::Date,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut total = 0_u64;
        for day in days {
            let rows = self.erase_day(day).await?;
            total = total.saturating_add(rows);
            sqlx::query!(
                "insert into usage_ingest.erasures (day, rows, erased_at) values ($1, $2, $3)
                 on conflict (day) do nothing",
                day as jiff_sqlx::Date,
                i64::try_from(rows).unwrap_or(i64::MAX),
                now.to_sqlx() as jiff_sqlx::Timestamp,
            )
            .execute(&self.pool)
            .await?;
        }
        Ok(total)
    }

    /// Walks through a day in the order of its primary key, some rows a transaction.
    async fn erase_day(&self, day: jiff_sqlx::Date) -> sqlx::Result<u64> {
        let (mut journal, mut seq, mut total) = (Uuid::nil(), -1, 0_u64);
        loop {
            let step = sqlx::query!(
                r#"
                with step as materialized (
                    select journal_id, seq
                      from usage_ingest.api_usage_logs
                     where day = $1 and (journal_id, seq) > ($2, $3)
                     order by journal_id, seq
                     limit $4),
                erased as (
                    update usage_ingest.api_usage_logs l
                       set ip_address = null, user_agent = ''
                      from step
                     where l.day = $1 and l.journal_id = step.journal_id and l.seq = step.seq
                       and (l.ip_address is not null or l.user_agent <> '')
                    returning 1)
                select journal_id, seq, (select count(*) from erased) as "erased!"
                  from step
                 order by journal_id desc, seq desc
                 limit 1"#,
                day as jiff_sqlx::Date,
                journal,
                seq,
                ERASE_ROWS_MAX,
            )
            .fetch_optional(&self.pool)
            .await?;
            let Some(step) = step else { return Ok(total) };
            (journal, seq) = (step.journal_id, step.seq);
            total = total.saturating_add(step.erased.unsigned_abs());
        }
    }
}

/// Rows by column, as one statement takes them.
#[derive(Default)]
struct Columns {
    day: Vec<jiff_sqlx::Date>,
    journal: Vec<Uuid>,
    seq: Vec<i64>,
    request: Vec<Uuid>,
    key: Vec<Option<Uuid>>,
    org: Vec<Uuid>,
    user: Vec<Option<Uuid>>,
    service_id: Vec<Option<Uuid>>,
    service: Vec<String>,
    endpoint: Vec<String>,
    method: Vec<String>,
    status: Vec<i32>,
    response_time_ms: Vec<i64>,
    upstream_time_ms: Vec<i64>,
    credits: Vec<i64>,
    details: Vec<serde_json::Value>,
    ip: Vec<Option<IpAddr>>,
    country: Vec<String>,
    user_agent: Vec<String>,
    environment: Vec<&'static str>,
    disposition: Vec<&'static str>,
    code: Vec<String>,
    lease: Vec<Option<Uuid>>,
    lease_cum: Vec<Option<i64>>,
    first_permit: Vec<Option<Uuid>>,
    second_permit: Vec<Option<Uuid>>,
    price_version: Vec<i64>,
    trace_id: Vec<String>,
    request_bytes: Vec<i64>,
    response_bytes: Vec<i64>,
    at: Vec<jiff_sqlx::Timestamp>,
    replay_of: Vec<Option<Uuid>>,
}

impl Columns {
    fn push(&mut self, row: Row) {
        self.day.push(day_of(row.at).to_sqlx());
        self.journal.push(row.journal.uuid());
        self.seq.push(row.seq);
        self.request.push(row.request.uuid());
        self.key.push(row.key.map(|id| id.uuid()));
        self.org.push(row.org.uuid());
        self.user.push(row.user.map(|id| id.uuid()));
        self.service_id.push(row.service_id.map(|id| id.uuid()));
        self.service.push(row.service);
        self.endpoint.push(row.endpoint);
        self.method.push(row.method);
        self.status.push(row.status);
        self.response_time_ms.push(row.response_time_ms);
        self.upstream_time_ms.push(row.upstream_time_ms);
        self.credits.push(row.credits);
        self.details.push(row.details);
        self.ip.push(row.ip);
        self.country.push(row.country);
        self.user_agent.push(row.user_agent);
        self.environment.push(row.environment.as_str());
        self.disposition.push(row.disposition.as_str());
        self.code.push(row.code);
        self.lease.push(row.lease.map(|(id, _)| id.uuid()));
        self.lease_cum.push(row.lease.map(|(_, cum)| cum));
        let [first, second] = row.permits.map(|lease| lease.map(|id| id.uuid()));
        self.first_permit.push(first);
        self.second_permit.push(second);
        self.price_version.push(row.price_version);
        self.trace_id.push(row.trace_id);
        self.request_bytes.push(row.request_bytes);
        self.response_bytes.push(row.response_bytes);
        self.at.push(row.at.to_sqlx());
        self.replay_of.push(row.replay_of.map(|id| id.uuid()));
    }
}

/// Writes rows. One that is there already stays as it is: the inbox keeps them apart, this is the
/// second lock on the same door (I6).
pub(crate) async fn insert(connection: &mut Connection, rows: Vec<Row>) -> sqlx::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let given = rows.len();
    let mut c = Columns::default();
    for row in rows {
        c.push(row);
    }
    let done = sqlx::query_file!(
        "src/insert.sql",
        &c.day as &[jiff_sqlx::Date],
        &c.journal,
        &c.seq,
        &c.request,
        &c.key as &[Option<Uuid>],
        &c.org,
        &c.user as &[Option<Uuid>],
        &c.service_id as &[Option<Uuid>],
        &c.service,
        &c.endpoint,
        &c.method,
        &c.status,
        &c.response_time_ms,
        &c.upstream_time_ms,
        &c.credits,
        &c.details,
        &c.ip as &[Option<IpAddr>],
        &c.country,
        &c.user_agent,
        &c.environment as &[&str],
        &c.disposition as &[&str],
        &c.code,
        &c.lease as &[Option<Uuid>],
        &c.lease_cum as &[Option<i64>],
        &c.price_version,
        &c.trace_id,
        &c.request_bytes,
        &c.response_bytes,
        &c.at as &[jiff_sqlx::Timestamp],
        &c.first_permit as &[Option<Uuid>],
        &c.second_permit as &[Option<Uuid>],
        &c.replay_of as &[Option<Uuid>],
    )
    .execute(connection)
    .await?;
    let written = done.rows_affected();
    if usize::try_from(written).ok() != Some(given) {
        tracing::warn!(given, written, "calls new to the inbox had a row already");
    }
    Ok(())
}
