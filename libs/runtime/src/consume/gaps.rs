//! A declared gap must not overtake a record on its way: what it covers is never applied.
//!
//! Before its journal was damaged, a gateway may have shipped what is lost by now, and that message
//! may still be delivered again. It is older in the stream than the gap's. So a gap waits until
//! nothing older is unacknowledged.

use async_nats::jetstream::{AckKind, stream::Stream};

use super::{LATER, Parcel};
use crate::host::Host;

/// A gap waits for so many deliveries, a second apart, as long as the wallet's records may wait for
/// their leases after a failover. Then what is older has had its time.
const DELIVERIES_MAX: i64 = 3_600;

/// Sends back the messages whose gaps would come too early.
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
    for parcel in parcels {
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
        let told = parcel.message.ack_with(AckKind::Nak(Some(LATER))).await;
        told.map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(kept)
}

/// Whether something before a message is not acknowledged.
fn is_early(stream_seq: u64, floor: u64) -> bool {
    floor.saturating_add(1) < stream_seq
}
