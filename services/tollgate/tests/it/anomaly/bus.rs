//! What the bus holds and is told.

use std::collections::BTreeMap;

use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt;
use prost::Message as _;
use proto::events::v1::{AnomalyFlagged, UnknownKeysSighted, WalletLow};
use types::{AnomalyId, JournalId};
use uuid::Uuid;

use crate::stack::Stack;

/// An address that nobody has.
pub(super) const STRANGER: &str = "203.0.113.99";

/// All messages of a subject that a stream holds.
pub(super) async fn messages(stack: &Stack, stream: &str, subject: &str) -> Vec<Vec<u8>> {
    let Ok(stream) = stack.jetstream().await.get_stream(stream).await else {
        return Vec::new(); // nobody has published yet
    };
    let config = pull::OrderedConfig {
        filter_subject: subject.to_owned(),
        ..pull::OrderedConfig::default()
    };
    let mut consumer = stream.create_consumer(config).await.expect("a consumer");
    let pending = consumer.info().await.expect("its state").num_pending;
    let messages = consumer.messages().await.expect("messages");
    let count = usize::try_from(pending).expect("few");
    let payload = |message: Result<jetstream::Message, _>| match message {
        Ok(message) => message.payload.to_vec(),
        Err(error) => panic!("no message: {error:?}"),
    };
    messages.take(count).map(payload).collect().await
}

/// Percents that the stream of an organisation's wallet holds, in order.
pub(super) async fn fallen(stack: &Stack, org: &str) -> Vec<u32> {
    let subject = format!("wallet.v1.low.{org}");
    let messages = messages(stack, "WALLET", &subject).await;
    let percent = |payload: &Vec<u8>| {
        let low = WalletLow::decode(payload.as_slice());
        low.expect("a message of the wallet").percent
    };
    messages.iter().map(percent).collect()
}

/// How often each anomaly was announced.
pub(super) async fn announcements(stack: &Stack) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for payload in messages(stack, "ANOMALY", "anomaly.v1.flagged.*").await {
        let flagged = AnomalyFlagged::decode(payload.as_slice()).expect("an anomaly");
        assert!(flagged.anomaly_id.parse::<AnomalyId>().is_ok());
        assert!(flagged.at_unix_micros > 0);
        *counts.entry(flagged.anomaly_id).or_default() += 1;
    }
    counts
}

/// Tells of unknown keys as a gateway does.
pub(super) async fn sighted(stack: &Stack, gateway: u128, attempts: u64, minute: i64) {
    let url = stack.info()["nats_url"].as_str().expect("a URL").to_owned();
    let nats = async_nats::connect(url).await.expect("NATS");
    let journal = JournalId::new(Uuid::from_u128(gateway));
    let message = UnknownKeysSighted {
        journal_id: journal.to_string(),
        address: STRANGER.to_owned(),
        attempts,
        minute_unix_micros: minute,
    };
    let subject = format!("anomaly.v1.sighted.{journal}");
    let sent = nats.publish(subject, message.encode_to_vec().into()).await;
    sent.expect("published");
    nats.flush().await.expect("flushed");
}
