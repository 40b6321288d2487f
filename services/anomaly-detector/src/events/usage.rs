//! The stream of usage: where keys are used from, how much, and for what.

use std::collections::BTreeMap;

use proto::events::v1::{Record, RecordKind};
use runtime::{Apply, ApplyError, Delivery};
use types::{KeyId, OrgId};

use super::{Desk, moment};
use crate::{
    domain::{
        Call,
        country_spread::{self, Country},
        key_burst, service_after_silence,
    },
    store::{self, Connection, loads, sightings, uses},
};

/// What a batch tells.
#[derive(Default)]
pub(crate) struct Read {
    pub(crate) calls: Vec<Call>,
    /// Of the last sampled call of a key.
    traceparents: BTreeMap<KeyId, String>,
}

impl Read {
    fn traceparent(&self, key: KeyId) -> &str {
        self.traceparents.get(&key).map_or("", String::as_str)
    }
}

/// The effect of the consumer: what three rules keep, and what they find in it.
pub(crate) struct Usage(pub(crate) Desk);

impl Apply for Usage {
    const SCHEMA: &'static str = "anomaly_detector";
    const OPERATION: &'static str = "upsert sightings";

    async fn apply(
        &self,
        connection: &mut Connection,
        fresh: &[Delivery],
    ) -> Result<(), ApplyError> {
        let batch = read(fresh)?;
        if batch.calls.is_empty() {
            return Ok(());
        }
        store::lock_keys(connection, batch.calls.iter().map(|call| call.key)).await?;
        self.countries(connection, &batch).await?;
        self.bursts(connection, &batch).await?;
        self.wakings(connection, &batch).await?;
        Ok(())
    }
}

impl Usage {
    async fn countries(&self, connection: &mut Connection, batch: &Read) -> sqlx::Result<()> {
        let usual = self.0.config.countries;
        let seen = country_spread::sightings(&batch.calls);
        if seen.is_empty() {
            return Ok(());
        }
        let changed = sightings::add(connection, &seen).await?;
        let suspects = sightings::suspects(connection, &changed, usual).await?;
        if suspects.is_empty() {
            return Ok(());
        }
        for (key, history) in sightings::histories(connection, &suspects).await? {
            let verdict = crate::domain::windows::judge(&history.seen, &history.known, usual);
            for flag in verdict.new {
                let finding = country_spread::finding(history.org, key, &flag, usual);
                let traceparent = batch.traceparent(key);
                self.0.flag(connection, &finding, traceparent).await?;
            }
            for (id, flag) in verdict.moved {
                let finding = country_spread::finding(history.org, key, &flag, usual);
                store::rewrite(connection, id, &finding).await?;
            }
        }
        Ok(())
    }

    async fn bursts(&self, connection: &mut Connection, batch: &Read) -> sqlx::Result<()> {
        let limits = self.0.config.burst;
        let counted = key_burst::loads(&batch.calls);
        let many = loads::add(connection, &counted, limits.calls).await?;
        if many.is_empty() {
            return Ok(());
        }
        let days = self.0.config.burst_days;
        let histories = loads::histories(connection, many.keys().copied(), days).await?;
        for ((key, bucket), (org, calls)) in many {
            let history = histories.get(&(key, bucket)).copied().unwrap_or_default();
            if key_burst::is_burst(calls, history, limits) {
                let finding = key_burst::finding(org, key, (bucket, calls), history);
                let traceparent = batch.traceparent(key);
                self.0.flag(connection, &finding, traceparent).await?;
            }
        }
        Ok(())
    }

    async fn wakings(&self, connection: &mut Connection, batch: &Read) -> sqlx::Result<()> {
        let long = self.0.config.silence;
        let mut keys: Vec<_> = batch.calls.iter().map(|call| call.key.uuid()).collect();
        keys.sort_unstable();
        keys.dedup();
        let known = uses::of(connection, &keys).await?;
        let merged = service_after_silence::merge(known, &batch.calls, long);
        uses::save(connection, &merged).await?;
        for (key, of_key) in merged.iter().filter(|(_, of_key)| of_key.is_new) {
            for waking in service_after_silence::judge(&of_key.uses, long) {
                let finding = service_after_silence::finding(of_key.org, *key, &waking);
                let traceparent = batch.traceparent(*key);
                self.0.flag(connection, &finding, traceparent).await?;
            }
        }
        Ok(())
    }
}

/// What the calls tell; a record that cannot be read poisons its message.
pub(crate) fn read(fresh: &[Delivery]) -> Result<Read, ApplyError> {
    let mut batch = Read::default();
    for (delivery, Delivery { records, .. }) in fresh.iter().enumerate() {
        for record in records {
            let found = call(record).map_err(|reason| ApplyError::Poison {
                delivery,
                reason: format!("record {}: {reason}", record.seq),
            })?;
            let Some(found) = found else {
                continue;
            };
            let traceparent = record.call.as_ref().map(|call| &call.traceparent);
            if let Some(traceparent) = traceparent.filter(|it| !it.is_empty()) {
                batch.traceparents.insert(found.key, traceparent.clone());
            }
            batch.calls.push(found);
        }
    }
    Ok(batch)
}

/// Reads a record: nothing for kinds that are no calls and for calls without a key.
pub(crate) fn call(record: &Record) -> Result<Option<Call>, String> {
    if record.kind() != RecordKind::Call {
        return Ok(None);
    }
    let call = record.call.as_ref().ok_or("a CALL without its call")?;
    let at = moment("at_unix_micros", record.at_unix_micros)?;
    let org = OrgId::from_slice(&call.org_id).map_err(|error| format!("org_id: {error}"))?;
    if call.api_key_id.is_empty() {
        return Ok(None);
    }
    let key =
        KeyId::from_slice(&call.api_key_id).map_err(|error| format!("api_key_id: {error}"))?;
    Ok(Some(Call {
        key,
        org,
        at,
        country: Country::parse(&call.country),
        service: match call.service_id.is_empty() {
            true => String::new(),
            false => call.service.clone(),
        },
        credits: if call.test { 0 } else { record.cost },
    }))
}
