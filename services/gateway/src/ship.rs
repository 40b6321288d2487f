//! Ships journals to the stream, and lets go of what everybody has applied.
//!
//! - What is kept, and what is shipped again, the [`course::Course`] decides.
//! - A consumer that has what is shipped again answers with its watermark, so a lost watermark
//!   heals the same way as a lost message.

pub(crate) mod course;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::HeaderMap;
use futures_util::StreamExt;
use prost::Message as _;
use proto::{
    channel::Channel,
    events::v1::{Applied, Record, RecordKind},
    wallet::v1::{RetireJournalRequest, wallet_service_client::WalletServiceClient},
};
use runtime::{Host, Stop, crash_point, streams, trace::TRACEPARENT};
use tokio::sync::{Notify, watch};
use types::{JournalId, LeaseId};

use self::course::Course;
use crate::{
    journal::{Batch, Journal, Limits, Recovered},
    opened::Opened,
    record,
};

/// A batch is closed after so long, however few records it has.
const LINGER: Duration = Duration::from_millis(10);
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
    course: Course,
}

impl Shipper {
    pub(crate) fn new(
        host: &Host,
        journal: Journal,
        wake: Arc<Notify>,
        shipped: watch::Sender<u64>,
    ) -> Self {
        let course = Course::new(journal.watermark(), monotonic(host));
        let id = JournalId::new(journal.id());
        Self {
            host: host.clone(),
            journal,
            id,
            wake,
            shipped,
            course,
        }
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
        let mut reader = self.journal.reader(self.course.position());
        loop {
            let batch = reader.next_batch(Limits::before(self.journal.synced_seq()))?;
            if let Some(batch) = batch {
                self.publish(&batch, stop).await?;
                let next = batch.first_seq.saturating_add(len(&batch));
                self.course.published(next);
                self.shipped.send_if_modified(|seen| {
                    let more = next > *seen;
                    *seen = next.max(*seen);
                    more
                });
            } else {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(LINGER) => {}
                    Some(message) = applied.next() => self.note(&message),
                }
            }
            while let Some(Some(message)) = futures_util::FutureExt::now_or_never(applied.next()) {
                self.note(&message);
            }
            let (now, kept) = (monotonic(&self.host), self.journal.watermark());
            let due = self.course.due(now, kept, stop.is_requested());
            if let Some(from) = due.reship {
                tracing::info!(
                    journal.id = %self.id,
                    from,
                    to = reader.seq(),
                    "records stay unapplied and are shipped again"
                );
                reader = self.journal.reader(from);
            }
            if let Some(watermark) = due.trim {
                self.trim(watermark).await?;
            }
            if until(&self.journal) {
                if let Some(watermark) = self.course.let_go(self.journal.watermark()) {
                    self.trim(watermark).await?;
                }
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

    fn note(&mut self, message: &async_nats::Message) {
        let Ok(applied) = Applied::decode(message.payload.clone()) else {
            return;
        };
        if JournalId::from_slice(&applied.journal_id).is_ok_and(|id| id == self.id) {
            let (written, now) = (self.journal.next_seq(), monotonic(&self.host));
            let Applied {
                consumer,
                watermark,
                ..
            } = applied;
            self.course.applied(&consumer, watermark, written, now);
        }
    }

    async fn trim(&self, watermark: u64) -> anyhow::Result<()> {
        let journal = self.journal.clone();
        self.host
            .blocking(move || journal.trim(watermark))
            .await??;
        crash_point!("gateway.watermark_saved");
        Ok(())
    }

    /// Publishes until acknowledged. Calls go on meanwhile, into the journal.
    async fn publish(&self, batch: &Batch, stop: &Stop) -> anyhow::Result<()> {
        let payload = payload(self.id, batch);
        let last = batch.first_seq.saturating_add(len(batch));
        let mut retry = RETRY_MIN;
        let mut tries = self.course.attempt().saturating_mul(1_000_000);
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

/// The clock that patience is measured by.
fn monotonic(host: &Host) -> Duration {
    Duration::from_nanos(host.clock().monotonic_nanos())
}

pub(crate) fn len(batch: &Batch) -> u64 {
    u64::try_from(batch.records.len()).unwrap_or(u64::MAX)
}

/// A `UsageBatch` around records that are encoded already.
pub(crate) fn payload(id: JournalId, batch: &Batch) -> Vec<u8> {
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
    for (lease, cum) in finals(&totals, &open) {
        let close = Record {
            kind: RecordKind::Close.into(),
            at_unix_micros: now.as_microsecond(),
            lease_id: lease.bytes().to_vec(),
            cum,
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

/// The final counts that a journal owes, of what the wallet calls open with so much settled.
pub(crate) fn finals(
    totals: &BTreeMap<LeaseId, Total>,
    open: &[(LeaseId, i64)],
) -> Vec<(LeaseId, i64)> {
    // What the wallet has closed or written off needs no final count: nothing of it is reserved,
    // and a count below what was written off would be a dead letter.
    let owed = |(lease, settled_cum): &(LeaseId, i64)| match totals.get(lease) {
        Some(total) if total.closed => None,
        // All its calls may be applied and their records gone: what is settled was spent.
        Some(total) => Some((*lease, total.cum.max(*settled_cum))),
        // Lent, but the reply never came: nothing was spent. Or all its records are gone.
        None => Some((*lease, *settled_cum)),
    };
    open.iter().filter_map(owed).collect()
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
