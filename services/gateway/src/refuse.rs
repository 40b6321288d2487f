//! Answers that the edge gives itself.

use std::time::Duration;

use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use types::{Refusal, RequestId};

use crate::body::EdgeBody;

/// Spares clients that know it (the SDKs of OpenAI and others) attempts in vain.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A refusal with what belongs to it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    /// For the caller, with the remedy.
    pub(crate) detail: &'static str,
    /// Seconds after which it may work.
    pub(crate) retry_after: Option<u64>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let retry_after = match refusal {
            Refusal::MeteringUnavailable
            | Refusal::CreditsUnavailable
            | Refusal::UpstreamBusy
            | Refusal::Overloaded
            | Refusal::Draining => Some(1),
            _ => None,
        };
        Self {
            refusal,
            detail: detail(refusal),
            retry_after,
        }
    }
}

/// What those SDKs call such a failure.
fn kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "insufficient_quota",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// Whether another attempt soon is in vain, though its status is one that is tried again.
fn is_final(refusal: Refusal) -> bool {
    matches!(
        refusal,
        Refusal::DailyQuotaExceeded
            | Refusal::MonthlyQuotaExceeded
            | Refusal::IdempotencyAnswerNotKept
    )
}

/// What to do about it.
fn detail(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::BadRequest => {
            "Send a path without `..`, `//`, `;` or encoded separators, one Host, one length, and no \
             transfer coding but `chunked`."
        }
        Refusal::AmbiguousCredentials => {
            "Send the key once, as `Authorization: Bearer KEY` or as `X-API-Key: KEY`, and never \
             in the query."
        }
        Refusal::MissingKey => "Send `Authorization: Bearer sk_…` or `X-API-Key: sk_…`.",
        Refusal::InvalidKey => "Check that the key is complete and belongs to this platform.",
        Refusal::KeyExpired => "Create a new key; this one's end of life has passed.",
        Refusal::KeyRevoked => "Create a new key; this one was revoked for good.",
        Refusal::CreditsExhausted => "Add credits to the wallet and call again.",
        Refusal::InsufficientScope => "Give the key the scope that this route needs.",
        Refusal::KeySuspended => "Restore the key, or use another one.",
        Refusal::IpNotAllowed => "Call from an address on the key's list, or extend the list.",
        Refusal::OriginNotAllowed => {
            "Call from a page whose origin is in the organisation's policy as allowed_origins, or \
             add this one to them."
        }
        Refusal::ServiceDisabled => "The seller has switched this service off.",
        Refusal::UnknownService => "Check the name behind /api/v1/.",
        Refusal::UnknownRoute => "Check method and path; the service does not offer this one.",
        Refusal::IdempotencyKeyInUse => {
            "Call again with this key when Retry-After has passed; the call is charged once."
        }
        Refusal::IdempotencyAnswerNotKept => {
            "The call was made and charged, and its answer was too large to be kept or broke off. \
             Send another key for another call."
        }
        Refusal::IdempotencyKeyReused => {
            "Send another key: this one was sent with another method, path, query, content type or \
             body."
        }
        Refusal::IdempotencyKeysExhausted => {
            "Wait until older keys have expired, 24 hours after their use, or call without one."
        }
        Refusal::RequestTimeout => "Send the whole request without pauses.",
        Refusal::BodyTooLarge => "Send a smaller body.",
        Refusal::TargetTooLong => "Send a shorter path or query; long texts belong into a body.",
        Refusal::HeadersTooLarge => "Send fewer or shorter headers.",
        Refusal::RateLimited => "Slow down; Retry-After says when the next call is welcome.",
        Refusal::DailyQuotaExceeded => "Wait for the next day (UTC) or raise the quota.",
        Refusal::MonthlyQuotaExceeded => "Wait for the next month (UTC) or raise the quota.",
        Refusal::AbnormalUsageDetected => {
            "The key is throttled because its use was unusual: slow down to the rate named in \
             RateLimit-Policy, or look at its open anomaly and resolve it."
        }
        Refusal::UpstreamUnreachable => "The service is down; the call was not charged.",
        Refusal::UpstreamBusy => {
            "Call again when Retry-After has passed; the service was not asked."
        }
        Refusal::UpstreamTimeout => "The service is too slow; the call was not charged.",
        Refusal::MeteringUnavailable => "Nothing can be recorded now; the call was not forwarded.",
        Refusal::CreditsUnavailable => "Credits cannot be had now; the call was not forwarded.",
        Refusal::Overloaded => {
            "Call again when Retry-After has passed; nothing was looked at, and nothing charged."
        }
        Refusal::Draining => "Connect again; another gateway will answer.",
    }
}

impl Refused {
    /// One that may work after so many seconds.
    pub(crate) fn after(refusal: Refusal, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..refusal.into()
        }
    }

    /// Too many keys that nobody issued came from this address.
    pub(crate) fn strange_address(seconds: u64) -> Self {
        Self {
            detail: "Too many unknown keys came from your address, so this one was not looked up: \
                     check the keys you send and call again when Retry-After has passed.",
            ..Self::after(Refusal::RateLimited, seconds)
        }
    }

    /// Too many keys that nobody issued come from everywhere.
    pub(crate) fn too_many_strangers() -> Self {
        Self {
            detail: "The key cannot be looked up at the moment; call again when Retry-After has \
                     passed.",
            ..Self::after(Refusal::CreditsUnavailable, 1)
        }
    }

    /// The answer to who speaks gRPC: trailers only, where its libraries look for a status.
    pub(crate) fn into_grpc_response(self) -> Response<EdgeBody> {
        let after = self.retry_after.map(Duration::from_secs);
        let status = proto::convert::refused(self.refusal, self.detail, after);
        status.into_http::<()>().map(|()| EdgeBody::empty())
    }

    /// The answer: a problem document (RFC 9457), which says the same once more in `error`, where
    /// the SDKs of OpenAI look for it.
    pub(crate) fn into_response(self, request: RequestId) -> Response<EdgeBody> {
        let refusal = self.refusal;
        // Every part is a constant or an id, so nothing needs escaping.
        let body = format!(
            "{{\"type\":\"https://tollgate.dev/errors/{code}\",\"title\":\"{title}\",\
             \"status\":{status},\"detail\":\"{detail}\",\"code\":\"{code}\",\
             \"request_id\":\"{request}\",\"error\":{{\"message\":\"{detail}\",\
             \"type\":\"{kind}\",\"param\":null,\"code\":\"{code}\"}}}}\n",
            code = refusal.as_str(),
            title = refusal.title(),
            status = refusal.status(),
            detail = self.detail,
            kind = kind(refusal.status()),
        );
        let mut response = Response::new(EdgeBody::full(body));
        *response.status_mut() =
            StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if refusal.status() == 401 {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if is_final(refusal) {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}
