//! WebSockets over HTTP/2 (RFC 8441): a stream opened by an extended CONNECT, which its upstream
//! knows as a change of protocols in HTTP/1.1.
//!
//! - From here on such a request is a GET, as it would be by HTTP/1.1: the same routes, checks and
//!   prices.
//! - In HTTP/1.1 a client shows that it means a WebSocket by a challenge (RFC 6455, 4.1). By HTTP/2
//!   it sends none, so the gateway does, and looks at what the upstream makes of it.
//! - To this client any success says that the tunnel has begun. So nothing but that passes as one.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY},
};
use runtime::Ids;
use types::RequestId;

use crate::listen::Opened;

/// What the token of `:protocol` and `Upgrade` is called.
pub(super) const WEBSOCKET: &str = "websocket";
/// What an upstream adds to the challenge before it hashes it (RFC 6455, 1.3).
const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The client's side of a WebSocket over HTTP/2, and what its upstream is asked.
pub(super) struct Socket {
    challenge: HeaderValue,
    /// Its connection is in use.
    _opened: Opened,
}

impl Socket {
    pub(super) fn new(ids: &Ids, opened: Opened) -> Self {
        // The last eight bytes of a UUIDv7 are random.
        let random = || -> [u8; 8] {
            let id: RequestId = ids.new_id();
            let [_, _, _, _, _, _, _, _, random @ ..] = *id.bytes();
            random
        };
        let text = STANDARD.encode([random(), random()].concat());
        Self {
            challenge: HeaderValue::try_from(text).expect("base64 is ASCII"),
            _opened: opened,
        }
    }

    /// Asks the upstream for it.
    pub(super) fn put(&self, headers: &mut HeaderMap) {
        headers.insert(SEC_WEBSOCKET_KEY, self.challenge.clone());
    }

    /// Whether the upstream, which has changed protocols, has understood.
    pub(super) fn is_meant(&self, head: &HeaderMap) -> bool {
        let mut said = head.get_all(SEC_WEBSOCKET_ACCEPT).iter();
        let said = (said.next(), said.next());
        matches!(said, (Some(said), None) if *said == *accept(self.challenge.as_bytes()))
    }

    /// The head of the 101 as this client gets it.
    pub(super) fn tell(status: &mut StatusCode, headers: &mut HeaderMap) {
        *status = StatusCode::OK;
        headers.remove(SEC_WEBSOCKET_ACCEPT);
    }
}

/// What is answered to a challenge.
pub(crate) fn accept(challenge: &[u8]) -> String {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[challenge, MAGIC].concat());
    STANDARD.encode(hash)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_challenge_is_answered_as_the_standard_shows_it() {
        let answer = super::accept(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(answer, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
