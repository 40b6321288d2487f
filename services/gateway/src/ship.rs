//! Ships journals to the stream, and lets go of what everybody has applied.
//!
//! - What is kept, and what is shipped again, the [`course::Course`] decides.
//! - A consumer that has what is shipped again answers with its watermark, so a lost watermark
//!   heals the same way as a lost message.
//! - What a damaged journal has lost is declared in order with the records around it: consumers
//!   note it and go on.

pub(crate) mod course;
pub(crate) mod parcel;

use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt;
use prost::Message as _;
use proto::events::v1::Applied;
use runtime::{Host, Stop, crash_point, mutant, trace::TRACEPARENT};
use tokio::sync::watch;
use types::JournalId;

use self::{course::Course, parcel::Parcel};
use crate::{
    journal::{Gap, Journal, Recovered},
    retry::{Complaint, Retry, monotonic},
};

/// Between two looks at the journal, so that a message carries what came meanwhile. Nobody is woken
/// for a call: that would cost each one a system call, for records that are not synced yet.
const LINGER: Duration = Duration::from_millis(10);
/// The same while calls wait for their records to be in the stream.
const HURRY: Duration = Duration::from_millis(1);

/// One journal on its way out.
pub(crate) struct Shipper {
    host: Host,
    journal: Journal,
    id: JournalId,
    /// Every record below it is in the stream, or was.
    shipped: watch::Sender<u64>,
    course: Course,
    complaint: Complaint,
    /// What of the journal is lost, in order.
    gaps: Vec<Gap>,
    /// The life that wrote the journal is over, and a copy of it may be brought to its end
    /// elsewhere: consumers may have applied more than is written here.
    is_over: bool,
}

impl Shipper {
    pub(crate) fn new(host: &Host, journal: Journal, shipped: watch::Sender<u64>) -> Self {
        let course = Course::new(journal.watermark(), monotonic(host));
        let id = JournalId::new(journal.id());
        Self {
            host: host.clone(),
            journal,
            id,
            shipped,
            course,
            complaint: Complaint::default(),
            gaps: Vec::new(),
            is_over: false,
        }
    }

    /// For the journal of an earlier life.
    pub(crate) fn of_earlier(host: &Host, found: &Recovered, shipped: watch::Sender<u64>) -> Self {
        Self {
            gaps: found.gaps(),
            is_over: true,
            ..Self::new(host, found.journal.clone(), shipped)
        }
    }

    /// How far it has come.
    pub(crate) fn course(&self) -> &Course {
        &self.course
    }

    /// Ships until `until` says that it is enough. After an error it may be run again.
    ///
    /// # Errors
    /// The journal cannot be read, or it was stopped.
    pub(crate) async fn run(
        &mut self,
        mut until: impl FnMut(&Course) -> bool,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let mut applied = self.subscribe(stop).await?;
        let mut reader = self.journal.reader(self.course.position());
        loop {
            let synced_seq = self.journal.synced_seq();
            let parcel = Parcel::read(&mut reader, &self.gaps, synced_seq)?;
            let is_behind = reader.seq() < synced_seq;
            if let Some(parcel) = parcel {
                self.publish(&parcel, stop).await?;
                let next = parcel.next();
                self.course.published(next);
                if mutant!("gateway.trims_on_acknowledgement") {
                    self.trim(next).await?;
                }
                self.shipped.send_if_modified(|seen| {
                    let more = next > *seen;
                    *seen = next.max(*seen);
                    more
                });
            }
            if !is_behind {
                let pause = match self.shipped.receiver_count() {
                    0 => LINGER,
                    _ => HURRY,
                };
                tokio::time::sleep(pause).await;
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
            if until(&self.course) {
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
        let mut retry = Retry::new();
        while let Err(error) = self.host.streams().usage().await {
            tracing::debug!(error = format!("{error:#}"), "no usage stream yet");
            if !retry.pause(stop).await {
                break;
            }
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
            let watermark = match self.is_over {
                true => watermark.min(written),
                false => watermark,
            };
            self.course.applied(&consumer, watermark, written, now);
        }
    }

    async fn trim(&mut self, watermark: u64) -> anyhow::Result<()> {
        let journal = self.journal.clone();
        let trimmed = self.host.blocking(move || journal.trim(watermark)).await?;
        match trimmed {
            // The watermark counts all the same, and what is not there yet is shipped meanwhile.
            Err(error) if !error.is_final() => {
                self.course.not_let_go();
                if self.complaint.is_due(monotonic(&self.host)) {
                    tracing::warn!(journal.id = %self.id, %error, "segments cannot go yet");
                }
            }
            trimmed => trimmed?,
        }
        crash_point!("gateway.watermark_saved");
        Ok(())
    }

    /// Publishes until acknowledged. Calls go on meanwhile, into the journal.
    async fn publish(&self, parcel: &Parcel, stop: &Stop) -> anyhow::Result<()> {
        let payload = Bytes::from(parcel.encode(self.id));
        let (first, next) = (parcel.first(), parcel.next());
        let streams = self.host.streams();
        let mut retry = Retry::new();
        let mut warned = false;
        loop {
            let mut headers = HeaderMap::new();
            // Another id for each attempt, in whichever life: what a stream remembers of ids would
            // keep it from handing on what is shipped again, and nobody would answer with a
            // watermark.
            let attempt = hex::encode(self.host.random::<8>());
            let message_id = format!("{}:{first}-{next}:{attempt}", self.id);
            headers.insert("Nats-Msg-Id", message_id);
            if let Some(parent) = parcel.first_trace() {
                headers.insert(TRACEPARENT, parent);
            }
            let subject = format!("usage.v1.{}", self.id);
            let sent = || {
                crash_point!("gateway.batch_published");
            };
            let published = streams.put_telling(subject, headers, payload.clone(), sent);
            match published.await {
                Ok(()) => {
                    crash_point!("gateway.batch_acknowledged");
                    return Ok(());
                }
                Err(error) => {
                    if !warned {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "usage is not shipped, the journal keeps it"
                        );
                    }
                    warned = true;
                    // A stream that was deleted is made again.
                    if let Err(error) = streams.usage().await {
                        tracing::debug!(error = format!("{error:#}"), "no usage stream");
                    }
                    anyhow::ensure!(retry.pause(stop).await, "stopped before it was shipped");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
