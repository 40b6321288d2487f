//! Quiet: everything that journals hold is applied by every consumer. Asked of the files and of the
//! inboxes, so that the time is that of the system and not of the auditor.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use testkit::{auditor::journal::Journals, eventually};
use uuid::Uuid;

use crate::stack::{CONSUMERS, SETTLE_LIMIT, Stack};

/// Applied and not, by consumer and journal.
const WATERMARKS: &str = "
    select c.consumer, c.journal_id,
           case when c.applied @> 0::int8
                then (select min(upper(r)) from unnest(c.applied) r) else 0 end as watermark
      from (select 'wallet' as consumer, journal_id, applied from wallet.inbox
            union all
            select 'usage-ingest', journal_id, applied from usage_ingest.inbox
            union all
            select 'stats-aggregator', journal_id, applied from stats_aggregator.inbox
            union all
            select 'anomaly-detector', journal_id, applied from anomaly_detector.inbox) c
     where c.journal_id = any($1)";

/// How long it took until all was quiet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quiet {
    /// Every record is applied by every consumer: nothing is owed any more.
    pub(crate) settled: Duration,
    /// Journals of lives that are over are closed and gone, and no lease is ending.
    pub(crate) closed: Duration,
}

/// Waits for quiet; no call may be in flight.
pub(crate) async fn quiet(stack: &Stack, since: Instant) -> Quiet {
    let settled = eventually(SETTLE_LIMIT, "all records are applied", async || {
        behind(stack).await
    });
    settled.await.expect("settled");
    let settled = since.elapsed();
    let gateways = stack.gateways().len();
    let closed = eventually(SETTLE_LIMIT, "earlier lives are closed", async || {
        behind(stack).await?;
        let journals = read(stack)?.count();
        if journals > gateways {
            return Err(format!("{journals} journals of {gateways} gateways"));
        }
        let sql = "select count(*) from wallet.leases where state = 'draining'";
        match sqlx::query_scalar::<_, i64>(sql)
            .fetch_one(stack.pool())
            .await
        {
            Ok(0) => Ok(()),
            Ok(leases) => Err(format!("{leases} leases are ending")),
            Err(error) => Err(error.to_string()),
        }
    });
    closed.await.expect("closed");
    Quiet {
        settled,
        closed: since.elapsed(),
    }
}

fn read(stack: &Stack) -> Result<Journals, String> {
    let info = stack.info();
    let roots = info["journals"].as_array().expect("a list").iter();
    let roots: Vec<PathBuf> = roots
        .map(|root| root.as_str().expect("a path").into())
        .collect();
    Journals::read(&roots).map_err(|error| format!("{error:#}"))
}

/// Is somebody behind a journal?
async fn behind(stack: &Stack) -> Result<(), String> {
    let ends: BTreeMap<Uuid, u64> = read(stack)?
        .all
        .iter()
        .map(|journal| (journal.id, journal.end))
        .collect();
    let ids: Vec<Uuid> = ends.keys().copied().collect();
    let rows: Vec<(String, Uuid, i64)> = sqlx::query_as(WATERMARKS)
        .bind(&ids)
        .fetch_all(stack.pool())
        .await
        .map_err(|error| error.to_string())?;
    let marks: BTreeMap<(&str, Uuid), u64> = rows
        .iter()
        .map(|(consumer, journal, mark)| {
            let mark = u64::try_from(*mark).expect("not negative");
            ((consumer.as_str(), *journal), mark)
        })
        .collect();
    for consumer in CONSUMERS {
        for (journal, end) in &ends {
            let mark = marks.get(&(consumer, *journal)).copied().unwrap_or(0);
            if mark < *end {
                return Err(format!("{consumer}: {mark} of {end} of {journal}"));
            }
        }
    }
    Ok(())
}
