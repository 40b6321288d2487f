//! Keys as scripts see them.

use std::collections::BTreeMap;

use proto::keys::v1 as wire;
use proto::wallet::v1::{GetQuotaUseRequest, QuotaKind};
use serde_json::{Value, json};

use crate::connect::{System, time};
use crate::failure::Result;
use crate::output::Output;

/// Keys of one question to the wallet.
const KEYS_MAX: usize = 1_000;

/// Keys as scripts see them, with what they have used of their quotas.
pub(crate) async fn with_uses(system: &System, keys: &[wire::Key], output: &Output) -> Vec<Value> {
    let uses = uses(system, keys).await.ok();
    if uses.is_none() {
        output.note("The wallet does not answer: what the quotas have used is not shown.");
    }
    let used = |key: &wire::Key, kind: QuotaKind, quota: Option<i64>| {
        let used = uses
            .as_ref()?
            .get(&(counted_under(key).to_owned(), kind.into()));
        used.copied().or(quota.map(|_| 0))
    };
    let shown = keys.iter().map(|key| {
        let mut shown = show(key);
        shown["daily_used"] = used(key, QuotaKind::Daily, key.daily_quota).into();
        shown["monthly_used"] = used(key, QuotaKind::Monthly, key.monthly_quota).into();
        shown
    });
    shown.collect()
}

/// Permits used in the present periods, by key and kind of quota.
type Uses = BTreeMap<(String, i32), i64>;

async fn uses(system: &System, keys: &[wire::Key]) -> Result<Uses> {
    let mut uses = Uses::new();
    for keys in keys.chunk_by(|one, other| one.org_id == other.org_id) {
        let org_id = keys.first().map(|key| key.org_id.clone());
        for keys in keys.chunks(KEYS_MAX) {
            let request = GetQuotaUseRequest {
                org_id: org_id.clone().unwrap_or_default(),
                key_ids: keys
                    .iter()
                    .map(|key| counted_under(key).to_owned())
                    .collect(),
            };
            let answer = system.wallet()?.get_quota_use(request).await?.into_inner();
            let found = answer.uses.into_iter();
            uses.extend(found.map(|it| ((it.key_id, it.kind), it.used)));
        }
    }
    Ok(uses)
}

/// Keys of one lineage share their quotas, under the first.
fn counted_under(key: &wire::Key) -> &str {
    match key.limits_key_id.as_str() {
        "" => &key.key_id,
        first => first,
    }
}

/// A key as scripts see it.
pub(crate) fn show(key: &wire::Key) -> Value {
    json!({
        "key_id": key.key_id,
        "org_id": key.org_id,
        "created_by": key.created_by,
        "name": key.name,
        "prefix": key.prefix,
        "hint": key.hint,
        "environment": key.environment,
        "status": key.status,
        "suspended_reason": key.suspended_reason,
        "throttled": key.throttled,
        "rotated_from": key.rotated_from,
        "rotated_to": key.rotated_to,
        "scopes": key.scopes,
        "daily_quota": key.daily_quota,
        "monthly_quota": key.monthly_quota,
        "rate_per_second": key.rate_per_second,
        "burst": key.burst,
        "allow": key.allow,
        "metadata": key.metadata,
        "expires_at": time(key.expires_at.as_ref()),
        "revoked_at": time(key.revoked_at.as_ref()),
        "revoked_reason": key.revoked_reason,
        "last_used_at": time(key.last_used_at.as_ref()),
        "last_used_ip": key.last_used_ip,
        "created_at": time(key.created_at.as_ref()),
        "version": key.version,
    })
}
