//! Users, organisations, keys, services and routes: who may call what.
//!
//! - A key's text leaves this service once, in the answer that creates it, and is stored nowhere.
//! - A change and its announcement are one transaction: no gateway can miss a revocation.
//! - Positions of the change log become visible in order: "everything after n" is complete.
//! - Revoked is for ever, and the answer to a revocation says which gateways have confirmed it.
//! - Passwords, tokens, recovery codes are stored as hashes; mails lose their text once sent.
//! - Unknown and known addresses are answered alike, in the same time.
//! - Every entry of the audit log carries the hash of the one before it.
//! - A stranger's id and an id that does not exist are told apart by nobody.

#![forbid(unsafe_code)]

mod config;
mod domain;
mod error;
mod events;
mod grpc;
mod mailroom;
mod passwords;
mod store;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use proto::keys::v1::{
    keys_service_server::KeysServiceServer, people_service_server::PeopleServiceServer,
};
use runtime::Host;
use secrecy::ExposeSecret;
use tokio::sync::Notify;
use types::Pepper;

pub use crate::config::Config;
use crate::{
    events::Relay,
    grpc::Keys,
    mailroom::{Mailroom, Server},
    passwords::Passwords,
    store::Store,
};

/// What gateways may call with the service token.
const SERVICE_METHODS: &[&str] = &["VerifyKey", "Sync", "TouchKeys"];

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
    let pepper = Pepper::new(config.pepper.expose_secret()).context("API_KEY_PEPPER")?;
    let pepper_previous = match &config.pepper_previous {
        Some(text) => Some(Pepper::new(text.expose_secret()).context("API_KEY_PEPPER_PREVIOUS")?),
        None => None,
    };
    let server = match &config.smtp_url {
        Some(url) => Some(Server::new(url.expose_secret(), &config.mail_from)?),
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

    let mail_nudge = Arc::new(Notify::new());
    let mailroom = Mailroom::new(store.clone(), host.clock(), server, Arc::clone(&mail_nudge));
    host.spawn("send-mail", move |stop| mailroom.run(stop));

    let (clock, current, housekeeper) = (host.clock(), pepper.id(), store.clone());
    let previous = pepper_previous.as_ref().map(Pepper::id);
    host.every("keep-house", HOUSEKEEPING, move || {
        events::keep_house(
            housekeeper.clone(),
            clock.now(),
            current.clone(),
            previous.clone(),
        )
    });

    let keys = Arc::new(Keys {
        host: host.clone(),
        store,
        pepper,
        pepper_previous,
        nudge,
        mail_nudge,
        passwords: Passwords::new(host.clone()),
        portal_url: config.portal_url,
        keys_per_hour_max: config.keys_per_hour_max,
    });
    let people = PeopleServiceServer::from_arc(Arc::clone(&keys));
    host.grpc(KeysServiceServer::from_arc(keys), SERVICE_METHODS);
    host.grpc(people, &[]);
    Ok(())
}
