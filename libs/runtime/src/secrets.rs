//! Secrets that are replaced while the process runs: the current one and the one before.
//!
//! - Files are read again each second, by content: a mounted secret changes by a swap of links,
//!   which no watch on the file would see.
//! - Whoever replaces them writes the one before first. Read in the other order, a new secret is
//!   never seen without the one it follows.
//! - What cannot be read, or is refused by who uses it, changes nothing and is said once.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use secrecy::{ExposeSecret, SecretString};

use crate::host::{Host, Stop};

/// Between two looks at the files.
const PERIOD: Duration = Duration::from_secs(1);
/// Times the files are read when they change in between.
const READS_MAX: u32 = 5;

/// Where a secret comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// From the variable itself: as long as the process lives. May be absent.
    Given(Option<SecretString>),
    /// From the file a variable names.
    File(PathBuf),
}

/// A secret and the one before, where they come from.
#[derive(Clone, Debug)]
pub struct Succession {
    current: Source,
    previous: Source,
}

/// What the two were at one moment.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The secret.
    pub current: SecretString,
    /// The one before.
    pub previous: Option<SecretString>,
}

impl Generation {
    fn is(&self, other: &Self) -> bool {
        let previous = self.previous.as_ref().map(ExposeSecret::expose_secret);
        let previous_of_other = other.previous.as_ref().map(ExposeSecret::expose_secret);
        self.current.expose_secret() == other.current.expose_secret()
            && previous == previous_of_other
    }
}

impl Succession {
    pub(crate) const fn new(current: Source, previous: Source) -> Self {
        Self { current, previous }
    }

    /// Can they change? Both have to come from files: a new one without the one before would shut
    /// out whatever still waits on that.
    #[must_use]
    pub const fn can_change(&self) -> bool {
        matches!(
            (&self.current, &self.previous),
            (Source::File(_), Source::File(_))
        )
    }

    /// Reads both, as they were at one moment.
    ///
    /// # Errors
    /// There is no current one, or a file cannot be read.
    pub fn read(&self) -> anyhow::Result<Generation> {
        for _ in 0..READS_MAX {
            let current = self.current.read()?.context("is not set")?;
            let previous = self.previous.read()?;
            let again = self.current.read()?;
            let same = |again: &SecretString| again.expose_secret() == current.expose_secret();
            if again.as_ref().is_some_and(same) {
                return Ok(Generation { current, previous });
            }
        }
        anyhow::bail!("keeps changing")
    }
}

impl Source {
    fn read(&self) -> anyhow::Result<Option<SecretString>> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::File(path) => read(path),
        }
    }
}

/// An absent file, or an empty one, holds nothing.
fn read(path: &Path) -> anyhow::Result<Option<SecretString>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => zeroize::Zeroizing::new(text),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let text = text.trim_end_matches(['\r', '\n']);
    Ok((!text.is_empty()).then(|| SecretString::from(text)))
}

/// Hands over what the files hold whenever that has changed.
pub(crate) async fn watch(
    host: Host,
    name: &'static str,
    succession: Succession,
    mut accept: impl FnMut(&Generation) -> anyhow::Result<()>,
    stop: Stop,
) {
    let mut seen: Option<Generation> = None;
    let mut complaint = String::new();
    while !stop.is_requested() {
        let files = succession.clone();
        let outcome = match host.blocking(move || files.read()).await.flatten() {
            Ok(read) if seen.as_ref().is_some_and(|seen| seen.is(&read)) => Ok(()),
            Ok(read) => accept(&read).map(|()| seen = Some(read)),
            Err(error) => Err(error),
        };
        let problem = outcome.err().map(|error| format!("{error:#}"));
        let problem = problem.unwrap_or_default();
        if problem != complaint && !problem.is_empty() {
            tracing::warn!(
                task = name,
                error = problem,
                "secrets were not replaced, the ones before go on"
            );
        }
        complaint = problem;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.requested() => {}
        }
    }
}
