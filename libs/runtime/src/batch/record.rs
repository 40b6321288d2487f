//! What every record must keep, whoever reads it. All consumers refuse the same records for the
//! same reason, and none of them meets a number, a text or a kind that it has no room for.

use jiff::Timestamp;
use prost::Message as _;
use proto::events::v1::{Call, Disposition, Record, RecordKind};
use types::{
    CALL_COST_MAX, IdError, KeyId, LeaseId, OrgId, RECORD_BYTES_MAX, RequestId, ServiceId,
    ServiceName, UserId,
};

/// Leases of permits that a call uses: a key has at most two quotas.
const PERMITS_MAX: usize = 2;
/// HTTP has no higher status.
const STATUS_MAX: u32 = 999;
/// A W3C traceparent has 55.
const TRACEPARENT_BYTES_MAX: usize = 64;

const SHA256_BYTES: usize = 32;

/// Checks one record; the error names the rule, not the record.
pub(super) fn check(record: &Record) -> Result<(), String> {
    // Whatever has no limit of its own: a gateway has no room for more.
    let bytes = record.encoded_len();
    if RECORD_BYTES_MAX < bytes {
        return Err(format!("{bytes} bytes, more than {RECORD_BYTES_MAX}"));
    }
    // Who does not know a kind does not know what it does to money: it is not to be passed over.
    let kind = RecordKind::try_from(record.kind)
        .ok()
        .filter(|kind| *kind != RecordKind::Unspecified)
        .ok_or_else(|| format!("kind {} is not known to this version", record.kind))?;
    if !(0..=CALL_COST_MAX).contains(&record.cost) {
        let cost = record.cost;
        return Err(format!("a cost of {cost}, not 0 to {CALL_COST_MAX}"));
    }
    for (field, number) in [
        ("cum", record.cum),
        ("granted", record.granted),
        ("held", record.held),
        ("due", record.due),
    ] {
        if number < 0 {
            return Err(format!("{field}: {number} is less than nothing"));
        }
    }
    optional("lease_id", &record.lease_id, LeaseId::from_slice)?;
    moment(record.at_unix_micros)?;
    permits(kind, record)?;
    match kind {
        RecordKind::Call => call(record),
        _ => Ok(()),
    }
}

fn permits(kind: RecordKind, record: &Record) -> Result<(), String> {
    let permits = &record.permits;
    let may_have = matches!(
        kind,
        RecordKind::Call | RecordKind::Open | RecordKind::Progress
    );
    if !may_have && !permits.is_empty() {
        return Err("it is no call and uses a permit".to_owned());
    }
    if PERMITS_MAX < permits.len() {
        return Err(format!("{} permits", permits.len()));
    }
    for permit in permits {
        required("permits", &permit.lease_id, LeaseId::from_slice)?;
        if permit.cum < 0 {
            return Err(format!("permits: {} is less than nothing", permit.cum));
        }
    }
    Ok(())
}

fn call(record: &Record) -> Result<(), String> {
    if 0 < record.cost && record.lease_id.is_empty() {
        return Err(format!("a cost of {} charges no lease", record.cost));
    }
    if record.cum < record.cost && !record.lease_id.is_empty() {
        let (cum, cost) = (record.cum, record.cost);
        return Err(format!("a cost of {cost} in a total of {cum}"));
    }
    let call = record.call.as_ref().ok_or("a CALL without its call")?;
    identities(call)?;
    idempotency(call)?;
    // It is part of keys of tables.
    if !call.service_id.is_empty() && call.service.parse::<ServiceName>().is_err() {
        return Err("service: not the name of one".to_owned());
    }
    let traceparent = call.traceparent.as_bytes();
    if TRACEPARENT_BYTES_MAX < traceparent.len() || !traceparent.iter().all(u8::is_ascii_graphic) {
        return Err("traceparent: none".to_owned());
    }
    if STATUS_MAX < call.status {
        return Err(format!("status: {} is none", call.status));
    }
    if !matches!(call.ip.len(), 0 | 4 | 16) {
        return Err(format!("ip: {} bytes, neither 4 nor 16", call.ip.len()));
    }
    match Disposition::try_from(call.disposition) {
        Ok(Disposition::Unspecified) | Err(_) => {
            return Err(format!("disposition: {}", call.disposition));
        }
        Ok(_) => {}
    }
    for (field, bytes) in [
        ("request_bytes", call.request_bytes),
        ("response_bytes", call.response_bytes),
    ] {
        if i64::try_from(bytes).is_err() {
            return Err(format!("{field}: {bytes} is too large"));
        }
    }
    Ok(())
}

fn identities(call: &Call) -> Result<(), String> {
    required("request_id", &call.request_id, RequestId::from_slice)?;
    required("org_id", &call.org_id, OrgId::from_slice)?;
    optional("api_key_id", &call.api_key_id, KeyId::from_slice)?;
    optional("user_id", &call.user_id, UserId::from_slice)?;
    optional("service_id", &call.service_id, ServiceId::from_slice)?;
    optional("replay_of", &call.replay_of, RequestId::from_slice)
}

fn idempotency(call: &Call) -> Result<(), String> {
    let key = call.idempotency_key_sha256.len();
    let head = call.idempotency_head_sha256.len();
    match (key, head) {
        (0, 0) | (SHA256_BYTES, SHA256_BYTES) => Ok(()),
        _ => Err(format!("idempotency: digests of {key} and {head} bytes")),
    }
}

fn moment(micros: i64) -> Result<(), String> {
    match Timestamp::from_microsecond(micros) {
        Ok(at) if Timestamp::UNIX_EPOCH <= at => Ok(()),
        _ => Err(format!(
            "at_unix_micros: {micros} is not between 1970 and 9999"
        )),
    }
}

type Parse<T> = fn(&[u8]) -> Result<T, IdError>;

fn optional<T>(field: &str, bytes: &[u8], parse: Parse<T>) -> Result<(), String> {
    match bytes {
        [] => Ok(()),
        bytes => required(field, bytes, parse),
    }
}

fn required<T>(field: &str, bytes: &[u8], parse: Parse<T>) -> Result<(), String> {
    match parse(bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{field}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use proto::events::v1::{Permit, Unit};

    use super::*;

    fn record() -> Record {
        Record {
            seq: 5,
            kind: RecordKind::Call.into(),
            at_unix_micros: 1_790_000_000_000_000,
            lease_id: vec![1; 16],
            cost: CALL_COST_MAX,
            cum: i64::MAX,
            call: Some(Call {
                request_id: vec![2; 16],
                org_id: vec![3; 16],
                service_id: vec![4; 16],
                service: "s".repeat(63),
                endpoint: "é".repeat(256),
                ip: vec![127, 0, 0, 1],
                status: 200,
                disposition: Disposition::Completed.into(),
                idempotency_key_sha256: vec![6; 32],
                idempotency_head_sha256: vec![7; 32],
                ..Call::default()
            }),
            permits: vec![
                Permit {
                    lease_id: vec![5; 16],
                    cum: 1,
                };
                2
            ],
            ..Record::default()
        }
    }

    fn changed(change: impl FnOnce(&mut Record)) -> Record {
        let mut record = record();
        change(&mut record);
        record
    }

    fn called(change: impl FnOnce(&mut Call)) -> Record {
        changed(|record| change(record.call.as_mut().unwrap()))
    }

    #[test]
    fn what_a_gateway_writes_is_sound() {
        let free = changed(|record| {
            record.lease_id.clear();
            (record.cost, record.cum) = (0, 0);
        });
        let unknown_service = called(|call| {
            call.service_id.clear();
            call.service.clear();
        });
        for sound in [record(), free, unknown_service] {
            assert_eq!(check(&sound), Ok(()), "{sound:?}");
        }
        for kind in [
            RecordKind::Grant,
            RecordKind::Open,
            RecordKind::Progress,
            RecordKind::Void,
            RecordKind::Close,
        ] {
            let other = Record {
                seq: 9,
                kind: kind.into(),
                ..Record::default()
            };
            assert_eq!(check(&other), Ok(()), "{kind:?}");
        }
    }

    fn refused_with_their_reasons<const N: usize>(broken: [(&str, Record); N]) {
        for (expected, record) in broken {
            let reason = check(&record).unwrap_err();
            assert!(reason.contains(expected), "{expected}: {reason}");
        }
    }

    #[test]
    fn a_record_that_makes_no_sense_says_why() {
        let broken = [
            ("kind 7", changed(|record| record.kind = 7)),
            ("kind 0", changed(|record| record.kind = 0)),
            ("a cost of -1", changed(|record| record.cost = -1)),
            (
                "a cost of",
                changed(|record| record.cost = CALL_COST_MAX + 1),
            ),
            ("a cost of", changed(|record| record.cost = i64::MAX)),
            ("no lease", changed(|record| record.lease_id.clear())),
            ("in a total of 3", changed(|record| record.cum = 3)),
            ("cum", changed(|record| record.cum = -1)),
            ("granted", changed(|record| record.granted = -1)),
            ("held", changed(|record| record.held = -1)),
            ("due", changed(|record| record.due = -1)),
            ("lease_id", changed(|record| record.lease_id = vec![1; 15])),
            ("at_unix", changed(|record| record.at_unix_micros = -1)),
            (
                "at_unix",
                changed(|record| record.at_unix_micros = i64::MAX),
            ),
            (
                "3 permits",
                changed(|it| it.permits.push(it.permits[0].clone())),
            ),
            (
                "permits",
                changed(|record| record.permits[1].lease_id.clear()),
            ),
            ("permits", changed(|record| record.permits[1].cum = -1)),
            ("no call", changed(|it| it.kind = RecordKind::Close.into())),
        ];
        refused_with_their_reasons(broken);
    }

    #[test]
    fn a_call_that_somebody_has_no_room_for_says_why() {
        let unit = Unit {
            name: "pages".repeat(20),
            count: 1,
        };
        let broken = [
            ("without its call", changed(|record| record.call = None)),
            ("request_id", called(|call| call.request_id.clear())),
            ("org_id", called(|call| call.org_id.clear())),
            ("api_key_id", called(|call| call.api_key_id = vec![0; 17])),
            ("user_id", called(|call| call.user_id = vec![0; 17])),
            ("service_id", called(|call| call.service_id = vec![0; 1])),
            ("replay_of", called(|call| call.replay_of = vec![0; 1])),
            ("service:", called(|call| call.service = "s".repeat(64))),
            ("service:", called(|call| call.service = "\0".to_owned())),
            (
                "bytes, more",
                called(|call| call.service = "s".repeat(5_000)),
            ),
            (
                "bytes, more",
                called(|call| call.endpoint = "/".repeat(5_000)),
            ),
            ("bytes, more", called(|call| call.units = vec![unit; 60])),
            (
                "idempotency",
                called(|call| call.idempotency_head_sha256.clear()),
            ),
            (
                "traceparent",
                called(|call| call.traceparent = "\0".to_owned()),
            ),
            (
                "traceparent",
                called(|call| call.traceparent = "0".repeat(65)),
            ),
            ("status", called(|call| call.status = 1_000)),
            ("ip", called(|call| call.ip = vec![0; 5])),
            ("disposition", called(|call| call.disposition = 0)),
            ("disposition", called(|call| call.disposition = 7)),
            (
                "request_bytes",
                called(|call| call.request_bytes = u64::MAX),
            ),
            (
                "response_bytes",
                called(|call| call.response_bytes = u64::MAX),
            ),
        ];
        refused_with_their_reasons(broken);
    }
}
