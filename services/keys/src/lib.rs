//! Users, organisations, keys, services and routes: who may call what.
//!
//! - A key's text leaves this service once, in the answer that creates it, and is stored nowhere.
//! - A change and its announcement are one transaction: no gateway can miss a revocation.
//! - Positions of the change log become visible in order: "everything after n" is complete.
//! - Revoked is for ever, and the answer to a revocation says which gateways have confirmed it.
//! - Passwords, tokens, recovery codes are stored as hashes; mails lose their text once sent.
//! - Unknown and known addresses are answered alike, in the same time.
//! - An anomaly is acted on once, and lifting it undoes what it alone imposes.
//! - Every entry of the audit log carries the hash of the one before it.
//! - A stranger's id and an id that does not exist are told apart by nobody.

#![forbid(unsafe_code)]

mod anomalies;
mod balances;
mod config;
mod domain;
mod error;
mod events;
mod grpc;
mod mailroom;
mod metrics;
mod passwords;
mod peppers;
mod store;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use arc_swap::ArcSwap;
use proto::keys::v1::{
    keys_service_server::KeysServiceServer, people_service_server::PeopleServiceServer,
};
use runtime::Host;
use secrecy::ExposeSecret;
use tokio::sync::Notify;

pub use crate::config::Config;
use crate::{
    anomalies::Anomalies,
    balances::Balances,
    events::Relay,
    grpc::Keys,
    mailroom::{Mailroom, Server},
    metrics::Metrics,
    passwords::Passwords,
    store::Store,
};

/// What gateways may call with the service token.
const SERVICE_METHODS: &[&str] = &["VerifyKey", "Sync", "TouchKeys"];

/// Who acts when nobody has asked, in the audit log.
const SYSTEM: &str = "system";
/// How often rows that nobody needs are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);

/// Starts the service.
///
/// # Errors
/// A pepper, the mail server's URL or the sender is unusable.
#[expect(
    clippy::unused_async,
    reason = "every service starts by the same signature"
)]
pub async fn start(host: &Host, config: Config) -> anyhow::Result<()> {
    let generation = config.peppers.read().context("API_KEY_PEPPER")?;
    let peppers = Arc::new(ArcSwap::from_pointee(peppers::read(&generation)?));
    let server = match &config.smtp_url {
        Some(url) => Some(Server::new(url.expose_secret(), &config.mail_from)?),
        None => None,
    };
    let store = Store::new(host.postgres(), host.tenants());
    let nudge = Arc::new(Notify::new());

    let relay = Relay::new(
        store.clone(),
        host.streams(),
        host.clock(),
        host.redis(),
        Arc::clone(&nudge),
    );
    host.spawn("relay-outbox", move |stop| relay.run(stop));

    let mail_nudge = Arc::new(Notify::new());
    let mailroom = Mailroom::new(store.clone(), host.clock(), server, Arc::clone(&mail_nudge));
    host.spawn("send-mail", move |stop| mailroom.run(stop));

    let (clock, current, housekeeper) = (host.clock(), Arc::clone(&peppers), store.clone());
    host.every("keep-house", HOUSEKEEPING, move || {
        events::keep_house(housekeeper.clone(), Arc::clone(&current), clock.now())
    });

    let metrics = Metrics::default();
    host.metrics(|registry| metrics.register(registry));
    peppers::keep(
        host,
        config.peppers,
        store.clone(),
        Arc::clone(&peppers),
        metrics.clone(),
    );
    let keys = Arc::new(Keys {
        host: host.clone(),
        store,
        peppers,
        scanners: config.scanners,
        nudge,
        mail_nudge,
        passwords: Passwords::new(host.clone()),
        portal_url: config.portal_url,
        keys_per_hour_max: config.keys_per_hour_max,
        upstream_networks: config.upstream_networks,
        metrics,
    });
    host.follow(Anomalies(Arc::clone(&keys)));
    host.follow(Balances(Arc::clone(&keys)));
    let people = PeopleServiceServer::from_arc(Arc::clone(&keys));
    host.grpc(KeysServiceServer::from_arc(keys), SERVICE_METHODS);
    host.grpc(people, &[]);
    Ok(())
}
