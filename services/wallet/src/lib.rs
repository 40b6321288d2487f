//! Credits: what organisations hold, what gateways borrow, what calls have cost.
//!
//! - Whatever is repeated, lost, reordered or killed: a wallet never goes below zero, no completed
//!   call is debited twice, and Σ ledger = balance.
//! - `settled_cum` of a lease never decreases, and never exceeds what the lease was granted.
//! - No timer releases a lease: its owner's final count does, or a write-off that operators see.
//! - A retired journal is never lent another credit.
//! - After a failover of its database nothing is lent until the gateways have told their leases.
//! - A wallet that falls to 50, 20 or 10 percent is announced once each, with the debit itself.

#![forbid(unsafe_code)]
#![warn(
    clippy::float_arithmetic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod background;
mod config;
#[cfg(any(test, feature = "cores"))]
pub mod cores;
mod domain;
mod error;
mod events;
mod grpc;
mod metrics;
mod store;
#[cfg(test)]
mod tests;

use std::time::Duration;

use proto::wallet::v1::wallet_service_server::WalletServiceServer;
use runtime::Host;

pub use config::Config;
pub use error::Error;

/// Methods that gateways call; every other is for operators.
const GATEWAY_METHODS: &[&str] = &["Acquire", "Heartbeat", "RetireJournal"];
/// Between two looks at silent leases, and between two counts.
const WATCH_PERIOD: Duration = Duration::from_secs(5);
/// Between two looks at whether the database is where it was. Lending looks for itself each time.
const FAILOVER_PERIOD: Duration = Duration::from_secs(1);
const FORGET_PERIOD: Duration = Duration::from_secs(60);
/// How often wallets that run dry are looked for in the outbox.
const PUBLISH_PERIOD: Duration = Duration::from_secs(1);

/// Starts the wallet on a host.
///
/// # Errors
/// None so far: everything it needs is reached later, and again after a loss.
#[expect(clippy::unused_async, reason = "every service starts like this")]
pub async fn start(host: &Host, config: Config) -> anyhow::Result<()> {
    let store = store::Store::new(host.postgres(), host.tenants());
    let figures = metrics::Metrics::default();
    host.metrics(|registry| figures.register(registry));
    host.grpc(
        WalletServiceServer::new(grpc::Service {
            store: store.clone(),
            recall: events::Recall::new(host.nats()),
            clock: host.clock(),
            ids: host.ids(),
            orphan: config.orphan,
        }),
        GATEWAY_METHODS,
    );
    host.consume(events::Settler::new(
        host.clock(),
        host.ids(),
        figures.clone(),
    ));
    let lows = events::Lows::new(store.clone(), host.streams(), host.clock());
    host.every("publish-low-wallets", PUBLISH_PERIOD, move || {
        lows.clone().publish()
    });
    let watch = WATCH_PERIOD.min(config.orphan);
    let background = background::Background {
        store,
        clock: host.clock(),
        config,
        metrics: figures,
    };
    let it = background.clone();
    host.every("watch-leases", watch, move || it.clone().watch_leases());
    let it = background.clone();
    host.every("watch-failover", FAILOVER_PERIOD, move || {
        it.clone().watch_failover()
    });
    let it = background.clone();
    host.every("count-leases", WATCH_PERIOD, move || {
        it.clone().count_leases()
    });
    host.every("forget-old-rows", FORGET_PERIOD, move || {
        background.clone().forget()
    });
    Ok(())
}
