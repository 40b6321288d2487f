//! Organisations and their members.

use types::{Kind, NameError, Role, Slug, UserId};

use crate::error::{Error, Result};

/// A slug has 3–64 characters; these leave room for a suffix.
const STEM_CHARS_MAX: usize = 56;
const STEM_CHARS_MIN: usize = 3;

/// A member as the owner rule sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Membership {
    pub(crate) user: UserId,
    pub(crate) role: Role,
}

impl Kind for Membership {
    const PREFIX: &'static str = "mbr";
}

/// Makes the beginning of a slug from a name: `Ada & Söhne` → `ada-s-hne`.
pub(crate) fn slug_stem(name: &str) -> String {
    let mut stem = String::new();
    for c in name.chars() {
        let c = c.to_ascii_lowercase();
        let fits = c.is_ascii_lowercase() || c.is_ascii_digit();
        if fits && stem.len() < STEM_CHARS_MAX {
            stem.push(c);
        } else if !fits && !stem.is_empty() && !stem.ends_with('-') {
            stem.push('-');
        }
    }
    let stem = stem.trim_end_matches('-');
    if stem.len() < STEM_CHARS_MIN {
        let parts = ["org", stem];
        return parts
            .iter()
            .filter(|part| !part.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join("-");
    }
    stem.to_owned()
}

/// The n-th slug of a stem: `ada`, `ada-2`, `ada-3`, …
pub(crate) fn slug_candidate(stem: &str, n: u32) -> std::result::Result<Slug, NameError> {
    match n {
        0 | 1 => stem.parse(),
        n => format!("{stem}-{n}").parse(),
    }
}

/// Decides who owns the organisation after `leaving` has left, or is no owner any more.
pub(crate) fn owner_after(
    members: &[Membership],
    owner: UserId,
    leaving: UserId,
) -> Result<UserId> {
    if owner != leaving {
        return Ok(owner);
    }
    // The longest-serving of the other owners: `members` is by joining date.
    members
        .iter()
        .find(|member| member.role == Role::Owner && member.user != leaving)
        .map(|member| member.user)
        .ok_or(Error::LastOwner)
}
