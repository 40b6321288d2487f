//! Finds the one credential of a request.

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use types::{PresentedKey, Refusal};

/// Query parameters that people put keys into. A URL ends up in logs, so a key there is refused.
const QUERY_NAMES: [&[u8]; 4] = [b"api_key", b"apikey", b"key", b"access_token"];

/// How an `Authorization` with a key begins, in any case.
const BEARER: &[u8] = b"bearer ";

/// Reads the presented key.
///
/// # Errors
/// None, more than one, one in the query, or one that cannot be a key.
pub(crate) fn find(headers: &HeaderMap, query: Option<&str>) -> Result<PresentedKey, Refusal> {
    if query.is_some_and(holds_key) {
        return Err(Refusal::AmbiguousCredentials);
    }
    let mut authorizations = headers.get_all(AUTHORIZATION).iter();
    let mut plain = headers.get_all("x-api-key").iter();
    let (authorization, api_key) = (authorizations.next(), plain.next());
    if authorizations.next().is_some() || plain.next().is_some() {
        return Err(Refusal::AmbiguousCredentials);
    }
    read(authorization.map(text), api_key.map(text))
}

fn text(value: &HeaderValue) -> &[u8] {
    value.to_str().unwrap_or_default().as_bytes()
}

/// Reads the key in one of the two fields that may hold it. The query was looked at.
///
/// # Errors
/// None, two, or one that cannot be a key.
pub(crate) fn read(
    authorization: Option<&[u8]>,
    api_key: Option<&[u8]>,
) -> Result<PresentedKey, Refusal> {
    let text = match (authorization, api_key) {
        (Some(_), Some(_)) => return Err(Refusal::AmbiguousCredentials),
        (None, None) => return Err(Refusal::MissingKey),
        (None, Some(value)) => value,
        (Some(value), None) => match value.split_at_checked(BEARER.len()) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case(BEARER) => key.trim_ascii(),
            _ => return Err(Refusal::MissingKey),
        },
    };
    PresentedKey::parse(text).map_err(|_one_answer_for_all| Refusal::InvalidKey)
}

/// Whether a query holds what looks like a key.
pub(crate) fn holds_key(query: &str) -> bool {
    query.as_bytes().split(|byte| *byte == b'&').any(|pair| {
        let mut parts = pair.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let value = parts.next().unwrap_or_default();
        value.starts_with(b"sk_")
            && (value.starts_with(b"sk_live_")
                || value.starts_with(b"sk_test_")
                || QUERY_NAMES.contains(&name))
    })
}
