//! Reports of keys that were found in public, and whose word they are.
//!
//! A report needs no signature: whoever has a key can prove it by the key. A signature says who
//! found it, and a wrong one says that somebody lies about that.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use types::{KeyDigest, parse_key_name};

use crate::error::{Error, Result};

/// Bytes of a signed report.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// What stands before the point in the DER of a public key of P-256 (RFC 5480).
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point: 4, x, y.
const POINT_BYTES: usize = 65;
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// Public keys of scanners, by the identifier their reports carry.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Scanners {
    keys: BTreeMap<String, Scanner>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Scanner {
    source: String,
    point: Vec<u8>,
}

/// A report's signature, as it came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed<'a> {
    pub(crate) payload: &'a [u8],
    /// DER in base64.
    pub(crate) signature: &'a str,
    pub(crate) key_identifier: &'a str,
}

/// What a report names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Named<'a> {
    Text(&'a str),
    Digest(&'a KeyDigest),
}

impl Scanners {
    /// Reads blocks: a line `<source> <identifier>`, then a public key as PEM.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut keys = BTreeMap::new();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        while let Some(head) = lines.next() {
            let Some((source, identifier)) = head.split_once(' ') else {
                return Err(format!(
                    "has `{head}` where a name and an identifier should be"
                ));
            };
            if lines.next() != Some(BEGIN) {
                return Err(format!("has no public key in PEM behind `{head}`"));
            }
            let mut body = String::new();
            while let Some(line) = lines.next().filter(|line| *line != END) {
                body.push_str(line);
            }
            let der = STANDARD.decode(&body).unwrap_or_default();
            let point = der.strip_prefix(&SPKI).filter(|it| it.len() == POINT_BYTES);
            let Some(point) = point else {
                return Err(format!("has no key of the curve P-256 behind `{head}`"));
            };
            let source = parse_key_name("source", source).map_err(|error| error.to_string())?;
            let scanner = Scanner {
                source,
                point: point.to_vec(),
            };
            if keys.insert(identifier.trim().to_owned(), scanner).is_some() {
                return Err(format!("has the identifier of `{head}` twice"));
            }
        }
        Ok(Self { keys })
    }

    /// Whose report it is. A signature under something else than this key is as wrong as none that
    /// fits: it could have been taken from another report.
    pub(crate) fn source_of(&self, signed: Signed<'_>, named: Named<'_>) -> Result<&str> {
        if signed.payload.len() > PAYLOAD_BYTES_MAX {
            let problem = format!("must be at most {PAYLOAD_BYTES_MAX} bytes");
            return Err(Error::invalid("payload", problem));
        }
        let scanner = self.keys.get(signed.key_identifier);
        let scanner = scanner.ok_or(Error::WrongSignature)?;
        let signature = STANDARD.decode(signed.signature).unwrap_or_default();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &scanner.point)
            .verify(signed.payload, &signature)
            .map_err(|_wrong| Error::WrongSignature)?;
        match named.is_in(signed.payload) {
            true => Ok(&scanner.source),
            false => Err(Error::WrongSignature),
        }
    }
}

impl Named<'_> {
    fn is_in(self, payload: &[u8]) -> bool {
        match self {
            Self::Text(text) => has(payload, text.as_bytes()),
            // Hex has no case.
            Self::Digest(digest) => {
                let bytes = digest.bytes().iter();
                let hex: String = bytes.map(|byte| format!("{byte:02x}")).collect();
                has(&payload.to_ascii_lowercase(), hex.as_bytes())
            }
        }
    }
}

fn has(payload: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && payload.windows(part.len()).any(|it| it == part)
}
