//! Which country an address belongs to, from a database that the operator supplies.
//!
//! - Every doubt is `ZZ`: no database, no entry, no country code, no public address. Never a guess.
//! - A damaged database is refused as a whole when it is opened, with the file and line at fault.
//! - Both formats become the same sorted tables in memory, so a look-up takes no lock, allocates
//!   nothing, and cannot be hurt by a file that is replaced or truncated later.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use self::table::Table;

mod read;
mod table;
#[cfg(test)]
mod tests;

/// Larger than any country or city database in use; a larger file is refused.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// What Debian's `tor-geoipdb` names its two files.
const TEXT_FILES: [&str; 2] = ["geoip", "geoip6"];

/// The officially assigned codes of ISO 3166-1, sorted, and `XK`: user-assigned, but the one code
/// everybody uses for Kosovo. Not among them are `EU` and `AP`, which databases use for addresses
/// somewhere on a continent, nor `A1`, `T1` and the like for proxies: they are no country.
const CODES: &str = "\
    ADAEAFAGAIALAMAOAQARASATAUAWAXAZBABBBDBEBFBGBHBIBJBLBMBNBOBQBRBSBTBVBWBYBZCACCCDCFCGCHCICK\
    CLCMCNCOCRCUCVCWCXCYCZDEDJDKDMDODZECEEEGEHERESETFIFJFKFMFOFRGAGBGDGEGFGGGHGIGLGMGNGPGQGRGS\
    GTGUGWGYHKHMHNHRHTHUIDIEILIMINIOIQIRISITJEJMJOJPKEKGKHKIKMKNKPKRKWKYKZLALBLCLILKLRLSLTLULV\
    LYMAMCMDMEMFMGMHMKMLMMMNMOMPMQMRMSMTMUMVMWMXMYMZNANCNENFNGNINLNONPNRNUNZOMPAPEPFPGPHPKPLPM\
    PNPRPSPTPWPYQARERORSRURWSASBSCSDSESGSHSISJSKSLSMSNSOSRSSSTSVSXSYSZTCTDTFTGTHTJTKTLTMTNTOTR\
    TTTVTWTZUAUGUMUSUYUZVAVCVEVGVIVNVUWFWSXKYEYTZAZMZW";

/// An ISO 3166-1 alpha-2 code in upper case, or `ZZ`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Country([u8; 2]);

impl Country {
    /// No country is known: `ZZ`.
    pub(crate) const UNKNOWN: Country = Country(*b"ZZ");

    /// Reads what a database says; anything but an assigned code is [`Country::UNKNOWN`].
    fn from_code(code: &str) -> Country {
        let Ok(code) = <[u8; 2]>::try_from(code.as_bytes()) else {
            return Country::UNKNOWN;
        };
        let code = code.map(|letter| letter.to_ascii_uppercase());
        match CODES.as_bytes().as_chunks().0.binary_search(&code) {
            Ok(_) => Country(code),
            Err(_) => Country::UNKNOWN,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("codes are two ASCII letters")
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The operator's country database, or none.
#[derive(Default)]
pub(crate) struct Countries {
    v4: Table<u32>,
    v6: Table<u128>,
}

impl Countries {
    /// No database: every address is [`Country::UNKNOWN`].
    pub(crate) fn none() -> Countries {
        Countries::default()
    }

    /// Reads a MaxMind database, or the text files of Debian's `tor-geoipdb`: either of them (the
    /// other one beside it is read too) or their directory. The content decides which it is.
    pub(crate) fn open(path: &Path) -> Result<Countries> {
        let mut countries = Countries::none();
        for file in files(path)? {
            let bytes = bytes(&file)?;
            if read::is_mmdb(&bytes) {
                read::mmdb(bytes, &mut countries)
                    .with_context(|| format!("country database {}", file.display()))?;
            } else {
                read::text(&bytes, &file, &mut countries)?;
            }
        }
        countries.v4.finish();
        countries.v6.finish();
        // An empty or foreign file must not look like a database that happens to know nobody.
        if !countries.v4.knows_a_country() && !countries.v6.knows_a_country() {
            bail!("{} holds no country", path.display());
        }
        Ok(countries)
    }

    /// Returns the country of a public address, in about twenty comparisons.
    pub(crate) fn country(&self, address: IpAddr) -> Country {
        match address.to_canonical() {
            IpAddr::V4(address) if is_public_v4(address) => self.v4.get(address.into()),
            IpAddr::V6(address) if is_public_v6(address) => self.v6.get(address.into()),
            _ => Country::UNKNOWN,
        }
    }

    fn push(&mut self, low: IpAddr, high: IpAddr, country: Country) -> Result<()> {
        match (low, high) {
            (IpAddr::V4(low), IpAddr::V4(high)) => self.v4.push(low.into(), high.into(), country),
            (IpAddr::V6(low), IpAddr::V6(high)) => self.v6.push(low.into(), high.into(), country),
            _ => bail!("the range from {low} to {high} mixes IPv4 and IPv6"),
        }
    }
}

/// A database may label other addresses as well, but where those are is nobody's public knowledge.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    let shared_by_carrier = first == 100 && (64..128).contains(&second);
    let reserved = first == 0 || first >= 224;
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || shared_by_carrier
        || reserved)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // 2000::/3 is all the unicast space ever given out.
    u128::from(address) >> 125 == 1
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        let found: Vec<_> = TEXT_FILES
            .iter()
            .map(|name| path.join(name))
            .filter(|file| file.is_file())
            .collect();
        ensure!(
            !found.is_empty(),
            "{} holds neither geoip nor geoip6",
            path.display()
        );
        return Ok(found);
    }
    let mut found = vec![path.to_owned()];
    if let Some(at) = TEXT_FILES.iter().position(|name| path.ends_with(name)) {
        let [first, second] = TEXT_FILES;
        let sibling = path.with_file_name(if at == 0 { second } else { first });
        found.extend(sibling.is_file().then_some(sibling));
    }
    Ok(found)
}

fn bytes(file: &Path) -> Result<Vec<u8>> {
    let name = || format!("country database {}", file.display());
    let mut bytes = Vec::new();
    let opened = File::open(file).with_context(name)?;
    let limit = FILE_BYTES_MAX.saturating_add(1);
    let read = opened
        .take(limit)
        .read_to_end(&mut bytes)
        .with_context(name)?;
    let within = u64::try_from(read).is_ok_and(|read| read <= FILE_BYTES_MAX);
    ensure!(
        within,
        "{} is larger than {FILE_BYTES_MAX} bytes",
        file.display()
    );
    Ok(bytes)
}
