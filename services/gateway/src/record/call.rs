//! Records of calls, written as they are made: one for every call is what the edge does most, so
//! no message is built for it. The bytes are those that `prost` would write.

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint};
use proto::events::v1::{Disposition, RecordKind, Unit};
use types::LeaseId;

/// Room for a call as it mostly is.
const CALL_BYTES: usize = 384;

/// `events.v1.Call`.
pub(crate) struct Call<'a> {
    pub(crate) request: &'a [u8],
    pub(crate) org: &'a [u8],
    pub(crate) key: &'a [u8],
    pub(crate) user: &'a [u8],
    /// Empty: unknown.
    pub(crate) service_id: &'a [u8],
    pub(crate) service: &'a str,
    pub(crate) test: bool,
    pub(crate) endpoint: &'a str,
    pub(crate) method: &'a str,
    pub(crate) status: u16,
    pub(crate) duration_micros: u64,
    pub(crate) upstream_micros: u64,
    pub(crate) ip: &'a [u8],
    pub(crate) country: &'a str,
    pub(crate) user_agent: &'a str,
    pub(crate) disposition: Disposition,
    pub(crate) code: &'a str,
    pub(crate) traceparent: &'a str,
    pub(crate) price_version: i64,
    pub(crate) units: &'a [Unit],
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) overrun: i64,
    pub(crate) estimated: bool,
    /// The digests of its idempotency key, and of what it asks for; empty: it has none.
    pub(crate) idempotency: [&'a [u8]; 2],
    /// Empty: it is nobody's repetition.
    pub(crate) replay_of: &'a [u8],
}

impl Call<'_> {
    /// As a record holds it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CALL_BYTES);
        let to = &mut out;
        bytes(to, 1, self.request);
        bytes(to, 2, self.org);
        bytes(to, 3, self.key);
        bytes(to, 4, self.user);
        bytes(to, 5, self.service_id);
        bytes(to, 6, self.service.as_bytes());
        number(to, 7, u64::from(self.test));
        bytes(to, 8, self.endpoint.as_bytes());
        bytes(to, 9, self.method.as_bytes());
        number(to, 10, u64::from(self.status));
        number(to, 11, self.duration_micros);
        number(to, 12, self.upstream_micros);
        bytes(to, 13, self.ip);
        bytes(to, 14, self.country.as_bytes());
        bytes(to, 15, self.user_agent.as_bytes());
        number(
            to,
            16,
            i64::from(i32::from(self.disposition)).cast_unsigned(),
        );
        bytes(to, 17, self.code.as_bytes());
        bytes(to, 18, self.traceparent.as_bytes());
        number(to, 19, self.price_version.cast_unsigned());
        prost::encoding::message::encode_repeated(20, self.units, to);
        number(to, 21, self.request_bytes);
        number(to, 22, self.response_bytes);
        number(to, 23, self.overrun.cast_unsigned());
        number(to, 24, u64::from(self.estimated));
        let [key, head] = self.idempotency;
        bytes(to, 25, key);
        bytes(to, 26, head);
        bytes(to, 31, self.replay_of);
        out
    }
}

/// `events.v1.Record` of a call.
pub(crate) struct CallRecord<'a> {
    pub(crate) seq: u64,
    pub(crate) kind: RecordKind,
    pub(crate) at_unix_micros: i64,
    /// None: nothing is charged.
    pub(crate) lease: Option<LeaseId>,
    pub(crate) cost: i64,
    pub(crate) cum: i64,
    pub(crate) held: i64,
    /// As [`Call::encode`] has made it.
    pub(crate) call: &'a [u8],
    pub(crate) due: i64,
}

impl CallRecord<'_> {
    /// Writes the record into a slot, with the leases of its permits and their totals. Returns its
    /// length.
    ///
    /// # Panics
    /// When it is longer than a slot; every part has a limit.
    pub(crate) fn write(
        &self,
        permits: impl Iterator<Item = (LeaseId, i64)>,
        slot: &mut [u8],
    ) -> usize {
        let room = slot.len();
        let mut left = slot;
        let to = &mut left;
        number(to, 1, self.seq);
        number(to, 2, i64::from(i32::from(self.kind)).cast_unsigned());
        number(to, 3, self.at_unix_micros.cast_unsigned());
        if let Some(lease) = self.lease {
            bytes(to, 4, lease.bytes());
        }
        number(to, 5, self.cost.cast_unsigned());
        number(to, 6, self.cum.cast_unsigned());
        number(to, 8, self.held.cast_unsigned());
        bytes(to, 9, self.call);
        for (lease, cum) in permits {
            // A key, a length, and 16 bytes; a key and a number.
            let mut permit = [0; 32];
            let room = permit.len();
            let mut rest = permit.as_mut_slice();
            bytes(&mut rest, 1, lease.bytes());
            number(&mut rest, 2, cum.cast_unsigned());
            let length = room.strict_sub(rest.len());
            bytes(to, 10, permit.get(..length).unwrap_or_default());
        }
        number(to, 11, self.due.cast_unsigned());
        room.strict_sub(left.len())
    }
}

/// A field of bytes, unless there are none.
fn bytes(to: &mut impl BufMut, tag: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        encode_key(tag, WireType::LengthDelimited, to);
        encode_varint(u64::try_from(bytes.len()).unwrap_or(u64::MAX), to);
        to.put_slice(bytes);
    }
}

/// A number, unless it is 0.
fn number(to: &mut impl BufMut, tag: u32, number: u64) {
    if number != 0 {
        encode_key(tag, WireType::Varint, to);
        encode_varint(number, to);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use proto::events::v1::{self as wire, Permit};
    use uuid::Uuid;

    use super::*;
    use crate::journal::RECORD_BYTES_MAX;

    fn id() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(Vec::new()),
            any::<u128>().prop_map(|id| id.to_be_bytes().to_vec())
        ]
    }

    fn number() -> impl Strategy<Value = i64> {
        prop_oneof![
            Just(0),
            Just(i64::MAX),
            0..300_i64,
            any::<i64>().prop_map(i64::saturating_abs)
        ]
    }

    fn call() -> impl Strategy<Value = wire::Call> {
        let ids = prop::collection::vec(id(), 6);
        let texts = prop::collection::vec("[a-zé/]{0,40}", 7);
        let numbers = prop::collection::vec(number(), 6);
        let unit = ("[a-z]{0,32}", number()).prop_map(|(name, count)| wire::Unit {
            name,
            count: count.unsigned_abs(),
        });
        let units = prop::collection::vec(unit, 0..4);
        let flags = (any::<bool>(), any::<bool>(), any::<u16>(), 0..6_i32);
        let digests = prop_oneof![
            Just([Vec::new(), Vec::new()]),
            any::<[[u8; 32]; 2]>().prop_map(|both| both.map(Vec::from))
        ];
        (ids, texts, numbers, units, flags, digests).prop_map(
            |(ids, texts, numbers, units, (test, estimated, status, disposition), [key, head])| {
                let mut ids = ids.into_iter();
                let mut id = || ids.next().expect("enough");
                let mut texts = texts.into_iter();
                let mut text = || texts.next().expect("enough");
                let mut numbers = numbers.into_iter();
                let mut number = || numbers.next().expect("enough");
                wire::Call {
                    request_id: id(),
                    org_id: id(),
                    api_key_id: id(),
                    user_id: id(),
                    service_id: id(),
                    service: text(),
                    test,
                    endpoint: text(),
                    method: text(),
                    status: u32::from(status),
                    duration_micros: number().unsigned_abs(),
                    upstream_micros: number().unsigned_abs(),
                    ip: vec![10, 0, 0, 7],
                    country: text(),
                    user_agent: text(),
                    disposition,
                    code: text(),
                    traceparent: text(),
                    price_version: number(),
                    units,
                    request_bytes: number().unsigned_abs(),
                    response_bytes: number().unsigned_abs(),
                    overrun: number(),
                    estimated,
                    idempotency_key_sha256: key,
                    idempotency_head_sha256: head,
                    replay_of: id(),
                }
            },
        )
    }

    fn ours(call: &wire::Call) -> Vec<u8> {
        let ours = Call {
            request: &call.request_id,
            org: &call.org_id,
            key: &call.api_key_id,
            user: &call.user_id,
            service_id: &call.service_id,
            service: &call.service,
            test: call.test,
            endpoint: &call.endpoint,
            method: &call.method,
            status: u16::try_from(call.status).expect("a status"),
            duration_micros: call.duration_micros,
            upstream_micros: call.upstream_micros,
            ip: &call.ip,
            country: &call.country,
            user_agent: &call.user_agent,
            disposition: call.disposition(),
            code: &call.code,
            traceparent: &call.traceparent,
            price_version: call.price_version,
            units: &call.units,
            request_bytes: call.request_bytes,
            response_bytes: call.response_bytes,
            overrun: call.overrun,
            estimated: call.estimated,
            idempotency: [&call.idempotency_key_sha256, &call.idempotency_head_sha256],
            replay_of: &call.replay_of,
        };
        ours.encode()
    }

    proptest! {
        #[test]
        fn the_bytes_are_those_of_the_message(
            call in call(),
            numbers in prop::collection::vec(number(), 6),
            lease in prop::option::of(any::<u128>()),
            permits in prop::collection::vec((any::<u128>(), number()), 0..3),
            kind in 0..5_i32,
        ) {
            let [seq, at_unix_micros, cost, cum, held, due] = numbers[..] else {
                unreachable!("six")
            };
            let lease = lease.map(|id| LeaseId::new(Uuid::from_u128(id)));
            let permits: Vec<(LeaseId, i64)> = permits
                .into_iter()
                .map(|(id, cum)| (LeaseId::new(Uuid::from_u128(id)), cum))
                .collect();
            let message = wire::Record {
                seq: seq.unsigned_abs(),
                kind,
                at_unix_micros,
                lease_id: lease.map(|id| id.bytes().to_vec()).unwrap_or_default(),
                cost,
                cum,
                held,
                due,
                permits: permits
                    .iter()
                    .map(|(id, cum)| Permit { lease_id: id.bytes().to_vec(), cum: *cum })
                    .collect(),
                call: Some(call.clone()),
                ..wire::Record::default()
            };
            let record = CallRecord {
                seq: seq.unsigned_abs(),
                kind: message.kind(),
                at_unix_micros,
                lease,
                cost,
                cum,
                held,
                call: &ours(&call),
                due,
            };
            let mut slot = vec![0xa5; RECORD_BYTES_MAX];
            let length = record.write(permits.into_iter(), &mut slot);
            let known = RecordKind::try_from(kind).is_ok()
                && Disposition::try_from(call.disposition).is_ok();
            prop_assume!(known);
            slot.truncate(length);
            prop_assert_eq!(slot, message.encode_to_vec());
        }
    }
}
