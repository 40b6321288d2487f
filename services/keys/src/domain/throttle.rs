//! How often something may be tried.

use jiff::{SignedDuration, Timestamp};

use super::token;

/// So many tries within so long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit {
    pub(crate) name: &'static str,
    pub(crate) tries: i64,
    pub(crate) within: SignedDuration,
}

const QUARTER: SignedDuration = SignedDuration::from_mins(15);
const HOUR: SignedDuration = SignedDuration::from_hours(1);

const fn limit(name: &'static str, tries: i64, within: SignedDuration) -> Limit {
    Limit {
        name,
        tries,
        within,
    }
}

/// Failures to sign in as one e-mail address; a success forgives them.
pub(crate) const SIGN_IN_EMAIL: Limit = limit("sign-in-email", 10, QUARTER);
/// Failures to sign in from one client address: an office shares one.
pub(crate) const SIGN_IN_ADDRESS: Limit = limit("sign-in-address", 50, QUARTER);
/// Wrong codes of one user; a right one forgives them.
pub(crate) const SECOND_FACTOR: Limit = limit("second-factor", 5, QUARTER);
/// Sign-ups from one client address.
pub(crate) const SIGN_UP_ADDRESS: Limit = limit("sign-up-address", 20, HOUR);
/// Mails of one kind to one address that anybody may cause.
pub(crate) const MAIL: Limit = limit("mail", 5, HOUR);
/// Requests of mails from one client address.
pub(crate) const MAIL_ADDRESS: Limit = limit("mail-address", 50, HOUR);
/// Mails about one key that was found in public.
pub(crate) const LEAK_MAIL: Limit = limit("leak-mail", 5, HOUR);
/// Counts are forgotten after the longest window.
pub(crate) const FORGET: SignedDuration = HOUR;

impl Limit {
    /// Names the count of one address, mail or user; by hash, so that it has a bound and says
    /// nothing.
    pub(crate) fn bucket(self, of: &str) -> [u8; 32] {
        token::hash(self.name, of.as_bytes())
    }

    /// Counts older than this start anew.
    pub(crate) fn start(self, now: Timestamp) -> Timestamp {
        now.saturating_sub(self.within).unwrap_or(Timestamp::MIN)
    }
}
