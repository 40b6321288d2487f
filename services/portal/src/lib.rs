//! The management API: sessions, and routes over what the other services offer by gRPC.
//!
//! - A session's token leaves this service once, and is stored as a hash only.
//! - Every call to a service says who acts; the portal never acts as somebody else.
//! - What belongs to another organisation is not there: the answer is 404, whatever the route.
//! - A request with an `Idempotency-Key` is carried out at most once; a repetition gets the first
//!   answer, without its secrets.

#![forbid(unsafe_code)]

mod config;
mod domain;
mod error;
mod http;
mod metrics;
mod store;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use runtime::Host;

pub use crate::config::Config;
use crate::{http::Portal, store::Store};

/// How often rows that nobody needs are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);

/// Starts the service.
///
/// # Errors
/// The address is taken, or a URL of a service is malformed.
pub async fn start(host: &Host, config: Config) -> anyhow::Result<()> {
    let store = Store::new(host.postgres(), host.tenants());
    let portal = Arc::new(Portal::new(host, store.clone())?);
    let listener = http::bind(config.listen).await?;
    let router = http::router(portal);
    host.spawn("serve-http", move |stop| {
        http::serve(listener, router, config.trusted_hops, stop)
    });
    let clock = host.clock();
    host.every("keep-house", HOUSEKEEPING, move || {
        let (store, now) = (store.clone(), clock.now());
        async move {
            if let Err(error) = store.forget(now).await {
                tracing::warn!(%error, "old sessions were not removed");
            }
        }
    });
    Ok(())
}
