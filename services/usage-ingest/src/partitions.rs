//! Partitions of `api_usage_logs`, a day each. The only dynamic statements of the product: names
//! and bounds of partitions cannot be parameters. They are made of dates, never of input.

use jiff::{ToSpan, civil::Date};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::domain::{partition_days, partition_name};

/// Serialises instances that look after partitions. Any constant will do, once.
const ADVISORY_LOCK: i64 = 0x7473_6167_6500_0001;

/// Keeps partitions ready.
#[derive(Clone)]
pub(crate) struct Partitions {
    pool: PgPool,
}

impl Partitions {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// One run of the periodic task. A failure is not urgent: a week is ready ahead, and without
    /// it rows land in the default partition.
    pub(crate) async fn keep(self, today: Date) {
        for day in partition_days(today) {
            match self.ensure(day).await {
                Ok(None) => {}
                Ok(Some(moved)) => tracing::info!(%day, moved, "partition created"),
                Err(error) => {
                    tracing::warn!(%day, %error, "partition not created, trying later");
                    return;
                }
            }
        }
        match self.strays().await {
            Ok(0) => {}
            Ok(days) => tracing::warn!(days, "calls of other days wait in the default partition"),
            Err(error) => tracing::warn!(%error, "the default partition could not be read"),
        }
    }

    /// Creates the partition of a day; the rows moved into it, or nothing when it was there.
    pub(crate) async fn ensure(&self, day: Date) -> sqlx::Result<Option<u64>> {
        let mut transaction = self.pool.begin().await?;
        if exists(&mut transaction, day).await? {
            return Ok(None);
        }
        // Whoever holds these tables for long is waited for in an hour, not with everybody behind.
        execute(&mut transaction, "set local lock_timeout = '5s'".to_owned()).await?;
        sqlx::query!("select pg_advisory_xact_lock($1)", ADVISORY_LOCK)
            .execute(&mut *transaction)
            .await?;
        if exists(&mut transaction, day).await? {
            return Ok(None); // another instance was faster
        }
        let moved = create(&mut transaction, day).await?;
        transaction.commit().await?;
        Ok(Some(moved))
    }

    /// Days that have rows in the default partition.
    async fn strays(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar!(
            r#"select count(distinct day) as "days!" from usage_ingest.api_usage_logs_default"#
        )
        .fetch_one(&self.pool)
        .await
    }
}

async fn exists(connection: &mut PgConnection, day: Date) -> sqlx::Result<bool> {
    let name = format!("usage_ingest.{}", partition_name(day));
    sqlx::query_scalar!(r#"select to_regclass($1) is not null as "exists!""#, name)
        .fetch_one(connection)
        .await
}

/// Creates the table apart, moves the day's rows out of the default partition and attaches it.
/// Readers go on meanwhile.
async fn create(connection: &mut PgConnection, day: Date) -> sqlx::Result<u64> {
    let name = partition_name(day);
    let next = day.saturating_add(1.day());
    // Writers wait for these milliseconds: one that has chosen the default partition already would
    // fail when the day gets its own.
    execute(
        connection,
        "lock table usage_ingest.api_usage_logs in share row exclusive mode".to_owned(),
    )
    .await?;
    execute(
        connection,
        format!(
            "create table usage_ingest.{name} (like usage_ingest.api_usage_logs including all)"
        ),
    )
    .await?;
    let moved = execute(
        connection,
        format!(
            "with moved as (
                 delete from usage_ingest.api_usage_logs_default
                  where day = '{day}'
                 returning *)
             insert into usage_ingest.{name} select * from moved"
        ),
    )
    .await?;
    execute(
        connection,
        format!(
            "alter table usage_ingest.api_usage_logs
              attach partition usage_ingest.{name} for values from ('{day}') to ('{next}')"
        ),
    )
    .await?;
    Ok(moved)
}

#[expect(
    clippy::disallowed_methods,
    reason = "names of partitions cannot be parameters"
)]
async fn execute(connection: &mut PgConnection, statement: String) -> sqlx::Result<u64> {
    let done = sqlx::query(AssertSqlSafe(statement))
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}
