//! Partitions of `api_usage_logs`, a day each.

use jiff::civil::Date;

use crate::{domain::partition_days, store::Store};

/// Keeps partitions ready.
#[derive(Clone)]
pub(crate) struct Partitions {
    store: Store,
}

impl Partitions {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// One run of the periodic task. A failure is not urgent: a week is ready ahead, and without
    /// it rows land in the default partition.
    pub(crate) async fn keep(self, today: Date) {
        for day in partition_days(today) {
            match self.store.make_partition(day).await {
                Ok(None) => {}
                Ok(Some(moved)) => tracing::info!(%day, moved, "partition created"),
                Err(error) => {
                    tracing::warn!(%day, %error, "partition not created, trying later");
                    return;
                }
            }
        }
        match self.store.stray_days().await {
            Ok(0) => {}
            Ok(days) => tracing::warn!(days, "calls of other days wait in the default partition"),
            Err(error) => tracing::warn!(%error, "the default partition could not be read"),
        }
    }
}
