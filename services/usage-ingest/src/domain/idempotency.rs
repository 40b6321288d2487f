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
//! call that was charged says it again, and of one that is under way its note does, which was
//! written before it was forwarded; until all records have been read again nobody gets a key.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use types::{Environment, JournalId, OrgId, RequestId};

use super::Row;

/// A call that counts is remembered so long from its end on, any other from its beginning.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);
/// Ended journals are remembered for longer than a key lives: a gateway's last words may be late.
const ENDED_REMEMBERED: SignedDuration = SignedDuration::from_hours(48);
/// The clocks of gateways and of the database differ by less.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(10);
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

/// What is noted of a call that has a key, before it is forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Note {
    pub(crate) org: OrgId,
    pub(crate) environment: Environment,
    pub(crate) claim: Claim,
    pub(crate) request: RequestId,
    pub(crate) journal: JournalId,
    pub(crate) at: Timestamp,
}

/// Who had a key at a moment, as a record tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Had {
    pub(crate) by: Note,
    /// Open: the call was under way then. Not kept: it was charged.
    pub(crate) state: State,
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

/// What records tell of keys that the database may have forgotten: who was charged, and who was
/// under way. `moved` is when the server was changed last.
pub(crate) fn told(
    rows: &[Row],
    notes: &[Note],
    moved: Option<Timestamp>,
    now: Timestamp,
) -> Vec<Had> {
    let charged = rows.iter().filter(|row| remembered(row, now));
    let charged = charged.filter_map(|row| {
        let by = Note {
            org: row.org,
            environment: row.environment,
            claim: row.claim?,
            request: row.request,
            journal: row.journal,
            at: row.at,
        };
        let state = State::NotKept;
        Some(Had { by, state })
    });
    let mut told: Vec<Had> = charged.collect();
    let Some(moved) = moved.filter(|_| !notes.is_empty()) else {
        return told;
    };
    let ended: BTreeSet<RequestId> = rows.iter().map(|row| row.request).collect();
    for note in notes {
        if may_be_forgotten(note, moved, now) && !ended.contains(&note.request) {
            let (by, state) = (*note, State::Open);
            told.push(Had { by, state });
        }
    }
    told
}

/// Whether a database that was changed at `moved` may lack who has the key of a call that was
/// noted. Whoever began since is known, and may have freed his key before his note came.
fn may_be_forgotten(note: &Note, moved: Timestamp, now: Timestamp) -> bool {
    let last = moved.saturating_add(CLOCKS_DIFFER);
    note.at < last.unwrap_or(Timestamp::MAX) && now < expiry(note.at)
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
