//! From the usage stream into sightings and anomalies, and from there to whoever listens.

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{self, Context},
};
use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use prost::Message as _;
use proto::events::v1::{AnomalyFlagged, Record, RecordKind};
use runtime::{Apply, ApplyError, Clock, Delivery, Ids, streams};
use types::{KeyId, OrgId};

use crate::{
    domain::{self, Batch, Country, Sighting},
    store::{self, Connection, Finding, Store},
};

/// Subjects of the stream of anomalies; the organisation's id is the last token.
const SUBJECTS: &str = "anomaly.v1.flagged.*";

/// Label of the counter.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct KindLabel {
    kind: String,
}

/// The effect of the consumer: sightings, and anomalies where the rule is met.
pub(crate) struct Sightings {
    clock: Clock,
    ids: Ids,
}

impl Sightings {
    pub(crate) fn new(clock: Clock, ids: Ids) -> Self {
        Self { clock, ids }
    }
}

impl Apply for Sightings {
    const SCHEMA: &'static str = "anomaly_detector";
    const OPERATION: &'static str = "upsert sightings";

    async fn apply(
        &self,
        connection: &mut Connection,
        fresh: &[Delivery],
    ) -> Result<(), ApplyError> {
        let batch = read(fresh)?;
        if batch.is_empty() {
            return Ok(());
        }
        store::lock_keys(connection, &batch).await?;
        let changed = store::add(connection, &batch).await?;
        let suspects = store::suspects(connection, &changed).await?;
        if suspects.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        for (key, history) in store::histories(connection, &suspects).await? {
            let verdict = domain::judge(&history.seen, &history.known);
            for flag in verdict.new {
                let finding = Finding {
                    id: self.ids.new_id(),
                    org: history.org,
                    key,
                    flag,
                };
                store::flag(connection, &finding, now).await?;
                tracing::warn!(
                    anomaly.id = %finding.id,
                    org.id = %finding.org,
                    key.id = %key,
                    countries = finding.flag.countries.len(),
                    "a key is used from unusually many countries"
                );
            }
            for (id, flag) in verdict.moved {
                let finding = Finding {
                    id,
                    org: history.org,
                    key,
                    flag,
                };
                store::move_flag(connection, &finding).await?;
            }
        }
        Ok(())
    }
}

/// What the calls tell; a record that cannot be read poisons its message.
pub(crate) fn read(fresh: &[Delivery]) -> Result<Batch, ApplyError> {
    let mut sightings = Vec::new();
    for (delivery, Delivery { records, .. }) in fresh.iter().enumerate() {
        for record in records {
            let sighting = sighting(record).map_err(|reason| ApplyError::Poison {
                delivery,
                reason: format!("record {}: {reason}", record.seq),
            })?;
            sightings.extend(sighting);
        }
    }
    Ok(domain::batch(sightings))
}

/// Reads a record: nothing for kinds that are no calls and for calls without key or country.
pub(crate) fn sighting(record: &Record) -> Result<Option<Sighting>, String> {
    if record.kind() != RecordKind::Call {
        return Ok(None);
    }
    let call = record.call.as_ref().ok_or("a CALL without its call")?;
    let at = record.at_unix_micros;
    if at < 0 || Timestamp::from_microsecond(at).is_err() {
        return Err(format!("at_unix_micros: {at} is not between 1970 and 9999"));
    }
    let org = OrgId::from_slice(&call.org_id).map_err(|error| format!("org_id: {error}"))?;
    if call.api_key_id.is_empty() {
        return Ok(None);
    }
    let key =
        KeyId::from_slice(&call.api_key_id).map_err(|error| format!("api_key_id: {error}"))?;
    Ok(Country::parse(&call.country).map(|country| Sighting {
        key,
        org,
        country,
        at,
    }))
}

/// One run of the periodic task.
pub(crate) async fn prune(store: Store, hours: u32, now: Timestamp) {
    match store.prune(hours, now).await {
        Ok(0) => {}
        Ok(rows) => tracing::debug!(rows, "old sightings deleted"),
        Err(error) => tracing::warn!(%error, "old sightings not deleted, trying later"),
    }
}

/// Announces anomalies. The row is the promise: what is not announced now is so a second later.
#[derive(Clone)]
pub(crate) struct Outbox {
    store: Store,
    jetstream: Context,
    clock: Clock,
    announced: Family<KindLabel, Counter>,
}

impl Outbox {
    pub(crate) fn new(
        store: Store,
        jetstream: Context,
        clock: Clock,
        announced: Family<KindLabel, Counter>,
    ) -> Self {
        Self {
            store,
            jetstream,
            clock,
            announced,
        }
    }

    /// One run of the periodic task.
    pub(crate) async fn publish(self) {
        if let Err(error) = self.publish_all().await {
            let error = format!("{error:#}");
            tracing::warn!(error, "anomalies not announced yet, trying again");
        }
    }

    async fn publish_all(&self) -> anyhow::Result<()> {
        let waiting = self.store.unpublished().await?;
        if waiting.is_empty() {
            return Ok(());
        }
        streams::ensure(&self.jetstream, streams::ANOMALY, SUBJECTS).await?;
        for flagged in waiting {
            self.announce(&flagged.message).await?;
            if self.store.published(flagged.id, self.clock.now()).await? {
                let kind = flagged.message.kind;
                self.announced.get_or_create(&KindLabel { kind }).inc();
            }
        }
        Ok(())
    }

    /// Waits for the acknowledgement. A repetition has the same message id.
    async fn announce(
        &self,
        message: &AnomalyFlagged,
    ) -> Result<(), jetstream::context::PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, message.anomaly_id.as_str());
        let subject = format!("anomaly.v1.flagged.{}", message.org_id);
        let payload = message.encode_to_vec().into();
        self.jetstream
            .publish_with_headers(subject, headers, payload)
            .await?
            .await?;
        Ok(())
    }
}
