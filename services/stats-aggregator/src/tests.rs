//! Totals equal a naive recount, however the calls are cut into batches.

use std::collections::BTreeMap;

use jiff::{Timestamp, civil::date};
use proptest::prelude::*;
use proto::events::v1::{self, Record, RecordKind};
use runtime::{ApplyError, Delivery};
use types::{CALL_COST_MAX, Credits, Environment, JournalId, OrgId, RECORDS_MAX};
use uuid::Uuid;

use crate::{
    domain::{Call, Changes, Sums, day_of, days, first_hour, is_success},
    events::{UNKNOWN_SERVICE, call, changes},
};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn record() -> Record {
    Record {
        seq: 5,
        kind: RecordKind::Call.into(),
        at_unix_micros: at("2026-11-05T12:59:59.999999Z").as_microsecond(),
        cost: 3,
        call: Some(v1::Call {
            org_id: vec![2; 16],
            service_id: vec![5; 16],
            service: "pdf".to_owned(),
            status: 200,
            ..v1::Call::default()
        }),
        ..Record::default()
    }
}

fn changed(change: impl FnOnce(&mut Record, &mut v1::Call)) -> Record {
    let mut record = record();
    let mut call = record.call.take().unwrap();
    change(&mut record, &mut call);
    Record {
        call: Some(call),
        ..record
    }
}

fn deliveries(records: impl IntoIterator<Item = Record>) -> Vec<Delivery> {
    let journal = JournalId::new(Uuid::from_u128(1));
    records
        .into_iter()
        .map(|record| Delivery {
            journal,
            records: vec![record],
        })
        .collect()
}

/// The sums of some calls, one by one.
fn recount<'a>(calls: impl Iterator<Item = &'a Call>) -> Sums {
    calls.fold(Sums::default(), |sums, call| {
        sums.plus(call.into()).unwrap()
    })
}

fn any_call() -> impl Strategy<Value = Call> {
    let service = prop_oneof![Just("pdf"), Just("ai"), Just("mileage")];
    (
        0..3_u128,
        0..200_000_i64,
        any::<bool>(),
        service,
        0..9_i64,
        any::<bool>(),
    )
        .prop_map(|(org, second, test, service, credits, successful)| Call {
            org: OrgId::new(Uuid::from_u128(org)),
            at: Timestamp::from_second(1_790_000_000 + second).unwrap(),
            environment: if test {
                Environment::Test
            } else {
                Environment::Production
            },
            service: service.to_owned(),
            credits: Credits::new(credits),
            successful,
        })
}

proptest! {
    /// Applying batches one after the other is what the store does: row by row `+=`.
    #[test]
    fn totals_equal_a_naive_recount_under_any_batching(
        calls in prop::collection::vec(any_call(), 0..200),
        cuts in prop::collection::vec(1..40_usize, 1..20),
    ) {
        let (mut hours, mut by_day) = (BTreeMap::new(), BTreeMap::new());
        let mut breakdowns: BTreeMap<_, i64> = BTreeMap::new();
        let mut rest = calls.as_slice();
        for size in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (batch, later) = rest.split_at((*size).min(rest.len()));
            rest = later;
            let mut changes = Changes::default();
            for call in batch {
                changes.add(call.clone());
            }
            for (key, daily) in changes.days() {
                let sums: &mut Sums = by_day.entry(key).or_default();
                *sums = sums.plus(daily.sums).unwrap();
                for (service, count) in daily.services {
                    *breakdowns.entry((key, service)).or_default() += count;
                }
            }
            for (key, change) in changes.hours() {
                let sums: &mut Sums = hours.entry(key.clone()).or_default();
                *sums = sums.plus(*change).unwrap();
            }
        }
        for ((org, day, environment), sums) in &by_day {
            let mine = |call: &&Call| {
                (call.org, day_of(call.at), call.environment) == (*org, *day, *environment)
            };
            prop_assert_eq!(*sums, recount(calls.iter().filter(mine)));
            for service in ["pdf", "ai", "mileage"] {
                let naive = calls.iter().filter(mine).filter(|c| c.service == service).count();
                let key = ((*org, *day, *environment), service.to_owned());
                let counted = breakdowns.get(&key).copied().unwrap_or(0);
                prop_assert_eq!(usize::try_from(counted).unwrap(), naive);
            }
        }
        for ((org, hour, environment, service), sums) in &hours {
            let naive = recount(calls.iter().filter(|call| {
                call.org == *org
                    && call.environment == *environment
                    && call.service == *service
                    && (0..3600).contains(&(call.at.as_second() - hour.as_second()))
            }));
            prop_assert_eq!(*sums, naive);
        }
        let everything = recount(calls.iter());
        let sum = |all: Vec<Sums>| all.into_iter().try_fold(Sums::default(), Sums::plus).unwrap();
        prop_assert_eq!(sum(hours.into_values().collect()), everything);
        prop_assert_eq!(sum(by_day.into_values().collect()), everything);
    }
}

#[test]
fn a_refused_call_counts_as_a_request_without_success() {
    let refused = changed(|record, call| {
        record.cost = 0;
        call.status = 402;
    });
    let changes = changes(&deliveries([record(), refused])).unwrap();
    let days = changes.days();
    let daily = days.values().next().unwrap();
    let expected = Sums {
        requests: 2,
        credits: Credits::new(3),
        successful: 1,
    };
    assert_eq!((days.len(), daily.sums), (1, expected));
    assert_eq!(daily.services, BTreeMap::from([("pdf".to_owned(), 2)]));
}

#[test]
fn only_calls_are_counted() {
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
            call(&Record {
                kind: kind.into(),
                ..record()
            }),
            Ok(None)
        );
    }
}

#[test]
fn services_that_do_not_exist_share_one_name() {
    let invented = changed(|_, call| {
        call.service_id.clear();
        call.service = "invented".to_owned();
    });
    assert_eq!(call(&invented).unwrap().unwrap().service, UNKNOWN_SERVICE);
    assert!(UNKNOWN_SERVICE.parse::<types::ServiceName>().is_err());
}

#[test]
fn a_record_that_cannot_be_counted_poisons_its_message_alone() {
    let broken = [
        Record {
            call: None,
            ..record()
        },
        changed(|record, _| record.at_unix_micros = -1),
        changed(|_, call| call.org_id = vec![1; 3]),
    ];
    for bad in broken {
        let Err(ApplyError::Poison { delivery, reason }) = changes(&deliveries([record(), bad]))
        else {
            panic!("the second message is bad");
        };
        assert_eq!(delivery, 1);
        assert!(reason.starts_with("record 5: "), "{reason}");
    }
}

#[test]
fn the_dearest_calls_of_one_fetch_fit() {
    let dear = changed(|record, _| record.cost = CALL_COST_MAX);
    let one = deliveries([dear]).remove(0);
    let records = vec![one.records[0].clone(); RECORDS_MAX];
    let fetch = vec![Delivery { records, ..one }; 200];
    let days = changes(&fetch).unwrap().days();
    let credits = days.values().next().unwrap().sums.credits;
    assert_eq!(credits, Credits::new(200 * 256 * CALL_COST_MAX));
}

#[test]
fn success_is_2xx_and_3xx_and_a_changed_protocol() {
    for (status, success) in [
        (101, true),
        (199, false),
        (200, true),
        (304, true),
        (399, true),
        (400, false),
    ] {
        assert_eq!(is_success(status), success);
    }
}

#[test]
fn periods_have_defaults_and_bounds() {
    let now = at("2026-03-02T10:30:00Z");
    assert_eq!(
        days("", "", now).unwrap(),
        (date(2026, 1, 31), date(2026, 3, 2))
    );
    let leap_year = days("2028-01-01", "2028-12-31", now).unwrap();
    assert_eq!(leap_year, (date(2028, 1, 1), date(2028, 12, 31)));
    for (from, to) in [
        ("2026-01-02", "2026-01-01"),
        ("2025-01-01", "2026-01-02"),
        ("x", ""),
    ] {
        assert!(days(from, to, now).is_err(), "{from} {to}");
    }
    assert!(days("-009999-01-01", "-009999-01-02", now).is_err());
    assert_eq!(first_hour("", now).unwrap(), at("2026-03-01T10:00:00Z"));
    assert_eq!(
        first_hour("2026-03-01T12:59:00+02:00", now).unwrap(),
        at("2026-03-01T10:00:00Z")
    );
    assert!(first_hour("yesterday", now).is_err());
}
