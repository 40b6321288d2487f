//! How much keys are used, for `key_burst`, and by whom credits were spent, for `wallet_drain`.

use std::collections::BTreeMap;

use types::{KeyId, OrgId};

use super::{Connection, micros, time};
use crate::domain::{
    Micros,
    key_burst::{BUCKET, History, Loads},
};

/// Adds what was counted; the buckets that have at least so many calls by now.
pub(crate) async fn add(
    connection: &mut Connection,
    loads: &Loads,
    at_least: i64,
) -> sqlx::Result<BTreeMap<(KeyId, Micros), (OrgId, i64)>> {
    let (mut keys, mut buckets, mut orgs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut calls, mut credits) = (Vec::new(), Vec::new());
    for ((key, bucket), load) in loads {
        keys.push(key.uuid());
        buckets.push(time(*bucket));
        orgs.push(load.org.uuid());
        calls.push(load.calls);
        credits.push(load.credits);
    }
    let rows = sqlx::query!(
        r#"
        with added as (
            insert into anomaly_detector.loads as l (key_id, bucket, org_id, calls, credits)
            select key_id, bucket, org_id, calls, credits
              from unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::bigint[], $5::bigint[])
                   u (key_id, bucket, org_id, calls, credits)
                on conflict (key_id, bucket) do update
               set calls = l.calls + excluded.calls, credits = l.credits + excluded.credits
            returning key_id, bucket, org_id, calls)
        select key_id, bucket, org_id, calls
          from added
         where calls >= $6"#,
        &keys,
        &buckets as &[jiff_sqlx::Timestamp],
        &orgs,
        &calls,
        &credits,
        at_least,
    )
    .fetch_all(connection)
    .await?;
    let many = rows.into_iter().map(|row| {
        let bucket = (KeyId::new(row.key_id), micros(row.bucket));
        (bucket, (OrgId::new(row.org_id), row.calls))
    });
    Ok(many.collect())
}

/// What was before each of some buckets, in so many days.
pub(crate) async fn histories(
    connection: &mut Connection,
    buckets: impl Iterator<Item = (KeyId, Micros)>,
    days: u32,
) -> sqlx::Result<BTreeMap<(KeyId, Micros), History>> {
    let (keys, buckets): (Vec<_>, Vec<_>) = buckets
        .map(|(key, bucket)| (key.uuid(), time(bucket)))
        .unzip();
    let rows = sqlx::query!(
        r#"
        select c.key_id as "key_id!", c.bucket as "bucket!", h.calls as "calls!",
               h.buckets as "buckets!"
          from unnest($1::uuid[], $2::timestamptz[]) c (key_id, bucket)
         cross join lateral (
                select coalesce(sum(l.calls), 0)::bigint as calls, count(*) as buckets
                  from anomaly_detector.loads l
                 where l.key_id = c.key_id
                   and l.bucket >= c.bucket - make_interval(days => $3)
                   and l.bucket < c.bucket
               ) h"#,
        &keys,
        &buckets as &[jiff_sqlx::Timestamp],
        i32::try_from(days).unwrap_or(i32::MAX),
    )
    .fetch_all(connection)
    .await?;
    let histories = rows.into_iter().map(|row| {
        let history = History {
            calls: row.calls,
            buckets: row.buckets,
        };
        ((KeyId::new(row.key_id), micros(row.bucket)), history)
    });
    Ok(histories.collect())
}

/// What each key of an organisation has spent between two moments, to the bucket.
pub(crate) async fn spent(
    connection: &mut Connection,
    org: OrgId,
    from: Micros,
    to: Micros,
) -> sqlx::Result<BTreeMap<KeyId, i64>> {
    let rows = sqlx::query!(
        r#"
        select key_id, sum(credits)::bigint as "credits!"
          from anomaly_detector.loads
         where org_id = $1 and bucket > $2 and bucket <= $3 and credits > 0
         group by key_id"#,
        org.uuid(),
        time((from - BUCKET).max(0)) as jiff_sqlx::Timestamp,
        time(to) as jiff_sqlx::Timestamp,
    )
    .fetch_all(connection)
    .await?;
    let spent = rows.into_iter();
    Ok(spent
        .map(|row| (KeyId::new(row.key_id), row.credits))
        .collect())
}
