//! A declared gap must not overtake a record on its way: what it covers is never applied.
//!
//! Before its journal was damaged, a gateway may have shipped what is lost by now, and that message
//! may still be delivered again. It is older in the stream than the gap's. So a gap waits until
//! nothing older is unacknowledged. The records of its message do not wait with it: what is older
//! may itself wait for one of them.
//!
//! What was put aside is acknowledged, and its letter may be the last that has those records. So a
//! gap does not cover what a letter has: that is applied or discarded by an operator.

use async_nats::jetstream::{AckKind, stream::Stream};
use proto::events::v1::UsageBatch;
use sqlx::PgConnection;
use types::JournalId;

use super::{LATER, Parcel};
use crate::{
    batch::{self, Ranges},
    host::Host,
    inbox::Lost,
    letters::table,
};

/// A gap waits for so many deliveries, a second apart, as long as the wallet's records may wait for
/// their leases after a failover. Then what is older has had its time.
const DELIVERIES_MAX: i64 = 3_600;

/// Takes the gaps that would come too early from their messages, which are delivered again.
pub(super) async fn hold_back(
    host: &Host,
    stream: &Stream,
    parcels: Vec<Parcel>,
) -> anyhow::Result<Vec<Parcel>> {
    if parcels.iter().all(|parcel| parcel.batch.gaps.is_empty()) {
        return Ok(parcels);
    }
    let consumer = stream.consumer_info(host.name()).await?;
    let floor = consumer.ack_floor.stream_sequence;
    let mut kept = Vec::with_capacity(parcels.len());
    for mut parcel in parcels {
        let info = parcel.message.info();
        let info = info.map_err(|error| anyhow::anyhow!(error))?;
        let is_early = is_early(info.stream_sequence, floor) && info.delivered < DELIVERIES_MAX;
        if parcel.batch.gaps.is_empty() || !is_early {
            kept.push(parcel);
            continue;
        }
        tracing::info!(
            consumer = host.name(),
            journal.id = %parcel.journal,
            stream_seq = info.stream_sequence,
            floor,
            "a gap waits for older records"
        );
        if !parcel.batch.records.is_empty() {
            parcel.batch.gaps.clear();
            parcel.is_part = true;
            kept.push(parcel);
            continue;
        }
        let told = parcel.message.ack_with(AckKind::Nak(Some(LATER))).await;
        told.map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(kept)
}

/// Whether something before a letter's message may still be on its way to a consumer.
pub(crate) async fn has_older(host: &Host, stream_seq: u64) -> anyhow::Result<bool> {
    let stream = host.streams().usage().await?;
    let consumer = stream.consumer_info(host.name()).await?;
    let is_idle = consumer.num_pending == 0 && consumer.num_ack_pending == 0;
    Ok(!is_idle && is_early(stream_seq, consumer.ack_floor.stream_sequence))
}

/// Counts as applied what the gaps of a batch cover, but for what letters have; what of it is new.
pub(crate) async fn cover(
    connection: &mut PgConnection,
    schema: &'static str,
    ranges: &mut Ranges,
    (journal, batch): (JournalId, &UsageBatch),
) -> sqlx::Result<Vec<Lost>> {
    let Some((first, last)) = batch.gaps.first().zip(batch.gaps.last()) else {
        return Ok(Vec::new());
    };
    let between = (first.from, last.below);
    let mut kept = Ranges::default();
    for (from, below) in table::records_between(connection, schema, journal, between).await? {
        kept.cover(from, below);
    }
    let mut gaps = UsageBatch {
        gaps: batch.gaps.clone(),
        ..UsageBatch::default()
    };
    batch::spare(&mut gaps, &kept);
    let lost = batch::unreadable(ranges, &gaps).into_iter();
    let lost = lost.map(|(from, below, cause)| Lost {
        journal,
        from,
        below,
        cause,
    });
    Ok(lost.collect())
}

/// Whether something before a message is not acknowledged.
fn is_early(stream_seq: u64, floor: u64) -> bool {
    floor.saturating_add(1) < stream_seq
}
