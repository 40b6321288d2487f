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

use tokio::sync::watch;

use crate::{config::Variables, trace::TRACEPARENT};

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

/// How many servers keep each stream that is made, of a cluster that has as many.
pub(crate) fn read_replicas(variables: &mut Variables) -> usize {
    variables.number(
        "TOLLGATE_STREAM_REPLICAS",
        1,
        1..=5,
        "servers of a NATS cluster that keep each stream, an odd number; a stream that exists keeps \
         its own",
    )
}

/// The streams of one connection to NATS. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    jetstream: Context,
    replicas: usize,
    losses: watch::Receiver<u64>,
}

impl Streams {
    pub(crate) fn new(jetstream: Context, replicas: usize, losses: watch::Receiver<u64>) -> Self {
        Self {
            jetstream,
            replicas,
            losses,
        }
    }

    /// Makes sure that a stream exists: file storage, limits retention, `discard: new` (a full
    /// stream pushes back to the publisher instead of forgetting). One that exists keeps what an
    /// operator has set, and gets the subjects it lacks.
    ///
    /// # Errors
    /// NATS cannot be reached, or refuses.
    pub async fn ensure(&self, layout: Layout) -> anyhow::Result<Stream> {
        let config = Config {
            name: layout.name.to_owned(),
            subjects: layout.subjects.iter().copied().map(str::to_owned).collect(),
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            max_age: Duration::from_secs(KEEP_DAYS * 24 * 3600),
            duplicate_window: Duration::from_secs(120),
            num_replicas: self.replicas,
            ..Config::default()
        };
        let made = async { Ok(self.jetstream.get_or_create_stream(config).await?) };
        let stream = self.answered(made).await?;
        let mut present = stream.cached_info().config.clone();
        for subject in layout.subjects {
            if !present.subjects.iter().any(|known| known == subject) {
                present.subjects.push((*subject).to_owned());
            }
        }
        if present.subjects != stream.cached_info().config.subjects {
            self.jetstream.update_stream(&present).await?;
        }
        Ok(stream)
    }

    /// The stream of usage batches, which every publisher and consumer needs.
    ///
    /// # Errors
    /// As [`Streams::ensure`].
    pub async fn usage(&self) -> anyhow::Result<Stream> {
        self.ensure(USAGE).await
    }

    /// Publishes an event and waits until its stream has it. The same `id` again within two minutes
    /// is stored once; later repetitions are the consumers' affair. `traceparent` may be empty.
    ///
    /// # Errors
    /// The stream did not confirm.
    pub async fn publish(
        &self,
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
        self.put(subject, headers, event.encode_to_vec().into())
            .await
    }

    /// Publishes bytes and waits until their stream has them.
    ///
    /// # Errors
    /// The stream did not confirm: it has them, or has not.
    pub async fn put(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: bytes::Bytes,
    ) -> anyhow::Result<()> {
        self.put_telling(subject, headers, payload, || {}).await
    }

    /// [`Streams::put`]; `sent` is called in between, when the message is on its way.
    ///
    /// # Errors
    /// As [`Streams::put`].
    pub async fn put_telling(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: bytes::Bytes,
        sent: impl FnOnce(),
    ) -> anyhow::Result<()> {
        let published = async {
            let publish = self
                .jetstream
                .publish_with_headers(subject, headers, payload);
            let acknowledgement = publish.await?;
            sent();
            acknowledgement.await?;
            Ok(())
        };
        self.answered(published).await
    }

    /// Waits for an answer of NATS, but not on a connection that is lost: there it cannot come any
    /// more, and the client would wait for its whole time limit.
    ///
    /// # Errors
    /// Of the question, or the connection was lost.
    pub async fn answered<T>(
        &self,
        asked: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let mut losses = self.losses.clone();
        losses.mark_unchanged();
        tokio::select! {
            answer = asked => answer,
            Ok(()) = losses.changed() => anyhow::bail!("the connection to NATS was lost meanwhile"),
        }
    }
}
