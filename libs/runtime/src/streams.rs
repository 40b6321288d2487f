//! The streams of JetStream, how they are configured, and how an event is published.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{
        Context,
        stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream},
    },
};

use crate::trace::TRACEPARENT;

/// A stream and what it holds.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name.
    pub name: &'static str,
    /// All its subjects, whoever publishes on them.
    pub subjects: &'static [&'static str],
}

/// Batches of usage.
pub const USAGE: Layout = Layout {
    name: "USAGE",
    subjects: &["usage.v1.*"],
};
/// What happened to keys.
pub const KEYS: Layout = Layout {
    name: "KEYS",
    subjects: &["keys.v1.changed.*", "keys.v1.created.*"],
};
/// Wallets that run dry.
pub const WALLET: Layout = Layout {
    name: "WALLET",
    subjects: &["wallet.v1.low.*"],
};
/// Flagged anomalies.
pub const ANOMALY: Layout = Layout {
    name: "ANOMALY",
    subjects: &["anomaly.v1.flagged.*"],
};

/// Days a stream keeps its messages.
const KEEP_DAYS: u64 = 7;

/// Makes sure that a stream exists: file storage, limits retention, `discard: new` (a full stream
/// pushes back to the publisher instead of forgetting). One that exists keeps what an operator has
/// set, and gets the subjects it lacks.
///
/// # Errors
/// NATS cannot be reached, or refuses.
pub async fn ensure(jetstream: &Context, layout: Layout) -> anyhow::Result<Stream> {
    let config = Config {
        name: layout.name.to_owned(),
        subjects: layout.subjects.iter().copied().map(str::to_owned).collect(),
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        max_age: Duration::from_secs(KEEP_DAYS * 24 * 3600),
        duplicate_window: Duration::from_secs(120),
        ..Config::default()
    };
    let stream = jetstream.get_or_create_stream(config).await?;
    let mut present = stream.cached_info().config.clone();
    for subject in layout.subjects {
        if !present.subjects.iter().any(|known| known == subject) {
            present.subjects.push((*subject).to_owned());
        }
    }
    if present.subjects != stream.cached_info().config.subjects {
        jetstream.update_stream(&present).await?;
    }
    Ok(stream)
}

/// The stream of usage batches, which every publisher and consumer needs.
///
/// # Errors
/// As [`ensure`].
pub async fn usage(jetstream: &Context) -> anyhow::Result<Stream> {
    ensure(jetstream, USAGE).await
}

/// Publishes an event and waits until its stream has it. The same `id` again within two minutes is
/// stored once; later repetitions are the consumers' affair. `traceparent` may be empty.
///
/// # Errors
/// The stream did not confirm.
pub async fn publish(
    jetstream: &Context,
    subject: String,
    id: &str,
    traceparent: &str,
    event: &impl prost::Message,
) -> anyhow::Result<()> {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, id);
    if !traceparent.is_empty() {
        headers.insert(TRACEPARENT, traceparent);
    }
    let payload = event.encode_to_vec().into();
    jetstream
        .publish_with_headers(subject, headers, payload)
        .await?
        .await?;
    Ok(())
}
