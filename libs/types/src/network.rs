//! Which addresses calls may be sent to.
//!
//! - What only the provider's own machines can reach is refused unless it is on a list: whoever
//!   names an upstream would else read what was never published.
//! - An IPv4 address in an IPv6 coat (mapped, translated, 6to4) is judged as what is inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

#[cfg(test)]
mod tests;

/// Networks of IPv4 that are not the public internet: RFC 6890 and its successors, multicast,
/// what is reserved, and the one public address at which a cloud answers its guests alone.
const NOT_PUBLIC_V4: [(Ipv4Addr, u8); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Among them 169.254.169.254, which hands out a machine's credentials.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Of IPv6 only this is given out for global use …
const PUBLIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// … but for protocols (Teredo among them), documentation, and the prefix of 6to4.
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 3] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Networks on a list.
const NETWORKS_MAX: usize = 256;

/// Whether anybody on the internet could call this address.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match inside(v6) {
            Some(v4) => is_public_v4(v4),
            None => is_public_v6(v6),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !NOT_PUBLIC_V4
        .iter()
        .any(|(network, bits)| Ipv4Net::new_assert(*network, *bits).contains(&address))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let within =
        |(network, bits): &(Ipv6Addr, u8)| Ipv6Net::new_assert(*network, *bits).contains(&address);
    within(&PUBLIC_V6) && !NOT_PUBLIC_V6.iter().any(within)
}

/// The IPv4 address that packets to this one end at: mapped (`::ffff:0:0/96`), translated
/// (`64:ff9b::/96`) or carried over (`2002::/16`).
fn inside(address: Ipv6Addr) -> Option<Ipv4Addr> {
    if let Some(v4) = address.to_ipv4_mapped() {
        return Some(v4);
    }
    let from = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(from(high, low)),
        [0x2002, high, low, ..] => Some(from(high, low)),
        _ => None,
    }
}

/// Networks that calls may be sent to beside the public internet.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Reads networks such as `10.1.0.0/16, fd12::/64` with commas between them; an address alone
    /// is a network of one.
    ///
    /// # Errors
    /// What is wrong, to be put behind the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut networks = Vec::new();
        for part in text.split(',').map(str::trim) {
            if part.is_empty() {
                continue;
            }
            let network = part
                .parse::<IpNet>()
                .ok()
                .or_else(|| part.parse().ok().map(|address: IpAddr| address.into()))
                .ok_or_else(|| {
                    format!(
                        "must be networks such as 10.1.0.0/16 with commas between them, and \
                         `{part}` is none"
                    )
                })?;
            networks.push(network);
        }
        if networks.len() > NETWORKS_MAX {
            return Err(format!("must be at most {NETWORKS_MAX} networks"));
        }
        Ok(Self(networks))
    }

    /// Whether calls may be sent to this address.
    #[must_use]
    pub fn allow(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.0.iter().any(|network| network.contains(&address))
    }
}
