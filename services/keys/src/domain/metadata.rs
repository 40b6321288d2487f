//! What owners note of a key. Nothing here acts on it.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Entries of a key.
const ENTRIES_MAX: usize = 20;
/// Characters of a name.
const NAME_CHARS_MAX: usize = 40;
/// Characters of a value.
const VALUE_CHARS_MAX: usize = 200;

/// Names and values, by name.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Checks the metadata of a key.
pub(crate) fn check(wish: &Metadata) -> Result<Metadata> {
    let refuse = |problem: String| Err(Error::invalid("metadata", problem));
    if wish.len() > ENTRIES_MAX {
        return refuse(format!(
            "has {} entries; at most {ENTRIES_MAX} are allowed",
            wish.len()
        ));
    }
    for (name, value) in wish {
        let length = name.chars().count();
        if !(1..=NAME_CHARS_MAX).contains(&length) || name.chars().any(char::is_control) {
            return refuse(format!(
                "has a name that is not 1–{NAME_CHARS_MAX} characters without control characters"
            ));
        }
        if value.chars().count() > VALUE_CHARS_MAX || value.chars().any(char::is_control) {
            return refuse(format!(
                "`{name}` must be at most {VALUE_CHARS_MAX} characters without control characters"
            ));
        }
    }
    Ok(wish.clone())
}
