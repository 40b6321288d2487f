//! What a client saw of its own calls.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One answer, one JSON line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transcript {
    /// `req_…` from `x-request-id`.
    pub request_id: String,
    /// Status.
    pub status: u16,
    /// The whole body came.
    pub complete: bool,
    /// `tollgate-cost`, if the answer had it.
    #[serde(default)]
    pub cost: Option<i64>,
}

impl Transcript {
    pub(super) fn request(&self) -> Option<Uuid> {
        Uuid::try_parse(self.request_id.strip_prefix("req_")?).ok()
    }

    /// Whether the call must have left its one row.
    pub(super) fn is_served(&self) -> bool {
        self.complete && (self.status == 101 || (200..300).contains(&self.status))
    }
}

/// Reads a file of lines.
///
/// # Errors
/// The file cannot be read or a line is no answer. A last line cut short is left out.
pub fn read_transcript(path: &Path) -> anyhow::Result<Vec<Transcript>> {
    read_lines(path)
}

/// Reads a file with a JSON value in each line. A last line cut short is left out.
pub(super) fn read_lines<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let whole = text
        .rfind('\n')
        .map_or("", |end| text.get(..end).unwrap_or_default());
    let lines = whole
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty());
    lines
        .map(|(index, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{}, line {}", path.display(), index + 1))
        })
        .collect()
}
