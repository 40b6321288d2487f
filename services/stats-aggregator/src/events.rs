//! From the usage stream into totals.

use jiff::Timestamp;
use proto::events::v1::{Record, RecordKind};
use runtime::{Apply, ApplyError, Clock, Delivery};
use types::{Credits, Environment, OrgId};

use crate::{
    domain::{Call, Changes, is_success},
    store::{self, Connection},
};

/// Stands for every service there is not: what callers invent must not become rows. No service
/// can have this name.
pub(crate) const UNKNOWN_SERVICE: &str = "(unknown)";

/// The effect of the consumer: totals.
pub(crate) struct Totals {
    clock: Clock,
}

impl Totals {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock }
    }
}

impl Apply for Totals {
    const SCHEMA: &'static str = "stats_aggregator";
    const OPERATION: &'static str = "upsert daily_stats";

    async fn apply(
        &self,
        connection: &mut Connection,
        fresh: &[Delivery],
    ) -> Result<(), ApplyError> {
        Ok(store::add(connection, &changes(fresh)?, self.clock.now()).await?)
    }
}

/// What the calls change; a record that cannot be counted poisons its message.
pub(crate) fn changes(fresh: &[Delivery]) -> Result<Changes, ApplyError> {
    let mut changes = Changes::default();
    for (delivery, Delivery { records, .. }) in fresh.iter().enumerate() {
        for record in records {
            let poison = |reason| ApplyError::Poison {
                delivery,
                reason: format!("record {}: {reason}", record.seq),
            };
            let Some(call) = call(record).map_err(poison)? else {
                continue;
            };
            changes.add(call);
        }
    }
    Ok(changes)
}

/// Reads a record: nothing for kinds that are no calls, a reason when it cannot be counted.
pub(crate) fn call(record: &Record) -> Result<Option<Call>, String> {
    if record.kind() != RecordKind::Call {
        return Ok(None);
    }
    let call = record.call.as_ref().ok_or("a CALL without its call")?;
    let at = Timestamp::from_microsecond(record.at_unix_micros).ok();
    let at = at
        .filter(|at| *at >= Timestamp::UNIX_EPOCH)
        .ok_or_else(|| {
            format!(
                "at_unix_micros: {} is not between 1970 and 9999",
                record.at_unix_micros
            )
        })?;
    let service = match call.service.as_str() {
        _ if call.service_id.is_empty() => UNKNOWN_SERVICE.to_owned(),
        // PostgreSQL cannot hold a NUL.
        known => known.replace('\0', "\u{fffd}"),
    };
    Ok(Some(Call {
        org: OrgId::from_slice(&call.org_id).map_err(|error| format!("org_id: {error}"))?,
        at,
        environment: if call.test {
            Environment::Test
        } else {
            Environment::Production
        },
        service,
        credits: Credits::new(record.cost),
        successful: is_success(call.status),
    }))
}
