//! Invitations: who may use one, and until when.

use jiff::{SignedDuration, Timestamp};
use types::{Id, Kind, OrgId, Role, UserId};

use crate::error::{Error, Result};

/// An invitation is good for so long.
const LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// An invitation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Invited;

impl Kind for Invited {
    const PREFIX: &'static str = "inv";
}

/// `inv_…`
pub(crate) type InvitationId = Id<Invited>;

/// A stored invitation.
#[derive(Clone, Debug)]
pub(crate) struct Invitation {
    pub(crate) id: InvitationId,
    pub(crate) org: OrgId,
    pub(crate) email: String,
    pub(crate) role: Role,
    pub(crate) invited_by: String,
    pub(crate) created_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) accepted_by: Option<UserId>,
    pub(crate) is_revoked: bool,
}

/// When an invitation of now ends.
pub(crate) fn end(now: Timestamp) -> Timestamp {
    now.saturating_add(LIFE).unwrap_or(Timestamp::MAX)
}

impl Invitation {
    /// `open`, `accepted`, `revoked` or `expired`.
    pub(crate) fn status(&self, now: Timestamp) -> &'static str {
        if self.accepted_by.is_some() {
            return "accepted";
        }
        if self.is_revoked {
            return "revoked";
        }
        match self.expires_at <= now {
            true => "expired",
            false => "open",
        }
    }

    /// Refuses to change what has ended. An expired one may be sent again.
    pub(crate) fn check_pending(&self) -> Result<()> {
        if self.accepted_by.is_some() {
            return Err(Error::Conflict("the invitation was accepted"));
        }
        match self.is_revoked {
            true => Err(Error::Conflict(
                "the invitation was revoked: ask for another",
            )),
            false => Ok(()),
        }
    }

    /// Decides whether a user with this address may accept.
    pub(crate) fn check_acceptance(&self, email: &str, now: Timestamp) -> Result<()> {
        if email != self.email {
            return Err(Error::OtherAddress);
        }
        self.check_pending()?;
        match self.expires_at <= now {
            true => Err(Error::Conflict(
                "the invitation has expired: ask for another",
            )),
            false => Ok(()),
        }
    }
}
