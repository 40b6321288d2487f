//! Watermarks trail what every standby has flushed: a gateway lets go of a record when its effect
//! is told, and the standby that is promoted next must have it. Without a standby nothing waits,
//! but one that is cut off is waited for a while: it may be the next primary.
#![expect(
    clippy::disallowed_methods,
    reason = "the server's own views, which no schema of ours describes"
)]

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use sqlx::{Connection as _, PgConnection, Row};
use types::JournalId;

use crate::{
    consume::tell,
    host::Host,
    origin::{Moved, Server},
    postgres,
};

/// Watermarks on their way to the gateways.
pub(crate) struct Trail {
    server: Server,
    /// With the position in the log behind their transaction.
    waiting: VecDeque<(i64, BTreeMap<JournalId, u64>)>,
    /// When a standby was seen last, by the clock that only goes forward.
    seen_at: Option<Duration>,
    /// One is there, or was a moment ago.
    has_standby: bool,
    /// What all standbys had when they were asked last.
    flushed: i64,
    /// Positions of standbys are shown to who logs in, not to a service's role.
    positions: Option<PgConnection>,
    warned: bool,
}

impl Trail {
    /// Between two looks at the standbys.
    pub(crate) const PERIOD: Duration = Duration::from_secs(1);
    /// A standby that is gone is waited for so long: what cuts it off may be the death of the
    /// primary, and the standby the next one.
    const GRACE: Duration = Duration::from_secs(60);

    pub(crate) fn new(server: Server) -> Self {
        Self {
            server,
            waiting: VecDeque::new(),
            seen_at: None,
            has_standby: false,
            flushed: 0,
            positions: None,
            warned: false,
        }
    }

    /// The server that all transactions were on.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Tells watermarks of committed transactions, or keeps them until the standbys have those.
    pub(crate) async fn tell(
        &mut self,
        host: &Host,
        watermarks: BTreeMap<JournalId, u64>,
    ) -> anyhow::Result<()> {
        if !self.has_standby {
            return tell_all(host, watermarks).await;
        }
        let row = sqlx::query("select (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8 as written")
            .fetch_one(&host.postgres())
            .await?;
        self.waiting
            .push_back((row.try_get("written")?, watermarks));
        Ok(())
    }

    /// Looks whether the server is still the one that it was, and how far the standbys are; tells
    /// what they have.
    ///
    /// # Errors
    /// [`Moved`], or watermarks cannot be told. A server that does not answer is no error here.
    pub(crate) async fn look(&mut self, host: &Host) -> anyhow::Result<()> {
        let is_connected = match self.see(host).await {
            Ok((present, _)) if present != self.server => return Err(anyhow::Error::new(Moved)),
            Ok((_, is_connected)) => is_connected,
            Err(error) => {
                tracing::debug!(%error, "PostgreSQL is not seen");
                return Ok(());
            }
        };
        let now = Duration::from_nanos(host.clock().monotonic_nanos());
        if is_connected {
            self.seen_at = Some(now);
        }
        let is_awaited = |seen: Duration| now.saturating_sub(seen) < Self::GRACE;
        self.has_standby = self.seen_at.is_some_and(is_awaited);
        if self.waiting.is_empty() {
            return Ok(());
        }
        if is_connected && let Some(flushed) = self.flushed(host).await? {
            self.flushed = flushed;
        }
        let flushed = match self.has_standby {
            true => self.flushed,
            false => i64::MAX,
        };
        while let Some((written, _)) = self.waiting.front() {
            if flushed < *written {
                break;
            }
            if let Some((_, watermarks)) = self.waiting.pop_front() {
                tell_all(host, watermarks).await?;
            }
        }
        Ok(())
    }

    /// The present server, and whether it has a standby.
    async fn see(&self, host: &Host) -> sqlx::Result<(Server, bool)> {
        let row = sqlx::query(
            "select c.system_identifier as identifier,
                    left(pg_walfile_name(pg_current_wal_lsn()), 8) as timeline,
                    exists (select from pg_stat_replication) as has_standby
               from pg_control_system() c",
        )
        .fetch_one(&host.postgres())
        .await?;
        Ok((Server::read(&row)?, row.try_get("has_standby")?))
    }

    /// Up to where every standby has the log on its disk; none: nobody is connected any more. Who
    /// takes a backup follows nothing, and is not waited for.
    async fn flushed(&mut self, host: &Host) -> anyhow::Result<Option<i64>> {
        let mut connection = match self.positions.take() {
            Some(connection) => connection,
            None => postgres::login(&host.pools.login).await?,
        };
        let row = sqlx::query(
            "select pg_has_role(current_user, 'pg_read_all_stats', 'usage') as is_shown,
                    count(*) > 0 as is_connected,
                    (min(flush_lsn) - '0/0'::pg_lsn)::int8 as flushed
               from pg_stat_replication",
        )
        .fetch_one(&mut connection)
        .await;
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                drop(connection.close().await);
                return Err(error.into());
            }
        };
        self.positions = Some(connection);
        if row.try_get("is_shown")? {
            let flushed: Option<i64> = row.try_get("flushed")?;
            let is_connected: bool = row.try_get("is_connected")?;
            return Ok(flushed.or(is_connected.then_some(i64::MAX)));
        }
        if !self.warned {
            tracing::warn!(
                consumer = host.name(),
                "PostgreSQL has a standby, and does not say how far it is: the login lacks \
                 pg_read_all_stats; a failover relies on the usage stream alone"
            );
        }
        self.warned = true;
        Ok(Some(i64::MAX))
    }
}

async fn tell_all(host: &Host, watermarks: BTreeMap<JournalId, u64>) -> anyhow::Result<()> {
    for (journal, watermark) in watermarks {
        tell(host, journal, watermark).await?;
    }
    Ok(())
}
