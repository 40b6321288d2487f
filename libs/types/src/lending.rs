//! How much is lent at once: the wallet lends by it, and gateways ask and keep by it.

/// At least so many calls' worth is lent where that is a small part of what is available: it lasts
/// until a gateway has measured how often its owner calls, or for days of now and then.
pub const LEASE_CALLS_MIN: i64 = 1_024;

/// A small part is one of so many, shared by the live gateways: too little for anybody to miss.
pub const LEASE_SMALL_PARTS: i64 = 64;

/// One of so many parts of what is available, shared by the live gateways.
pub fn lease_part(available: i64, parts: i64, live_gateways: u32) -> i64 {
    let parts = i64::from(live_gateways.max(1)).saturating_mul(parts);
    available.checked_div(parts).unwrap_or(0)
}
