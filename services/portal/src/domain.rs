//! Decisions: who may read what, which sessions live, what a cursor says.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use types::{Id, Kind, Role};

use crate::error::{Error, Result};

/// Somebody signed in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct WebSession;

impl Kind for WebSession {
    const PREFIX: &'static str = "web";
}

/// `web_…`
pub(crate) type SessionId = Id<WebSession>;

/// Somebody is invited.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Invited;

impl Kind for Invited {
    const PREFIX: &'static str = "inv";
}

/// `inv_…`
pub(crate) type InvitationId = Id<Invited>;

/// A session that nobody used for so long has ended.
pub(crate) const SESSION_IDLE: SignedDuration = SignedDuration::from_hours(12);
/// A session ends after so long, however much it is used.
pub(crate) const SESSION_LIFE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The last use of a session is noted at most so often.
pub(crate) const SESSION_TOUCH: SignedDuration = SignedDuration::from_mins(1);
/// A second request with the same `Idempotency-Key` is recognised for so long.
pub(crate) const IDEMPOTENCY_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// Characters of an `Idempotency-Key`.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 64;
/// Characters of a cursor: longer than any we give.
const CURSOR_CHARS_MAX: usize = 400;
/// First byte of every cursor; another form gets another one.
const CURSOR_FORM: u8 = 1;

/// What a member may want from services that do not know members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    ViewCalls,
    ViewTotals,
    ViewWallet,
    ViewAnomalies,
    ResolveAnomaly,
}

impl Action {
    /// As in "the role billing may not …".
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::ViewCalls => "view calls",
            Self::ViewTotals => "view usage totals",
            Self::ViewWallet => "view the wallet",
            Self::ViewAnomalies => "view anomalies",
            Self::ResolveAnomaly => "resolve anomalies",
        }
    }
}

/// The permission matrix, for those services. Keys and people are judged by `keys` itself.
pub(crate) fn permits(role: Role, action: Action) -> bool {
    match action {
        Action::ViewTotals | Action::ViewWallet => true,
        Action::ViewCalls | Action::ViewAnomalies => role != Role::Billing,
        Action::ResolveAnomaly => matches!(role, Role::Owner | Role::Admin),
    }
}

/// Whether a session still lives.
pub(crate) fn is_alive(last_seen_at: Timestamp, expires_at: Timestamp, now: Timestamp) -> bool {
    now < expires_at && now.duration_since(last_seen_at) < SESSION_IDLE
}

/// What a client hands back to get the next page; it means nothing to the client.
pub(crate) fn cursor(page_token: &str) -> Option<String> {
    if page_token.is_empty() {
        return None;
    }
    let mut bytes = vec![CURSOR_FORM];
    bytes.extend_from_slice(page_token.as_bytes());
    Some(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// What a service wants to hear for that page.
pub(crate) fn page_token(cursor: Option<&str>) -> Result<String> {
    let Some(cursor) = cursor else {
        return Ok(String::new());
    };
    let decode = || {
        if cursor.len() > CURSOR_CHARS_MAX {
            return None;
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (form, text) = bytes.split_first()?;
        let text = std::str::from_utf8(text).ok()?;
        let is_ours = *form == CURSOR_FORM && !text.is_empty() && text.is_ascii();
        is_ours.then(|| text.to_owned())
    };
    decode().ok_or_else(|| Error::invalid("cursor", "is not one of ours: begin without it"))
}

/// Checks an `Idempotency-Key`.
pub(crate) fn idempotency_key(text: &str) -> Result<&str> {
    let fits = (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&text.len());
    if !fits || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let problem = "must be 1 to 64 visible ASCII characters";
        return Err(Error::invalid("Idempotency-Key", problem));
    }
    Ok(text)
}

/// Reads `If-Match`: one entity tag with a version.
pub(crate) fn if_match(text: &str) -> Result<i64> {
    let version = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .and_then(|digits| digits.parse().ok());
    version.ok_or_else(|| Error::invalid("If-Match", "must be one ETag of ours, such as \"7\""))
}
