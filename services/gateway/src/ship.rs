//! Ships journals to the stream, and lets go of what everybody has applied.
//!
//! - A publish acknowledgement moves the shipping position, never the end of what is kept.
//! - Kept is everything from the lowest watermark of the durable consumers on.
//! - What stays unapplied without any progress is shipped again from there, ever more rarely while
//!   a consumer is away; one that has it answers with its watermark, so a lost watermark heals the
//!   same way as a lost message.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::HeaderMap;
use futures_util::StreamExt;
use prost::Message as _;
use proto::{
    channel::Channel,
    events::v1::{Applied, Record, RecordKind},
    usage_ingest::v1::{EndJournalRequest, usage_ingest_service_client::UsageIngestServiceClient},
    wallet::v1::{RetireJournalRequest, wallet_service_client::WalletServiceClient},
};
use runtime::{Host, Stop, USAGE_CONSUMERS, crash_point, streams, trace::TRACEPARENT};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use types::{JournalId, LeaseId};

use crate::{
    journal::{Batch, Journal, Limits, Reader, Recovered},
    opened::Opened,
    record,
};

/// A batch is closed after so long, however few records it has.
const LINGER: Duration = Duration::from_millis(10);
/// Unapplied records are shipped again after so long without progress, at first. Each time that
/// it does not help doubles the wait: a consumer that is away for an hour does not get its backlog
/// a thousand times.
const RESHIP_MIN: Duration = Duration::from_secs(3);
const RESHIP_MAX: Duration = Duration::from_secs(300);
/// Watermarks are written and segments let go so often.
const TRIM_PERIOD: Duration = Duration::from_secs(1);
/// Between attempts while NATS is away.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Wire tag of `UsageBatch.journal_id`: field 1, length-delimited.
const TAG_JOURNAL: u8 = 0x0a;
/// Wire tag of `UsageBatch.records`: field 2, length-delimited.
const TAG_RECORD: u8 = 0x12;

/// One journal on its way out.
pub(crate) struct Shipper {
    host: Host,
    journal: Journal,
    id: JournalId,
    /// Woken when there is more to ship.
    wake: Arc<Notify>,
    /// Every record below it is in the stream, or was.
    shipped: watch::Sender<u64>,
    /// How far each consumer has come.
    marks: BTreeMap<String, u64>,
}

impl Shipper {
    pub(crate) fn new(
        host: &Host,
        journal: Journal,
        wake: Arc<Notify>,
        shipped: watch::Sender<u64>,
    ) -> Self {
        let marks = USAGE_CONSUMERS
            .iter()
            .map(|name| ((*name).to_owned(), journal.watermark()))
            .collect();
        let id = JournalId::new(journal.id());
        Self {
            host: host.clone(),
            journal,
            id,
            wake,
            shipped,
            marks,
        }
    }

    /// The lowest watermark: everything below is applied everywhere.
    fn watermark(&self) -> u64 {
        self.marks.values().copied().min().unwrap_or(0)
    }

    /// Ships until `until` says that it is enough.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub(crate) async fn run(
        mut self,
        mut until: impl FnMut(&Journal) -> bool,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let mut applied = self.subscribe(stop).await?;
        let mut reader = self.journal.reader(self.watermark());
        let mut attempt = 0_u64;
        let mut reship = RESHIP_MIN;
        let mut progress = Instant::now();
        let mut trimmed = Instant::now();
        loop {
            let batch = reader.next_batch(Limits::before(self.journal.synced_seq()))?;
            if let Some(batch) = batch {
                self.publish(&batch, attempt, stop).await?;
                let next = batch.first_seq.saturating_add(len(&batch));
                self.shipped.send_if_modified(|seen| {
                    let more = next > *seen;
                    *seen = next.max(*seen);
                    more
                });
            } else {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(LINGER) => {}
                    Some(message) = applied.next() => {
                        if self.note(&message) {
                            progress = Instant::now();
                        }
                    }
                }
            }
            while let Some(Some(message)) = futures_util::FutureExt::now_or_never(applied.next()) {
                if self.note(&message) {
                    progress = Instant::now();
                }
            }
            let caught_up = self.watermark() >= reader.seq();
            if caught_up {
                progress = Instant::now();
                reship = RESHIP_MIN;
            } else if progress.elapsed() > reship {
                attempt = attempt.saturating_add(1);
                progress = Instant::now();
                reship = reship.saturating_mul(2).min(RESHIP_MAX);
                tracing::info!(
                    journal.id = %self.id,
                    from = self.watermark(),
                    to = reader.seq(),
                    "records stay unapplied and are shipped again"
                );
                reader = self.journal.reader(self.watermark());
            }
            if trimmed.elapsed() > TRIM_PERIOD || until_soon(caught_up, stop) {
                trimmed = Instant::now();
                self.trim().await?;
            }
            if until(&self.journal) {
                self.trim().await?;
                return Ok(());
            }
        }
    }

    async fn subscribe(&self, stop: &Stop) -> anyhow::Result<async_nats::Subscriber> {
        let subject = format!("usage.v1.applied.*.{}", self.id);
        let applied = self
            .host
            .nats()
            .subscribe(subject)
            .await
            .context("watermarks")?;
        // The stream must be there before the first batch; NATS may come later than we.
        let mut retry = RETRY_MIN;
        while let Err(error) = streams::usage(&self.host.jetstream()).await {
            tracing::debug!(error = format!("{error:#}"), "no usage stream yet");
            tokio::select! {
                () = tokio::time::sleep(retry) => {}
                () = stop.requested() => break,
            }
            retry = retry.saturating_mul(2).min(RETRY_MAX);
        }
        Ok(applied)
    }

    /// Takes note of a watermark; true when it is new.
    fn note(&mut self, message: &async_nats::Message) -> bool {
        let Ok(applied) = Applied::decode(message.payload.clone()) else {
            return false;
        };
        let ours = JournalId::from_slice(&applied.journal_id).is_ok_and(|id| id == self.id);
        // Nobody can have applied what was never written.
        if !ours || applied.watermark > self.journal.next_seq() {
            return false;
        }
        let Some(mark) = self.marks.get_mut(&applied.consumer) else {
            return false;
        };
        let news = applied.watermark > *mark;
        *mark = applied.watermark.max(*mark);
        news
    }

    async fn trim(&self) -> anyhow::Result<()> {
        let (journal, watermark) = (self.journal.clone(), self.watermark());
        if watermark > journal.watermark() {
            self.host
                .blocking(move || journal.trim(watermark))
                .await??;
            crash_point!("gateway.watermark_saved");
        }
        Ok(())
    }

    /// Publishes until acknowledged. Calls go on meanwhile, into the journal.
    async fn publish(&self, batch: &Batch, attempt: u64, stop: &Stop) -> anyhow::Result<()> {
        let payload = payload(self.id, batch);
        let last = batch.first_seq.saturating_add(len(batch));
        let mut retry = RETRY_MIN;
        let mut tries = attempt.saturating_mul(1_000_000);
        let mut warned = false;
        loop {
            let mut headers = HeaderMap::new();
            // Another id for each attempt: after a loss the stream's memory of ids would lie.
            let message_id = format!("{}:{}-{last}:{tries}", self.id, batch.first_seq);
            headers.insert("Nats-Msg-Id", message_id);
            if let Some(parent) = first_trace(batch) {
                headers.insert(TRACEPARENT, parent);
            }
            let subject = format!("usage.v1.{}", self.id);
            let published = async {
                let jetstream = self.host.jetstream();
                jetstream
                    .publish_with_headers(subject, headers, payload.clone().into())
                    .await?
                    .await
            };
            match published.await {
                Ok(_) => {
                    crash_point!("gateway.batch_acknowledged");
                    return Ok(());
                }
                Err(error) => {
                    if !warned {
                        tracing::warn!(%error, "usage is not shipped, the journal keeps it");
                    }
                    warned = true;
                    tries = tries.saturating_add(1);
                    // A stream that was deleted is made again.
                    if let Err(error) = streams::usage(&self.host.jetstream()).await {
                        tracing::debug!(error = format!("{error:#}"), "no usage stream");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(retry) => {}
                        () = stop.requested() => anyhow::bail!("stopped before it was shipped"),
                    }
                    retry = retry.saturating_mul(2).min(RETRY_MAX);
                }
            }
        }
    }
}

/// While stopping, each step forward is saved at once.
fn until_soon(caught_up: bool, stop: &Stop) -> bool {
    caught_up && stop.is_requested()
}

fn len(batch: &Batch) -> u64 {
    u64::try_from(batch.records.len()).unwrap_or(u64::MAX)
}

/// A `UsageBatch` around records that are encoded already.
fn payload(id: JournalId, batch: &Batch) -> Vec<u8> {
    let bytes: usize = batch
        .records
        .iter()
        .map(|record| record.len().saturating_add(4))
        .sum();
    let mut payload = Vec::with_capacity(bytes.saturating_add(18));
    payload.push(TAG_JOURNAL);
    payload.push(16);
    payload.extend_from_slice(id.bytes());
    for record in &batch.records {
        payload.push(TAG_RECORD);
        prost::encoding::encode_varint(
            u64::try_from(record.len()).unwrap_or(u64::MAX),
            &mut payload,
        );
        payload.extend_from_slice(record);
    }
    payload
}

/// The trace of the first sampled call, for the message's header.
fn first_trace(batch: &Batch) -> Option<String> {
    batch.records.iter().find_map(|bytes| {
        let call = Record::decode(bytes.clone()).ok()?.call?;
        (!call.traceparent.is_empty()).then_some(call.traceparent)
    })
}

/// Brings a journal of an earlier life to its end: no credit is lent to it any more, each open
/// lease gets its final count, everything is shipped and applied, then it is removed.
pub(crate) async fn recover(host: Host, channel: Channel, found: Recovered, stop: Stop) {
    let id = JournalId::new(found.journal.id());
    for damage in &found.damage {
        tracing::error!(journal.id = %id, ?damage, "a journal is damaged; records may be missing");
    }
    match finish(&host, &channel, &found.journal, &stop).await {
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

async fn finish(
    host: &Host,
    channel: &Channel,
    journal: &Journal,
    stop: &Stop,
) -> anyhow::Result<()> {
    let id = JournalId::new(journal.id());
    let (mut totals, opened) = totals(host, journal).await?;
    let open = retire(channel, id, stop).await?;
    let now = host.clock().now();
    for record in opened.end(&mut totals, now.as_microsecond())? {
        append(host, journal, record).await?;
        crash_point!("gateway.open_call_ended");
    }
    // What the wallet has closed or written off needs no final count: nothing of it is reserved,
    // and a count below what was written off would be a dead letter.
    for (lease, settled_cum) in open {
        let total = totals.get(&lease);
        if total.is_some_and(|total| total.closed) {
            continue;
        }
        // Lent, but the reply never came: nothing was spent. Or all its calls are applied, and
        // their records gone: what is settled is what was spent.
        let close = Record {
            kind: RecordKind::Close.into(),
            at_unix_micros: now.as_microsecond(),
            lease_id: lease.bytes().to_vec(),
            cum: total.map_or(0, |total| total.cum).max(settled_cum),
            ..Record::default()
        };
        append(host, journal, close).await?;
        crash_point!("gateway.close_written");
    }
    crash_point!("gateway.recovery_scanned");
    let (shipped, _) = watch::channel(0);
    let shipper = Shipper::new(host, journal.clone(), Arc::new(Notify::new()), shipped);
    shipper
        .run(
            |journal| journal.watermark() >= journal.next_seq() || stop.is_requested(),
            stop,
        )
        .await?;
    if journal.watermark() >= journal.next_seq() {
        end(host, journal, stop).await?;
        crash_point!("gateway.journal_ended");
        let journal = journal.clone();
        host.blocking(move || journal.remove()).await??;
        return Ok(());
    }
    anyhow::bail!("stopped before everything was applied")
}

/// Appends a record that completes the journal, and syncs it.
async fn append(host: &Host, journal: &Journal, mut record: Record) -> anyhow::Result<()> {
    let journal = journal.clone();
    let now_ms = u64::try_from(host.clock().now().as_millisecond()).unwrap_or(0);
    let append = move || {
        journal.append_synced(now_ms, |slot| {
            record.seq = slot.seq;
            (record::encode(&record, slot.buf), ())
        })
    };
    host.blocking(append).await??;
    Ok(())
}

/// What a journal says of one lease.
#[derive(Debug, Default)]
pub(crate) struct Total {
    pub(crate) cum: i64,
    closed: bool,
}

impl Total {
    /// Adds a call that had no record; returns the total with it.
    pub(crate) fn spend(&mut self, cost: i64) -> i64 {
        self.cum = self.cum.saturating_add(cost);
        self.cum
    }
}

/// What a journal says of its leases, and of the calls that it does not end.
pub(crate) async fn totals(
    host: &Host,
    journal: &Journal,
) -> anyhow::Result<(BTreeMap<LeaseId, Total>, Opened)> {
    let mut reader: Reader = journal.reader(0);
    let end = journal.next_seq();
    host.blocking(move || {
        let mut totals: BTreeMap<LeaseId, Total> = BTreeMap::new();
        let mut opened = Opened::default();
        while let Some(batch) = reader.next_batch(Limits::before(end))? {
            for bytes in batch.records {
                let record = Record::decode(bytes)?;
                opened.read(&record)?;
                for permit in &record.permits {
                    let lease = LeaseId::from_slice(&permit.lease_id)?;
                    let total = totals.entry(lease).or_default();
                    total.cum = total.cum.max(permit.cum);
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
    })
    .await?
}

/// Tells `usage-ingest` that a journal has ended, before it is removed: calls of it that have no
/// row were never recorded, so the idempotency keys they had are free.
///
/// # Errors
/// It was told to stop before.
pub(crate) async fn end(host: &Host, journal: &Journal, stop: &Stop) -> anyhow::Result<()> {
    let channel = host.channel("usage-ingest")?;
    let mut retry = RETRY_MIN;
    loop {
        let mut request = tonic::Request::new(EndJournalRequest {
            journal_id: JournalId::new(journal.id()).to_string(),
            next_seq: journal.next_seq(),
        });
        request.set_timeout(Duration::from_secs(5));
        let mut client = UsageIngestServiceClient::new(channel.clone());
        let Err(status) = client.end_journal(request).await else {
            return Ok(());
        };
        tracing::debug!(code = ?status.code(), "a journal's end is not known yet");
        tokio::select! {
            () = tokio::time::sleep(retry) => {}
            () = stop.requested() => anyhow::bail!("stopped before its end was known"),
        }
        retry = retry.saturating_mul(2).min(RETRY_MAX);
    }
}

/// Ends the journal at the wallet and returns its open leases with what is settled of them.
async fn retire(
    channel: &Channel,
    id: JournalId,
    stop: &Stop,
) -> anyhow::Result<Vec<(LeaseId, i64)>> {
    let mut retry = RETRY_MIN;
    loop {
        let request = RetireJournalRequest {
            journal_id: id.to_string(),
        };
        let mut request = tonic::Request::new(request);
        request.set_timeout(Duration::from_secs(5));
        match WalletServiceClient::new(channel.clone())
            .retire_journal(request)
            .await
        {
            Ok(answer) => {
                let leases = answer.into_inner().leases.into_iter();
                let open = leases
                    .map(|lease| Ok((LeaseId::from_slice(&lease.lease_id)?, lease.settled_cum)));
                return open.collect();
            }
            Err(status) => {
                tracing::debug!(code = ?status.code(), "a journal is not retired yet");
                tokio::select! {
                    () = tokio::time::sleep(retry) => {}
                    () = stop.requested() => anyhow::bail!("stopped before it was retired"),
                }
                retry = retry.saturating_mul(2).min(RETRY_MAX);
            }
        }
    }
}
