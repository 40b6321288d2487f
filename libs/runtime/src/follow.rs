//! The loop of a service that follows events of another: fetch, decode, apply, acknowledge.
//!
//! - Acknowledged only after `apply` has returned, and that is after its commit: a death in between
//!   repeats an event and never loses one. Every event arrives at least once, so a repetition must
//!   change nothing; the follower's own tables see to that, there is no inbox here.
//! - An event that could not be applied comes again, later each time, and does not hold up the
//!   others. Hence an event may arrive after those that were published later.
//! - What cannot be read goes to the dead letters with its reason; the others go on.
//! - A silent subscription is rebuilt: a missed heartbeat is an error here.
//! - A new follower begins with the oldest event that the stream has.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{
        AckKind, Message,
        consumer::{AckPolicy, DeliverPolicy, pull},
    },
};
use futures_util::StreamExt;
use prost::Message as _;

use crate::{
    host::{Host, Stop},
    letters::{
        RETRIED,
        table::{self, Buried},
    },
    streams::Layout,
    supervise::supervise,
    trace::{self, Kind, Span, TRACEPARENT},
};

/// Events in hand at most, and those that wait for another attempt count: when so many fail, the
/// rest waits in the stream.
const ACK_PENDING_MAX: i64 = 64;
/// Events of one pull request.
const EVENTS_MAX: usize = 32;
/// The server hands an event out again when nothing is heard for so long: what a killed instance
/// had in hand.
const ACK_WAIT: Duration = Duration::from_secs(15);
/// A pull request lives so long; half of it without a heartbeat means that it is lost.
const PULL_EXPIRES: Duration = Duration::from_secs(10);
const PULL_HEARTBEAT: Duration = Duration::from_secs(3);
/// Before an event that failed comes again, and before a lost subscription is rebuilt; doubled each
/// time.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Why an event was not applied.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It breaks a rule and always will: it goes to the dead letters.
    #[error("{0}")]
    Poison(String),
    /// Something it builds on has not arrived yet: it comes again, and nobody is warned.
    #[error("too early")]
    Early,
    /// Anything else: it comes again.
    #[error("not applied")]
    Failed(#[source] anyhow::Error),
}

impl From<sqlx::Error> for FollowError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// What a service does with the events of another.
pub trait Follow: Send + Sync + 'static {
    /// Stream the events come from; made when it is not there yet.
    const STREAM: Layout;
    /// Its subject, e.g. `keys.v1.created.*`.
    const SUBJECT: &'static str;
    /// Name of the durable consumer, one for each service and subject; also the task's.
    const NAME: &'static str;
    /// Schema that holds `dead_letters`.
    const SCHEMA: &'static str;
    /// Message of the events.
    type Event: prost::Message + Default;

    /// Applies an event and commits. Called again with the same event when that was not
    /// acknowledged, possibly by another instance and at the same time.
    fn apply(&self, event: Self::Event) -> impl Future<Output = Result<(), FollowError>> + Send;
}

pub(crate) async fn run<F: Follow>(host: Host, follower: F, stop: Stop) {
    let subscribe = || subscription(&host, &follower);
    supervise(&host, F::NAME, RETRY_MIN..=RETRY_MAX, &stop, subscribe).await;
}

async fn subscription<F: Follow>(host: &Host, follower: &F) -> anyhow::Result<()> {
    let stream = host.streams().ensure(F::STREAM).await?;
    let config = pull::Config {
        durable_name: Some(F::NAME.to_owned()),
        filter_subject: F::SUBJECT.to_owned(),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: ACK_PENDING_MAX,
        ..pull::Config::default()
    };
    // Made, or brought up to date when an older version has made it.
    let mut events = stream
        .create_consumer(config)
        .await?
        .stream()
        .max_messages_per_batch(EVENTS_MAX)
        .expires(PULL_EXPIRES)
        .heartbeat(PULL_HEARTBEAT)
        .messages()
        .await?;
    while let Some(message) = events.next().await {
        let message = message?;
        let answer = answer(host, follower, &message).await?;
        message
            .ack_with(answer)
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(())
}

/// Applies one event and says what the server is told about it.
async fn answer<F: Follow>(
    host: &Host,
    follower: &F,
    message: &Message,
) -> anyhow::Result<AckKind> {
    let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
    let span = span::<F>(host, message.headers.as_ref());
    let applied = match F::Event::decode(message.payload.clone()) {
        Ok(event) => span.around(follower.apply(event)).await,
        Err(error) => Err(FollowError::Poison(format!("cannot be read: {error}"))),
    };
    let failure = match applied {
        Ok(()) => match forget_letter::<F>(host, message).await {
            Ok(()) => return Ok(AckKind::Ack),
            // It comes again, changes nothing, and its letter goes then.
            Err(error) => anyhow::Error::from(error).context("its letter was not taken away"),
        },
        Err(FollowError::Early) => return Ok(AckKind::Nak(Some(pause(info.delivered)))),
        Err(FollowError::Poison(reason)) => {
            span.fail(reason.as_str());
            match bury::<F>(host, message, info.stream_sequence, &reason).await {
                Ok(()) => return Ok(AckKind::Term),
                Err(error) => anyhow::Error::from(error).context("a dead letter was not stored"),
            }
        }
        Err(FollowError::Failed(error)) => error,
    };
    span.fail("not applied");
    tracing::warn!(
        consumer = F::NAME,
        attempt = info.delivered,
        error = format!("{failure:#}"),
        "an event was not applied, it comes again"
    );
    Ok(AckKind::Nak(Some(pause(info.delivered))))
}

/// How long an event rests after its n-th attempt.
pub(crate) fn pause(attempt: i64) -> Duration {
    let doublings = u32::try_from(attempt.clamp(1, 16) - 1).unwrap_or(0);
    (RETRY_MIN * 2_u32.pow(doublings)).min(RETRY_MAX)
}

/// A span under the one that published the event, when that was sampled.
fn span<F: Follow>(host: &Host, headers: Option<&HeaderMap>) -> Span {
    let traceparent = headers.and_then(|headers| headers.get(TRACEPARENT));
    let parent = trace::context_of(traceparent.map_or("", |value| value.as_str()));
    let name = format!("process {}", F::SUBJECT.trim_end_matches(".*"));
    let span = host.tracer().child(name, Kind::Consumer, &parent);
    span.set("messaging.system", "nats");
    span.set("messaging.operation.type", "process");
    span.set("messaging.destination.name", F::SUBJECT);
    span.set("messaging.consumer.group.name", F::NAME);
    span
}

/// Takes away the letter of an event that an operator had published again.
async fn forget_letter<F: Follow>(host: &Host, message: &Message) -> sqlx::Result<()> {
    let headers = message.headers.as_ref();
    if headers.and_then(|headers| headers.get(RETRIED)).is_none() {
        return Ok(());
    }
    let mut connection = host.postgres().acquire().await?;
    table::take_away(&mut connection, F::SCHEMA, &message.payload).await
}

async fn bury<F: Follow>(
    host: &Host,
    message: &Message,
    stream_seq: u64,
    reason: &str,
) -> sqlx::Result<()> {
    let subject = message.subject.as_str();
    let mut connection = host.postgres().acquire().await?;
    let buried = Buried {
        subject,
        stream_seq,
        reason,
        payload: &message.payload,
    };
    if table::bury(&mut connection, F::SCHEMA, &buried).await? {
        tracing::error!(
            consumer = F::NAME,
            subject,
            stream_seq,
            reason,
            "an event breaks a rule and was put aside"
        );
        host.shared.usage.dead_letters(host.name());
    }
    Ok(())
}
