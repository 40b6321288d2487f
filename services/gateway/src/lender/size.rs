//! How much is asked for, and how much of it stays.

use std::sync::atomic::Ordering;

use proto::wallet::v1 as wire;
use types::{LEASE_CALLS_MIN, LEASE_SMALL_PARTS, lease_part};

use super::{Asked, Lender, wire_account};
use crate::lease::Account;

/// A lease covers the present rate for as long as so many acquisitions take, of which half are left
/// when its renewal begins; and for so many microseconds at least (twice the renewal interval of
/// 2 s) and at most.
pub(super) const LEASE_ACQUISITIONS: i64 = 4;
pub(super) const LEASE_MICROS_MIN: i64 = 4_000_000;
const LEASE_MICROS_MAX: i64 = 60_000_000;
/// Calls that a first lease covers, before any rate is known.
const FIRST_CALLS: i64 = 32;
/// One call's worth stays with an idle gateway where it is no more than one of so many parts of
/// what is available, shared by the live ones.
const CALL_PARTS: i64 = 8;
/// No lease asks for more.
const WANT_MAX: i64 = 10_000_000;

impl Lender {
    /// A request to be lent at least so many credits.
    pub(super) fn request(&self, account: &Account, credits: i64) -> Asked {
        let minimum = credits.max(1);
        let per_call = minimum.max(account.per_call());
        let little = per_call.saturating_mul(LEASE_CALLS_MIN).min(account.kept());
        // The rate is known once a second; a lease may be gone in less.
        let lease = account.lease();
        let pace = lease.map_or(0, |lease| lease.pace(self.monotonic_micros()));
        let wanted = account
            .rate()
            .max(pace)
            .saturating_mul(self.lease_micros() / 1_000)
            .saturating_div(1_000)
            .max(per_call.saturating_mul(FIRST_CALLS))
            .max(little)
            .clamp(minimum, WANT_MAX.max(minimum));
        let ask = wire::Ask {
            account: Some(wire_account(account)),
            nonce: self.host.random::<16>().to_vec(),
            want: wanted,
            minimum,
        };
        Asked { ask, alone: false }
    }

    /// So long a lease shall last.
    pub(super) fn lease_micros(&self) -> i64 {
        let acquisition = self.acquisition.load(Ordering::Relaxed);
        let needed = acquisition.saturating_mul(LEASE_ACQUISITIONS);
        needed.clamp(LEASE_MICROS_MIN, LEASE_MICROS_MAX)
    }

    /// Notes how long an acquisition took that began at `since` and was answered.
    pub(super) fn note_acquisition(&self, since: i64) {
        let micros = self.monotonic_micros().saturating_sub(since);
        self.acquisition.fetch_max(micros, Ordering::Relaxed);
    }

    /// How much of a lease stays here without a call, when the wallet has so much left.
    pub(super) fn kept(&self, available: i64, per_call: i64) -> i64 {
        let gateways = self.live_gateways.load(Ordering::Relaxed);
        let part = |parts| lease_part(available, parts, gateways);
        // Where even one call is much, all goes back: else it were gone if this process died.
        match per_call <= part(CALL_PARTS) {
            true => per_call.max(part(LEASE_SMALL_PARTS)),
            false => part(LEASE_SMALL_PARTS),
        }
    }

    /// An acquisition that took long is forgotten by and by; called once a second.
    pub(super) fn forget_acquisition(&self) {
        let lately = self.acquisition.load(Ordering::Relaxed);
        let less = lately.saturating_mul(7) / 8;
        self.acquisition.fetch_min(less, Ordering::Relaxed);
    }
}
