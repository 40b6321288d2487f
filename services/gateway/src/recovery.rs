//! Brings the journals of earlier lives to their end, at a gateway's start and for an operator who
//! has found the directory of one that will not start again.
//!
//! - No credit is lent to such a journal any more; each open lease gets its final count.
//! - Everything is shipped, what is lost is declared, and a journal goes once all is applied.
//! - A full disk is in nobody's way: there is room for what ends a journal, and shipping makes
//!   more.
//! - Stopped or killed at any point, the next run goes on. Of two that have a copy each, both end:
//!   a record counts once, by its number, and a lease that is open afterwards is closed again.
//! - What is settled is a bound and not a base: another copy may have ended the same calls.

mod counts;

use std::{collections::BTreeMap, path::PathBuf, pin::pin, time::Duration};

use anyhow::Context as _;
use futures_util::StreamExt as _;
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

use self::counts::final_cum;
#[cfg(test)]
pub(crate) use self::counts::has_spent;
pub(crate) use self::counts::{Total, finals, read_totals};
use crate::{
    journal::{self, Journal, Kept, Recovered},
    opened::Opened,
    record,
    retry::{Insistence, Retry},
    ship::{Shipper, course::Course},
};

/// Journals brought to their end at once; others wait.
const JOURNALS_AT_ONCE: usize = 8;
/// Rounds of closing what is still open. One is enough unless somebody else has a copy, or the
/// wallet's database had forgotten a lease.
const ROUNDS_MAX: u32 = 16;
/// Between two looks at the figures.
const FIGURES_PERIOD: Duration = Duration::from_millis(200);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// A gateway that has just died looks alive until its leases are orphaned: for 30 seconds, unless
/// the wallet is told otherwise.
const ALIVE_MAX: Duration = Duration::from_secs(35);

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
    let journals = wide(found.len());
    figures.send_modify(|all| all.journals = journals);
    let ended = futures_util::stream::iter(found).map(|found| {
        let channel = channel.clone();
        async move {
            let mut life = Life::new(host, channel, &found, figures, true);
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
    let mut life = Life::new(&host, channel, &found, &figures, false);
    let mut insistence = Insistence::new(&host, life.id, false);
    while let Err(error) = life.end(&stop).await {
        if !insistence.may_pass(&error, &stop).await {
            tracing::debug!(
                error = format!("{error:#}"),
                "recovery goes on at the next start"
            );
            return;
        }
    }
    tracing::info!(journal.id = %life.id, "an earlier journal is settled and removed");
}

/// One journal of an earlier life.
struct Life<'a> {
    id: JournalId,
    host: &'a Host,
    channel: Channel,
    found: &'a Recovered,
    journal: Journal,
    figures: &'a watch::Sender<Recovery>,
    /// Numbers up to which the figures tell of it: shipped, and applied.
    told: (u64, u64),
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
        let watermark = journal.watermark();
        Self {
            id,
            host,
            channel,
            found,
            journal,
            figures,
            told: (watermark, watermark),
            may_be_copy,
        }
    }

    async fn end(&mut self, stop: &Stop) -> anyhow::Result<()> {
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
        let mut kept = match lost {
            0 => None,
            _ => Some(self.meet_the_lost(&totals, stop).await?),
        };
        let (mut rounds, mut is_first) = (0, true);
        while rounds < ROUNDS_MAX {
            let open = self.retire(stop).await?;
            if let Some(opened) = opened.take() {
                self.end_calls(opened, &mut totals, &open, stop).await?;
            }
            if is_first && lost == 0 {
                self.count_credits(&open, &totals, false)?;
            }
            let owed = finals(&totals, &open, lost > 0, is_first)?;
            let closed = self.close(&owed, stop).await?;
            drop(kept.take());
            crash_point!("gateway.recovery_scanned");
            if owed.is_empty() && !is_first {
                tell_end(self.host, &self.journal, stop).await?;
                crash_point!("gateway.journal_ended");
                self.remove(stop).await?;
                self.figures
                    .send_modify(|all| all.removed = all.removed.saturating_add(1));
                return Ok(());
            }
            self.ship(Course::watermark, stop).await?;
            // What the disk had no room for is the next round's: what was shipped has made some.
            rounds = rounds.saturating_add(u32::from(closed == owed.len()));
            is_first = false;
        }
        anyhow::bail!("leases were still open after {ROUNDS_MAX} final counts");
    }

    /// Waits until the wallet has applied the gaps: what is lost here may have been shipped, and
    /// count towards what leases have spent. Until there are final counts nothing goes, not even
    /// what says that there is a gap.
    async fn meet_the_lost(
        &mut self,
        totals: &BTreeMap<LeaseId, Total>,
        stop: &Stop,
    ) -> anyhow::Result<Kept> {
        let kept = self.journal.keep(self.journal.watermark());
        let open = self.retire(stop).await?;
        self.count_credits(&open, totals, true)?;
        self.ship(Course::settled, stop).await?;
        Ok(kept)
    }

    /// Ends the calls that the life had begun, each by what the last note of it says.
    async fn end_calls(
        &self,
        opened: Opened,
        totals: &mut BTreeMap<LeaseId, Total>,
        open: &[Lease],
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let now = self.host.clock().now();
        let mut ended = 0_u64;
        for record in opened.end(totals, open, now.as_microsecond())? {
            self.append(record, stop).await?;
            crash_point!("gateway.open_call_ended");
            ended = ended.saturating_add(1);
        }
        self.figures
            .send_modify(|all| all.records = all.records.saturating_add(ended));
        Ok(())
    }

    /// Removes the journal, of which nothing can be read from then on: what fails is tried again
    /// here.
    async fn remove(&self, stop: &Stop) -> anyhow::Result<()> {
        let mut retry = Retry::new();
        loop {
            let journal = self.journal.clone();
            let error = match self.host.blocking(move || journal.remove()).await? {
                Err(error) if !error.is_final() => error,
                done => return Ok(done?),
            };
            if retry.is_first() {
                tracing::warn!(journal.id = %self.id, %error, "a settled journal cannot go yet");
            }
            anyhow::ensure!(retry.pause(stop).await, "stopped before it was removed");
        }
    }

    /// Appends a record that completes the journal, and syncs it; waits for room if there is none.
    async fn append(&self, record: Record, stop: &Stop) -> anyhow::Result<()> {
        let mut retry = Retry::new();
        loop {
            let error = match self.try_append(record.clone()).await {
                Err(error) if is_disk_full(&error) => error,
                done => return done,
            };
            if retry.is_first() {
                let (id, error) = (self.id, format!("{error:#}"));
                tracing::warn!(journal.id = %id, error, "an earlier journal waits for room");
            }
            anyhow::ensure!(retry.pause(stop).await, "stopped before there was room");
        }
    }

    async fn try_append(&self, mut record: Record) -> anyhow::Result<()> {
        let journal = self.journal.clone();
        let now = self.host.clock().now();
        let now_ms = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let append = move || {
            journal.append_final(now_ms, |slot| {
                record.seq = slot.seq;
                (record::encode(&record, slot.buf), ())
            })
        };
        self.host.blocking(append).await??;
        Ok(())
    }

    /// Writes final counts as long as there is room for them; how many. The first one waits for it.
    async fn close(&self, owed: &[(LeaseId, i64)], stop: &Stop) -> anyhow::Result<usize> {
        let mut closed = 0_usize;
        let now = self.host.clock().now();
        for (lease, cum) in owed {
            let close = Record {
                kind: RecordKind::Close.into(),
                at_unix_micros: now.as_microsecond(),
                lease_id: lease.bytes().to_vec(),
                cum: *cum,
                ..Record::default()
            };
            let written = match closed {
                0 => self.append(close, stop).await,
                _ => self.try_append(close).await,
            };
            match written {
                Err(error) if closed > 0 && is_disk_full(&error) => break,
                written => written?,
            }
            crash_point!("gateway.close_written");
            closed = closed.saturating_add(1);
        }
        self.figures
            .send_modify(|all| all.records = all.records.saturating_add(wide(closed)));
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

    /// Ships until everything is applied as far as `how_far` counts.
    async fn ship(&mut self, how_far: fn(&Course) -> u64, stop: &Stop) -> anyhow::Result<()> {
        let (shipped, seen) = watch::channel(self.journal.watermark());
        let mut tell = || {
            let told = self.told;
            let now = ((*seen.borrow()).max(told.0), self.journal.watermark());
            self.figures.send_modify(|all| {
                let more = (now.0.saturating_sub(told.0), now.1.saturating_sub(told.1));
                all.shipped = all.shipped.saturating_add(more.0);
                all.applied = all.applied.saturating_add(more.1);
            });
            self.told = now;
        };
        let mut shipper = Shipper::of_earlier(self.host, self.found, shipped);
        let written = self.journal.next_seq();
        {
            let enough = |course: &Course| how_far(course) >= written || stop.is_requested();
            let mut running = pin!(shipper.run(enough, stop));
            loop {
                tokio::select! {
                    ended = &mut running => break ended?,
                    () = tokio::time::sleep(FIGURES_PERIOD) => tell(),
                }
            }
        }
        tell();
        let (last, applied) = shipper.course().last();
        anyhow::ensure!(
            how_far(shipper.course()) >= written,
            "stopped before everything was applied: {last} has {applied} of {written} records"
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

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Whether there was no room for a record, which may pass.
fn is_disk_full(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<journal::Error>();
    error.is_some_and(journal::Error::is_disk_full)
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

/// What a journal says of its leases, and of the calls that it does not end.
pub(crate) async fn totals(
    host: &Host,
    journal: &Journal,
) -> anyhow::Result<(BTreeMap<LeaseId, Total>, Opened)> {
    let journal = journal.clone();
    host.blocking(move || read_totals(&journal)).await?
}
