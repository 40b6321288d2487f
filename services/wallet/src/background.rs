//! What happens without anybody asking: silent gateways, lost leases, figures.

use runtime::Clock;

use crate::{
    config::Config,
    domain::before,
    error::Result,
    metrics::Metrics,
    store::{Standing, Store},
};

/// The periodic work. Several instances may do it at once.
#[derive(Clone)]
pub(crate) struct Background {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
}

impl Background {
    /// Marks the leases of silent journals, and gives up those that stayed silent too long.
    pub(crate) async fn watch_leases(self) {
        if let Err(error) = self.watch().await {
            tracing::warn!(error = %error_chain(error), "silent leases were not looked after");
        }
    }

    /// Looks whether the database was failed over, and whether lending may go on.
    pub(crate) async fn watch_failover(self) {
        let now = self.clock.now();
        let standing = match self.store.watch_failover(self.config.orphan, now).await {
            Ok(standing) => standing,
            // Lending asks the same database.
            Err(error) => {
                tracing::debug!(error = %error_chain(error), "where the database is, is unknown");
                return;
            }
        };
        match &standing {
            Standing::Open => {}
            Standing::FailedOver { from, to } => tracing::error!(
                from,
                to,
                "PostgreSQL was failed over or restored: nothing is lent until the gateways have \
                 told what they were lent"
            ),
            Standing::Frozen { awaited } => tracing::warn!(
                gateways = awaited,
                "lending is frozen: gateways have not told their leases yet"
            ),
            Standing::Thawed => {
                tracing::info!("all gateways have told their leases, lending goes on")
            }
        }
        let is_frozen = matches!(
            standing,
            Standing::FailedOver { .. } | Standing::Frozen { .. }
        );
        self.metrics.frozen(is_frozen);
    }

    /// Refreshes the figures.
    pub(crate) async fn count_leases(self) {
        match self.store.count_leases().await {
            Ok(counted) => self.metrics.leases(&counted),
            Err(error) => {
                tracing::warn!(error = %error_chain(error), "the leases were not counted");
            }
        }
    }

    /// Forgets what nobody can ask for any more.
    pub(crate) async fn forget(self) {
        let now = self.clock.now();
        if let Err(error) = self.store.forget_acquisitions(now).await {
            tracing::warn!(error = %error_chain(error), "old nonces were not forgotten");
        }
        if let Err(error) = self.store.forget_lows(now).await {
            tracing::warn!(error = %error_chain(error), "old low wallets were not forgotten");
        }
    }

    async fn watch(&self) -> Result<()> {
        // A restored database remembers old heartbeats only.
        if self.metrics.is_frozen() {
            return Ok(());
        }
        let now = self.clock.now();
        for lease in self
            .store
            .mark_orphans(before(now, self.config.orphan), now)
            .await?
        {
            tracing::warn!(lease.id = %lease, "lease orphaned, its credits stay reserved");
        }
        let since = before(now, self.config.write_off);
        for lease in self.store.overdue_orphans(since).await? {
            let Some(done) = self.store.write_off(lease, since, now).await? else {
                continue;
            };
            if !done.is_permits {
                self.metrics.settled(done.debited);
                self.metrics.written_off(done.released);
            }
            tracing::error!(
                lease.id = %lease,
                debited = %done.debited,
                released = %done.released,
                permits = done.is_permits,
                "lease written off: its journal did not come back"
            );
        }
        Ok(())
    }
}

fn error_chain(error: crate::error::Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}
