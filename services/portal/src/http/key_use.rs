//! What keys have used of their quotas: the wallet knows.

use std::{collections::HashMap, time::Duration};

use proto::{
    keys::v1::Key,
    wallet::v1::{GetQuotaUseRequest, QuotaKind},
};

use super::{Portal, access::Caller};
use crate::error::Result;

/// A list of keys does not wait longer for what it can be shown without.
const PATIENCE: Duration = Duration::from_secs(2);

/// Calls that count in the present periods, by key and kind of quota; `None`: nobody knows now.
pub(super) struct Uses(Option<HashMap<(String, i32), i64>>);

/// Keys of one lineage share their quotas, under the first.
fn counted_under(key: &Key) -> &str {
    match key.limits_key_id.as_str() {
        "" => &key.key_id,
        first => first,
    }
}

impl Uses {
    /// What counts for a quota of a key; `None` without a quota, or when nobody knows.
    pub(super) fn of(&self, key: &Key, kind: QuotaKind, quota: Option<i64>) -> Option<i64> {
        let known = self.0.as_ref()?;
        quota?;
        let place = (counted_under(key).to_owned(), kind.into());
        Some(known.get(&place).copied().unwrap_or_default())
    }
}

impl Portal {
    /// What keys of one organisation have used. Keys are shown without it when the wallet is away.
    pub(super) async fn uses(&self, caller: &Caller, keys: &[Key]) -> Uses {
        let limited = |key: &&Key| key.daily_quota.is_some() || key.monthly_quota.is_some();
        let limited: Vec<&Key> = keys.iter().filter(limited).collect();
        let Some(first) = limited.first() else {
            return Uses(Some(HashMap::new()));
        };
        let request = GetQuotaUseRequest {
            org_id: first.org_id.clone(),
            key_ids: limited
                .iter()
                .map(|key| counted_under(key).to_owned())
                .collect(),
        };
        match self.quota_use(caller, request).await {
            Ok(uses) => Uses(Some(uses)),
            Err(error) => {
                tracing::warn!(%error, "keys are shown without what their quotas have used");
                Uses(None)
            }
        }
    }

    async fn quota_use(
        &self,
        caller: &Caller,
        request: GetQuotaUseRequest,
    ) -> Result<HashMap<(String, i32), i64>> {
        let mut request = caller.request(request)?;
        request.set_timeout(PATIENCE);
        let found = self.wallet.clone().get_quota_use(request).await?;
        let uses = found.into_inner().uses.into_iter();
        Ok(uses.map(|it| ((it.key_id, it.kind), it.used)).collect())
    }
}
