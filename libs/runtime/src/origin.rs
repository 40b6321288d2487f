//! Which server a consumer's transactions are on. One that was promoted or restored has another
//! timeline, and may have lost what was committed last on the one before; its inbox says what.
#![expect(
    clippy::disallowed_methods,
    reason = "one table in all schemas; the schema's name is a constant, never input"
)]

use std::fmt;

use async_nats::jetstream::consumer::DeliverPolicy;
use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgRow};
use time::{Duration, OffsetDateTime};

/// The stream is read again from so long before the newest effect that is known: what was under way
/// then, and clocks that differ.
const BEFORE: Duration = Duration::minutes(10);

/// A server and its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    identifier: i64,
    /// The first eight digits of the names of its WAL files.
    pub(crate) timeline: String,
}

impl Server {
    pub(crate) fn read(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            identifier: row.try_get("identifier")?,
            timeline: row.try_get("timeline")?,
        })
    }
}

/// The server is not the one that the subscription began with.
#[derive(Debug, thiserror::Error)]
#[error("PostgreSQL was failed over")]
pub(crate) struct Moved;

/// From when on the stream is read again; none: from its beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since(Option<OffsetDateTime>);

impl Since {
    pub(crate) fn policy(self) -> DeliverPolicy {
        match self.0 {
            Some(start_time) => DeliverPolicy::ByStartTime { start_time },
            None => DeliverPolicy::All,
        }
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(start) => write!(f, "{start}"),
            None => f.write_str("the beginning"),
        }
    }
}

/// The server this connection is to.
pub(crate) async fn present(connection: &mut PgConnection) -> sqlx::Result<Server> {
    let row = sqlx::query(
        "select system_identifier as identifier,
                left(pg_walfile_name(pg_current_wal_lsn()), 8) as timeline
           from pg_control_system()",
    )
    .fetch_one(connection)
    .await?;
    Server::read(&row)
}

/// Whether the schema was on another server before, and from when on it may have lost something.
pub(crate) async fn moved(
    connection: &mut PgConnection,
    schema: &'static str,
    server: &Server,
) -> sqlx::Result<Option<Since>> {
    let statement = format!(
        "select o.system_identifier as identifier, o.timeline,
                (select extract(epoch from max(i.updated_at))::int8 from {schema}.inbox i) as last
           from {schema}.origin o"
    );
    let row = sqlx::query(AssertSqlSafe(statement))
        .fetch_one(connection)
        .await?;
    if Server::read(&row)? == *server {
        return Ok(None);
    }
    let last: Option<i64> = row.try_get("last")?;
    let last = last.and_then(|last| OffsetDateTime::from_unix_timestamp(last).ok());
    Ok(Some(Since(last.and_then(|last| last.checked_sub(BEFORE)))))
}

/// Notes the server that the inbox follows from now on, and that it has to catch up.
pub(crate) async fn settle(
    connection: &mut PgConnection,
    schema: &'static str,
    server: &Server,
) -> sqlx::Result<()> {
    let statement = format!(
        "update {schema}.origin
            set system_identifier = $1, timeline = $2, moved_at = now(), caught_up_at = null
          where is_only"
    );
    note(connection, statement, server).await
}

/// Whether what the server may have lost is still being read again.
pub(crate) async fn is_behind(
    connection: &mut PgConnection,
    schema: &'static str,
) -> sqlx::Result<bool> {
    let statement = format!(
        "select moved_at is not null and caught_up_at is null as is_behind from {schema}.origin"
    );
    let row = sqlx::query(AssertSqlSafe(statement))
        .fetch_one(connection)
        .await?;
    row.try_get("is_behind")
}

/// Notes that it has been read again, on this server.
pub(crate) async fn caught_up(
    connection: &mut PgConnection,
    schema: &'static str,
    server: &Server,
) -> sqlx::Result<()> {
    let statement = format!(
        "update {schema}.origin
            set caught_up_at = now()
          where caught_up_at is null and system_identifier = $1 and timeline = $2"
    );
    note(connection, statement, server).await
}

/// Executes a statement about a server.
async fn note(
    connection: &mut PgConnection,
    statement: String,
    server: &Server,
) -> sqlx::Result<()> {
    sqlx::query(AssertSqlSafe(statement))
        .bind(server.identifier)
        .bind(&server.timeline)
        .execute(connection)
        .await?;
    Ok(())
}
