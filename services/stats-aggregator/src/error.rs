//! What can go wrong, with one code each.

use tonic::Status;
use tracing::error;
use types::Code;

/// A failure of the service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`{field}` must be {form}")]
    Period {
        field: &'static str,
        form: &'static str,
    },
    #[error("the period must begin before it ends and have at most {days_max} days")]
    PeriodLength { days_max: i32 },
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Period { .. } | Self::PeriodLength { .. } => Code::Invalid,
            Self::Internal(_) => Code::Internal,
        }
    }
}

impl From<Error> for Status {
    /// Callers get the sentence, the log the cause.
    fn from(failure: Error) -> Self {
        if let Error::Internal(cause) = &failure {
            error!(
                error = format!("{cause:#}"),
                "a call of stats-aggregator failed"
            );
        }
        proto::convert::status(failure.code(), failure.to_string())
    }
}
