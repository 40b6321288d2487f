//! Every variable of the service.

use runtime::Variables;

/// What the service needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Days after which address and agent of a call are erased.
    pub personal_data_days: u32,
    /// Idempotency keys an organisation may have in store.
    pub idempotency_keys_max: i64,
}

impl Config {
    /// Reads the variables; problems are collected in `variables`.
    pub fn read(variables: &mut Variables) -> Self {
        Self {
            personal_data_days: variables.number(
                "TOLLGATE_USAGE_INGEST_PERSONAL_DATA_DAYS",
                90,
                1..=3650,
                "Days after which the client address and user agent of a call are erased",
            ),
            idempotency_keys_max: variables.number(
                "TOLLGATE_USAGE_INGEST_IDEMPOTENCY_KEYS_MAX",
                1_000_000,
                1..=1_000_000_000,
                "Idempotency keys an organisation may have in store, each for 24 hours; above, \
                 calls with further ones answer 429",
            ),
        }
    }
}
