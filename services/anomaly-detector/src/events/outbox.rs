//! Announces anomalies. The row is the promise: what is not announced now is so a second later.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use runtime::{
    Clock,
    streams::{self, Streams},
};

use crate::{domain::Rule, store::Store};

/// Label of the metrics.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct KindLabel {
    kind: &'static str,
}

/// Announces, and counts.
#[derive(Clone)]
pub(crate) struct Outbox {
    store: Store,
    streams: Streams,
    clock: Clock,
    announced: Family<KindLabel, Counter>,
    open: Family<KindLabel, Gauge>,
}

impl Outbox {
    pub(crate) fn new(store: Store, streams: Streams, clock: Clock) -> Self {
        Self {
            store,
            streams,
            clock,
            announced: Family::default(),
            open: Family::default(),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Anomalies announced";
        registry.register("anomalies", help, self.announced.clone());
        let help = "Anomalies that nobody has dealt with";
        registry.register("open_anomalies", help, self.open.clone());
    }

    /// One run of the periodic task.
    pub(crate) async fn publish(self) {
        if let Err(error) = self.publish_all().await {
            let error = format!("{error:#}");
            tracing::warn!(error, "anomalies not announced yet, trying again");
        }
    }

    /// One run of the periodic task.
    pub(crate) async fn count(self) {
        match self.store.open(None).await {
            Ok(counted) => {
                for rule in Rule::ALL {
                    let kind = rule.as_str();
                    let count = counted.iter().find(|open| open.kind == kind);
                    let count = count.map_or(0, |open| open.count);
                    self.open.get_or_create(&KindLabel { kind }).set(count);
                }
            }
            Err(error) => tracing::warn!(%error, "open anomalies were not counted"),
        }
    }

    async fn publish_all(&self) -> anyhow::Result<()> {
        let waiting = self.store.unpublished().await?;
        if waiting.is_empty() {
            return Ok(());
        }
        self.streams.ensure(streams::ANOMALY).await?;
        for flagged in waiting {
            let message = &flagged.message;
            let scope = match message.org_id.as_str() {
                "" => "platform",
                org => org,
            };
            let subject = format!("anomaly.v1.flagged.{scope}");
            // A repetition has the same id; an anomaly that has grown has another.
            let keys = message.key_ids.len();
            let id = format!("{}-{keys}", message.anomaly_id);
            let trace = &flagged.traceparent;
            self.streams.publish(subject, &id, trace, message).await?;
            let now = self.clock.now();
            if self.store.published(flagged.id, keys, now).await? {
                let rule = Rule::ALL.into_iter().find(|it| it.as_str() == message.kind);
                let kind = rule.map_or("unknown", Rule::as_str);
                self.announced.get_or_create(&KindLabel { kind }).inc();
            }
        }
        Ok(())
    }
}
