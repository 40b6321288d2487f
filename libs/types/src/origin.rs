//! Where a web page is from, as browsers say it (RFC 6454).
//!
//! - An origin is stored as browsers write it: comparing is comparing bytes.
//! - What has a path, a user or a wildcard inside is refused, not cut to something that fits.

use std::{fmt, net::Ipv6Addr};

use thiserror::Error;

#[cfg(test)]
mod tests;

/// Characters of an origin: a host has at most 253.
pub const ORIGIN_CHARS_MAX: usize = 300;

/// The origin of web pages, or any.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct WebOrigin(String);

/// Why a text is no origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "must be `scheme://host` or `scheme://host:port` such as https://app.example.com, in ASCII and \
     without a path, or `*`"
)]
pub struct OriginError;

impl WebOrigin {
    /// Reads an origin; scheme and host are lowered, and a port that goes without saying is left
    /// out, as browsers do.
    ///
    /// # Errors
    /// It is none, or `null`, which many pages share that have nothing in common.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        if text == "*" {
            return Ok(Self(text.to_owned()));
        }
        if text.len() > ORIGIN_CHARS_MAX {
            return Err(OriginError);
        }
        let text = text.to_ascii_lowercase();
        let (scheme, authority) = text.split_once("://").ok_or(OriginError)?;
        let (host, port) = split(authority).ok_or(OriginError)?;
        if !is_scheme(scheme) || !is_host(host) {
            return Err(OriginError);
        }
        let Some(port) = port else {
            return Ok(Self(text));
        };
        let is_number = (1..=5).contains(&port.len()) && port.bytes().all(|it| it.is_ascii_digit());
        let number: u16 = match port.parse() {
            Ok(number) if is_number => number,
            _ => return Err(OriginError),
        };
        Ok(Self(match (scheme, number) {
            ("http", 80) | ("https", 443) => format!("{scheme}://{host}"),
            _ => format!("{scheme}://{host}:{number}"),
        }))
    }

    /// True for the one that stands for all.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0 == "*"
    }

    /// As browsers write it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Host and port. An address of IPv6 has brackets, and colons inside.
fn split(authority: &str) -> Option<(&str, Option<&str>)> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')?.checked_add("[]".len())?;
            authority.split_at_checked(end)?
        }
        None => authority.split_at_checked(authority.find(':').unwrap_or(authority.len()))?,
    };
    match rest.strip_prefix(':') {
        Some(port) => Some((host, Some(port))),
        None => rest.is_empty().then_some((host, None)),
    }
}

fn is_scheme(text: &str) -> bool {
    let is_sign = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(is_sign)
}

fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[') {
        return address
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    let is_sign = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(is_sign)
}
