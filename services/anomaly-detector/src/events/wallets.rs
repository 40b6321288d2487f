//! Wallets that fall.

use proto::{convert::parse_id, events::v1::WalletLow};
use runtime::{
    Follow, FollowError,
    streams::{self, Layout},
};

use super::{Desk, Micros, moment};
use crate::{
    domain::wallet_drain::{self, Crossing, Fall},
    store::{self, loads, told},
};

/// The wallet may be faster than the calls that have emptied it: who spent the credits is waited
/// for so long. Then the anomaly is flagged with what is known.
const CALLS_WAIT: Micros = 10_000_000;

/// Follows wallets that run dry, for `wallet_drain`.
pub(crate) struct LowWallets(pub(crate) Desk);

impl Follow for LowWallets {
    const STREAM: Layout = streams::WALLET;
    const SUBJECT: &'static str = "wallet.v1.low.*";
    const NAME: &'static str = "anomaly-detector-low-wallets";
    const SCHEMA: &'static str = "anomaly_detector";
    type Event = WalletLow;

    async fn apply(&self, event: WalletLow) -> Result<(), FollowError> {
        let limits = self.0.config.drain;
        let (mut fall, crossing) = read(&event).map_err(FollowError::Poison)?;
        let mut transaction = self.0.store.begin().await?;
        store::lock_org(&mut transaction, fall.org).await?;
        told::add_crossing(&mut transaction, &fall, crossing).await?;
        fall.crossings = told::crossings(&mut transaction, fall.org, fall.reference_at).await?;
        if let Some(drain) = wallet_drain::judge(&fall, limits) {
            let from = drain.at - limits.within;
            let spent = loads::spent(&mut transaction, fall.org, from, drain.at).await?;
            let age = self.0.clock.now().as_microsecond() - crossing.at;
            if spent.values().sum::<i64>() < drain.spent && age < CALLS_WAIT {
                return Err(FollowError::Early);
            }
            let keys = wallet_drain::spenders(&spent, limits.key_percent);
            let finding = wallet_drain::finding(&fall, drain, keys);
            self.0.flag(&mut transaction, &finding, "").await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

fn read(event: &WalletLow) -> Result<(Fall, Crossing), String> {
    let org = parse_id("org_id", &event.org_id).map_err(|status| status.message().to_owned())?;
    let fall = Fall {
        org,
        reference: event.reference,
        reference_at: moment("reference_at_unix_micros", event.reference_at_unix_micros)?,
        crossings: Vec::new(),
    };
    let crossing = Crossing {
        percent: event.percent,
        balance: event.balance,
        at: moment("at_unix_micros", event.at_unix_micros)?,
    };
    Ok((fall, crossing))
}
