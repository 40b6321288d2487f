//! What a gateway has to be told.

use std::collections::BTreeMap;

use types::{JournalId, KeyHash};

use crate::error::{Error, Result};

/// Changes a gateway is told one by one; beyond that it drops everything it has cached.
pub(crate) const CHANGES_MAX: usize = 1000;
/// Ended lives that a gateway names at once.
const ENDED_MAX: usize = 100;
/// Characters of a gateway's name.
const GATEWAY_CHARS_MAX: usize = 128;

/// What to drop from a gateway's cache.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// Nothing, or these keys, with their version now.
    Keys(Vec<(KeyHash, i64)>),
    /// Everything.
    All,
}

/// Decides what a gateway at `applied` drops, given the log's `position` and what follows.
pub(crate) fn evict(applied: i64, position: i64, changed: &[(KeyHash, i64)]) -> Eviction {
    // At its start a gateway holds nothing.
    if applied == 0 {
        return Eviction::Keys(Vec::new());
    }
    // A position ahead of ours is of another history: the log was restored from a backup.
    if applied > position || changed.len() > CHANGES_MAX {
        return Eviction::All;
    }
    let mut newest: BTreeMap<[u8; 32], (KeyHash, i64)> = BTreeMap::new();
    for (hash, version) in changed {
        let entry = newest.entry(*hash.bytes()).or_insert((*hash, *version));
        entry.1 = entry.1.max(*version);
    }
    Eviction::Keys(newest.into_values().collect())
}

/// Checks a gateway's name for itself.
pub(crate) fn gateway_name(text: &str) -> Result<String> {
    let length = text.chars().count();
    if !(1..=GATEWAY_CHARS_MAX).contains(&length) || text.chars().any(char::is_control) {
        let problem = format!("must be 1–{GATEWAY_CHARS_MAX} characters, none a control character");
        return Err(Error::invalid("gateway", problem));
    }
    Ok(text.to_owned())
}

/// Lives of a gateway that have ended, as it names them.
pub(crate) fn ended(texts: &[String]) -> Result<Vec<JournalId>> {
    if texts.len() > ENDED_MAX {
        let problem = format!("must be at most {ENDED_MAX}: send the rest in another call");
        return Err(Error::invalid("ended_journals", problem));
    }
    let parse = |text: &String| {
        let id = text.parse();
        id.map_err(|error| Error::invalid("ended_journals", format!("{error}")))
    };
    texts.iter().map(parse).collect()
}

/// Checks the name of a pepper: eight hex digits.
pub(crate) fn pepper_id(text: &str) -> Result<String> {
    if text.len() != 8
        || !text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(Error::invalid(
            "pepper_id",
            "must be eight hex digits, or empty",
        ));
    }
    Ok(text.to_owned())
}
