//! Ships journals to the stream, and lets go of what everybody has applied.
//!
//! - A publish acknowledgement moves the shipping position, never the end of what is kept.
//! - Kept is everything from the lowest watermark of the durable consumers on.
//! - What stays unapplied without any progress is shipped again from there, ever more rarely while
//!   a consumer is away; one that has it answers with its watermark, so a lost watermark heals the
//!   same way as a lost message.
//! - What a damaged journal has lost is declared in order with the records around it: consumers
//!   note it and go on.

mod parcel;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::HeaderMap;
use futures_util::StreamExt;
use prost::Message as _;
use proto::events::v1::Applied;
use runtime::{Host, Stop, USAGE_CONSUMERS, crash_point, streams, trace::TRACEPARENT};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use types::JournalId;

use self::parcel::Parcel;
use crate::journal::{Gap, Journal, Recovered};

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
    /// What of the journal is lost, in order.
    gaps: Vec<Gap>,
    /// The life that wrote the journal is over, and a copy of it may be brought to its end
    /// elsewhere: consumers may have applied more than is written here.
    is_over: bool,
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
            gaps: Vec::new(),
            is_over: false,
        }
    }

    /// For the journal of an earlier life.
    pub(crate) fn of_earlier(host: &Host, found: &Recovered, shipped: watch::Sender<u64>) -> Self {
        let wake = Arc::new(Notify::new());
        Self {
            gaps: found.gaps(),
            is_over: true,
            ..Self::new(host, found.journal.clone(), wake, shipped)
        }
    }

    /// Who has applied least, and all below which number.
    pub(crate) fn last(&self) -> (&str, u64) {
        let last = self.marks.iter().min_by_key(|(_, mark)| **mark);
        last.map_or(("", 0), |(consumer, mark)| (consumer, *mark))
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
        &mut self,
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
            let synced_seq = self.journal.synced_seq();
            if let Some(parcel) = Parcel::read(&mut reader, &self.gaps, synced_seq)? {
                self.publish(&parcel, attempt, stop).await?;
                let next = parcel.next();
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
        let next_seq = self.journal.next_seq();
        // Nobody can have applied what was never written.
        if !ours || (applied.watermark > next_seq && !self.is_over) {
            return false;
        }
        let watermark = applied.watermark.min(next_seq);
        let Some(mark) = self.marks.get_mut(&applied.consumer) else {
            return false;
        };
        let news = watermark > *mark;
        *mark = watermark.max(*mark);
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
    async fn publish(&self, parcel: &Parcel, attempt: u64, stop: &Stop) -> anyhow::Result<()> {
        let payload = parcel.encode(self.id);
        let (first, next) = (parcel.first(), parcel.next());
        let mut retry = RETRY_MIN;
        let mut tries = attempt.saturating_mul(1_000_000);
        let mut warned = false;
        loop {
            let mut headers = HeaderMap::new();
            // Another id for each attempt: after a loss the stream's memory of ids would lie.
            let message_id = format!("{}:{first}-{next}:{tries}", self.id);
            headers.insert("Nats-Msg-Id", message_id);
            if let Some(parent) = parcel.first_trace() {
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
