//! Every statement.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use proto::events::v1::AnomalyFlagged;
use serde_json::json;
use sqlx::PgPool;
use types::{AnomalyId, KeyId, OrgId};
use uuid::Uuid;

use crate::{
    domain::{Batch, COUNTRIES_MAX, Country, Flag, Micros, Seen, WINDOW},
    error::{Error, Result},
};

/// A connection inside the host's transaction.
pub(crate) type Connection = sqlx::PgConnection;

/// First number of the advisory locks of keys; the second is a stripe of keys.
const ADVISORY_LOCKS: i32 = 0x616e_6f6d;
/// Anomalies listed at most.
const LIST_ROWS_MAX: i64 = 1000;
/// Anomalies announced in one run.
const PUBLISH_ROWS_MAX: i64 = 100;
/// The only rule so far.
const KIND: &str = "country_spread";

/// The schema `anomaly_detector`.
#[derive(Clone)]
pub(crate) struct Store {
    pool: PgPool,
}

/// Everything kept of a key.
pub(crate) struct History {
    pub(crate) org: OrgId,
    pub(crate) seen: Vec<Seen>,
    pub(crate) known: Vec<(AnomalyId, Micros)>,
}

/// An anomaly to be written.
pub(crate) struct Finding {
    pub(crate) id: AnomalyId,
    pub(crate) org: OrgId,
    pub(crate) key: KeyId,
    pub(crate) flag: Flag,
}

/// An anomaly to be announced.
pub(crate) struct Unpublished {
    pub(crate) id: AnomalyId,
    pub(crate) message: AnomalyFlagged,
}

/// A row of `anomalies`.
pub(crate) struct Anomaly {
    pub(crate) id: Uuid,
    pub(crate) org_id: Uuid,
    pub(crate) key_id: Uuid,
    pub(crate) kind: String,
    pub(crate) summary: String,
    pub(crate) details: String,
    pub(crate) at: jiff_sqlx::Timestamp,
    pub(crate) resolved_at: Option<jiff_sqlx::Timestamp>,
    pub(crate) resolved_by: Option<String>,
}

/// A key, and the hour of event time in which something about it changed.
#[derive(Default)]
pub(crate) struct Changed {
    keys: Vec<Uuid>,
    hours: Vec<jiff_sqlx::Timestamp>,
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(error.into())
    }
}

fn time(micros: Micros) -> jiff_sqlx::Timestamp {
    Timestamp::from_microsecond(micros)
        .expect("read from a time of this range")
        .to_sqlx()
}

fn micros(at: jiff_sqlx::Timestamp) -> Micros {
    at.to_jiff().as_microsecond()
}

/// Two instances must not judge a key at the same time: neither would see what the other has
/// seen. Locks are by the last byte of the key's id, so that their number has a bound, and are
/// taken in order, before any row.
pub(crate) async fn lock_keys(connection: &mut Connection, batch: &Batch) -> sqlx::Result<()> {
    let stripes: BTreeSet<i32> = batch
        .keys()
        .map(|(key, ..)| i32::from(key.bytes()[15]))
        .collect();
    let stripes: Vec<i32> = stripes.into_iter().collect();
    sqlx::query!(
        "select pg_advisory_xact_lock($1, stripe) from unnest($2::int[]) stripe",
        ADVISORY_LOCKS,
        &stripes,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Widens what is known by what was seen; the keys and hours for which that made a difference.
pub(crate) async fn add(connection: &mut Connection, batch: &Batch) -> sqlx::Result<Changed> {
    let (mut keys, mut hours, mut orgs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
    let mut countries: Vec<&str> = Vec::with_capacity(batch.len());
    for ((key, hour, country), (org, seen)) in batch {
        keys.push(key.uuid());
        hours.push(time(*hour));
        countries.push(country.as_str());
        orgs.push(org.uuid());
        firsts.push(time(seen.first));
        lasts.push(time(seen.last));
    }
    let rows = sqlx::query!(
        r#"
        insert into anomaly_detector.sightings as s (
            key_id, hour, country, org_id, first_at, last_at)
        select key_id, hour, country, org_id, first_at, last_at
          from unnest(
                   $1::uuid[], $2::timestamptz[], $3::text[], $4::uuid[], $5::timestamptz[],
                   $6::timestamptz[]
               ) seen (key_id, hour, country, org_id, first_at, last_at)
            on conflict (key_id, hour, country) do update
           set first_at = least(s.first_at, excluded.first_at),
               last_at = greatest(s.last_at, excluded.last_at)
         where excluded.first_at < s.first_at or excluded.last_at > s.last_at
        returning key_id, hour"#,
        &keys,
        &hours as &[jiff_sqlx::Timestamp],
        &countries as &[&str],
        &orgs,
        &firsts as &[jiff_sqlx::Timestamp],
        &lasts as &[jiff_sqlx::Timestamp],
    )
    .fetch_all(connection)
    .await?;
    let mut changed = Changed::default();
    for row in rows {
        changed.keys.push(row.key_id);
        changed.hours.push(row.hour);
    }
    Ok(changed)
}

/// The few keys worth judging: enough countries around a change. A change counts for moments from
/// an hour before its hour to an hour after it, and those look back another hour.
pub(crate) async fn suspects(
    connection: &mut Connection,
    changed: &Changed,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"
        select distinct c.key_id as "key_id!"
          from (select distinct key_id, hour
                  from unnest($1::uuid[], $2::timestamptz[]) u (key_id, hour)) c
         cross join lateral (
                select count(distinct s.country) as countries
                  from anomaly_detector.sightings s
                 where s.key_id = c.key_id
                   and s.hour between c.hour - interval '2 hours' and c.hour + interval '1 hour'
               ) around
         where around.countries > $3"#,
        &changed.keys,
        &changed.hours as &[jiff_sqlx::Timestamp],
        i64::try_from(COUNTRIES_MAX).expect("a small number"),
    )
    .fetch_all(connection)
    .await
}

/// Everything kept of some keys.
pub(crate) async fn histories(
    connection: &mut Connection,
    keys: &[Uuid],
) -> sqlx::Result<BTreeMap<KeyId, History>> {
    let sightings = sqlx::query!(
        r#"
        select key_id, org_id, country, first_at, last_at
          from anomaly_detector.sightings
         where key_id = any($1)
         order by key_id, hour, country"#,
        keys,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut histories: BTreeMap<KeyId, History> = BTreeMap::new();
    for row in sightings {
        let history = histories
            .entry(KeyId::new(row.key_id))
            .or_insert_with(|| History {
                org: OrgId::new(row.org_id),
                seen: Vec::new(),
                known: Vec::new(),
            });
        let Some(country) = Country::parse(&row.country) else {
            continue;
        };
        let (first, last) = (micros(row.first_at), micros(row.last_at));
        history.seen.push(Seen {
            country,
            first,
            last,
        });
    }
    // Windows of older ones end before anything that is kept.
    let firsts = histories
        .values()
        .flat_map(|history| &history.seen)
        .map(|seen| seen.first);
    let Some(first) = firsts.min() else {
        return Ok(histories);
    };
    let anomalies = sqlx::query!(
        r#"
        select id, key_id, at
          from anomaly_detector.anomalies
         where key_id = any($1) and kind = $2 and at >= $3
         order by key_id, at"#,
        keys,
        KIND,
        time((first - WINDOW).max(0)) as jiff_sqlx::Timestamp,
    )
    .fetch_all(connection)
    .await?;
    for row in anomalies {
        if let Some(history) = histories.get_mut(&KeyId::new(row.key_id)) {
            history.known.push((AnomalyId::new(row.id), micros(row.at)));
        }
    }
    Ok(histories)
}

/// What a finding says to a person and to a program.
fn describe(flag: &Flag) -> (String, serde_json::Value) {
    let countries: Vec<&str> = flag.countries.iter().map(Country::as_str).collect();
    let summary = format!(
        "The key was used from {} countries within an hour",
        countries.len()
    );
    (
        summary,
        json!({ "countries": countries, "countries_max": COUNTRIES_MAX }),
    )
}

/// Writes an anomaly; it is announced later.
pub(crate) async fn flag(
    connection: &mut Connection,
    finding: &Finding,
    now: Timestamp,
) -> sqlx::Result<()> {
    let Finding { id, org, key, flag } = finding;
    let (summary, details) = describe(flag);
    sqlx::query!(
        r#"
        insert into anomaly_detector.anomalies (
            id, org_id, key_id, kind, summary, details, window_from, at, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)"#,
        id.uuid(),
        org.uuid(),
        key.uuid(),
        KIND,
        summary,
        details,
        time((flag.at - WINDOW).max(0)) as jiff_sqlx::Timestamp,
        time(flag.at) as jiff_sqlx::Timestamp,
        now.to_sqlx() as jiff_sqlx::Timestamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Corrects an anomaly by what came late. It stays the same one, and is not announced again.
pub(crate) async fn move_flag(connection: &mut Connection, finding: &Finding) -> sqlx::Result<()> {
    let Finding { id, flag, .. } = finding;
    let (summary, details) = describe(flag);
    sqlx::query!(
        r#"
        update anomaly_detector.anomalies
           set summary = $2, details = $3, window_from = $4, at = $5
         where id = $1"#,
        id.uuid(),
        summary,
        details,
        time((flag.at - WINDOW).max(0)) as jiff_sqlx::Timestamp,
        time(flag.at) as jiff_sqlx::Timestamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Anomalies, newest first; of every organisation for operators only.
    pub(crate) async fn list(&self, org: Option<OrgId>, resolved: bool) -> Result<Vec<Anomaly>> {
        let anomalies = sqlx::query_as!(
            Anomaly,
            r#"
            select id, org_id, key_id, kind, summary, details::text as "details!", at,
                   resolved_at, resolved_by
              from anomaly_detector.anomalies
             where ($1::uuid is null or org_id = $1) and ($2 or resolved_at is null)
             order by id desc
             limit $3"#,
            org.map(OrgId::uuid) as Option<Uuid>,
            resolved,
            LIST_ROWS_MAX,
        );
        Ok(anomalies.fetch_all(&self.pool).await?)
    }

    /// Marks an anomaly as dealt with, the first time; false when there is none such.
    pub(crate) async fn resolve(
        &self,
        id: AnomalyId,
        org: Option<OrgId>,
        by: &str,
        now: Timestamp,
    ) -> Result<bool> {
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
        Ok(done.execute(&self.pool).await?.rows_affected() == 1)
    }

    /// Anomalies not announced yet, oldest first.
    pub(crate) async fn unpublished(&self) -> sqlx::Result<Vec<Unpublished>> {
        let rows = sqlx::query!(
            r#"
            select id, org_id, key_id, kind, summary
              from anomaly_detector.anomalies
             where published_at is null
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
                org_id: OrgId::new(row.org_id).to_string(),
                key_id: KeyId::new(row.key_id).to_string(),
                kind: row.kind,
                summary: row.summary,
            },
        });
        Ok(unpublished.collect())
    }

    /// Notes that an anomaly was announced; false when another instance has noted it.
    pub(crate) async fn published(&self, id: AnomalyId, now: Timestamp) -> sqlx::Result<bool> {
        let done = sqlx::query!(
            r#"
            update anomaly_detector.anomalies
               set published_at = $2
             where id = $1 and published_at is null"#,
            id.uuid(),
            now.to_sqlx() as jiff_sqlx::Timestamp,
        );
        Ok(done.execute(&self.pool).await?.rows_affected() == 1)
    }

    /// Deletes sightings that are `hours` older than the newest. A gateway whose clock runs ahead
    /// must not delete what is new, so nothing after `now` counts as newest.
    pub(crate) async fn prune(&self, hours: u32, now: Timestamp) -> sqlx::Result<u64> {
        let done = sqlx::query!(
            r#"
            delete from anomaly_detector.sightings
             where hour < least($1, (select max(hour) from anomaly_detector.sightings))
                          - make_interval(hours => $2)"#,
            now.to_sqlx() as jiff_sqlx::Timestamp,
            i32::try_from(hours).unwrap_or(i32::MAX),
        );
        Ok(done.execute(&self.pool).await?.rows_affected())
    }
}
