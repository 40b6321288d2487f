//! Secrets that are handed out once and kept as hashes: links in mails, recovery codes.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

/// Random bytes of a link's token.
pub(crate) const TOKEN_BYTES: usize = 32;
/// Random bytes of one recovery code: 60 bits are used.
pub(crate) const CODE_BYTES: usize = 12;
/// Recovery codes a user gets.
pub(crate) const CODES: usize = 10;
/// Without letters that are taken for others.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Characters between two hyphens of a recovery code.
const GROUP: usize = 4;
/// A longer token is none of ours.
const TEXT_MAX: usize = 64;

/// The text of a link's token.
pub(crate) fn token(random: &[u8; TOKEN_BYTES]) -> String {
    URL_SAFE_NO_PAD.encode(random)
}

/// What is stored of a token; `None` for what cannot be one.
pub(crate) fn token_hash(text: &str) -> Option<[u8; 32]> {
    let fits = (1..=TEXT_MAX).contains(&text.len());
    fits.then(|| hash("token", text.as_bytes()))
}

/// Makes a recovery code such as `7k2m-x0d9-wq4t`.
pub(crate) fn recovery_code(random: &[u8; CODE_BYTES]) -> String {
    let mut code = String::new();
    for (n, byte) in random.iter().enumerate() {
        if n > 0 && n % GROUP == 0 {
            code.push('-');
        }
        code.push(char::from(ALPHABET[usize::from(byte % 32)]));
    }
    code
}

/// What is stored of a recovery code, however it was typed.
pub(crate) fn recovery_code_hash(text: &str) -> Option<[u8; 32]> {
    let code: String = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .map(|c| match c.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            c => c,
        })
        .collect();
    (code.len() == CODE_BYTES).then(|| hash("recovery-code", code.as_bytes()))
}

/// sha256 over a purpose and a value: hashes of two purposes never meet.
pub(crate) fn hash(purpose: &str, value: &[u8]) -> [u8; 32] {
    let mut sha = Sha256::new();
    sha.update(purpose.as_bytes());
    sha.update([0]);
    sha.update(value);
    sha.finalize().into()
}
