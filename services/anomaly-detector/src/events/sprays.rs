//! Unknown keys that gateways have sighted.

use std::net::{IpAddr, Ipv6Addr};

use async_nats::Client;
use futures_util::StreamExt as _;
use prost::Message as _;
use proto::{convert::parse_id, events::v1::UnknownKeysSighted};
use runtime::Stop;
use types::JournalId;

use super::{Desk, Micros, moment};
use crate::{
    domain::{
        MINUTE, begin,
        unknown_key_spray::{self, SPAN},
    },
    store::{self, told},
};

/// Gateways publish here each minute, without a stream: what is lost is told again while it goes
/// on.
const SUBJECT: &str = "anomaly.v1.sighted.*";
/// Instances that share a subscription.
const GROUP: &str = "anomaly-detector";
/// Calls of one message at most; more is no count of a minute.
const CALLS_MAX: i64 = 1_000_000_000;

/// What a message says.
struct Sighted {
    address: String,
    minute: Micros,
    journal: JournalId,
    calls: i64,
}

/// Hears of unknown keys, for `unknown_key_spray`.
pub(crate) struct Sprays {
    pub(crate) desk: Desk,
    pub(crate) nats: Client,
}

impl Sprays {
    /// Runs until told to stop. A subscription outlives a lost connection.
    pub(crate) async fn run(self, stop: Stop) {
        let subscribed = self.nats.queue_subscribe(SUBJECT, GROUP.to_owned()).await;
        let mut messages = match subscribed {
            Ok(messages) => messages,
            Err(error) => {
                tracing::error!(%error, "unknown keys are not watched");
                return;
            }
        };
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = stop.requested() => return,
            };
            let Some(message) = message else { return };
            match read(&message.payload) {
                Ok(sighted) => {
                    if let Err(error) = self.apply(&sighted).await {
                        tracing::warn!(%error, "sighted unknown keys were not noted");
                    }
                }
                Err(reason) => {
                    tracing::warn!(reason, "a sighting of unknown keys cannot be read");
                }
            }
        }
    }

    async fn apply(&self, sighted: &Sighted) -> sqlx::Result<()> {
        let Sighted {
            address,
            minute,
            journal,
            calls,
        } = sighted;
        let mut transaction = self.desk.store.begin().await?;
        store::lock_address(&mut transaction, address).await?;
        told::add_spray(&mut transaction, address, *minute, *journal, *calls).await?;
        // Ten minutes that this one is part of end within this span.
        let (from, to) = (minute - SPAN, minute + SPAN);
        let minutes = told::sprays(&mut transaction, address, from, to).await?;
        for finding in unknown_key_spray::judge(address, &minutes, self.desk.config.spray) {
            self.desk.flag(&mut transaction, &finding, "").await?;
        }
        transaction.commit().await
    }
}

fn read(payload: &[u8]) -> Result<Sighted, String> {
    let event = UnknownKeysSighted::decode(payload).map_err(|error| error.to_string())?;
    if !is_address(&event.address) {
        return Err(format!("address: `{}` is none", event.address));
    }
    let journal = parse_id("journal_id", &event.journal_id);
    let calls = i64::try_from(event.attempts).map_or(CALLS_MAX, |calls| calls.min(CALLS_MAX));
    if calls == 0 {
        return Err("attempts: none".to_owned());
    }
    Ok(Sighted {
        minute: begin(moment("minute", event.minute_unix_micros)?, MINUTE),
        journal: journal.map_err(|status| status.message().to_owned())?,
        address: event.address,
        calls,
    })
}

/// An address, or a network of IPv6: gateways count what one subscriber has as one.
fn is_address(text: &str) -> bool {
    match text.split_once('/') {
        None => text.parse::<IpAddr>().is_ok(),
        Some((network, bits)) => {
            network.parse::<Ipv6Addr>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| bits <= 128)
        }
    }
}
