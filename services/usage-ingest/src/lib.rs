//! Single calls: one row in `api_usage_logs` for each completed call, kept for whoever asks.
//!
//! - Each record of kind CALL has exactly one row, whatever is delivered twice or late.
//! - A record that cannot be a row is put aside with its reason; nothing is guessed or cut short.
//! - A row always finds a partition: its day's, or the default one until its day has one.
//! - Address and agent of a call are erased after the configured days; its country stays.
//! - Of the calls with one idempotency key, one is forwarded at a time, and at most one counts in
//!   24 hours; its answer is kept before it is charged, and erased with the key.

#![forbid(unsafe_code)]

mod config;
mod domain;
mod error;
mod events;
mod grpc;
mod partitions;
mod store;

#[cfg(test)]
mod tests;

use std::time::Duration;

use proto::usage_ingest::v1::usage_ingest_service_server::UsageIngestServiceServer;
use runtime::Host;

pub use config::Config;
use grpc::UsageIngest;
use partitions::Partitions;
use store::Store;

/// How often partitions and personal data are looked after.
const HOUSEKEEPING_PERIOD: Duration = Duration::from_secs(3600);

/// How often expired idempotency keys are erased, and the others counted.
const KEYS_PERIOD: Duration = Duration::from_secs(60);

/// Starts the service.
///
/// # Errors
/// None of its own: the database is needed by the tasks, which wait for it.
#[expect(clippy::unused_async, reason = "every service starts the same way")]
pub async fn start(host: &Host, config: Config) -> anyhow::Result<()> {
    let store = Store::new(host.postgres(), host.tenants());
    let partitions = Partitions::new(store.clone());
    let clock = host.clock();
    host.every("keep-partitions", HOUSEKEEPING_PERIOD, move || {
        partitions.clone().keep(domain::day_of(clock.now()))
    });
    let (erasing, clock) = (store.clone(), host.clock());
    host.every("erase-personal-data", HOUSEKEEPING_PERIOD, move || {
        events::erase_personal_data(erasing.clone(), config.personal_data_days, clock.now())
    });
    let (keeping, clock) = (store.clone(), host.clock());
    host.every("keep-idempotency-keys", KEYS_PERIOD, move || {
        events::keep_keys(keeping.clone(), config.idempotency_keys_max, clock.now())
    });
    host.grpc(
        UsageIngestServiceServer::new(UsageIngest::new(store, host.clock())),
        &["BeginKeyedCall", "KeepAnswer", "EndKeyedCall", "EndJournal"],
    );
    host.consume(events::Rows::new(host.clock(), config.personal_data_days));
    Ok(())
}
