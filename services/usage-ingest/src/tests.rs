//! What becomes a row, what does not, and what the service's periods are.

mod idempotency;

use jiff::{Timestamp, civil::date};
use proptest::prelude::*;
use proto::events::v1::{Call, Disposition, Permit, Record, RecordKind, Unit};
use runtime::{Apply as _, ApplyError};
use serde_json::json;
use types::{Environment, JournalId, LeaseId};
use uuid::Uuid;

use crate::{
    domain::{
        Cursor, Row, day_of, first_day_kept,
        idempotency::{Claim, expiry, remembered},
        partition_days, trace_id,
    },
    events::row,
};

const NOON: &str = "2026-11-05T12:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn id(byte: u8) -> Vec<u8> {
    vec![byte; 16]
}

fn journal() -> JournalId {
    JournalId::new(Uuid::from_u128(7))
}

fn record() -> Record {
    Record {
        seq: 3,
        kind: RecordKind::Call.into(),
        at_unix_micros: at(NOON).as_microsecond(),
        lease_id: id(9),
        cost: 2,
        cum: 40,
        permits: vec![Permit {
            lease_id: id(8),
            cum: 7,
        }],
        call: Some(Call {
            request_id: id(1),
            org_id: id(2),
            api_key_id: id(3),
            user_id: id(4),
            service_id: id(5),
            service: "pdf".to_owned(),
            endpoint: "/render".to_owned(),
            method: "POST".to_owned(),
            status: 200,
            duration_micros: 12_999,
            upstream_micros: 11_000,
            ip: vec![192, 0, 2, 1],
            country: "FR".to_owned(),
            user_agent: "curl/8".to_owned(),
            disposition: Disposition::Completed.into(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            units: vec![Unit {
                name: "pages".to_owned(),
                count: 5,
            }],
            ..Call::default()
        }),
        ..Record::default()
    }
}

fn changed(change: impl FnOnce(&mut Record, &mut Call)) -> Record {
    let mut record = record();
    let mut call = record.call.take().unwrap();
    change(&mut record, &mut call);
    Record {
        call: Some(call),
        ..record
    }
}

#[test]
fn a_call_becomes_one_row_with_all_it_says() {
    let row = row(journal(), &record()).unwrap().unwrap();
    assert_eq!((row.journal, row.seq, row.at), (journal(), 3, at(NOON)));
    assert_eq!((row.credits, row.lease.map(|(_, cum)| cum)), (2, Some(40)));
    assert_eq!(
        row.permits,
        [Some(LeaseId::from_slice(&id(8)).unwrap()), None]
    );
    assert_eq!((row.response_time_ms, row.upstream_time_ms), (12, 11));
    assert_eq!(row.details, json!({"pages": 5}));
    assert_eq!(row.ip.unwrap().to_string(), "192.0.2.1");
    assert_eq!(row.environment, Environment::Production);
    assert_eq!(row.disposition.as_str(), "completed");
    assert_eq!(row.trace_id, "0af7651916cd43dd8448eb211c80319c");
}

#[test]
fn only_calls_become_rows() {
    let kinds = [
        RecordKind::Grant,
        RecordKind::Open,
        RecordKind::Progress,
        RecordKind::Void,
    ];
    for kind in kinds
        .into_iter()
        .chain([RecordKind::Close, RecordKind::Unspecified])
    {
        assert_eq!(
            row(
                journal(),
                &Record {
                    kind: kind.into(),
                    ..record()
                }
            ),
            Ok(None)
        );
    }
}

#[test]
fn a_charged_call_has_its_key_for_a_day_and_others_say_nothing_of_theirs() {
    let keyed = changed(|_, call| {
        call.idempotency_key_sha256 = vec![4; 32];
        call.idempotency_head_sha256 = vec![5; 32];
    });
    let charged = row(journal(), &keyed).unwrap().unwrap();
    let claim = Claim {
        key: [4; 32],
        head: [5; 32],
    };
    assert_eq!(charged.claim, Some(claim));
    assert!(remembered(&charged, at(NOON)));
    assert!(!remembered(&charged, expiry(at(NOON))));
    let free = Row {
        credits: 0,
        ..charged
    };
    assert!(!remembered(&free, at(NOON)));
    assert_eq!(row(journal(), &record()).unwrap().unwrap().claim, None);
}

#[test]
fn what_is_absent_is_null_and_no_country_is_zz() {
    let empty = changed(|record, call| {
        record.lease_id.clear();
        (call.api_key_id, call.user_id, call.service_id) = (vec![], vec![], vec![]);
        (call.ip, call.country, call.traceparent) = (vec![], String::new(), String::new());
    });
    let row = row(journal(), &empty).unwrap().unwrap();
    assert!(row.key.is_none() && row.user.is_none() && row.service_id.is_none());
    assert!(row.lease.is_none() && row.ip.is_none());
    assert_eq!((row.country.as_str(), row.trace_id.as_str()), ("ZZ", ""));
}

#[test]
fn a_record_that_cannot_be_a_row_says_why() {
    let broken = [
        (
            "without its call",
            Record {
                call: None,
                ..record()
            },
        ),
        (
            "lease_id",
            changed(|record, _| record.lease_id = vec![1; 15]),
        ),
        (
            "permits",
            changed(|record, _| record.permits = vec![Permit::default(); 3]),
        ),
        ("seq", changed(|record, _| record.seq = u64::MAX)),
        (
            "at_unix_micros",
            changed(|record, _| record.at_unix_micros = -1),
        ),
        (
            "at_unix_micros",
            changed(|record, _| record.at_unix_micros = i64::MAX),
        ),
        ("request_id", changed(|_, call| call.request_id.clear())),
        ("org_id", changed(|_, call| call.org_id.clear())),
        (
            "api_key_id",
            changed(|_, call| call.api_key_id = vec![0; 17]),
        ),
        (
            "service_id",
            changed(|_, call| call.service_id = vec![0; 1]),
        ),
        ("status", changed(|_, call| call.status = u32::MAX)),
        ("ip", changed(|_, call| call.ip = vec![0; 5])),
        ("disposition", changed(|_, call| call.disposition = 77)),
        (
            "idempotency",
            changed(|_, call| call.idempotency_key_sha256 = vec![4; 32]),
        ),
        (
            "response_bytes",
            changed(|_, call| call.response_bytes = u64::MAX),
        ),
    ];
    for (expected, record) in broken {
        let reason = row(journal(), &record).unwrap_err();
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
}

#[test]
fn the_whole_message_of_a_bad_record_is_named() {
    let delivery = |record| runtime::Delivery {
        journal: journal(),
        records: vec![record],
    };
    let fresh = [
        delivery(record()),
        delivery(Record {
            call: None,
            ..record()
        }),
    ];
    let rows = crate::events::Rows::new(runtime::Clock::system(), 90);
    let Err(ApplyError::Poison { delivery, reason }) = rows.read(&fresh) else {
        panic!("the second message is bad");
    };
    assert_eq!(
        (delivery, reason.as_str()),
        (1, "record 3: a CALL without its call")
    );
    assert_eq!(crate::events::Rows::SCHEMA, "usage_ingest");
}

#[test]
fn a_nul_is_replaced_because_the_database_cannot_hold_it() {
    let record = changed(|_, call| {
        call.user_agent = "a\0b".to_owned();
        call.units = vec![Unit {
            name: "x\0".to_owned(),
            count: 1,
        }];
    });
    let row = row(journal(), &record).unwrap().unwrap();
    assert_eq!(row.user_agent, "a\u{fffd}b");
    assert_eq!(row.details, json!({"x\u{fffd}": 1}));
}

#[test]
fn units_of_one_name_count_together() {
    let unit = |count| Unit {
        name: "tokens".to_owned(),
        count,
    };
    let record = changed(|_, call| call.units = vec![unit(2), unit(3), unit(u64::MAX)]);
    assert_eq!(
        row(journal(), &record).unwrap().unwrap().details,
        json!({"tokens": u64::MAX})
    );
}

#[test]
fn a_row_tells_what_a_price_assumed_and_what_nobody_paid() {
    let record = changed(|_, call| {
        call.units = Vec::new();
        call.overrun = 7;
        call.estimated = true;
        call.set_disposition(Disposition::GatewayAborted);
    });
    let row = row(journal(), &record).unwrap().unwrap();
    assert_eq!(
        row.details,
        json!({"tollgate:overrun": 7, "tollgate:estimated": true})
    );
    assert_eq!(row.disposition.as_str(), "gateway_aborted");
}

#[test]
fn a_late_call_brings_no_erased_personal_data_back() {
    let young = row(journal(), &record()).unwrap().unwrap();
    let kept = young
        .clone()
        .without_old_personal_data(at("2027-02-03T11:59:59Z"), 90);
    assert_eq!(kept, young);
    let old = young.without_old_personal_data(at("2027-02-03T12:00:00Z"), 90);
    assert!(old.ip.is_none() && old.user_agent.is_empty());
    assert_eq!(old.country, "FR");
}

#[test]
fn a_day_is_erased_once_its_last_moment_is_old_enough() {
    // 2026-11-05 ends 90 days before 2027-02-04, and an hour later its transactions have too.
    assert_eq!(
        first_day_kept(at("2027-02-04T00:59:59Z"), 90),
        date(2026, 11, 5)
    );
    assert_eq!(
        first_day_kept(at("2027-02-04T01:00:00Z"), 90),
        date(2026, 11, 6)
    );
}

#[test]
fn partitions_reach_from_yesterday_to_a_week_ahead() {
    let days = partition_days(date(2026, 12, 28));
    assert_eq!(days.len(), 9);
    assert_eq!(days.first(), Some(&date(2026, 12, 27)));
    assert_eq!(days.last(), Some(&date(2027, 1, 4)));
}

#[test]
fn the_day_of_a_call_is_its_day_in_utc() {
    assert_eq!(day_of(at("2026-01-31T23:59:59.999999Z")), date(2026, 1, 31));
    assert_eq!(day_of(at("2026-02-01T00:59:59+01:00")), date(2026, 1, 31));
}

#[test]
fn a_malformed_traceparent_has_no_trace_id() {
    for text in [
        "",
        "00",
        "00-short-b7ad6b7169203331-01",
        &format!("00-{}-x-01", "g".repeat(32)),
    ] {
        assert_eq!(trace_id(text), "");
    }
}

proptest! {
    #[test]
    fn a_page_token_is_read_back(micros in 0..253_402_200_000_000_000_i64, seq: i64, id: u128) {
        let at = Timestamp::from_microsecond(micros).unwrap();
        let cursor = Cursor { at, journal: Uuid::from_u128(id), seq };
        prop_assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
    }

    #[test]
    fn no_text_is_a_page_token_by_accident(text in "[0-9a-f.\\-]{0,40}") {
        if let Ok(cursor) = text.parse::<Cursor>() {
            prop_assert!(cursor.at >= Timestamp::UNIX_EPOCH);
        }
    }
}
