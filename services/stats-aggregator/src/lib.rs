//! Totals: what every organisation used, by day and by hour.
//!
//! - Each record of kind CALL is counted once, whatever is delivered twice or late.
//! - The totals of a day are the sums of its calls, refused ones included, at every moment.
//! - Rows are written in the order of their keys: two instances wait, and never deadlock.

#![forbid(unsafe_code)]

mod config;
mod domain;
mod error;
mod events;
mod grpc;
mod store;

#[cfg(test)]
mod tests;

use proto::stats_aggregator::v1::stats_aggregator_service_server::StatsAggregatorServiceServer;
use runtime::Host;

pub use config::Config;
use grpc::StatsAggregator;
use store::Store;

/// Starts the service.
///
/// # Errors
/// None of its own: the database is needed by the consumer, which waits for it.
#[expect(clippy::unused_async, reason = "every service starts the same way")]
pub async fn start(host: &Host, config: Config) -> anyhow::Result<()> {
    let Config {} = config;
    let store = Store::new(host.postgres(), host.tenants());
    let aggregator = StatsAggregator::new(store, host.clock());
    host.grpc(StatsAggregatorServiceServer::new(aggregator), &[]);
    host.consume(events::Totals::new(host.clock()));
    Ok(())
}
