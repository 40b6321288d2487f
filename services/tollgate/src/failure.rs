//! How a command fails: one line for a person, one exit code for a script.

use std::fmt;

use runtime::ConfigError;

/// What was asked for, or the configuration, is wrong.
const EXIT_USAGE: u8 = 64;
/// Everything else.
const EXIT_FAILED: u8 = 1;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for is wrong; trying again does not help.
    Usage(String),
    /// A check found something; what it found is printed already.
    Found,
    /// Anything else.
    Other(anyhow::Error),
}

/// The result of a command.
pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// A wrong request.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// For scripts.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Found => EXIT_FAILED,
            Self::Other(error) => code_of(error),
        }
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    let is_invalid = |status: &tonic::Status| status.code() == tonic::Code::InvalidArgument;
    let is_usage = error.downcast_ref::<ConfigError>().is_some()
        || error
            .downcast_ref::<tonic::Status>()
            .is_some_and(is_invalid);
    if is_usage { EXIT_USAGE } else { EXIT_FAILED }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => f.write_str(text),
            Self::Found => f.write_str("differences were found"),
            Self::Other(error) => match error.downcast_ref::<tonic::Status>() {
                Some(status) => explain(f, status),
                None => write!(f, "{error:#}"),
            },
        }
    }
}

/// A status prints its details and metadata too; a person wants the sentence.
fn explain(f: &mut fmt::Formatter<'_>, status: &tonic::Status) -> fmt::Result {
    f.write_str(status.message())?;
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}
