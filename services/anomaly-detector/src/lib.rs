//! Unusual behaviour: of keys, wallets, organisations and addresses.
//!
//! - Rules read event time only, and an anomaly's identity is made of facts: when and how often
//!   events arrive changes nothing about what is flagged, nor does their order where a rule's
//!   documentation does not say otherwise.
//! - Windows of two anomalies of one subject never overlap: an hour of abuse is one anomaly.
//! - An anomaly and the events that led to it are one transaction; none is lost or repeated.
//! - An anomaly is announced at least once, always under the same message id; one that grows is
//!   announced again with all its keys.

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

use proto::anomaly_detector::v1::anomaly_detector_service_server::AnomalyDetectorServiceServer;
use runtime::Host;

pub use config::Config;
use events::{CreatedKeys, Desk, LowWallets, Outbox, Sprays, Usage};
use grpc::AnomalyDetector;
use store::Store;

/// What services may ask with their token.
const SERVICE_METHODS: &[&str] = &["GetOpenAnomalies"];
/// How often the outbox is looked into.
const PUBLISH_PERIOD: Duration = Duration::from_secs(1);
/// How often open anomalies are counted.
const COUNT_PERIOD: Duration = Duration::from_secs(15);
/// How often what no rule looks at any more is deleted.
const PRUNE_PERIOD: Duration = Duration::from_secs(600);

/// Starts the service.
///
/// # Errors
/// None of its own: servers are needed by the tasks, which wait for them.
#[expect(clippy::unused_async, reason = "every service starts the same way")]
pub async fn start(host: &Host, config: Config) -> anyhow::Result<()> {
    let store = Store::new(host.postgres(), host.tenants());
    let outbox = Outbox::new(store.clone(), host.streams(), host.clock());
    host.metrics(|registry| outbox.register(registry));
    let counted = outbox.clone();
    host.every("count-open-anomalies", COUNT_PERIOD, move || {
        counted.clone().count()
    });
    host.every("publish-anomalies", PUBLISH_PERIOD, move || {
        outbox.clone().publish()
    });
    let (pruning, clock) = (store.clone(), host.clock());
    host.every("prune-sightings", PRUNE_PERIOD, move || {
        events::prune(pruning.clone(), config.keep, clock.now())
    });
    let detector = AnomalyDetector::new(store.clone(), host.clock());
    host.grpc(AnomalyDetectorServiceServer::new(detector), SERVICE_METHODS);
    let desk = Desk {
        store,
        clock: host.clock(),
        ids: host.ids(),
        config,
    };
    host.follow(CreatedKeys(desk.clone()));
    host.follow(LowWallets(desk.clone()));
    let sprays = Sprays {
        desk: desk.clone(),
        nats: host.nats(),
    };
    host.spawn("watch-unknown-keys", move |stop| sprays.run(stop));
    host.consume(Usage(desk));
    Ok(())
}
