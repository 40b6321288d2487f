//! Tells whoever pays that a wallet runs low: once for each crossing, in one transaction with the
//! note that it was told.

use std::sync::Arc;

use jiff::Timestamp;
use proto::events::v1::WalletLow;
use runtime::{
    Follow, FollowError,
    streams::{self, Layout},
};
use types::{OrgId, Role};

use crate::{
    SYSTEM,
    domain::mail::{Letter, Place},
    error::{Error, Result},
    grpc::Keys,
};

/// Who can do something about it.
const READERS: [Role; 2] = [Role::Owner, Role::Billing];

/// Follows wallets that run low.
pub(crate) struct Balances(pub(crate) Arc<Keys>);

/// A crossing, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Low {
    pub(crate) org: OrgId,
    pub(crate) percent: i32,
    pub(crate) balance: i64,
    pub(crate) reference: i64,
    pub(crate) reference_at: Timestamp,
}

impl Follow for Balances {
    const STREAM: Layout = streams::WALLET;
    const SUBJECT: &'static str = "wallet.v1.low.*";
    const NAME: &'static str = "keys-balances";
    const SCHEMA: &'static str = "keys";
    type Event = WalletLow;

    async fn apply(&self, event: WalletLow) -> std::result::Result<(), FollowError> {
        let low = read(&event).map_err(FollowError::Poison)?;
        match self.tell(&low).await {
            Ok(()) => Ok(()),
            // Organisations are never deleted: this one never was.
            Err(error @ Error::NotFound { .. }) => Err(FollowError::Poison(error.to_string())),
            Err(error) => Err(FollowError::Failed(error.into())),
        }
    }
}

/// Reads an event; the error says which rule it breaks.
pub(crate) fn read(event: &WalletLow) -> std::result::Result<Low, String> {
    let percent = i32::try_from(event.percent).ok();
    let percent = percent.filter(|percent| (1..100).contains(percent));
    let at = Timestamp::from_microsecond(event.reference_at_unix_micros);
    Ok(Low {
        org: event
            .org_id
            .parse()
            .map_err(|error| format!("org_id: {error}"))?,
        percent: percent.ok_or_else(|| format!("percent: {}", event.percent))?,
        balance: event.balance,
        reference: event.reference,
        reference_at: at.map_err(|error| format!("reference_at_unix_micros: {error}"))?,
    })
}

impl Balances {
    async fn tell(&self, low: &Low) -> Result<()> {
        let now = self.0.host.clock().now();
        let mut tx = self.0.store.work(SYSTEM, now).await?;
        tx.lock_organisation(low.org).await?;
        if !tx.note_low_balance(low).await? {
            return Ok(());
        }
        let organisation = tx.organisation(low.org).await?;
        let letter = Letter::LowBalance {
            organisation: Place {
                name: &organisation.name,
                slug: &organisation.slug,
            },
            percent: low.percent,
            balance: low.balance,
            reference: low.reference,
        };
        let readers = tx.readers(low.org, &READERS, None).await?;
        self.0.write_to(&mut tx, &readers, &letter).await?;
        tx.commit().await?;
        self.0.mail_nudge.notify_one();
        Ok(())
    }
}
