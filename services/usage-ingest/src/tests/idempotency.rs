//! Who has a key, in every situation there is.

use jiff::{SignedDuration, Timestamp};
use proto::events::v1::{Call, Record, RecordKind};
use types::{Environment, Id, JournalId, RequestId};
use uuid::Uuid;

use super::{NOON, at, changed, id, journal};
use crate::{
    domain::idempotency::{
        Asker, Claim, Had, Holder, Note, State, Trace, Verdict, ended_forgotten, expiry, judge,
        standing, told,
    },
    events::{self, note},
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

/// A record of a call that has a key.
fn of_key(kind: RecordKind, change: impl FnOnce(&mut Record, &mut Call)) -> Record {
    changed(|record, call| {
        record.kind = kind.into();
        call.idempotency_key_sha256 = vec![4; 32];
        call.idempotency_head_sha256 = vec![5; 32];
        change(record, call);
    })
}

fn noted() -> Note {
    note(journal(), &of_key(RecordKind::Open, |_, _| {})).expect("a note")
}

#[test]
fn a_call_is_noted_with_its_key_and_whoever_has_none_is_not() {
    let wanted = Note {
        org: Id::from_slice(&id(2)).expect("an id"),
        environment: Environment::Production,
        claim: Claim {
            key: [4; 32],
            head: [5; 32],
        },
        request: Id::from_slice(&id(1)).expect("an id"),
        journal: journal(),
        at: at(NOON),
    };
    assert_eq!(noted(), wanted);
    let later = of_key(RecordKind::Progress, |_, call| call.test = true);
    let in_test = Note {
        environment: Environment::Test,
        ..wanted
    };
    assert_eq!(note(journal(), &later), Some(in_test));
    for kind in [RecordKind::Call, RecordKind::Grant, RecordKind::Close] {
        assert_eq!(note(journal(), &of_key(kind, |_, _| {})), None);
    }
    let unreadable: [fn(&mut Record, &mut Call); 5] = [
        |_, call| call.idempotency_key_sha256.clear(),
        |_, call| call.idempotency_head_sha256 = vec![5; 31],
        |_, call| call.org_id.clear(),
        |_, call| call.request_id = vec![1; 15],
        |record, _| record.at_unix_micros = -1,
    ];
    for change in unreadable {
        assert_eq!(note(journal(), &of_key(RecordKind::Open, change)), None);
    }
}

#[test]
fn a_note_tells_of_a_call_that_began_before_the_server_was_changed() {
    let minutes = |minutes| SignedDuration::from_mins(minutes);
    let open = [Had {
        by: noted(),
        state: State::Open,
    }];
    let told = |moved, now| told(&[], &[noted()], moved, now);
    let noon = at(NOON);
    // It never was.
    assert_eq!(told(None, noon), []);
    // A long call is still under way hours later, and clocks differ.
    for moved in [noon + minutes(300), noon, noon - minutes(9)] {
        assert_eq!(told(Some(moved), noon + minutes(301)), open);
    }
    // Who began since is known, or has freed his key already.
    assert_eq!(told(Some(noon - minutes(10)), noon), []);
    // Nobody has a key for longer than a day by what was noted.
    assert_eq!(told(Some(noon), expiry(noon)), []);
}

#[test]
fn the_end_of_a_call_outdoes_its_note() {
    let ended = |cost| {
        let record = of_key(RecordKind::Call, |record, _| record.cost = cost);
        let row = events::row(journal(), &record).expect("read");
        row.expect("a row")
    };
    let told = |row| told(&[row], &[noted()], Some(at(NOON)), at(NOON));
    let charged = Had {
        by: noted(),
        state: State::NotKept,
    };
    assert_eq!(told(ended(2)), [charged]);
    assert_eq!(told(ended(0)), [], "nobody has it");
}
