//! The wallet's consumer of usage.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicI64, Ordering},
};

use proto::events::v1::{Permit, Record, RecordKind};
use runtime::{Apply, ApplyError, Clock, Delivery};
use types::{Credits, LeaseId};

use crate::{
    domain::{Batch, Spend, claims},
    metrics::Metrics,
    store::{self, Connection},
};

/// Settles what journals say.
pub(crate) struct Settler {
    clock: Clock,
    metrics: Metrics,
    /// Debited by the transaction that is about to commit.
    pending: AtomicI64,
}

impl Settler {
    pub(crate) fn new(clock: Clock, metrics: Metrics) -> Self {
        Self {
            clock,
            metrics,
            pending: AtomicI64::new(0),
        }
    }
}

impl Apply for Settler {
    const SCHEMA: &'static str = "wallet";
    const OPERATION: &'static str = "settle leases";

    async fn apply(
        &self,
        connection: &mut Connection,
        fresh: &[Delivery],
    ) -> Result<(), ApplyError> {
        let mut batches = Vec::with_capacity(fresh.len());
        for (delivery, it) in fresh.iter().enumerate() {
            batches.push(batch(it).map_err(|reason| ApplyError::Poison { delivery, reason })?);
        }
        let leases: BTreeSet<LeaseId> = batches
            .iter()
            .flat_map(|batch| batch.claims.keys().copied())
            .collect();
        if leases.is_empty() {
            self.pending.store(0, Ordering::Relaxed);
            return Ok(());
        }
        let mut book = store::lock_book(connection, &leases).await?;
        book.settle(&batches)
            .map_err(|(delivery, breach)| ApplyError::Poison {
                delivery,
                reason: breach.to_string(),
            })?;
        let changes = book.into_changes();
        store::write(connection, &changes, self.clock.now()).await?;
        self.pending.store(changes.used().get(), Ordering::Relaxed);
        runtime::crash_point!("wallet.settle_written");
        Ok(())
    }

    fn applied(&self, _: &[Delivery]) {
        runtime::crash_point!("wallet.settle_committed");
        self.metrics
            .settled(Credits::new(self.pending.swap(0, Ordering::Relaxed)));
    }
}

/// What a delivery says of leases; the error names the rule it breaks.
pub(crate) fn batch(delivery: &Delivery) -> Result<Batch, String> {
    let mut spends = Vec::with_capacity(delivery.records.len());
    for record in delivery
        .records
        .iter()
        .filter(|record| counts(record.kind()))
    {
        spends.extend(spend(record)?);
        for permit in &record.permits {
            spends.push(use_of(record, permit)?);
        }
    }
    let claims = claims(spends).map_err(|breach| breach.to_string())?;
    Ok(Batch {
        journal: delivery.journal,
        claims,
    })
}

/// Whether a record counts. A note on a call that goes on does not: its CALL will.
fn counts(kind: RecordKind) -> bool {
    !matches!(kind, RecordKind::Open | RecordKind::Progress)
}

/// What a record charges; nothing for most kinds, and for calls outside any lease.
fn spend(record: &Record) -> Result<Option<Spend>, String> {
    let is_final = record.kind == i32::from(RecordKind::Close);
    if !is_final && record.kind != i32::from(RecordKind::Call) {
        return Ok(None);
    }
    if record.lease_id.is_empty() {
        return match is_final || record.cost != 0 {
            true => Err(format!("record {} charges no lease", record.seq)),
            false => Ok(None),
        };
    }
    let lease = LeaseId::from_slice(&record.lease_id)
        .map_err(|error| format!("record {}: {error}", record.seq))?;
    let (cost, cum) = (Credits::new(record.cost), Credits::new(record.cum));
    Ok(Some(Spend {
        lease,
        cost,
        cum,
        is_final,
    }))
}

/// A permit is a lease's spend of 1.
fn use_of(record: &Record, permit: &Permit) -> Result<Spend, String> {
    if record.kind != i32::from(RecordKind::Call) {
        return Err(format!(
            "record {} is no call and uses a permit",
            record.seq
        ));
    }
    let lease = LeaseId::from_slice(&permit.lease_id)
        .map_err(|error| format!("record {}: {error}", record.seq))?;
    Ok(Spend {
        lease,
        cost: Credits::new(1),
        cum: Credits::new(permit.cum),
        is_final: false,
    })
}
