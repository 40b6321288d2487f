//! Who has a key, in every situation there is.

use jiff::{SignedDuration, Timestamp};
use types::{JournalId, RequestId};
use uuid::Uuid;

use super::{NOON, at};
use crate::domain::idempotency::{
    Asker, Holder, State, Trace, Verdict, ended_forgotten, expiry, judge, standing,
};

fn holder() -> Holder {
    Holder {
        request: RequestId::new(Uuid::from_u128(1)),
        head: [1; 32],
        state: State::Open,
        kept: None,
        expires_at: expiry(at(NOON)),
    }
}

fn asker() -> Asker {
    Asker {
        request: RequestId::new(Uuid::from_u128(2)),
        journal: JournalId::new(Uuid::from_u128(3)),
        head: [1; 32],
    }
}

fn row(credits: i64, status: i32, is_complete: bool) -> Trace {
    Trace::Row {
        credits,
        status,
        is_complete,
    }
}

const CHARGED: Trace = Trace::Row {
    credits: 2,
    status: 200,
    is_complete: true,
};

#[test]
fn what_was_charged_is_never_forwarded_again_and_what_was_not_is() {
    let cases = [
        // Nobody knows yet: neither a kept answer nor a dead gateway says that it was charged.
        (None, Trace::Unknown, Verdict::InFlight),
        (Some(200), Trace::Unknown, Verdict::InFlight),
        // Killed before its record was written.
        (None, Trace::Never, Verdict::First),
        (Some(200), Trace::Never, Verdict::First),
        // Killed after it.
        (Some(200), CHARGED, Verdict::Answered),
        (None, CHARGED, Verdict::NotKept),
        // A free route's answer that is kept counts too.
        (Some(200), row(0, 200, true), Verdict::Answered),
        // Refused, failed, broken off before there was an answer: nothing was charged.
        (None, row(0, 402, false), Verdict::First),
        (None, row(0, 500, true), Verdict::First),
        (None, row(0, 499, false), Verdict::First),
        // Kept and then broken off, for nothing.
        (Some(200), row(0, 503, false), Verdict::First),
        (Some(200), row(0, 499, false), Verdict::First),
        (Some(200), row(0, 200, false), Verdict::First),
        // Kept and then broken off, and charged by the gateway's successor.
        (Some(200), row(2, 200, false), Verdict::Answered),
        (Some(200), row(2, 499, false), Verdict::Answered),
        (None, row(2, 499, false), Verdict::NotKept),
    ];
    for (kept, trace, wanted) in cases {
        let holder = Holder { kept, ..holder() };
        let found = judge(&holder, &asker(), trace, at(NOON));
        assert_eq!(found, wanted, "{kept:?} {trace:?}");
        let is_charged = matches!(trace, Trace::Row { credits: 1.., .. });
        assert!(!is_charged || found != Verdict::First, "{kept:?} {trace:?}");
    }
}

#[test]
fn what_is_settled_needs_no_row() {
    for (state, wanted) in [
        (State::Answered, Verdict::Answered),
        (State::NotKept, Verdict::NotKept),
    ] {
        let holder = Holder { state, ..holder() };
        for trace in [Trace::Unknown, Trace::Never, CHARGED] {
            assert_eq!(judge(&holder, &asker(), trace, at(NOON)), wanted);
            assert_eq!(standing(&holder, trace), Some(state));
        }
        assert_eq!(State::read(state.as_str()), state);
    }
    assert_eq!(State::read(State::Open.as_str()), State::Open);
}

#[test]
fn another_request_has_no_part_in_a_key_that_is_had() {
    let other = Asker {
        head: [2; 32],
        ..asker()
    };
    let kept = Holder {
        kept: Some(200),
        ..holder()
    };
    for trace in [Trace::Unknown, CHARGED] {
        assert_eq!(judge(&kept, &other, trace, at(NOON)), Verdict::Reused);
    }
    // Of a key that is free, nobody remembers what it stood for.
    assert_eq!(judge(&kept, &other, Trace::Never, at(NOON)), Verdict::First);
}

#[test]
fn who_asks_again_has_what_he_had() {
    let same = Asker {
        request: holder().request,
        ..asker()
    };
    assert_eq!(
        judge(&holder(), &same, Trace::Unknown, at(NOON)),
        Verdict::First
    );
}

#[test]
fn a_key_is_remembered_for_a_day_and_its_journal_for_longer() {
    let begun = at(NOON);
    let holder = Holder {
        state: State::Answered,
        ..holder()
    };
    let day = SignedDuration::from_hours(24);
    let last = begun + day - SignedDuration::from_micros(1);
    assert_eq!(judge(&holder, &asker(), CHARGED, last), Verdict::Answered);
    assert_eq!(
        judge(&holder, &asker(), CHARGED, begun + day),
        Verdict::First
    );
    assert!(ended_forgotten(begun + day) < begun);
    assert_eq!(expiry(Timestamp::MAX), Timestamp::MAX);
}
