//! The streams of JetStream, and how they are configured.

use std::time::Duration;

use async_nats::jetstream::{
    Context,
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream},
};

/// The stream of usage batches.
pub const USAGE: &str = "USAGE";
/// The stream of key changes.
pub const KEYS: &str = "KEYS";
/// The stream of flagged anomalies.
pub const ANOMALY: &str = "ANOMALY";

/// Days a stream keeps its messages.
const KEEP_DAYS: u64 = 7;

/// Makes sure that a stream exists: file storage, limits retention, `discard: new` (a full stream
/// pushes back into the journal instead of forgetting).
///
/// # Errors
/// NATS cannot be reached, or refuses.
pub async fn ensure(jetstream: &Context, name: &str, subject: &str) -> anyhow::Result<Stream> {
    let config = Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        max_age: Duration::from_secs(KEEP_DAYS * 24 * 3600),
        duplicate_window: Duration::from_secs(120),
        ..Config::default()
    };
    Ok(jetstream.get_or_create_stream(config).await?)
}

/// The stream of usage batches, which every publisher and consumer needs.
///
/// # Errors
/// As [`ensure`].
pub async fn usage(jetstream: &Context) -> anyhow::Result<Stream> {
    ensure(jetstream, USAGE, "usage.v1.*").await
}
