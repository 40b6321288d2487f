//! The loop of every usage consumer: fetch, decode, subtract, apply, merge, commit, acknowledge.
//!
//! - Acknowledged only after the commit, so a death in between repeats and never loses.
//! - Applied records are subtracted inside the transaction, so a repetition changes nothing.
//! - A batch that breaks a rule goes whole to the dead letters; the others go on. Its journal's
//!   watermark waits there, so the journal keeps it.
//! - What PostgreSQL refuses for what it says is found by halving, so that one batch does not hold
//!   up the others, and goes the same way.
//! - What a journal's owner declares unreadable counts as applied, and is noted as a gap for good.
//! - A silent subscription is rebuilt: a missed heartbeat is an error here.

mod arrears;
mod aside;
mod failure;
pub(crate) mod gaps;
mod room;
mod seen;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::jetstream::{
    AckKind, Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use futures_util::{FutureExt, StreamExt};
use prost::Message as _;
use proto::events::v1::{Applied, Record, UsageBatch};
use types::JournalId;

pub use self::failure::ApplyError;
use self::{arrears::Arrears, aside::bury, room::Room};
use crate::{
    batch::{self, Ranges},
    crash_point,
    host::{Host, Stop},
    inbox::{self, Lost},
    letters::{self, Desk},
    mutant,
    origin::{self, Moved, Server, Since},
    postgres,
    standby::Trail,
    supervise::supervise,
};

/// The durable consumers of the usage stream. A gateway keeps a record until all have applied it.
pub const USAGE_CONSUMERS: [&str; 4] = [
    "wallet",
    "usage-ingest",
    "stats-aggregator",
    "anomaly-detector",
];

/// Messages fetched at a time.
const MESSAGES_MAX: usize = 200;
/// Records of one transaction, unless a single message has more; the rest is for the next. Whoever
/// needs the same rows waits for it, such as a gateway for credits.
const RECORDS_MAX: usize = 20_000;
/// Unacknowledged messages the server hands out at most.
const ACK_PENDING_MAX: i64 = 2_000;
/// The server hands a message out again when nothing is heard for so long: what a killed instance
/// had in hand. Repetitions are cheap, so it is short.
const ACK_WAIT: Duration = Duration::from_secs(3);
/// While a transaction lasts the server hears that its messages are in hand.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);
/// A batch that PostgreSQL refuses alone is tried again so often: what it says may have met a
/// change of the tables.
const REFUSALS_MAX: u32 = 1;
/// What waits is delivered again after so long.
const LATER: Duration = Duration::from_secs(1);
/// Journals whose watermarks are told again when a subscription begins, the youngest.
const JOURNALS_TOLD_MAX: i64 = 1_000;
/// A pull request lives so long; half of it without a heartbeat means that it is lost.
const PULL_EXPIRES: Duration = Duration::from_secs(10);
const PULL_HEARTBEAT: Duration = Duration::from_secs(3);
/// Between attempts after a failure.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Records of one message that this consumer has not applied yet, in sequence.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The journal they belong to.
    pub journal: JournalId,
    /// Never empty.
    pub records: Vec<Record>,
}

/// The effect of a consumer.
pub trait Apply: Send + Sync + 'static {
    /// Schema that holds `inbox` and `dead_letters`.
    const SCHEMA: &'static str;
    /// Name of the database operation in traces.
    const OPERATION: &'static str;

    /// Applies records, all of them new, in the caller's transaction; does not commit. May be
    /// called again with the same records after a rollback.
    fn apply(
        &self,
        connection: &mut sqlx::PgConnection,
        fresh: &[Delivery],
    ) -> impl Future<Output = Result<(), ApplyError>> + Send;

    /// Told, in the transaction of the decision, of records that an operator has discarded: they
    /// are never applied. What only they could have ended is ended here.
    fn discarded(
        &self,
        connection: &mut sqlx::PgConnection,
        discarded: &Delivery,
    ) -> impl Future<Output = Result<(), ApplyError>> + Send {
        let _: (&mut sqlx::PgConnection, &Delivery) = (connection, discarded);
        std::future::ready(Ok(()))
    }

    /// Called after the commit of what was applied last.
    fn applied(&self, fresh: &[Delivery]) {
        let _: &[Delivery] = fresh;
    }
}

/// One message with its decoded batch.
struct Parcel {
    message: Message,
    journal: JournalId,
    batch: UsageBatch,
    /// Something of it is still to come: it is delivered again.
    is_part: bool,
}

pub(crate) async fn run<A: Apply>(host: Host, desk: Arc<Desk<A>>, stop: Stop) {
    let subscribe = || subscription(&host, &desk, &stop);
    supervise(&host, host.name(), RETRY_MIN..=RETRY_MAX, &stop, subscribe).await;
}

async fn subscription<A: Apply>(host: &Host, desk: &Desk<A>, stop: &Stop) -> anyhow::Result<()> {
    let streams = host.streams();
    let stream = streams.usage().await?;
    let mut connection = host.postgres().acquire().await?;
    let server = origin::present(&mut connection).await?;
    let moved = origin::moved(&mut connection, A::SCHEMA, &server).await?;
    let deliver_policy = match &moved {
        Some(since) => {
            read_again(host, &stream, since).await?;
            since.policy()
        }
        // Where it began is no news to one that is there.
        None => match stream.consumer_info(host.name()).await {
            Ok(known) => known.config.deliver_policy,
            Err(_) => DeliverPolicy::All,
        },
    };
    let config = pull::Config {
        durable_name: Some(host.name().to_owned()),
        deliver_policy,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: ACK_PENDING_MAX,
        ..pull::Config::default()
    };
    // Made, or brought up to date when an older version has made it.
    let made = async { Ok(stream.create_consumer(config).await?) };
    let pull = streams.answered(made).await?;
    if moved.is_some() {
        origin::settle(&mut connection, A::SCHEMA, &server).await?;
    }
    drop(connection);
    let mut arrears = Arrears::of(host, &stream, A::SCHEMA, &server).await?;
    let (mut trail, mut room) = (Trail::new(server), Room::default());
    trail.look(host).await?;
    // Those of the server before may be ahead of this one; the tables say all that counts.
    let turn = desk.turn().await;
    drop((desk.moved(), turn));
    tell_watermarks(host, A::SCHEMA, &mut trail).await?;
    let mut looks = tokio::time::interval(Trail::PERIOD);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut messages = pull
        .stream()
        .max_messages_per_batch(MESSAGES_MAX)
        .expires(PULL_EXPIRES)
        .heartbeat(PULL_HEARTBEAT)
        .messages()
        .await?;
    loop {
        let first = tokio::select! {
            first = messages.next() => first,
            _ = looks.tick() => {
                trail.look(host).await?;
                arrears.look(host, &stream).await?;
                room.look(host, &stream).await;
                letters::sweep(host, A::SCHEMA).await;
                trail.tell(host, desk.moved()).await?;
                continue;
            }
            () = stop.requested() => return Ok(()),
        };
        let Some(first) = first else { return Ok(()) };
        let mut fetched = vec![first?];
        // What has arrived already belongs to the same transaction; nothing is waited for.
        while fetched.len() < MESSAGES_MAX {
            match messages.next().now_or_never() {
                Some(Some(next)) => fetched.push(next?),
                _ => break,
            }
        }
        deliver(host, desk, &stream, fetched, &mut trail, stop).await?;
    }
}

/// Applies fetched messages, whatever it takes; returns early only when asked to stop.
async fn deliver<A: Apply>(
    host: &Host,
    desk: &Desk<A>,
    stream: &Stream,
    fetched: Vec<Message>,
    trail: &mut Trail,
    stop: &Stop,
) -> anyhow::Result<()> {
    let parcels = unpack(host, A::SCHEMA, fetched, stop).await?;
    let mut parcels = gaps::hold_back(host, stream, parcels).await?;
    let mut retry = RETRY_MIN;
    // Of one transaction. Fewer while something is refused that one of them says, and at last it
    // alone.
    let (mut most, mut refusals) = (MESSAGES_MAX, 0);
    while !parcels.is_empty() {
        let records = parcels.iter().map(|parcel| parcel.batch.records.len());
        let together = share(records).min(most);
        let (tried, _) = parcels.split_at(together);
        let applied = transaction(host, desk, tried, trail.server());
        match in_hand(&parcels, applied).await {
            Ok(watermarks) => {
                let rest = parcels.split_off(together);
                acknowledge(host, &parcels, watermarks, trail).await?;
                (parcels, refusals) = (rest, 0);
            }
            Err(ApplyError::Poison { delivery, reason }) => {
                let aside = parcels.remove(delivery);
                bury(host, A::SCHEMA, &aside.message, &reason, stop).await?;
                refusals = 0;
            }
            Err(ApplyError::Refused(reason)) if refusals == REFUSALS_MAX => {
                let aside = parcels.remove(0);
                bury(host, A::SCHEMA, &aside.message, &reason, stop).await?;
                (most, refusals) = (MESSAGES_MAX, 0);
            }
            Err(ApplyError::Refused(reason)) => {
                let consumer = host.name();
                tracing::warn!(
                    consumer,
                    reason,
                    together,
                    "PostgreSQL refuses a usage batch"
                );
                if together == 1 {
                    // What it met may pass in a moment.
                    refusals += 1;
                    tokio::time::sleep(RETRY_MIN).await;
                }
                most = (together / 2).max(1);
            }
            Err(ApplyError::Later { delivery, reason }) => {
                let parcel = parcels.remove(delivery);
                tracing::info!(consumer = host.name(), reason, "a usage batch waits");
                let again = AckKind::Nak(Some(LATER));
                let told = parcel.message.ack_with(again).await;
                told.map_err(|error| anyhow::anyhow!(error))?;
                refusals = 0;
            }
            Err(ApplyError::Failed(error)) if error.is::<Moved>() => return Err(error),
            Err(ApplyError::Failed(error)) => {
                tracing::warn!(
                    consumer = host.name(),
                    error = format!("{error:#}"),
                    messages = parcels.len(),
                    "usage not applied, trying again"
                );
                report_progress(&parcels).await?;
                tokio::select! {
                    () = tokio::time::sleep(retry) => {}
                    () = stop.requested() => return Ok(()),
                }
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
    Ok(())
}

/// How many messages, of so many records each, are for one transaction; 1 at least.
fn share(records: impl Iterator<Item = usize>) -> usize {
    let mut left = RECORDS_MAX;
    let fits = records.take_while(|records| match left.checked_sub(*records) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    });
    fits.count().max(1)
}

/// Opens messages; those that break a rule that every batch has to keep are put aside.
async fn unpack(
    host: &Host,
    schema: &'static str,
    fetched: Vec<Message>,
    stop: &Stop,
) -> anyhow::Result<Vec<Parcel>> {
    let mut parcels = Vec::with_capacity(fetched.len());
    for message in fetched {
        match batch::open(message.subject.as_str(), &message.payload) {
            Ok((journal, batch)) => parcels.push(Parcel {
                message,
                journal,
                batch,
                is_part: false,
            }),
            Err(reason) => bury(host, schema, &message, &reason, stop).await?,
        }
    }
    Ok(parcels)
}

/// Waits for the end of work on these messages, and keeps the server from handing them to another.
async fn in_hand<T>(
    parcels: &[Parcel],
    work: impl Future<Output = Result<T, ApplyError>>,
) -> Result<T, ApplyError> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(PROGRESS_PERIOD) => {
                // Without it they come once more, and change nothing.
                if let Err(error) = report_progress(parcels).await {
                    tracing::debug!(error = format!("{error:#}"), "NATS does not hear of progress");
                }
            }
        }
    }
}

async fn report_progress(parcels: &[Parcel]) -> anyhow::Result<()> {
    for parcel in parcels {
        parcel
            .message
            .ack_with(AckKind::Progress)
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(())
}

/// One transaction. On success: each journal's watermark.
async fn transaction<A: Apply>(
    host: &Host,
    desk: &Desk<A>,
    parcels: &[Parcel],
    server: &Server,
) -> Result<BTreeMap<JournalId, u64>, ApplyError> {
    let _turn = desk.turn().await;
    let consumer = &desk.consumer;
    let started = host.clock().system_time();
    let journals: Vec<JournalId> = parcels.iter().map(|parcel| parcel.journal).collect();
    let mut transaction = postgres::begin(&host.postgres()).await?;
    let (timeline, mut inbox) = inbox::lock(&mut transaction, A::SCHEMA, &journals).await?;
    if timeline != server.timeline {
        return Err(ApplyError::Failed(anyhow::Error::new(Moved)));
    }
    let mut fresh: Vec<Delivery> = Vec::with_capacity(parcels.len());
    let mut origins = Vec::with_capacity(parcels.len());
    let mut lost: Vec<Lost> = Vec::new();
    for (index, parcel) in parcels.iter().enumerate() {
        let ranges = inbox.entry(parcel.journal).or_default();
        if mutant!("consumer.adds_without_inbox") {
            *ranges = Ranges::default();
        }
        let records = batch::unseen(ranges, &parcel.batch);
        let of = (parcel.journal, &parcel.batch);
        lost.extend(gaps::cover(&mut transaction, A::SCHEMA, ranges, of).await?);
        if !records.is_empty() {
            fresh.push(Delivery {
                journal: parcel.journal,
                records,
            });
            origins.push(index);
        }
    }
    crash_point!("consumer.batch_fetched");
    if !fresh.is_empty() {
        match consumer.apply(&mut transaction, &fresh).await {
            Ok(()) => {}
            // The caller knows messages, not deliveries.
            Err(ApplyError::Poison { delivery, reason }) => {
                let delivery = origins.get(delivery).copied().unwrap_or(0);
                return Err(ApplyError::Poison { delivery, reason });
            }
            Err(ApplyError::Later { delivery, reason }) => {
                let delivery = origins.get(delivery).copied().unwrap_or(0);
                return Err(ApplyError::Later { delivery, reason });
            }
            Err(failed) => return Err(failed),
        }
    }
    if !lost.is_empty() {
        inbox::note_gaps(&mut transaction, A::SCHEMA, &lost).await?;
    }
    if !fresh.is_empty() || !lost.is_empty() {
        inbox::save(&mut transaction, A::SCHEMA, &inbox).await?;
    }
    transaction.commit().await?;
    crash_point!("consumer.apply_committed");
    if !fresh.is_empty() {
        consumer.applied(&fresh);
    }
    seen::lament(host, &lost);
    seen::trace_batch::<A>(host, &fresh, started);
    seen::lag(host, &fresh);
    Ok(inbox
        .iter()
        .map(|(journal, ranges)| (*journal, ranges.watermark()))
        .collect())
}

/// Acknowledges and tells the gateways how far their journals are applied. A lost watermark is
/// repeated when the gateway ships again.
async fn acknowledge(
    host: &Host,
    parcels: &[Parcel],
    watermarks: BTreeMap<JournalId, u64>,
    trail: &mut Trail,
) -> anyhow::Result<()> {
    for parcel in parcels {
        let kind = match parcel.is_part {
            true => AckKind::Nak(Some(LATER)),
            false => AckKind::Ack,
        };
        let told = parcel.message.ack_with(kind).await;
        told.map_err(|error| anyhow::anyhow!(error))?;
    }
    trail.tell(host, watermarks).await?;
    crash_point!("consumer.watermark_published");
    Ok(())
}

/// Repeats what an earlier instance may have died before telling.
async fn tell_watermarks(
    host: &Host,
    schema: &'static str,
    trail: &mut Trail,
) -> anyhow::Result<()> {
    let mut connection = host.postgres().acquire().await?;
    let known = inbox::watermarks(&mut connection, schema, JOURNALS_TOLD_MAX).await?;
    drop(connection);
    trail.tell(host, known.into_iter().collect()).await
}

/// What the stream still has of the time that the database may have lost. What is applied is
/// subtracted as ever.
async fn read_again(host: &Host, stream: &Stream, since: &Since) -> anyhow::Result<()> {
    tracing::error!(
        consumer = host.name(),
        %since,
        "PostgreSQL was failed over or restored: the usage stream is read again"
    );
    if stream.consumer_info(host.name()).await.is_ok() {
        stream.delete_consumer(host.name()).await?;
    }
    Ok(())
}

pub(crate) async fn tell(host: &Host, journal: JournalId, watermark: u64) -> anyhow::Result<()> {
    let applied = Applied {
        journal_id: journal.bytes().to_vec(),
        consumer: host.name().to_owned(),
        watermark,
    };
    let subject = format!("usage.v1.applied.{}.{journal}", host.name());
    host.nats()
        .publish(subject, applied.encode_to_vec().into())
        .await?;
    Ok(())
}
