//! The address of a call: whether a key's allow-list admits it, and how upstreams are told.

use std::{io::Write as _, net::IpAddr};

use ipnet::IpNet;

#[cfg(test)]
mod tests;

/// Whether a key restricted to `list` may be used from `address`; an empty list restricts nothing.
pub(crate) fn allowed(list: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    list.is_empty() || list.iter().any(|net| contains(net, address))
}

/// Appends an address as a header says it.
pub(crate) fn write(text: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let mut digits = itoa::Buffer::new();
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    text.push(b'.');
                }
                text.extend_from_slice(digits.format(octet).as_bytes());
            }
        }
        IpAddr::V6(address) => write!(text, "{address}").expect("a buffer takes all"),
    }
}

/// Appends where a request came from as `Forwarded` says it (RFC 7239): the same as the three
/// `X-Forwarded-` fields.
pub(crate) fn write_forwarded(
    text: &mut Vec<u8>,
    (client, scheme): (IpAddr, &str),
    host: Option<&[u8]>,
) {
    let (before, after) = match client {
        IpAddr::V4(_) => ("for=", ";proto="),
        // Brackets and colons stand in no token.
        IpAddr::V6(_) => ("for=\"[", "]\";proto="),
    };
    text.extend_from_slice(before.as_bytes());
    write(text, client);
    text.extend_from_slice(after.as_bytes());
    text.extend_from_slice(scheme.as_bytes());
    let Some(host) = host else {
        return;
    };
    text.extend_from_slice(b";host=");
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if host.iter().all(is_name) {
        return text.extend_from_slice(host);
    }
    text.push(b'"');
    // The listener lets no such host in; a quotation ends where we end it, even so.
    if host.iter().any(|byte| matches!(byte, b'"' | b'\\')) {
        for sign in host {
            if matches!(sign, b'"' | b'\\') {
                text.push(b'\\');
            }
            text.push(*sign);
        }
    } else {
        text.extend_from_slice(host);
    }
    text.push(b'"');
}

fn contains(net: &IpNet, address: IpAddr) -> bool {
    let (IpNet::V6(net), IpAddr::V4(address)) = (net, address) else {
        return net.contains(&address);
    };
    // `::ffff:10.0.0.0/104` was written for IPv4 clients. `::/0` was not, its network is no mapped
    // one: who listed IPv6 networks only has not admitted all of IPv4 with them.
    net.network().to_ipv4_mapped().is_some() && net.contains(&address.to_ipv6_mapped())
}
