//! The address of a call: whether a key's allow-list admits it, and how upstreams are told.

use std::{fmt::Write as _, net::IpAddr};

use ipnet::IpNet;

#[cfg(test)]
mod tests;

/// Whether a key restricted to `list` may be used from `address`; an empty list restricts nothing.
pub(crate) fn allowed(list: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    list.is_empty() || list.iter().any(|net| contains(net, address))
}

/// Appends an address as a header says it.
pub(crate) fn write(text: &mut String, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let mut digits = itoa::Buffer::new();
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    text.push('.');
                }
                text.push_str(digits.format(octet));
            }
        }
        IpAddr::V6(address) => write!(text, "{address}").expect("a string takes all"),
    }
}

fn contains(net: &IpNet, address: IpAddr) -> bool {
    let (IpNet::V6(net), IpAddr::V4(address)) = (net, address) else {
        return net.contains(&address);
    };
    // `::ffff:10.0.0.0/104` was written for IPv4 clients. `::/0` was not, its network is no mapped
    // one: who listed IPv6 networks only has not admitted all of IPv4 with them.
    net.network().to_ipv4_mapped().is_some() && net.contains(&address.to_ipv6_mapped())
}
