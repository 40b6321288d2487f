//! What can go wrong, with one stable code each.

use tonic::{Code as Grpc, Status};
use tonic_types::StatusExt;
use types::{Code, Role};

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`{field}` {problem}")]
    Invalid { field: String, problem: String },
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    Unauthenticated(&'static str),
    #[error("send the same again with `code` of your authenticator, or a recovery code")]
    SecondFactorRequired,
    #[error("the role {role} may not {what}", role = .role.as_str())]
    Forbidden { role: Role, what: &'static str },
    #[error("only operators may do this")]
    OperatorsOnly,
    #[error("only people may do this: sign in and send the session's token")]
    PeopleOnly,
    #[error("there is no such {0}")]
    NotFound(&'static str),
    #[error("{0} does not know this method")]
    MethodNotAllowed(String),
    #[error("the body has more than 64 KiB")]
    BodyTooLarge,
    #[error("send the body as `Content-Type: application/json`")]
    UnsupportedMediaType,
    #[error("the Idempotency-Key was used for another request within 24 hours")]
    IdempotencyMismatch,
    #[error(
        "the outcome of the first request with this Idempotency-Key is not known: it is under way \
         or was cut off. Look what is there before you repeat it with another key"
    )]
    IdempotencyPending,
    #[error("the invitation is {0}: ask for another")]
    InvitationEnded(String),
    #[error("your address sends too many of these requests")]
    TooMany { wait_seconds: u64 },
    #[error("{}", .0.message())]
    Service(#[source] Box<Status>),
    #[error("the database cannot be reached, try again")]
    Unavailable(#[source] anyhow::Error),
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) detail: String,
    /// Seconds after which it may work.
    pub(crate) retry_after: Option<u64>,
}

impl Error {
    /// A refused field: what is wrong with it, and what would be right.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// Status and code; those of a service's answer are its own.
    fn kind(&self) -> (u16, &str) {
        match self {
            Self::Invalid { .. } | Self::BadRequest(_) => (400, "invalid"),
            Self::Unauthenticated(_) => (401, "unauthenticated"),
            Self::SecondFactorRequired => (403, "second_factor_required"),
            Self::Forbidden { .. } | Self::OperatorsOnly | Self::PeopleOnly => (403, "forbidden"),
            Self::NotFound(_) => (404, "not_found"),
            Self::MethodNotAllowed(_) => (405, "method_not_allowed"),
            Self::BodyTooLarge => (413, "body_too_large"),
            Self::UnsupportedMediaType => (415, "unsupported_media_type"),
            Self::IdempotencyMismatch => (422, "idempotency_conflict"),
            Self::IdempotencyPending => (409, "idempotency_conflict"),
            Self::InvitationEnded(_) => (409, Code::Conflict.as_str()),
            Self::TooMany { .. } => (429, Code::Exhausted.as_str()),
            Self::Service(_) | Self::Internal(_) => (500, "internal"),
            Self::Unavailable(_) => (503, "unavailable"),
        }
    }

    /// What the client is told; the log hears the cause of what is our fault.
    pub(crate) fn answer(&self) -> Answer {
        if let Self::Service(status) = self {
            return of_service(status);
        }
        if let Self::Unavailable(cause) | Self::Internal(cause) = self {
            tracing::error!(error = format!("{cause:#}"), "a request failed");
        }
        let (status, code) = self.kind();
        Answer {
            status,
            code: code.to_owned(),
            detail: self.to_string(),
            retry_after: match self {
                Self::TooMany { wait_seconds } => Some(*wait_seconds),
                _ => (status == 503).then_some(1),
            },
        }
    }
}

/// Refusals that a client can do something about by itself.
fn special(status: &Status, is_stale: bool, needs: Option<&str>) -> Option<Answer> {
    let (http, code, more) = match (is_stale, needs) {
        (true, _) => (412, "precondition_failed", ""),
        (_, Some("second_factor")) => (
            403,
            "second_factor_required",
            ": present it with POST /v1/second-factor, then repeat the request",
        ),
        _ => return None,
    };
    Some(Answer {
        status: http,
        code: code.to_owned(),
        detail: format!("{}{more}", status.message()),
        retry_after: None,
    })
}

/// Translates a service's refusal. Its reason is the code; without one it is below the service.
fn of_service(status: &Status) -> Answer {
    let details = status.get_error_details();
    let info = details
        .error_info()
        .filter(|info| info.domain == "tollgate");
    let fact = |name: &str| {
        info.and_then(|info| info.metadata.get(name))
            .map(String::as_str)
    };
    if let Some(special) = special(status, fact("version").is_some(), fact("needs")) {
        return special;
    }
    let reason = info.map(|info| info.reason.clone());
    let http = match (status.code(), reason.is_some()) {
        (Grpc::InvalidArgument | Grpc::OutOfRange, _) => 400,
        (Grpc::Unauthenticated, true) => 401,
        (Grpc::PermissionDenied, true) => 403,
        (Grpc::NotFound, true) => 404,
        (Grpc::AlreadyExists | Grpc::Aborted | Grpc::FailedPrecondition, _) => 409,
        (Grpc::ResourceExhausted, _) => 429,
        // A channel that fails below gRPC is unknown to it.
        (Grpc::Unavailable, _) | (Grpc::Unknown, false) => 503,
        (Grpc::DeadlineExceeded, _) => 504,
        _ => 500,
    };
    let retry = details.retry_info().and_then(|info| info.retry_delay);
    let default = match http {
        400 => Code::Invalid.as_str(),
        409 => Code::Conflict.as_str(),
        429 => Code::Exhausted.as_str(),
        503 => Code::Unavailable.as_str(),
        504 => "timeout",
        _ => Code::Internal.as_str(),
    };
    if http >= 500 {
        tracing::error!(code = ?status.code(), error = status.message(), "a service failed");
    }
    Answer {
        status: http,
        code: match reason {
            Some(reason) if http != 500 => reason,
            _ => default.to_owned(),
        },
        detail: match http {
            500 => "internal error".to_owned(),
            503 => "a service cannot be reached, try again".to_owned(),
            504 => "a service did not answer in time".to_owned(),
            _ => status.message().to_owned(),
        },
        retry_after: match http {
            503 => Some(1),
            429 => Some(retry.map_or(60, |delay| delay.as_secs().max(1))),
            _ => None,
        },
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Service(Box::new(status))
    }
}
