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

/// Appends where a request came from as `Forwarded` says it (RFC 7239): the same as the three
/// `X-Forwarded-` fields.
pub(crate) fn write_forwarded(
    text: &mut String,
    (client, scheme): (IpAddr, &str),
    host: Option<&str>,
) {
    let (before, after) = match client {
        IpAddr::V4(_) => ("for=", ";proto="),
        // Brackets and colons stand in no token.
        IpAddr::V6(_) => ("for=\"[", "]\";proto="),
    };
    text.push_str(before);
    write(text, client);
    text.push_str(after);
    text.push_str(scheme);
    let Some(host) = host else {
        return;
    };
    text.push_str(";host=");
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if host.bytes().all(is_name) {
        return text.push_str(host);
    }
    text.push('"');
    // The listener lets no such host in; a quotation ends where we end it, even so.
    if host.bytes().any(|byte| matches!(byte, b'"' | b'\\')) {
        for sign in host.chars() {
            if matches!(sign, '"' | '\\') {
                text.push('\\');
            }
            text.push(sign);
        }
    } else {
        text.push_str(host);
    }
    text.push('"');
}

fn contains(net: &IpNet, address: IpAddr) -> bool {
    let (IpNet::V6(net), IpAddr::V4(address)) = (net, address) else {
        return net.contains(&address);
    };
    // `::ffff:10.0.0.0/104` was written for IPv4 clients. `::/0` was not, its network is no mapped
    // one: who listed IPv6 networks only has not admitted all of IPv4 with them.
    net.network().to_ipv4_mapped().is_some() && net.contains(&address.to_ipv6_mapped())
}
