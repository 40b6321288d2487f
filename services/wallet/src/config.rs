//! What operators can set.

use std::time::Duration;

use runtime::Variables;

/// The wallet's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Silence after which a journal's leases count as orphaned.
    pub orphan: Duration,
    /// How long a lease stays orphaned before it is written off.
    pub write_off: Duration,
}

impl Config {
    /// Reads the settings.
    pub fn read(variables: &mut Variables) -> Self {
        let orphan = variables.seconds(
            "TOLLGATE_WALLET_ORPHAN_SECONDS",
            30,
            1..=86_400,
            "silence of a gateway after which its leases count as orphaned; they stay reserved",
        );
        let hours: u64 = variables.number(
            "TOLLGATE_WALLET_WRITE_OFF_HOURS",
            24,
            0..=8_760,
            "how long a lease stays orphaned before its unspent credits go back to the wallet",
        );
        Self {
            orphan,
            write_off: Duration::from_secs(hours.saturating_mul(3_600)),
        }
    }
}
