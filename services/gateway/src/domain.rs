//! The decision on a call: values and `now` in, one refusal or none out. Cheapest check first;
//! what costs credits comes last and is not decided here.

use std::net::IpAddr;

use types::Refusal;

use crate::{address, catalogue::Route, keyring::Entry};

/// Judges a key for a route. `now_micros` is Unix time.
///
/// # Errors
/// The first check that fails, in the order status, expiry, address list, scope.
pub(crate) fn judge(
    entry: &Entry,
    route: &Route,
    client: IpAddr,
    now_micros: i64,
) -> Result<(), Refusal> {
    judge_key(entry, now_micros)?;
    if !address::allowed(&entry.allow, client) {
        return Err(Refusal::IpNotAllowed);
    }
    if !entry.scopes.contain(&route.scope) {
        return Err(Refusal::InsufficientScope);
    }
    Ok(())
}

/// Judges a key alone, for calls that no route claims.
///
/// # Errors
/// Revoked, expired or suspended.
pub(crate) fn judge_key(entry: &Entry, now_micros: i64) -> Result<(), Refusal> {
    if entry.revoked {
        return Err(Refusal::KeyRevoked);
    }
    if entry.expires_at.is_some_and(|end| now_micros >= end) {
        return Err(Refusal::KeyExpired);
    }
    if !entry.active {
        return Err(Refusal::KeySuspended);
    }
    Ok(())
}
