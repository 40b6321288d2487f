//! The wallet's consumer of usage.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;
use proto::events::v1::{Permit, Record, RecordKind};
use runtime::{Apply, ApplyError, Clock, Delivery, Ids};
use types::{Credits, LeaseId};

use crate::{
    domain::{Batch, Breach, Lent, Spend, Test, claims, is_awaited, may_be_lost},
    grpc::account,
    metrics::Metrics,
    store::{self, Connection},
};

/// Settles what journals say.
pub(crate) struct Settler {
    clock: Clock,
    ids: Ids,
    metrics: Metrics,
    /// Debited by the transaction that is about to commit.
    pending: AtomicI64,
}

impl Settler {
    pub(crate) fn new(clock: Clock, ids: Ids, metrics: Metrics) -> Self {
        Self {
            clock,
            ids,
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
        let mut leases: BTreeSet<LeaseId> = batches
            .iter()
            .flat_map(|batch| batch.claims.keys().copied())
            .collect();
        let lent: Vec<Lent> = fresh.iter().flat_map(grants).collect();
        leases.extend(lent.iter().map(|lent| lent.lease));
        if leases.is_empty() {
            self.pending.store(0, Ordering::Relaxed);
            return Ok(());
        }
        let new_id = || self.ids.new_id::<Test>().uuid();
        let now = self.clock.now();
        let (mut book, failed_over_at) =
            store::lock_book_and_take_over(connection, &leases, &lent, new_id, now).await?;
        if let Some(at) = failed_over_at {
            book.cover(&batches, at);
        }
        if let Err((delivery, breach)) = book.settle(&batches) {
            return Err(refusal(delivery, &breach, failed_over_at, now));
        }
        let changes = book.into_changes();
        store::write(connection, &changes, self.clock.now()).await?;
        self.pending.store(changes.used().get(), Ordering::Relaxed);
        runtime::crash_point!("wallet.settle_written");
        Ok(())
    }

    /// A lease whose final count is discarded would be open for ever. It ends at what is settled
    /// once its journal is retired; before that its gateway may still spend it, and whoever retires
    /// the journal counts it again.
    async fn discarded(
        &self,
        connection: &mut Connection,
        discarded: &Delivery,
    ) -> Result<(), ApplyError> {
        let closes = discarded.records.iter();
        let closes = closes.filter(|record| record.kind == i32::from(RecordKind::Close));
        let leases: BTreeSet<LeaseId> = closes
            .filter_map(|record| LeaseId::from_slice(&record.lease_id).ok())
            .collect();
        let leases = store::retired_leases(connection, discarded.journal, &leases).await?;
        if leases.is_empty() {
            return Ok(());
        }
        let mut book = store::lock_book(connection, &leases).await?;
        leases.iter().for_each(|lease| book.end(*lease));
        store::write(connection, &book.into_changes(), self.clock.now()).await?;
        Ok(())
    }

    fn applied(&self, _: &[Delivery]) {
        runtime::crash_point!("wallet.settle_committed");
        self.metrics
            .settled(Credits::new(self.pending.swap(0, Ordering::Relaxed)));
    }
}

/// What a breach means. A lease that a failover may have forgotten is told by its owner, or by an
/// earlier record that is still on its way: what is said of it until then waits.
fn refusal(
    delivery: usize,
    breach: &Breach,
    failed_over_at: Option<Timestamp>,
    now: Timestamp,
) -> ApplyError {
    let reason = breach.to_string();
    let waits = match (breach, failed_over_at) {
        (Breach::UnknownLease { lease } | Breach::OverGranted { lease, .. }, Some(at)) => {
            may_be_lost(*lease, at) && is_awaited(at, now)
        }
        _ => false,
    };
    match waits {
        true => ApplyError::Later { delivery, reason },
        false => ApplyError::Poison { delivery, reason },
    }
}

/// What the grants of a journal say. A wallet that has not forgotten them learns nothing new.
fn grants(delivery: &Delivery) -> impl Iterator<Item = Lent> {
    let is_grant = |record: &&Record| record.kind == i32::from(RecordKind::Grant);
    delivery
        .records
        .iter()
        .filter(is_grant)
        .filter_map(|record| {
            Some(Lent {
                lease: LeaseId::from_slice(&record.lease_id).ok()?,
                journal: delivery.journal,
                account: account(record.account.as_ref()?).ok()?,
                granted_cum: Credits::new(record.granted),
                returned_cum: Credits::ZERO,
            })
        })
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
