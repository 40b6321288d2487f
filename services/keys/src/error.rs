//! What can go wrong, with one code each.

use jiff::SignedDuration;
use tonic::Status;
use tracing::error;
use types::{Code, IdError, NameError, Role};

/// A failure of the service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`{field}` {problem}")]
    Invalid {
        field: &'static str,
        problem: String,
    },
    #[error("there is no {what} {id}")]
    NotFound { what: &'static str, id: String },
    #[error("the role {role} may not {what}", role = .role.as_str())]
    Forbidden { role: Role, what: &'static str },
    #[error("only operators may {what}")]
    OperatorsOnly { what: &'static str },
    #[error("an organisation keeps at least one owner: make another member owner first")]
    LastOwner,
    #[error("{0}")]
    Conflict(&'static str),
    #[error("the version is {now} by now: read again, then change")]
    Stale { now: i64 },
    #[error("{0}")]
    Unauthenticated(&'static str),
    #[error("this needs a second factor that is not older than 10 minutes")]
    SecondFactorNeeded,
    #[error("the signature is wrong, of an unknown key, or under a report that has not this key")]
    WrongSignature,
    #[error("the invitation is for another address: sign in with the one that was invited")]
    OtherAddress,
    #[error("{0}")]
    Exhausted(String),
    #[error(
        "an organisation makes at most {max} keys an hour: try again in {wait} seconds",
        wait = .wait.as_secs()
    )]
    TooManyKeys { max: i64, wait: SignedDuration },
    #[error("the database cannot be reached, try again")]
    Unavailable(#[source] anyhow::Error),
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A refused field: what is wrong with it, and what would be right.
    pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            problem: problem.into(),
        }
    }

    pub(crate) fn not_found(what: &'static str, id: impl ToString) -> Self {
        Self::NotFound {
            what,
            id: id.to_string(),
        }
    }

    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::Invalid,
            Self::NotFound { .. } => Code::NotFound,
            Self::Forbidden { .. }
            | Self::OperatorsOnly { .. }
            | Self::SecondFactorNeeded
            | Self::WrongSignature
            | Self::OtherAddress => Code::Forbidden,
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::Exhausted(_) | Self::TooManyKeys { .. } => Code::Exhausted,
            Self::LastOwner | Self::Conflict(_) | Self::Stale { .. } => Code::Conflict,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Internal(_) => Code::Internal,
        }
    }
}

impl From<NameError> for Error {
    fn from(NameError { field, problem }: NameError) -> Self {
        Self::Invalid { field, problem }
    }
}

impl From<IdError> for Error {
    fn from(error: IdError) -> Self {
        Self::Internal(error.into())
    }
}

impl From<Error> for Status {
    /// Callers get the sentence, the log the cause.
    fn from(failure: Error) -> Self {
        if let Error::Unavailable(cause) | Error::Internal(cause) = &failure {
            error!(error = format!("{cause:#}"), "a call of keys failed");
        }
        let (code, text) = (failure.code(), failure.to_string());
        match failure {
            // The portal asks for the factor and repeats the call.
            Error::SecondFactorNeeded => {
                proto::convert::status_with(code, text, [("needs", "second_factor")])
            }
            Error::Stale { now } => {
                proto::convert::status_with(code, text, [("version", now.to_string().as_str())])
            }
            Error::TooManyKeys { wait, .. } => {
                proto::convert::status_retry(code, text, wait.unsigned_abs())
            }
            _ => proto::convert::status(code, text),
        }
    }
}
