//! What can go wrong, with one code each.

use tonic::Status;
use tracing::error;
use types::{AnomalyId, Code};

/// A failure of the service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no anomaly {anomaly}")]
    UnknownAnomaly { anomaly: AnomalyId },
    #[error("only operators may ask about every organisation")]
    OperatorsOnly,
    #[error("`state` must be `open`, `resolved` or `all`")]
    UnknownState,
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::UnknownAnomaly { .. } => Code::NotFound,
            Self::OperatorsOnly => Code::Forbidden,
            Self::UnknownState => Code::Invalid,
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
                "a call of anomaly-detector failed"
            );
        }
        proto::convert::status(failure.code(), failure.to_string())
    }
}
