//! How often strangers may ask, by address. In memory: what a restart forgets costs nothing.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use parking_lot::Mutex;
use types::{Gcra, Rate};

use crate::error::{Error, Result};

/// Requests of one address.
const RATE: Rate = Rate {
    per_second: 1,
    burst: 30,
};
/// Addresses remembered. When so many are busy at once, further ones are refused.
const ADDRESSES_MAX: usize = 10_000;
/// Whoever has an IPv6 address has at least so many leading bits for himself.
const IPV6_PREFIX_BITS: u32 = 64;

/// The pace of every address that was seen lately.
#[derive(Default)]
pub(crate) struct Pace(Mutex<HashMap<IpAddr, Gcra>>);

impl Pace {
    /// Takes a place for a request of this address at `now` (monotonic nanoseconds).
    pub(crate) fn take(&self, address: IpAddr, now: u64) -> Result<()> {
        let address = household(address);
        let mut seen = self.0.lock();
        if seen.len() >= ADDRESSES_MAX && !seen.contains_key(&address) {
            // Who has rested is as good as new.
            seen.retain(|_, pace| pace.remaining(RATE, now) < RATE.burst);
            if seen.len() >= ADDRESSES_MAX {
                return Err(Error::TooMany { wait_seconds: 1 });
            }
        }
        let pace = seen.entry(address).or_default();
        pace.admit(RATE, now).map_err(|wait| Error::TooMany {
            wait_seconds: wait.div_ceil(1_000_000_000).max(1),
        })
    }
}

fn household(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(it) => {
            let mask = u128::MAX << (u128::BITS - IPV6_PREFIX_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(it.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests;
