//! The two files that hold the peppers.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use types::Pepper;
use zeroize::Zeroizing;

use crate::failure::{Failure, Result};
use crate::private;

/// Where the services read them, as API_KEY_PEPPER_FILE and API_KEY_PEPPER_PREVIOUS_FILE say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PepperFiles {
    pub(crate) current: PathBuf,
    pub(crate) previous: PathBuf,
}

/// Held as long as somebody changes the files.
pub(super) struct Held {
    _lock: File,
}

impl PepperFiles {
    /// Keeps everybody else from changing them: of two rotations at once, one would overwrite what
    /// keys are hashed with already.
    pub(super) fn hold(&self) -> Result<Held> {
        let path = with_suffix(&self.current, ".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Held { _lock: file }),
            Err(TryLockError::WouldBlock) => Err(Failure::usage(format!(
                "somebody else changes {} at this moment",
                self.current.display()
            ))),
            Err(TryLockError::Error(error)) => {
                let text = format!("cannot lock {}", path.display());
                Err(anyhow::Error::from(error).context(text).into())
            }
        }
    }

    /// The pepper that services have, and its text.
    pub(super) fn read_current(&self) -> Result<(Pepper, Zeroizing<String>)> {
        match read(&self.current)? {
            Some(text) => {
                let pepper = Pepper::new(&text).map_err(|error| {
                    Failure::usage(format!("{} {error}", self.current.display()))
                })?;
                Ok((pepper, text))
            }
            None => {
                let text = format!("{} holds no pepper", self.current.display());
                Err(Failure::usage(text))
            }
        }
    }

    /// Makes a pepper the current one and the current one the one before, in this order: nobody
    /// sees a new one without the one it follows.
    pub(super) fn advance(&self, current: &str, new: &str) -> anyhow::Result<()> {
        private::replace(&self.previous, current.as_bytes())?;
        private::replace(&self.current, new.as_bytes())
    }

    /// Whether there is one before.
    pub(super) fn has_previous(&self) -> Result<bool> {
        Ok(read(&self.previous)?.is_some())
    }

    /// Removes the one before.
    pub(super) fn retire(&self) -> anyhow::Result<()> {
        private::remove(&self.previous)
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// What a file holds, as the services read it; `None`: nothing, or there is none.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let text = format!("cannot read {}", path.display());
            return Err(anyhow::Error::from(error).context(text).into());
        }
    };
    let text = text.trim_end_matches(['\r', '\n']);
    Ok((!text.is_empty()).then(|| Zeroizing::new(text.to_owned())))
}
