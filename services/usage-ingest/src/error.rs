//! What can go wrong, with one code each.

use tonic::Status;
use tracing::error;
use types::{Code, JournalId, RequestId};

/// A failure of the service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no call {request}")]
    UnknownCall { request: RequestId },
    #[error("`page_token` is not one of ours: pass the `next_page_token` of the page before")]
    PageToken,
    #[error("`{field}` is no SHA-256: 32 bytes")]
    Digest { field: &'static str },
    #[error("`{field}` is missing or beyond its limit")]
    Answer { field: &'static str },
    /// Its gateway asks again when they have come.
    #[error("journal {journal} has records that are not applied here")]
    JournalUnapplied { journal: JournalId },
    /// Its gateway asks again.
    #[error("the database has changed its server: who has which key is being read again")]
    KeysForgotten,
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::UnknownCall { .. } => Code::NotFound,
            Self::PageToken | Self::Digest { .. } | Self::Answer { .. } => Code::Invalid,
            Self::JournalUnapplied { .. } | Self::KeysForgotten => Code::Unavailable,
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
                "a call of usage-ingest failed"
            );
        }
        proto::convert::status(failure.code(), failure.to_string())
    }
}
