//! Every statement.
//!
//! What a rule keeps is read and written under an advisory lock of its subject: two instances must
//! not judge a key, an organisation or an address at the same time, neither would see what the
//! other has seen. Locks are taken before any row, those of one kind in order, never two kinds.

mod anomalies;
pub(crate) mod loads;
pub(crate) mod sightings;
pub(crate) mod told;
pub(crate) mod uses;

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use runtime::Tenants;
use sqlx::{PgPool, Postgres, Transaction};
use types::{KeyId, OrgId};

use crate::{domain::Micros, error::Error};

pub(crate) use anomalies::{Anomaly, Filter, flag, known, rewrite};

/// A connection inside somebody's transaction.
pub(crate) type Connection = sqlx::PgConnection;

/// First numbers of the advisory locks; the second is a stripe, so that their number has a bound.
const KEY_LOCKS: i32 = 0x616e_6f6d;
const ORG_LOCKS: i32 = 0x616e_6f6e;
const ADDRESS_LOCKS: i32 = 0x616e_6f6f;

/// The schema `anomaly_detector`.
#[derive(Clone)]
pub(crate) struct Store {
    pool: PgPool,
    tenants: Tenants,
}

/// How long the rules look back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// Hours of sightings, and of what other services have told.
    pub(crate) hours: u32,
    /// Days of loads.
    pub(crate) load_days: u32,
}

impl Store {
    pub(crate) fn new(pool: PgPool, tenants: Tenants) -> Self {
        Self { pool, tenants }
    }

    /// Begins a transaction of the service's own; dropped without a commit, it has not been.
    pub(crate) async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        runtime::begin(&self.pool).await
    }

    /// Deletes what no rule looks at any more: so much older than the newest. A gateway whose clock
    /// runs ahead must not delete what is new, so nothing after `now` counts as newest.
    pub(crate) async fn prune(&self, keep: Keep, now: Timestamp) -> sqlx::Result<u64> {
        let now = now.to_sqlx();
        let hours = i32::try_from(keep.hours).unwrap_or(i32::MAX);
        let days = i32::try_from(keep.load_days).unwrap_or(i32::MAX);
        let sightings = sqlx::query!(
            r#"
            delete from anomaly_detector.sightings
             where hour < least($1, (select max(hour) from anomaly_detector.sightings))
                          - make_interval(hours => $2)"#,
            now as jiff_sqlx::Timestamp,
            hours,
        );
        let loads = sqlx::query!(
            r#"
            delete from anomaly_detector.loads
             where bucket < least($1, (select max(bucket) from anomaly_detector.loads))
                            - make_interval(days => $2)"#,
            now as jiff_sqlx::Timestamp,
            days,
        );
        let created = sqlx::query!(
            r#"
            delete from anomaly_detector.created_keys
             where created_at < $1::timestamptz - make_interval(hours => $2)"#,
            now as jiff_sqlx::Timestamp,
            hours,
        );
        let crossings = sqlx::query!(
            r#"
            delete from anomaly_detector.crossings
             where at < $1::timestamptz - make_interval(hours => $2)"#,
            now as jiff_sqlx::Timestamp,
            hours,
        );
        let sprays = sqlx::query!(
            r#"
            delete from anomaly_detector.sprays
             where minute < $1::timestamptz - make_interval(hours => $2)"#,
            now as jiff_sqlx::Timestamp,
            hours,
        );
        let mut rows = 0;
        for statement in [sightings, loads, created, crossings, sprays] {
            rows += statement.execute(&self.pool).await?.rows_affected();
        }
        Ok(rows)
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(error.into())
    }
}

/// Locks keys until the transaction ends.
pub(crate) async fn lock_keys(
    connection: &mut Connection,
    keys: impl Iterator<Item = KeyId>,
) -> sqlx::Result<()> {
    lock(connection, KEY_LOCKS, keys.map(|key| key.bytes()[15])).await
}

/// Locks an organisation until the transaction ends.
pub(crate) async fn lock_org(connection: &mut Connection, org: OrgId) -> sqlx::Result<()> {
    lock(connection, ORG_LOCKS, [org.bytes()[15]].into_iter()).await
}

/// Locks an address until the transaction ends.
pub(crate) async fn lock_address(connection: &mut Connection, address: &str) -> sqlx::Result<()> {
    let stripe = address.bytes().fold(0_u8, |stripe, byte| {
        stripe.wrapping_mul(31).wrapping_add(byte)
    });
    lock(connection, ADDRESS_LOCKS, [stripe].into_iter()).await
}

async fn lock(
    connection: &mut Connection,
    kind: i32,
    stripes: impl Iterator<Item = u8>,
) -> sqlx::Result<()> {
    let stripes: BTreeSet<i32> = stripes.map(i32::from).collect();
    let stripes: Vec<i32> = stripes.into_iter().collect();
    sqlx::query!(
        "select pg_advisory_xact_lock($1, stripe) from unnest($2::int[]) stripe",
        kind,
        &stripes,
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn time(micros: Micros) -> jiff_sqlx::Timestamp {
    Timestamp::from_microsecond(micros)
        .expect("read from a time of this range")
        .to_sqlx()
}

fn micros(at: jiff_sqlx::Timestamp) -> Micros {
    at.to_jiff().as_microsecond()
}
