//! From the usage stream into rows.

use std::net::IpAddr;

use jiff::Timestamp;
use proto::events::v1::{self, Call, Permit, Record, RecordKind, Unit};
use runtime::{Apply, ApplyError, Clock, Delivery};
use serde_json::{Map, Value};
use types::{Environment, Id, JournalId, Kind, LeaseId};

use crate::{
    domain::{
        self, Disposition, Row,
        idempotency::{Claim, Digest, Note},
    },
    store::{self, Connection, Store},
};

/// The effect of the consumer: rows.
pub(crate) struct Rows {
    clock: Clock,
    personal_data_days: u32,
}

impl Rows {
    pub(crate) fn new(clock: Clock, personal_data_days: u32) -> Self {
        Self {
            clock,
            personal_data_days,
        }
    }

    /// The rows of all calls, and the notes of those that have keys; a record that cannot be a row
    /// poisons its message.
    pub(crate) fn read(&self, fresh: &[Delivery]) -> Result<(Vec<Row>, Vec<Note>), ApplyError> {
        let now = self.clock.now();
        let mut rows = Vec::with_capacity(fresh.iter().map(|d| d.records.len()).sum());
        let mut notes = Vec::new();
        for (delivery, Delivery { journal, records }) in fresh.iter().enumerate() {
            for record in records {
                let read = row(*journal, record).map_err(|reason| ApplyError::Poison {
                    delivery,
                    reason: format!("record {}: {reason}", record.seq),
                })?;
                if let Some(row) = read {
                    rows.push(row.without_old_personal_data(now, self.personal_data_days));
                }
                notes.extend(note(*journal, record));
            }
        }
        Ok((rows, notes))
    }
}

impl Apply for Rows {
    const SCHEMA: &'static str = "usage_ingest";
    const OPERATION: &'static str = "insert api_usage_logs";

    async fn apply(
        &self,
        connection: &mut Connection,
        fresh: &[Delivery],
    ) -> Result<(), ApplyError> {
        let (rows, notes) = self.read(fresh)?;
        store::forgotten::remember(connection, &rows, &notes, self.clock.now()).await?;
        Ok(store::insert(connection, rows).await?)
    }

    /// Calls without a row were made all the same: a key of theirs is not had again.
    async fn discarded(
        &self,
        connection: &mut Connection,
        discarded: &Delivery,
    ) -> Result<(), ApplyError> {
        let read = |record| row(discarded.journal, record).ok().flatten();
        let rows: Vec<Row> = discarded.records.iter().filter_map(read).collect();
        let noted = |record| note(discarded.journal, record);
        let notes: Vec<Note> = discarded.records.iter().filter_map(noted).collect();
        let now = self.clock.now();
        Ok(store::forgotten::keep_without_row(connection, &rows, &notes, now).await?)
    }
}

/// One run of the periodic task.
pub(crate) async fn erase_personal_data(store: Store, days: u32, now: Timestamp) {
    match store
        .erase_personal_data(domain::first_day_kept(now, days), now)
        .await
    {
        Ok(0) => {}
        Ok(rows) => tracing::info!(rows, "old addresses and agents erased"),
        Err(error) => tracing::warn!(%error, "old addresses and agents not erased, trying later"),
    }
}

/// One run of the periodic task of idempotency keys.
pub(crate) async fn keep_keys(store: Store, keys_max: i64, now: Timestamp) {
    match store.erase_expired_keys(now).await {
        Ok(0) => {}
        Ok(keys) => tracing::debug!(keys, "expired idempotency keys erased"),
        Err(error) => tracing::warn!(%error, "expired idempotency keys not erased, trying later"),
    }
    if let Err(error) = store.count_keys(keys_max).await {
        tracing::warn!(%error, "idempotency keys not counted, trying later");
    }
}

/// Reads a record: nothing for kinds that are no calls, a reason when it cannot be a row.
pub(crate) fn row(journal: JournalId, record: &Record) -> Result<Option<Row>, String> {
    if record.kind() != RecordKind::Call {
        return Ok(None);
    }
    let call = record.call.as_ref().ok_or("a CALL without its call")?;
    let lease: Option<LeaseId> = optional("lease_id", &record.lease_id)?;
    Ok(Some(Row {
        journal,
        seq: number("seq", record.seq)?,
        at: moment(record.at_unix_micros)?,
        request: Id::from_slice(&call.request_id).map_err(|e| format!("request_id: {e}"))?,
        key: optional("api_key_id", &call.api_key_id)?,
        org: Id::from_slice(&call.org_id).map_err(|e| format!("org_id: {e}"))?,
        user: optional("user_id", &call.user_id)?,
        service_id: optional("service_id", &call.service_id)?,
        service: domain::storable(&call.service),
        endpoint: domain::storable(&call.endpoint),
        method: domain::storable(&call.method),
        status: number("status", call.status)?,
        response_time_ms: number("duration_micros", call.duration_micros / 1000)?,
        upstream_time_ms: number("upstream_micros", call.upstream_micros / 1000)?,
        credits: record.cost,
        details: details(call),
        ip: address(&call.ip)?,
        country: country(call),
        user_agent: domain::storable(&call.user_agent),
        environment: environment(call),
        disposition: disposition(call)?,
        code: domain::storable(&call.code),
        lease: lease.map(|lease| (lease, record.cum)),
        permits: permits(record)?,
        price_version: call.price_version,
        trace_id: domain::trace_id(&call.traceparent).to_owned(),
        request_bytes: number("request_bytes", call.request_bytes)?,
        response_bytes: number("response_bytes", call.response_bytes)?,
        replay_of: optional("replay_of", &call.replay_of)?,
        claim: claim(call)?,
    }))
}

/// Reads the note of a call that has a key. What cannot be read says nothing: the record that ends
/// the call has the same parts, and is refused for them.
pub(crate) fn note(journal: JournalId, record: &Record) -> Option<Note> {
    if !matches!(record.kind(), RecordKind::Open | RecordKind::Progress) {
        return None;
    }
    let call = record.call.as_ref()?;
    Some(Note {
        claim: claim(call).ok()??,
        org: Id::from_slice(&call.org_id).ok()?,
        environment: environment(call),
        request: Id::from_slice(&call.request_id).ok()?,
        journal,
        at: moment(record.at_unix_micros).ok()?,
    })
}

fn environment(call: &Call) -> Environment {
    if call.test {
        Environment::Test
    } else {
        Environment::Production
    }
}

fn claim(call: &Call) -> Result<Option<Claim>, String> {
    if call.idempotency_key_sha256.is_empty() {
        return Ok(None);
    }
    let digest = |bytes: &[u8]| match Digest::try_from(bytes) {
        Ok(digest) => Ok(digest),
        Err(_) => Err(format!("idempotency: {} bytes are no digest", bytes.len())),
    };
    Ok(Some(Claim {
        key: digest(&call.idempotency_key_sha256)?,
        head: digest(&call.idempotency_head_sha256)?,
    }))
}

fn permits(record: &Record) -> Result<[Option<LeaseId>; 2], String> {
    let lease = |permit: &Permit| optional("permits", &permit.lease_id);
    match record.permits.as_slice() {
        [] => Ok([None, None]),
        [one] => Ok([lease(one)?, None]),
        [one, other] => Ok([lease(one)?, lease(other)?]),
        more => Err(format!("{} permits", more.len())),
    }
}

fn optional<K: Kind>(field: &str, bytes: &[u8]) -> Result<Option<Id<K>>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    Id::from_slice(bytes)
        .map(Some)
        .map_err(|error| format!("{field}: {error}"))
}

fn number<From: Copy + std::fmt::Display, To: TryFrom<From>>(
    field: &str,
    given: From,
) -> Result<To, String> {
    To::try_from(given)
        .ok()
        .ok_or_else(|| format!("{field}: {given} is too large"))
}

fn moment(micros: i64) -> Result<Timestamp, String> {
    let at = Timestamp::from_microsecond(micros)
        .ok()
        .filter(|at| *at >= Timestamp::UNIX_EPOCH);
    at.ok_or_else(|| format!("at_unix_micros: {micros} is not between 1970 and 9999"))
}

fn address(bytes: &[u8]) -> Result<Option<IpAddr>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Some(IpAddr::from(v4)));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(Some(IpAddr::from(v6))),
        Err(_) => Err(format!("ip: {} bytes, neither 4 nor 16", bytes.len())),
    }
}

fn country(call: &Call) -> String {
    if call.country.is_empty() {
        "ZZ".to_owned()
    } else {
        domain::storable(&call.country)
    }
}

/// Units as a JSON object; what is reported under one name twice counts together.
/// The units of a call, and what there is to say of its price. No unit has a colon in its name.
fn details(call: &Call) -> Value {
    let mut object = Map::new();
    if call.overrun > 0 {
        object.insert("tollgate:overrun".to_owned(), call.overrun.into());
    }
    if call.estimated {
        object.insert("tollgate:estimated".to_owned(), true.into());
    }
    for Unit { name, count } in &call.units {
        let name = domain::storable(name);
        let before = object.get(&name).and_then(Value::as_u64).unwrap_or(0);
        object.insert(name, before.saturating_add(*count).into());
    }
    Value::Object(object)
}

fn disposition(call: &Call) -> Result<Disposition, String> {
    match call.disposition() {
        v1::Disposition::Completed => Ok(Disposition::Completed),
        v1::Disposition::ClientAborted => Ok(Disposition::ClientAborted),
        v1::Disposition::UpstreamAborted => Ok(Disposition::UpstreamAborted),
        v1::Disposition::Refused => Ok(Disposition::Refused),
        v1::Disposition::UpstreamFailed => Ok(Disposition::UpstreamFailed),
        v1::Disposition::GatewayAborted => Ok(Disposition::GatewayAborted),
        v1::Disposition::Unspecified => Err(format!("disposition: {}", call.disposition)),
    }
}
