//! Every variable of the service.

use runtime::Variables;

use crate::{
    domain::{DAY, MINUTE, Micros, key_burst, unknown_key_spray, wallet_drain},
    store::Keep,
};

/// What the service needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Countries of a key in an hour that are still usual.
    pub(crate) countries: usize,
    pub(crate) burst: key_burst::Limits,
    /// Days before a bucket that say what is usual.
    pub(crate) burst_days: u32,
    /// A key that was not used for so long was silent.
    pub(crate) silence: Micros,
    pub(crate) drain: wallet_drain::Limits,
    /// Keys made in an organisation in an hour that are still usual.
    pub(crate) created_keys: usize,
    pub(crate) spray: unknown_key_spray::Limits,
    pub(crate) keep: Keep,
}

impl Config {
    /// Reads the variables; problems are collected in `variables`.
    pub fn read(variables: &mut Variables) -> Self {
        let hours = variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_SIGHTINGS_HOURS",
            24,
            4..=720,
            "Hours for which a late event still finds its neighbours",
        );
        let burst_days = variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_BURST_HISTORY_DAYS",
            7,
            1..=90,
            "key_burst: days that say what a key is used to",
        );
        let silence_days: i64 = variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_SILENCE_DAYS",
            14,
            1..=365,
            "service_after_silence: days without a call that make a key silent",
        );
        Self {
            countries: variables.number(
                "TOLLGATE_ANOMALY_DETECTOR_SPREAD_COUNTRIES",
                10,
                1..=250,
                "country_spread: countries of a key in an hour that are still usual",
            ),
            burst: burst(variables),
            burst_days,
            silence: silence_days * DAY,
            drain: drain(variables),
            created_keys: variables.number(
                "TOLLGATE_ANOMALY_DETECTOR_CREATION_KEYS",
                10,
                1..=1_000,
                "key_mass_creation: keys made in an organisation in an hour that are still usual",
            ),
            spray: spray(variables),
            keep: Keep {
                hours,
                load_days: burst_days + 1,
            },
        }
    }
}

fn burst(variables: &mut Variables) -> key_burst::Limits {
    key_burst::Limits {
        calls: variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_BURST_CALLS",
            300,
            1..=1_000_000_000,
            "key_burst: fewer calls in 5 minutes are never one",
        ),
        factor: variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_BURST_TIMES",
            10,
            1..=1_000_000,
            "key_burst: times the mean of its active 5 minutes that a key may make",
        ),
        history: variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_BURST_HISTORY_BUCKETS",
            12,
            1..=2_016,
            "key_burst: active 5 minutes without which a key has no habits yet",
        ),
    }
}

fn drain(variables: &mut Variables) -> wallet_drain::Limits {
    let minutes: i64 = variables.number(
        "TOLLGATE_ANOMALY_DETECTOR_DRAIN_MINUTES",
        60,
        1..=1_440,
        "wallet_drain: a fall from 50 to 10 percent that takes longer is usual",
    );
    wallet_drain::Limits {
        reference: variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_DRAIN_REFERENCE_CREDITS",
            100,
            1..=1_000_000_000_000,
            "wallet_drain: wallets that held less are not watched",
        ),
        within: minutes * MINUTE,
        key_percent: variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_DRAIN_KEY_PERCENT",
            10,
            1..=100,
            "wallet_drain: share of the spend that makes a key concerned",
        ),
    }
}

fn spray(variables: &mut Variables) -> unknown_key_spray::Limits {
    unknown_key_spray::Limits {
        minute: variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_SPRAY_MINUTE_CALLS",
            100,
            1..=1_000_000_000,
            "unknown_key_spray: calls of an address in a minute that are not usual any more",
        ),
        ten_minutes: variables.number(
            "TOLLGATE_ANOMALY_DETECTOR_SPRAY_TEN_MINUTES_CALLS",
            300,
            1..=1_000_000_000,
            "unknown_key_spray: calls of an address in ten minutes that are not usual any more",
        ),
    }
}
