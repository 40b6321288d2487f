//! The closed sets of failures: one for services, one for the edge.

use std::fmt;

/// What kind of failure a service reports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Code {
    /// The request breaks a rule of its own.
    Invalid,
    /// Nobody knows who is asking.
    Unauthenticated,
    /// The asker may not.
    Forbidden,
    /// No such thing, or not of the asker's organisation.
    NotFound,
    /// Somebody else changed it, or it exists already.
    Conflict,
    /// A quota or balance does not suffice.
    Exhausted,
    /// Try again later.
    Unavailable,
    /// Our fault.
    Internal,
}

impl Code {
    /// The number of the gRPC status.
    #[must_use]
    pub const fn grpc(self) -> i32 {
        match self {
            Self::Invalid => 3,
            Self::Unauthenticated => 16,
            Self::Forbidden => 7,
            Self::NotFound => 5,
            Self::Conflict => 6,
            Self::Exhausted => 8,
            Self::Unavailable => 14,
            Self::Internal => 13,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub const fn http(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Exhausted => 429,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// The stable reason, as in `google.rpc.ErrorInfo`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

macro_rules! refusals {
    ($($name:ident = $status:literal $code:literal $title:literal;)+) => {
        /// Why the edge did not forward a call. Append-only: customers' code relies on it.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Refusal {
            $(#[doc = $title] $name,)+
        }

        impl Refusal {
            /// Every refusal there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }

            /// The stable code of the problem document.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// The title of the problem document.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)+ }
            }
        }
    };
}

refusals! {
    BadRequest = 400 "bad_request" "The request is malformed";
    AmbiguousCredentials = 400 "ambiguous_credentials" "Exactly one credential is allowed";
    MissingKey = 401 "missing_key" "An API key is needed";
    InvalidKey = 401 "invalid_key" "The API key is not valid";
    KeyExpired = 401 "key_expired" "The API key has expired";
    KeyRevoked = 401 "key_revoked" "The API key was revoked";
    CreditsExhausted = 402 "credits_exhausted" "The wallet cannot pay this call";
    InsufficientScope = 403 "insufficient_scope" "The API key lacks the scope";
    KeySuspended = 403 "key_suspended" "The API key is suspended";
    IpNotAllowed = 403 "ip_not_allowed" "The address is not on the key's list";
    OriginNotAllowed = 403 "origin_not_allowed" "Pages of this origin may not call";
    ServiceDisabled = 403 "service_disabled" "The service is switched off";
    UnknownService = 404 "unknown_service" "There is no such service";
    UnknownRoute = 404 "unknown_route" "The service has no such route";
    IdempotencyKeyInUse = 409 "idempotency_key_in_use" "Another call with this key is under way";
    IdempotencyAnswerNotKept = 409 "idempotency_answer_not_kept"
        "A call with this key was charged, and its answer is not kept";
    IdempotencyKeyReused = 422 "idempotency_key_reused" "The key stands for another request";
    RequestTimeout = 408 "request_timeout" "The request did not come in time";
    BodyTooLarge = 413 "body_too_large" "The body is too large";
    TargetTooLong = 414 "target_too_long" "The target is too long";
    HeadersTooLarge = 431 "headers_too_large" "The headers are too large";
    RateLimited = 429 "rate_limited" "Too many calls a second";
    DailyQuotaExceeded = 429 "daily_quota_exceeded" "The day's quota is used up";
    MonthlyQuotaExceeded = 429 "monthly_quota_exceeded" "The month's quota is used up";
    IdempotencyKeysExhausted = 429 "idempotency_keys_exhausted" "Too many idempotency keys are kept";
    AbnormalUsageDetected = 429 "abnormal_usage_detected" "Unusual use of the key was detected";
    UpstreamUnreachable = 502 "upstream_unreachable" "The service could not be reached";
    UpstreamBusy = 503 "upstream_busy" "The service has too many calls";
    UpstreamTimeout = 504 "upstream_timeout" "The service did not answer in time";
    MeteringUnavailable = 503 "metering_unavailable" "Calls cannot be recorded at the moment";
    CreditsUnavailable = 503 "credits_unavailable" "Credits cannot be checked at the moment";
    Overloaded = 503 "overloaded" "This gateway has too many calls";
    Draining = 503 "draining" "This gateway is stopping";
}

impl Refusal {
    /// The status of gRPC (`google.rpc.Code`), for callers who speak that.
    #[must_use]
    pub const fn grpc(self) -> i32 {
        match self.status() {
            400 | 414 | 422 | 431 => 3, // INVALID_ARGUMENT
            408 | 504 => 4,             // DEADLINE_EXCEEDED
            403 => 7,                   // PERMISSION_DENIED
            402 | 413 | 429 => 8,       // RESOURCE_EXHAUSTED
            409 => 10,                  // ABORTED
            404 => 12,                  // UNIMPLEMENTED
            502 | 503 => 14,            // UNAVAILABLE
            401 => 16,                  // UNAUTHENTICATED
            _ => 13,                    // INTERNAL
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
