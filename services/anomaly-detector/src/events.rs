//! What happens elsewhere, into what the rules keep; what they find, to whoever listens.

mod keys;
mod outbox;
mod sprays;
mod usage;
mod wallets;

use jiff::Timestamp;
use runtime::{Clock, Ids};

pub(crate) use keys::CreatedKeys;
pub(crate) use outbox::Outbox;
pub(crate) use sprays::Sprays;
pub(crate) use usage::Usage;
#[cfg(test)]
pub(crate) use usage::{call, read};
pub(crate) use wallets::LowWallets;

use crate::{
    config::Config,
    domain::{Finding, Micros},
    store::{self, Connection, Keep, Store},
};

/// What every consumer of events needs.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
    pub(crate) config: Config,
}

impl Desk {
    /// Writes what a rule has found, in the caller's transaction; what is known already stays as
    /// it is. `traceparent`: of the call that met the rule, or empty.
    async fn flag(
        &self,
        connection: &mut Connection,
        finding: &Finding,
        traceparent: &str,
    ) -> sqlx::Result<()> {
        let id = self.ids.new_id();
        if store::flag(connection, id, finding, traceparent, self.clock.now()).await? {
            tracing::warn!(
                anomaly.id = %id,
                kind = finding.rule.as_str(),
                identity = finding.identity,
                summary = finding.summary,
                "an anomaly was flagged"
            );
        }
        Ok(())
    }
}

/// A time of an event, which must be one that tables can hold.
fn moment(field: &str, at: Micros) -> Result<Micros, String> {
    if at < 0 || Timestamp::from_microsecond(at).is_err() {
        return Err(format!("{field}: {at} is not between 1970 and 9999"));
    }
    Ok(at)
}

/// One run of the periodic task.
pub(crate) async fn prune(store: Store, keep: Keep, now: Timestamp) {
    match store.prune(keep, now).await {
        Ok(0) => {}
        Ok(rows) => tracing::debug!(rows, "what no rule looks at any more was deleted"),
        Err(error) => tracing::warn!(%error, "old sightings not deleted, trying later"),
    }
}
