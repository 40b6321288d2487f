//! Requests as bytes, prepared before anything is measured.

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use types::{Environment, KEY_RANDOM_BYTES, NewKey};

use super::load::Requests;

/// A large request's body.
const BODY_BYTES: usize = 64 << 10;
/// Keys that nobody issued; each is presented a few times at most.
const INVALID_KEYS: usize = 100_000;
/// How many times more of them there are in a flood than valid ones.
const FLOOD: usize = 10;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// An answer of 300 bytes.
    Small,
    /// An answer of 64 KiB.
    Large,
    /// To take 64 KiB.
    Upload,
}

/// One request with each key.
pub(crate) fn with_keys(ask: Ask, keys: &[String]) -> Requests {
    keys.iter().map(|key| request(ask, key, "")).collect()
}

/// Ten requests with an invalid key for each with a valid one, from a few hundred addresses.
pub(crate) fn flood(keys: &[String], seed: u64) -> Requests {
    let mut random = StdRng::seed_from_u64(seed);
    let mut all = Vec::with_capacity(INVALID_KEYS + INVALID_KEYS / FLOOD);
    for number in 0..INVALID_KEYS {
        let mut bytes = [0; KEY_RANDOM_BYTES];
        random.fill_bytes(&mut bytes);
        let key = NewKey::from_random(Environment::Production, &bytes);
        // Of the second block for measurements: valid calls come from loopback.
        let from = format!(
            "x-forwarded-for: 198.19.0.{}\r\n",
            random.random_range(1..=250)
        );
        all.push(request(Ask::Small, key.reveal(), &from));
        if number % FLOOD == 0 {
            let key = &keys[number / FLOOD % keys.len()];
            all.push(request(Ask::Small, key, ""));
        }
    }
    all.into()
}

fn request(ask: Ask, key: &str, more: &str) -> Vec<u8> {
    let (method, path, body) = match ask {
        Ask::Small => ("GET", "small", 0),
        Ask::Large => ("GET", "large", 0),
        Ask::Upload => ("POST", "upload", BODY_BYTES),
    };
    let length = match body {
        0 => String::new(),
        bytes => format!("content-type: text/plain\r\ncontent-length: {bytes}\r\n"),
    };
    let head = format!(
        "{method} /api/v1/edge/{path}?id=42 HTTP/1.1\r\nhost: api.example.com\r\n\
         user-agent: benches\r\naccept: application/json\r\nx-api-key: {key}\r\n{more}{length}\r\n"
    );
    let mut request = head.into_bytes();
    request.resize(request.len() + body, b'x');
    request
}
