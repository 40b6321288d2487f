//! Tells the bus which wallets run dry. The row is the promise: what is not told now is so a second
//! later.

use proto::events::v1::WalletLow;
use runtime::{
    Clock,
    streams::{self, Streams},
};

use crate::store::{Low, Store};

/// Publishes shares that wallets have fallen to.
#[derive(Clone)]
pub(crate) struct Lows {
    store: Store,
    streams: Streams,
    clock: Clock,
}

impl Lows {
    pub(crate) fn new(store: Store, streams: Streams, clock: Clock) -> Self {
        Self {
            store,
            streams,
            clock,
        }
    }

    /// One run of the periodic task.
    pub(crate) async fn publish(self) {
        if let Err(error) = self.publish_all().await {
            let error = format!("{error:#}");
            tracing::warn!(error, "low wallets not announced yet, trying again");
        }
    }

    async fn publish_all(&self) -> anyhow::Result<()> {
        let waiting = self.store.unpublished_lows().await?;
        if waiting.is_empty() {
            return Ok(());
        }
        self.streams.ensure(streams::WALLET).await?;
        for low in waiting {
            let Low {
                org,
                reference_at,
                percent,
                ..
            } = low;
            let since = reference_at.as_microsecond();
            let message = WalletLow {
                org_id: org.to_string(),
                percent,
                balance: low.balance.get(),
                reference: low.reference.get(),
                reference_at_unix_micros: since,
                at_unix_micros: low.at.as_microsecond(),
            };
            // A repetition has the same id.
            let id = format!("low-{org}-{since}-{percent}");
            let subject = format!("wallet.v1.low.{org}");
            self.streams.publish(subject, &id, "", &message).await?;
            self.store.published_low(&low, self.clock.now()).await?;
        }
        Ok(())
    }
}
