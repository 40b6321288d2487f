use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use maxminddb::{Reader, WithinOptions, path};

use super::{Countries, Country};

const MMDB_MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";
/// The format wants its marker within this distance of the end.
const MMDB_TAIL_BYTES: usize = 128 * 1024;
/// Several times what a city database holds; a search tree with more is refused. A small damaged
/// file can describe a tree that would take for ever to walk.
const MMDB_NETWORKS_MAX: u64 = 50_000_000;

pub(super) fn is_mmdb(bytes: &[u8]) -> bool {
    let tail = bytes.len().saturating_sub(MMDB_TAIL_BYTES);
    let tail = bytes.get(tail..).unwrap_or_default();
    tail.windows(MMDB_MARKER.len())
        .any(|window| window == MMDB_MARKER)
}

/// Reads `country.iso_code` of every network, and no other field: `registered_country` says where
/// the owner of a network sits, not its users.
pub(super) fn mmdb(bytes: Vec<u8>, into: &mut Countries) -> Result<()> {
    let reader = Reader::from_source(bytes)?;
    // Networks without data count as well, so that the limit bounds the walk and not its yield.
    let options = WithinOptions::default().include_networks_without_data();
    let mut networks: u64 = 0;
    for entry in reader.networks(options)? {
        networks = networks.saturating_add(1);
        ensure!(
            networks <= MMDB_NETWORKS_MAX,
            "more than {MMDB_NETWORKS_MAX} networks"
        );
        let entry = entry?;
        let code: Option<&str> = entry.decode_path(&path!["country", "iso_code"])?;
        let Some(code) = code else { continue };
        let network = entry.network()?;
        into.push(
            network.network(),
            network.broadcast(),
            Country::from_code(code),
        )
        .with_context(|| format!("network {network}"))?;
    }
    Ok(())
}

/// Reads lines `low,high,CC`: IPv4 addresses as decimal numbers, IPv6 addresses as usual.
pub(super) fn text(bytes: &[u8], name: &Path, into: &mut Countries) -> Result<()> {
    let text = str::from_utf8(bytes)
        .with_context(|| format!("{} is neither a MaxMind database nor text", name.display()))?;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        push_line(line, into)
            .with_context(|| format!("{}:{}", name.display(), index.saturating_add(1)))?;
    }
    Ok(())
}

fn push_line(line: &str, into: &mut Countries) -> Result<()> {
    let mut fields = line.split(',');
    let (Some(low), Some(high), Some(code), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        bail!("expected low,high,country");
    };
    ensure!(code.len() == 2, "expected a country of two letters");
    into.push(address(low)?, address(high)?, Country::from_code(code))
}

fn address(field: &str) -> Result<IpAddr> {
    if field.contains(':') {
        return Ok(IpAddr::V6(field.parse::<Ipv6Addr>()?));
    }
    let number = field
        .parse::<u32>()
        .context("expected an IPv4 address as a decimal number")?;
    Ok(IpAddr::V4(Ipv4Addr::from(number)))
}
