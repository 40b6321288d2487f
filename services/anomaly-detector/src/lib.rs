//! Unusual behaviour of keys: a key used from more than ten countries within an hour is flagged.
//!
//! - The rule reads event time only: when, in what order and how often events arrive changes
//!   nothing about what is flagged.
//! - Windows of two anomalies of a key never overlap: an hour of abuse is one anomaly.
//! - An anomaly and the sightings that led to it are one transaction; none is lost or repeated.
//! - An anomaly is announced at least once, always under the same message id.

#![forbid(unsafe_code)]

mod config;
mod domain;
mod error;
mod events;
mod grpc;
mod store;

#[cfg(test)]
mod tests;

use std::time::Duration;

use prometheus_client::metrics::{counter::Counter, family::Family};
use proto::anomaly_detector::v1::anomaly_detector_service_server::AnomalyDetectorServiceServer;
use runtime::Host;

pub use config::Config;
use events::{KindLabel, Outbox, Sightings};
use grpc::AnomalyDetector;
use store::Store;

/// How often the outbox is looked into.
const PUBLISH_PERIOD: Duration = Duration::from_secs(1);
/// How often old sightings are deleted.
const PRUNE_PERIOD: Duration = Duration::from_secs(600);

/// Starts the service.
///
/// # Errors
/// None of its own: servers are needed by the tasks, which wait for them.
#[expect(clippy::unused_async, reason = "every service starts the same way")]
pub async fn start(host: &Host, config: Config) -> anyhow::Result<()> {
    let store = Store::new(host.postgres());
    let anomalies: Family<KindLabel, Counter> = Family::default();
    host.metrics(|registry| {
        let help = "Anomalies announced";
        registry.register("anomalies", help, anomalies.clone());
    });
    let outbox = Outbox::new(store.clone(), host.jetstream(), host.clock(), anomalies);
    host.every("publish-anomalies", PUBLISH_PERIOD, move || {
        outbox.clone().publish()
    });
    let (pruning, clock) = (store.clone(), host.clock());
    host.every("prune-sightings", PRUNE_PERIOD, move || {
        events::prune(pruning.clone(), config.sightings_hours, clock.now())
    });
    let detector = AnomalyDetector::new(store, host.clock());
    host.grpc(AnomalyDetectorServiceServer::new(detector), &[]);
    host.consume(Sightings::new(host.clock(), host.ids()));
    Ok(())
}
