//! From records to calls.

use proto::events::v1::{Call as WireCall, Record, RecordKind};
use runtime::{ApplyError, Delivery};
use types::JournalId;
use uuid::Uuid;

use super::{START, call, key, org};
use crate::{
    domain::{Call, country_spread::Country},
    events::{self, read},
};

fn record(country: &str) -> Record {
    Record {
        seq: 5,
        kind: RecordKind::Call.into(),
        at_unix_micros: START,
        cost: 1,
        call: Some(WireCall {
            org_id: org().bytes().to_vec(),
            api_key_id: key(3).bytes().to_vec(),
            country: country.to_owned(),
            service: "pdf".to_owned(),
            service_id: vec![7; 16],
            ..WireCall::default()
        }),
        ..Record::default()
    }
}

fn changed(change: impl FnOnce(&mut WireCall)) -> Record {
    let mut record = record("FR");
    change(record.call.as_mut().unwrap());
    record
}

#[test]
fn a_call_is_read_and_an_unknown_place_or_service_is_none() {
    let expected = Call {
        country: Country::parse("FR"),
        ..call(START)
    };
    assert_eq!(events::call(&record("FR")), Ok(Some(expected)));
    assert_eq!(events::call(&record("ZZ")), Ok(Some(call(START))));
    let unknown = changed(|call| call.service_id.clear());
    let unknown = events::call(&unknown).unwrap().unwrap();
    assert_eq!(unknown.service, "", "whatever the client has written there");
}

#[test]
fn a_call_with_a_test_key_spends_nothing_of_the_organisation() {
    let test = events::call(&changed(|call| call.test = true));
    assert_eq!(test.unwrap().unwrap().credits, 0);
}

#[test]
fn only_calls_with_a_key_are_seen() {
    let kind = RecordKind::Progress.into();
    assert_eq!(
        events::call(&Record {
            kind,
            ..record("FR")
        }),
        Ok(None)
    );
    let without_key = changed(|call| call.api_key_id.clear());
    assert_eq!(events::call(&without_key), Ok(None));
}

#[test]
fn a_record_that_cannot_be_read_poisons_its_message_alone() {
    let bad_key = changed(|call| call.api_key_id = vec![1]);
    let bad_time = Record {
        at_unix_micros: -1,
        ..record("FR")
    };
    let no_call = Record {
        call: None,
        ..record("FR")
    };
    for bad in [bad_key, bad_time, no_call] {
        let journal = JournalId::new(Uuid::from_u128(1));
        let fresh: Vec<Delivery> = [record("FR"), bad]
            .map(|record| Delivery {
                journal,
                records: vec![record],
            })
            .into();
        let Err(ApplyError::Poison { delivery, reason }) = read(&fresh) else {
            panic!("the second message is bad");
        };
        assert_eq!(delivery, 1);
        assert!(reason.starts_with("record 5: "), "{reason}");
    }
}
