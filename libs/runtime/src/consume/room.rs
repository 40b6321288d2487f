//! How full the stream of usage is. A full one refuses what gateways publish: nothing is lost, but
//! their journals grow, and an operator who learns of it early has time.

use async_nats::jetstream::stream::{Info, Stream};

use crate::host::Host;

/// Looks at the consumer's server between two looks at the stream.
const LOOKS: u32 = 10;
/// Above this share of a limit an operator is told.
const SCARCE: f64 = 0.7;

/// What was seen of it.
#[derive(Default)]
pub(super) struct Room {
    looks: u32,
    is_scarce: bool,
}

impl Room {
    /// Looks now and then. A stream that does not answer is no error here.
    pub(super) async fn look(&mut self, host: &Host, stream: &Stream) {
        let is_due = self.looks.is_multiple_of(LOOKS);
        self.looks = self.looks.wrapping_add(1);
        if !is_due {
            return;
        }
        let Ok(info) = stream.get_info().await else {
            return;
        };
        let share = share(&info);
        host.shared.usage.stream_fill(share);
        let was_scarce = std::mem::replace(&mut self.is_scarce, share >= SCARCE);
        match (was_scarce, self.is_scarce) {
            (false, true) => tracing::warn!(
                consumer = host.name(),
                share,
                "the stream of usage is nearly full: raise its limits, or journals will grow"
            ),
            (true, false) => {
                tracing::info!(
                    consumer = host.name(),
                    share,
                    "the stream of usage has room"
                );
            }
            _ => {}
        }
    }
}

/// How much of a stream's limits is used, of 1. Without limits nothing is.
fn share(info: &Info) -> f64 {
    let of = |used: u64, limit: i64| {
        let limit = u64::try_from(limit).ok().filter(|limit| *limit > 0)?;
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = used as f64 / limit as f64;
        Some(share)
    };
    let (state, config) = (&info.state, &info.config);
    let shares = [
        of(state.bytes, config.max_bytes),
        of(state.messages, config.max_messages),
    ];
    shares.into_iter().flatten().fold(0.0, f64::max)
}
