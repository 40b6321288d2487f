//! What can go wrong for a caller.

use types::{Code, JournalId, LeaseId};

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field breaks a rule.
    #[error("`{field}` {problem}")]
    Invalid {
        /// As in the `.proto`.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The journal has ended: nothing is lent to it any more.
    #[error("journal {journal} is retired")]
    JournalRetired {
        /// Which.
        journal: JournalId,
    },
    /// The journal's owner is alive, and may not be ended by somebody else.
    #[error("journal {journal} belongs to a gateway that is alive")]
    JournalAlive {
        /// Which.
        journal: JournalId,
    },
    /// The idempotency key stands for another grant.
    #[error("the idempotency key was used for another grant")]
    GrantDiffers,
    /// No such lease.
    #[error("lease {lease} is unknown")]
    UnknownLease {
        /// Which.
        lease: LeaseId,
    },
    /// PostgreSQL cannot be reached, or gave up this transaction.
    #[error("the wallet's database is not available")]
    Unavailable(#[source] anyhow::Error),
    /// Our fault.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

/// What this crate answers.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The kind of failure.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::Invalid,
            Self::JournalRetired { .. } | Self::JournalAlive { .. } | Self::GrantDiffers => {
                Code::Conflict
            }
            Self::UnknownLease { .. } => Code::NotFound,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Internal(_) => Code::Internal,
        }
    }
}
