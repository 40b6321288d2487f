//! Brings the journals of earlier lives to their end, at a gateway's start and for an operator who
//! has found the directory of one that will not start again.
//!
//! - No credit is lent to such a journal any more; each open lease gets its final count.
//! - Everything is shipped, what is lost is declared, and a journal goes once all is applied.
//! - Stopped or killed at any point, the next run goes on. Of two that have a copy each, both end:
//!   a record counts once, by its number, and a lease that is open afterwards is closed again.

use std::{collections::BTreeMap, path::PathBuf, pin::pin, time::Duration};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use prost::Message as _;
use proto::{
    channel::Channel,
    events::v1::{Record, RecordKind},
    usage_ingest::v1::{EndJournalRequest, usage_ingest_service_client::UsageIngestServiceClient},
    wallet::v1::{Lease, RetireJournalRequest, wallet_service_client::WalletServiceClient},
};
use runtime::{Host, Stop, crash_point};
use tokio::sync::watch;
use tonic::Code as Grpc;
use types::{JournalId, LeaseId};

use crate::{
    journal::{Journal, Limits, Recovered},
    opened::Opened,
    record,
    retry::Retry,
    ship::Shipper,
};

/// Journals brought to their end at once; others wait.
const JOURNALS_AT_ONCE: usize = 8;
/// Rounds of closing what is still open. One is enough unless somebody else has a copy, or the
/// wallet's database had forgotten a lease.
const ROUNDS_MAX: u32 = 16;
/// Between two looks at the figures.
const FIGURES_PERIOD: Duration = Duration::from_millis(200);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// A gateway that has just died still looks alive for 5 seconds.
const ALIVE_MAX: Duration = Duration::from_secs(8);

/// How far the recovery of a directory has come: sums over its journals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Journals found.
    pub journals: u64,
    /// Journals settled and removed.
    pub removed: u64,
    /// Records not applied everywhere when this began, and those that ended the leases.
    pub records: u64,
    /// How many of them are in the stream.
    pub shipped: u64,
    /// How many of them every consumer has applied.
    pub applied: u64,
    /// Records lost for good.
    pub gap_records: u64,
    /// Credits of open leases, spent and not settled when this began.
    pub credits: i64,
}

/// Takes over the journals of a dead gateway, and brings each to its end. `figures` tell how far it
/// is. What is left of it when `stop` is requested goes on with the next run.
///
/// # Errors
/// The directory is in use, a journal cannot be read, or its owner is alive.
pub async fn recover(
    host: &Host,
    dir: PathBuf,
    figures: &watch::Sender<Recovery>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let found = host.blocking(move || Journal::take_over(&dir)).await??;
    let channel = host.channel("wallet")?;
    let journals = u64::try_from(found.len()).unwrap_or(u64::MAX);
    figures.send_modify(|all| all.journals = journals);
    let ended = futures_util::stream::iter(found).map(|found| {
        let channel = channel.clone();
        async move {
            let life = Life::new(host, channel, &found, figures, true);
            let ended = life.end(stop).await;
            ended.with_context(|| life.id.to_string())
        }
    });
    let ended: Vec<anyhow::Result<()>> = ended.buffer_unordered(JOURNALS_AT_ONCE).collect().await;
    ended.into_iter().collect()
}

/// Brings a journal that was found at the start to its end.
pub(crate) async fn end(host: Host, channel: Channel, found: Recovered, stop: Stop) {
    let figures = watch::Sender::new(Recovery::default());
    let life = Life::new(&host, channel, &found, &figures, false);
    let id = life.id;
    match life.end(&stop).await {
        Ok(()) => tracing::info!(journal.id = %id, "an earlier journal is settled and removed"),
        Err(error) if stop.is_requested() => {
            tracing::debug!(
                error = format!("{error:#}"),
                "recovery goes on at the next start"
            );
        }
        Err(error) => tracing::error!(
            journal.id = %id,
            error = format!("{error:#}"),
            "an earlier journal was not settled; the next start tries again"
        ),
    }
}

/// One journal of an earlier life.
struct Life<'a> {
    id: JournalId,
    host: &'a Host,
    channel: Channel,
    found: &'a Recovered,
    journal: Journal,
    figures: &'a watch::Sender<Recovery>,
    /// The directory may be a copy: its lock does not prove that the owner is dead.
    may_be_copy: bool,
}

impl<'a> Life<'a> {
    fn new(
        host: &'a Host,
        channel: Channel,
        found: &'a Recovered,
        figures: &'a watch::Sender<Recovery>,
        may_be_copy: bool,
    ) -> Self {
        let journal = found.journal.clone();
        let id = JournalId::new(journal.id());
        for damage in &found.damage {
            tracing::error!(journal.id = %id, ?damage, "a journal is damaged");
        }
        Self {
            id,
            host,
            channel,
            found,
            journal,
            figures,
            may_be_copy,
        }
    }

    async fn end(&self, stop: &Stop) -> anyhow::Result<()> {
        let (mut totals, opened) = totals(self.host, &self.journal).await?;
        let mut opened = Some(opened);
        let gaps = self.found.gaps();
        let lost = gaps
            .iter()
            .map(|gap| gap.seqs.end.saturating_sub(gap.seqs.start));
        let lost: u64 = lost.fold(0, u64::saturating_add);
        let unapplied = self
            .journal
            .next_seq()
            .saturating_sub(self.journal.watermark());
        self.figures.send_modify(|all| {
            all.records = all.records.saturating_add(unapplied);
            all.gap_records = all.gap_records.saturating_add(lost);
        });
        for round in 0..ROUNDS_MAX {
            let open = self.retire(stop).await?;
            let is_first = round == 0;
            settle_at_least(&mut totals, &open);
            if let Some(opened) = opened.take() {
                self.end_calls(opened, &mut totals).await?;
            }
            let closed = self.close(&open, &totals, lost > 0, is_first).await?;
            crash_point!("gateway.recovery_scanned");
            if closed == 0 && !is_first {
                tell_end(self.host, &self.journal, stop).await?;
                crash_point!("gateway.journal_ended");
                let journal = self.journal.clone();
                self.host.blocking(move || journal.remove()).await??;
                self.figures
                    .send_modify(|all| all.removed = all.removed.saturating_add(1));
                return Ok(());
            }
            self.ship(stop).await?;
        }
        anyhow::bail!("leases were still open after {ROUNDS_MAX} final counts");
    }

    /// Ends the calls that the life had begun, each by what the last note of it says.
    async fn end_calls(
        &self,
        opened: Opened,
        totals: &mut BTreeMap<LeaseId, Total>,
    ) -> anyhow::Result<()> {
        let now = self.host.clock().now();
        let mut ended = 0_u64;
        for record in opened.end(totals, now.as_microsecond())? {
            self.append(record).await?;
            crash_point!("gateway.open_call_ended");
            ended = ended.saturating_add(1);
        }
        self.figures
            .send_modify(|all| all.records = all.records.saturating_add(ended));
        Ok(())
    }

    /// Appends a record that completes the journal, and syncs it.
    async fn append(&self, mut record: Record) -> anyhow::Result<()> {
        let journal = self.journal.clone();
        let now = self.host.clock().now();
        let now_ms = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let append = move || {
            journal.append_synced(now_ms, |slot| {
                record.seq = slot.seq;
                (record::encode(&record, slot.buf), ())
            })
        };
        self.host.blocking(append).await??;
        Ok(())
    }

    /// Writes the final count of each open lease; how many there were.
    async fn close(
        &self,
        open: &[Lease],
        totals: &BTreeMap<LeaseId, Total>,
        has_gaps: bool,
        is_first: bool,
    ) -> anyhow::Result<u64> {
        if is_first {
            self.count_credits(open, totals, has_gaps)?;
        }
        let mut closed = 0_u64;
        let now = self.host.clock().now();
        for (lease, cum) in finals(totals, open, has_gaps, is_first)? {
            let close = Record {
                kind: RecordKind::Close.into(),
                at_unix_micros: now.as_microsecond(),
                lease_id: lease.bytes().to_vec(),
                cum,
                ..Record::default()
            };
            self.append(close).await?;
            crash_point!("gateway.close_written");
            closed = closed.saturating_add(1);
        }
        self.figures
            .send_modify(|all| all.records = all.records.saturating_add(closed));
        Ok(closed)
    }

    /// Adds what open leases have spent that is not settled to the figures.
    fn count_credits(
        &self,
        open: &[Lease],
        totals: &BTreeMap<LeaseId, Total>,
        has_gaps: bool,
    ) -> anyhow::Result<()> {
        for lease in open {
            let total = totals.get(&LeaseId::from_slice(&lease.lease_id)?);
            if total.is_some_and(|total| !total.is_permits) {
                let spent = final_cum(total, lease, has_gaps).saturating_sub(lease.settled_cum);
                self.figures
                    .send_modify(|all| all.credits = all.credits.saturating_add(spent));
            }
        }
        Ok(())
    }

    /// Ships until everything is applied everywhere.
    async fn ship(&self, stop: &Stop) -> anyhow::Result<()> {
        let (shipped, seen) = watch::channel(self.journal.watermark());
        let mut told = (self.journal.watermark(), self.journal.watermark());
        let mut tell = || {
            let now = ((*seen.borrow()).max(told.0), self.journal.watermark());
            self.figures.send_modify(|all| {
                let more = (now.0.saturating_sub(told.0), now.1.saturating_sub(told.1));
                all.shipped = all.shipped.saturating_add(more.0);
                all.applied = all.applied.saturating_add(more.1);
            });
            told = now;
        };
        let mut shipper = Shipper::of_earlier(self.host, self.found, shipped);
        let is_done = |journal: &Journal| journal.watermark() >= journal.next_seq();
        {
            let enough = |journal: &Journal| is_done(journal) || stop.is_requested();
            let mut running = pin!(shipper.run(enough, stop));
            loop {
                tokio::select! {
                    ended = &mut running => break ended?,
                    () = tokio::time::sleep(FIGURES_PERIOD) => tell(),
                }
            }
        }
        tell();
        let (last, watermark) = shipper.last();
        let next_seq = self.journal.next_seq();
        anyhow::ensure!(
            is_done(&self.journal),
            "stopped before everything was applied: {last} has {watermark} of {next_seq} records"
        );
        Ok(())
    }

    /// Ends the journal at the wallet and returns its open leases.
    async fn retire(&self, stop: &Stop) -> anyhow::Result<Vec<Lease>> {
        let mut retry = Retry::new();
        let began = tokio::time::Instant::now();
        loop {
            let mut request = tonic::Request::new(RetireJournalRequest {
                journal_id: self.id.to_string(),
                unless_alive: self.may_be_copy,
            });
            request.set_timeout(ATTEMPT_TIMEOUT);
            let asked = WalletServiceClient::new(self.channel.clone())
                .retire_journal(request)
                .await;
            let status = match asked {
                Ok(answer) => return Ok(answer.into_inner().leases),
                Err(status) => status,
            };
            if retry.is_first() {
                let (id, error) = (self.id, status.message());
                tracing::warn!(journal.id = %id, error, "a journal cannot be retired yet");
            }
            let is_alive = status.code() == Grpc::AlreadyExists;
            anyhow::ensure!(
                !is_alive || began.elapsed() < ALIVE_MAX,
                "{}: is this a copy of a directory that is in use?",
                status.message()
            );
            anyhow::ensure!(retry.pause(stop).await, "stopped before it was retired");
        }
    }
}

/// Tells `usage-ingest` that a journal has ended, before it is removed: calls of it that have no
/// row were never recorded, so the idempotency keys they had are free.
///
/// # Errors
/// It was told to stop before.
pub(crate) async fn tell_end(host: &Host, journal: &Journal, stop: &Stop) -> anyhow::Result<()> {
    let channel = host.channel("usage-ingest")?;
    let mut retry = Retry::new();
    loop {
        let mut request = tonic::Request::new(EndJournalRequest {
            journal_id: JournalId::new(journal.id()).to_string(),
            next_seq: journal.next_seq(),
        });
        request.set_timeout(ATTEMPT_TIMEOUT);
        let mut client = UsageIngestServiceClient::new(channel.clone());
        let Err(status) = client.end_journal(request).await else {
            return Ok(());
        };
        tracing::debug!(code = ?status.code(), "a journal's end is not known yet");
        anyhow::ensure!(retry.pause(stop).await, "stopped before its end was known");
    }
}

/// The final counts that a journal owes, of what the wallet calls open. What it has closed or
/// written off needs none: nothing of it is reserved, and a count below what was written off would
/// be a dead letter.
///
/// # Errors
/// A lease has no id.
pub(crate) fn finals(
    totals: &BTreeMap<LeaseId, Total>,
    open: &[Lease],
    has_gaps: bool,
    is_first: bool,
) -> anyhow::Result<Vec<(LeaseId, i64)>> {
    let mut finals = Vec::with_capacity(open.len());
    for lease in open {
        let id = LeaseId::from_slice(&lease.lease_id)?;
        let total = totals.get(&id);
        // Its final count is on its way. Still open when all is applied, another record has taken
        // that one's number.
        if !is_first || !total.is_some_and(|total| total.closed) {
            finals.push((id, final_cum(total, lease, has_gaps)));
        }
    }
    Ok(finals)
}

/// What a lease has cost in the end. Lent, but the reply never came: nothing was spent. All its
/// calls applied, and their records gone: what is settled is what was spent. Its last calls lost
/// with a gap: what its owner had told of them was spent.
fn final_cum(total: Option<&Total>, lease: &Lease, has_gaps: bool) -> i64 {
    let readable = total.map_or(0, |total| total.cum);
    let known = if has_gaps { lease.known_cum } else { 0 };
    readable.max(lease.settled_cum).max(known)
}

/// What a journal says of a lease.
#[derive(Debug, Default)]
pub(crate) struct Total {
    pub(crate) cum: i64,
    closed: bool,
    is_permits: bool,
}

impl Total {
    /// Adds a call that had no record; returns the total with it.
    pub(crate) fn spend(&mut self, cost: i64) -> i64 {
        self.cum = self.cum.saturating_add(cost);
        self.cum
    }
}

/// A call that is ended now comes on top of what is settled, also where the records of that are
/// applied and gone.
pub(crate) fn settle_at_least(totals: &mut BTreeMap<LeaseId, Total>, open: &[Lease]) {
    for lease in open {
        let id = LeaseId::from_slice(&lease.lease_id).ok();
        if let Some(total) = id.and_then(|id| totals.get_mut(&id)) {
            total.cum = total.cum.max(lease.settled_cum);
        }
    }
}

/// What a journal says of its leases, and of the calls that it does not end.
pub(crate) async fn totals(
    host: &Host,
    journal: &Journal,
) -> anyhow::Result<(BTreeMap<LeaseId, Total>, Opened)> {
    let journal = journal.clone();
    host.blocking(move || read_totals(&journal)).await?
}

/// [`totals`], blocking.
pub(crate) fn read_totals(journal: &Journal) -> anyhow::Result<(BTreeMap<LeaseId, Total>, Opened)> {
    let (mut reader, end) = (journal.reader(0), journal.next_seq());
    let mut totals: BTreeMap<LeaseId, Total> = BTreeMap::new();
    let mut opened = Opened::default();
    let mut expected = None;
    while let Some(batch) = reader.next_batch(Limits::before(end))? {
        // The records that are lost may have ended what was open before them: a call that may
        // have been charged is not charged again.
        if expected
            .replace(batch.next_seq())
            .is_some_and(|seq| seq != batch.first_seq)
        {
            opened = Opened::default();
        }
        for bytes in batch.records {
            let record = Record::decode(bytes)?;
            opened.read(&record)?;
            for permit in &record.permits {
                let lease = LeaseId::from_slice(&permit.lease_id)?;
                let total = totals.entry(lease).or_default();
                total.cum = total.cum.max(permit.cum);
                total.is_permits = true;
            }
            if record.lease_id.is_empty() {
                continue;
            }
            let lease = LeaseId::from_slice(&record.lease_id)?;
            let total = totals.entry(lease).or_default();
            total.cum = total.cum.max(record.cum);
            total.closed |= record.kind == i32::from(RecordKind::Close);
        }
    }
    Ok((totals, opened))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(settled_cum: i64, known_cum: i64) -> Lease {
        Lease {
            settled_cum,
            known_cum,
            ..Lease::default()
        }
    }

    #[test]
    fn a_final_count_is_what_was_certainly_spent() {
        let total = Total {
            cum: 12,
            ..Total::default()
        };
        assert_eq!(final_cum(None, &lease(0, 0), false), 0);
        assert_eq!(final_cum(Some(&total), &lease(5, 9), false), 12);
        assert_eq!(final_cum(Some(&total), &lease(15, 15), false), 15);
        // Reported and not readable: lost with the power before it was promised to anybody, unless
        // the journal is known to have lost what it had promised.
        assert_eq!(final_cum(Some(&total), &lease(5, 14), false), 12);
        assert_eq!(final_cum(Some(&total), &lease(5, 14), true), 14);
    }
}
