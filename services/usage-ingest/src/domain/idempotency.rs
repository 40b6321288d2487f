//! Who has an idempotency key, and what the next one is told who presents it.
//!
//! A key is had by one call, its *holder*. The holder keeps its answer here first, then its record
//! is written into its gateway's journal, then the last byte leaves. So the record alone decides,
//! whoever is killed in between:
//! - its row has come: the call counts when it was charged, or when its answer is kept and it was
//!   complete; else the key is free;
//! - its journal has ended, applied to the last record, without its row: it was never recorded,
//!   so never charged: the key is free, whatever was kept;
//! - neither: nobody can know yet, and the next one waits.
//!
//! A call that counts has the key until it expires. What its gateway says of its end before the
//! row is there is the same decision, told early.
//!
//! A database that was failed over or restored may have forgotten who has a key. The record of a
//! call that was charged says it again; until all records have been read again nobody gets a key.

use jiff::{SignedDuration, Timestamp};
use types::{Environment, JournalId, OrgId, RequestId};

use super::Row;

/// A call that counts is remembered so long from its end on, any other from its beginning.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);
/// Ended journals are remembered for longer than a key lives: a gateway's last words may be late.
const ENDED_REMEMBERED: SignedDuration = SignedDuration::from_hours(48);
/// Bytes of answers an organisation may have in store; then it begins no further keys.
pub(crate) const ORG_BYTES_MAX: i64 = 4 << 30;

/// A SHA-256.
pub(crate) type Digest = [u8; 32];

/// A key, by its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    pub(crate) org: OrgId,
    pub(crate) environment: Environment,
    pub(crate) sha256: Digest,
}

/// What the record of a call says of its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub(crate) key: Digest,
    pub(crate) head: Digest,
}

/// A call that presents a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Asker {
    pub(crate) request: RequestId,
    pub(crate) journal: JournalId,
    /// What it asks for, without its body.
    pub(crate) head: Digest,
}

/// How far the holder is known to have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Open,
    Answered,
    NotKept,
}

impl State {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Answered => "answered",
            Self::NotKept => "not_kept",
        }
    }

    /// As tables hold it; they hold no other.
    pub(crate) fn read(text: &str) -> Self {
        match text {
            "answered" => Self::Answered,
            "not_kept" => Self::NotKept,
            _ => Self::Open,
        }
    }
}

/// The call that has a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Holder {
    pub(crate) request: RequestId,
    pub(crate) head: Digest,
    pub(crate) state: State,
    /// Status of the answer that is kept.
    pub(crate) kept: Option<i32>,
    pub(crate) expires_at: Timestamp,
}

/// What is known of the holder's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trace {
    /// Its row.
    Row {
        credits: i64,
        status: i32,
        /// The whole answer of the upstream left, or was about to.
        is_complete: bool,
    },
    /// Its journal has ended without it.
    Never,
    /// It may still come.
    Unknown,
}

/// What is to be done with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It has the key now.
    First,
    /// The holder may still come to count.
    InFlight,
    /// It gets the answer of the holder.
    Answered,
    /// The holder counts; its answer is not kept.
    NotKept,
    /// The key stands for another request.
    Reused,
}

/// When a key is forgotten that something was done with at `now`.
pub(crate) fn expiry(now: Timestamp) -> Timestamp {
    now.saturating_add(REMEMBERED).unwrap_or(Timestamp::MAX)
}

/// The moment before which journals that ended are forgotten.
pub(crate) fn ended_forgotten(now: Timestamp) -> Timestamp {
    now.saturating_sub(ENDED_REMEMBERED)
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Whether a call still has its key at `now`, as its row tells: it was charged, not a day ago.
/// Of one that was not, only its answer would make it count, and that is known to its key alone.
pub(crate) fn remembered(row: &Row, now: Timestamp) -> bool {
    row.credits > 0 && now < expiry(row.at)
}

/// How a holder of a key stands: `None` when it does not count, so that the key is free.
pub(crate) fn standing(holder: &Holder, trace: Trace) -> Option<State> {
    if holder.state != State::Open {
        return Some(holder.state);
    }
    match trace {
        Trace::Unknown => Some(State::Open),
        Trace::Never => None,
        Trace::Row {
            credits,
            status,
            is_complete,
        } => match holder.kept {
            // Its gateway may have died after it was kept, and its successor have charged it.
            Some(_) if credits > 0 => Some(State::Answered),
            None if credits > 0 => Some(State::NotKept),
            Some(kept) if kept == status && is_complete => Some(State::Answered),
            _ => None,
        },
    }
}

/// Decides on a call that finds a key taken.
pub(crate) fn judge(holder: &Holder, asker: &Asker, trace: Trace, now: Timestamp) -> Verdict {
    // Asked again, since the reply was lost.
    if holder.request == asker.request {
        return Verdict::First;
    }
    if now >= holder.expires_at {
        return Verdict::First;
    }
    match standing(holder, trace) {
        None => Verdict::First,
        Some(_) if holder.head != asker.head => Verdict::Reused,
        Some(State::Open) => Verdict::InFlight,
        Some(State::Answered) => Verdict::Answered,
        Some(State::NotKept) => Verdict::NotKept,
    }
}
