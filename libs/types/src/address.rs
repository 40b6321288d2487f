//! Which address a request is attributed to.
//!
//! - Without configured proxies only the peer counts: a forged `X-Forwarded-For` changes nothing.
//! - With `n` configured proxies exactly the `n`-th entry from the right counts, the one that the
//!   outermost of them wrote. What stands left of it is the client's own invention.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

#[cfg(test)]
mod tests;

/// Entries looked at, from the right; a larger number of trusted hops counts as this one.
const HOPS_MAX: u8 = 16;
/// The longest entry worth parsing: an IPv6 address in full with brackets, zone and port fits.
const ENTRY_BYTES_MAX: usize = 64;

/// Returns the client's address as far as it can be trusted.
///
/// `forwarded_for` are the values of all `X-Forwarded-For` headers in the order received, for
/// instance `headers.get_all("x-forwarded-for").iter()`; `trusted_hops` is the number of proxies
/// in front of us that append to it. Where an entry is missing or malformed, the answer is the
/// last address that a trusted hop vouched for.
#[must_use]
pub fn client_address<V: AsRef<[u8]>>(
    peer: IpAddr,
    forwarded_for: impl DoubleEndedIterator<Item = V>,
    trusted_hops: u8,
) -> IpAddr {
    let mut address = peer.to_canonical();
    let mut hops = 0..trusted_hops.min(HOPS_MAX);
    for value in forwarded_for.rev() {
        for entry in value.as_ref().rsplit(|byte| *byte == b',') {
            if hops.next().is_none() {
                return address;
            }
            let Some(entry) = parse(entry) else {
                return address;
            };
            address = entry;
        }
    }
    address
}

/// Parses `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]` and `[::1]:80`.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    let entry = entry.trim_ascii();
    if entry.len() > ENTRY_BYTES_MAX {
        return None;
    }
    let text = str::from_utf8(entry).ok()?;
    let address = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
        .or_else(|| {
            let inner = text.strip_prefix('[')?.strip_suffix(']')?;
            Some(IpAddr::V6(inner.parse::<Ipv6Addr>().ok()?))
        })?;
    Some(address.to_canonical())
}
