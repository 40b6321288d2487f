//! Users, organisations, keys, services and routes: who may call what.
//!
//! - A key's text leaves this service once, in the answer that creates it, and is stored nowhere.
//! - A change and its announcement are one transaction: no gateway can miss a revocation.
//! - Positions of the change log become visible in order: "everything after n" is complete.
//! - Revoked is for ever, and the answer to a revocation says which gateways have confirmed it.
//! - A stranger's id and an id that does not exist are told apart by nobody.

#![forbid(unsafe_code)]

mod config;
mod domain;
mod error;
mod events;
mod grpc;
mod store;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use proto::keys::v1::keys_service_server::KeysServiceServer;
use runtime::Host;
use secrecy::ExposeSecret;
use tokio::sync::Notify;
use types::Pepper;

pub use crate::config::Config;
use crate::{events::Relay, grpc::Keys, store::Store};

/// What gateways may call with the service token.
const SERVICE_METHODS: &[&str] = &["VerifyKey", "Sync", "TouchKeys"];

/// How often rows that nobody needs are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);

/// Starts the service.
///
/// # Errors
/// A pepper is unusable.
#[expect(
    clippy::unused_async,
    reason = "every service starts by the same signature"
)]
pub async fn start(host: &Host, config: Config) -> anyhow::Result<()> {
    let pepper = Pepper::new(config.pepper.expose_secret()).context("API_KEY_PEPPER")?;
    let previous = match &config.pepper_previous {
        Some(text) => Some(
            Pepper::new(text.expose_secret())
                .context("API_KEY_PEPPER_PREVIOUS")?
                .id(),
        ),
        None => None,
    };
    let store = Store::new(host.postgres());
    let nudge = Arc::new(Notify::new());

    let relay = Relay::new(
        store.clone(),
        host.jetstream(),
        host.clock(),
        Arc::clone(&nudge),
    );
    host.spawn("relay-outbox", move |stop| relay.run(stop));

    let (clock, current, housekeeper) = (host.clock(), pepper.id(), store.clone());
    host.every("keep-house", HOUSEKEEPING, move || {
        events::keep_house(
            housekeeper.clone(),
            clock.now(),
            current.clone(),
            previous.clone(),
        )
    });

    let keys = Keys::new(host.clone(), store, Arc::new(pepper), nudge);
    host.grpc(KeysServiceServer::new(keys), SERVICE_METHODS);
    Ok(())
}
