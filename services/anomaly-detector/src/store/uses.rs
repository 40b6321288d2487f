//! When keys used which service, for `service_after_silence`.

use std::collections::BTreeMap;

use types::KeyId;
use uuid::Uuid;

use super::{Connection, micros, time};
use crate::domain::service_after_silence::{Merged, Use, Uses};

/// All uses of some keys.
pub(crate) async fn of(
    connection: &mut Connection,
    keys: &[Uuid],
) -> sqlx::Result<BTreeMap<KeyId, Uses>> {
    let rows = sqlx::query!(
        r#"
        select key_id, service, first_at, silent_from as "silent_from: jiff_sqlx::Timestamp",
               silent_until as "silent_until: jiff_sqlx::Timestamp", last_at
          from anomaly_detector.uses
         where key_id = any($1)"#,
        keys,
    )
    .fetch_all(connection)
    .await?;
    let mut found: BTreeMap<KeyId, Uses> = BTreeMap::new();
    for row in rows {
        let used = Use {
            first: micros(row.first_at),
            last: micros(row.last_at),
            silence: row
                .silent_from
                .map(micros)
                .zip(row.silent_until.map(micros)),
        };
        let uses = found.entry(KeyId::new(row.key_id)).or_default();
        uses.insert(row.service, used);
    }
    Ok(found)
}

/// Writes what a batch has changed. The keys are locked by this transaction.
pub(crate) async fn save(
    connection: &mut Connection,
    merged: &BTreeMap<KeyId, Merged>,
) -> sqlx::Result<()> {
    let (mut keys, mut services) = (Vec::new(), Vec::<&str>::new());
    let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
    let (mut froms, mut untils) = (Vec::new(), Vec::new());
    for (key, of_key) in merged {
        for service in &of_key.touched {
            let Some(used) = of_key.uses.get(service) else {
                continue;
            };
            keys.push(key.uuid());
            services.push(service);
            firsts.push(time(used.first));
            lasts.push(time(used.last));
            froms.push(used.silence.map(|(from, _)| time(from)));
            untils.push(used.silence.map(|(_, until)| time(until)));
        }
    }
    if keys.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        insert into anomaly_detector.uses (
            key_id, service, first_at, silent_from, silent_until, last_at)
        select key_id, service, first_at, silent_from, silent_until, last_at
          from unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[],
                      $5::timestamptz[], $6::timestamptz[])
               u (key_id, service, first_at, silent_from, silent_until, last_at)
            on conflict (key_id, service) do update
           set first_at = excluded.first_at, silent_from = excluded.silent_from,
               silent_until = excluded.silent_until, last_at = excluded.last_at"#,
        &keys,
        &services as &[&str],
        &firsts as &[jiff_sqlx::Timestamp],
        &froms as &[Option<jiff_sqlx::Timestamp>],
        &untils as &[Option<jiff_sqlx::Timestamp>],
        &lasts as &[jiff_sqlx::Timestamp],
    )
    .execute(connection)
    .await?;
    Ok(())
}
