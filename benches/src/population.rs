//! Organisations and keys made for a measurement, the way an operator makes them: over gRPC.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use proto::{
    keys::v1::{CreateKeyRequest, CreateOrganisationRequest},
    wallet::v1::GrantCreditsRequest,
};
use runtime::Clock;
use testkit::load::{Connection, Shot};

use crate::system::{Keys, PATH, SCOPE, System, Wallet};

/// Requests in flight while the population is made.
const MAKING_AT_ONCE: usize = 16;
/// Credits of an organisation: no measurement uses them up.
const CREDITS: i64 = 100_000_000;

/// What a client knows of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// Must be accepted.
    Good,
    /// Being revoked: either answer is right.
    Changing,
    /// Its revocation was confirmed: must be refused.
    Ended,
}

/// A key, with what a client remembers of it.
pub(crate) struct Key {
    /// `key_…`
    pub(crate) id: String,
    /// The key itself.
    pub(crate) text: String,
    /// Where its calls come from.
    pub(crate) address: String,
    standing: AtomicU8,
    /// A bit for each gateway that was called with it.
    used_at: AtomicU64,
}

impl Key {
    /// What is known of it now.
    pub(crate) fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) {
            0 => Standing::Good,
            1 => Standing::Changing,
            _ => Standing::Ended,
        }
    }

    /// Something has happened to it.
    pub(crate) fn set_standing(&self, standing: Standing) {
        let value = match standing {
            Standing::Good => 0,
            Standing::Changing => 1,
            Standing::Ended => 2,
        };
        self.standing.store(value, Ordering::Release);
    }

    /// Notes a use. True: the first one at this gateway.
    pub(crate) fn is_first_use(&self, gateway: usize) -> bool {
        let bit = 1 << (gateway % 64);
        self.used_at.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// A call with it.
    pub(crate) fn shot(&self) -> Shot {
        Shot::get(PATH).with("x-forwarded-for", &self.address)
    }
}

/// All keys of a measurement.
pub(crate) struct Population {
    pub(crate) keys: Vec<Key>,
}

/// What each key may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) scope: &'static str,
    pub(crate) daily_quota: Option<i64>,
    /// Keys that are not made by then are left out.
    pub(crate) within: Option<Duration>,
}

struct Organisation {
    org: String,
    user: String,
    address: String,
}

impl Population {
    /// Makes keys, the same number for each organisation. No gateway has seen them used.
    pub(crate) async fn make(
        system: &System,
        organisations: usize,
        keys: usize,
    ) -> anyhow::Result<Self> {
        let terms = Terms {
            scope: SCOPE,
            daily_quota: None,
            within: None,
        };
        Self::on_terms(system, organisations, keys, terms).await
    }

    /// As `make`, with other terms.
    pub(crate) async fn on_terms(
        system: &System,
        organisations: usize,
        keys: usize,
        terms: Terms,
    ) -> anyhow::Result<Self> {
        let (keys_client, wallet) = (system.keys()?, system.wallet()?);
        let run = Clock::system().now().as_millisecond();
        let made = stream::iter(0..organisations.max(1))
            .map(|number| organisation(keys_client.clone(), wallet.clone(), run, number))
            .buffered(MAKING_AT_ONCE);
        let organisations: Vec<Organisation> = made.try_collect().await?;
        let begin = Instant::now();
        let in_time = |within| begin.elapsed() < within;
        let owners = organisations.iter().cycle().take(keys);
        let owners = owners.take_while(|_| terms.within.is_none_or(in_time));
        let made = stream::iter(owners)
            .map(|owner| key(keys_client.clone(), owner, terms))
            .buffered(MAKING_AT_ONCE);
        Ok(Self {
            keys: made.try_collect().await?,
        })
    }

    /// Nobody has used any: the gateways were started again.
    pub(crate) fn forget_uses(&self) {
        for key in &self.keys {
            key.used_at.store(0, Ordering::Relaxed);
        }
    }

    /// Calls every gateway once with each key that is good.
    pub(crate) async fn visit(&self, gateways: &[String]) -> anyhow::Result<()> {
        for (number, base) in gateways.iter().enumerate() {
            let calls = stream::iter(self.keys.chunks(self.keys.len().div_ceil(MAKING_AT_ONCE)));
            calls
                .map(|keys| async move {
                    let mut connection = Connection::to(base);
                    for key in keys.iter().filter(|key| key.standing() == Standing::Good) {
                        key.is_first_use(number);
                        let answer = connection.call(&key.text, &key.shot()).await?;
                        let status = answer.status;
                        anyhow::ensure!(status == 200, "{} is answered {status}", key.id);
                    }
                    Ok(())
                })
                .buffer_unordered(MAKING_AT_ONCE)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }
}

async fn organisation(
    mut keys: Keys,
    mut wallet: Wallet,
    run: i64,
    number: usize,
) -> anyhow::Result<Organisation> {
    let request = CreateOrganisationRequest {
        name: format!("Measured {run} {number}"),
        slug: format!("measured-{run}-{number}"),
        owner_email: format!("owner-{run}-{number}@example.com"),
    };
    let made = keys.create_organisation(request).await?.into_inner();
    let request = GrantCreditsRequest {
        org_id: made.org_id.clone(),
        credits: CREDITS,
        reason: "measurement".to_owned(),
        idempotency_key: format!("measured-{run}-{number}"),
    };
    wallet.grant_credits(request).await?;
    Ok(Organisation {
        org: made.org_id,
        user: made.user_id,
        // Of the block for measurements: in no country.
        address: format!("198.18.{}.{}", number / 250 % 250, number % 250 + 1),
    })
}

async fn key(mut keys: Keys, owner: &Organisation, terms: Terms) -> anyhow::Result<Key> {
    let request = CreateKeyRequest {
        org_id: owner.org.clone(),
        user_id: owner.user.clone(),
        name: "measured".to_owned(),
        environment: "production".to_owned(),
        scopes: vec![terms.scope.to_owned()],
        daily_quota: terms.daily_quota,
        ..Default::default()
    };
    let made = keys.create_key(request).await?.into_inner();
    Ok(Key {
        id: made.key_id,
        text: made.key,
        address: owner.address.clone(),
        standing: AtomicU8::new(0),
        used_at: AtomicU64::new(0),
    })
}

/// Who is called how often: the n-th key is called `n^skew` times less than the first.
pub(crate) struct Popularity {
    /// Weights, summed up.
    up_to: Vec<f64>,
}

impl Popularity {
    /// Of so many keys; skew 0 makes all alike, 1 is Zipf's law.
    pub(crate) fn new(keys: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1_u32..).take(keys).map(|rank| {
            sum += f64::from(rank).powf(-skew);
            sum
        });
        Self {
            up_to: weights.collect(),
        }
    }

    /// The key that a number from 0 to 1 stands for.
    pub(crate) fn pick(&self, draw: f64) -> usize {
        let total = self.up_to.last().copied().unwrap_or(0.0);
        let found = self.up_to.partition_point(|sum| *sum < draw * total);
        found.min(self.up_to.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_key_is_called_half_as_often_as_the_first() {
        let zipf = Popularity::new(1000, 1.0);
        let picks: Vec<usize> = (0..100_000_u32)
            .map(|step| zipf.pick(f64::from(step) / 100_000.0))
            .collect();
        let of = |key| picks.iter().filter(|pick| **pick == key).count();
        assert!(of(0).abs_diff(2 * of(1)) < 5, "{} {}", of(0), of(1));
        assert!(of(999) > 0, "nobody is left out");
        assert_eq!(Popularity::new(4, 0.0).pick(0.6), 2);
    }
}
