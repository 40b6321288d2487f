//! Where keys were used from, for `country_spread`.

use std::collections::BTreeMap;

use types::{AnomalyId, KeyId, OrgId};
use uuid::Uuid;

use super::{Connection, micros, time};
use crate::domain::{
    Micros, Rule,
    country_spread::{Country, Sightings},
    windows::{Seen, WINDOW},
};

/// Everything kept of a key.
pub(crate) struct History {
    pub(crate) org: OrgId,
    pub(crate) seen: Vec<Seen<Country>>,
    pub(crate) known: Vec<(AnomalyId, Micros)>,
}

/// A key, and the hour of event time in which something about it changed.
#[derive(Default)]
pub(crate) struct Changed {
    keys: Vec<Uuid>,
    hours: Vec<jiff_sqlx::Timestamp>,
}

/// Widens what is known by what was seen; the keys and hours for which that made a difference.
pub(crate) async fn add(
    connection: &mut Connection,
    sightings: &Sightings,
) -> sqlx::Result<Changed> {
    let (mut keys, mut hours, mut orgs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
    let mut countries: Vec<&str> = Vec::with_capacity(sightings.len());
    for ((key, hour, country), (org, seen)) in sightings {
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
    usual: usize,
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
        i64::try_from(usual).unwrap_or(i64::MAX),
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
        if let Some(what) = Country::parse(&row.country) {
            let (first, last) = (micros(row.first_at), micros(row.last_at));
            history.seen.push(Seen { what, first, last });
        }
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
        select id, key_id as "key_id!", at
          from anomaly_detector.anomalies
         where key_id = any($1) and kind = $2 and at >= $3
         order by key_id, at"#,
        keys,
        Rule::CountrySpread.as_str(),
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
