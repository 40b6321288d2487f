//! Lifting what anomalies have imposed on keys.

use proto::{convert::parse_id, keys::v1 as pb};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::{AnomalyId, KeyId, OrgId};

use super::{Keys, operators_only};
use crate::{
    anomalies::after,
    domain::{
        anomaly::{self, Hold, Outcome},
        difference,
        key::ApiKey,
        rights::{Action, OrgScope},
    },
    error::{Error, Result},
    store::{Known, Tx},
};

/// A key and what it becomes.
struct Relieved {
    key: ApiKey,
    after: ApiKey,
    /// This anomaly was the last to hold it so.
    is_free: bool,
}

impl Keys {
    pub(super) async fn lift(
        &self,
        actor: Actor,
        request: pb::LiftAnomalyRequest,
    ) -> std::result::Result<pb::LiftAnomalyResponse, Status> {
        let anomaly: AnomalyId = parse_id("anomaly_id", &request.anomaly_id)?;
        let org: OrgId = match request.org_id.as_str() {
            "" => {
                operators_only(actor, "lift an anomaly without naming its organisation")?;
                match self.store.anomaly_org(anomaly).await? {
                    Some(org) => org,
                    // Not heard of, or of the whole platform: it holds no keys.
                    None => return Ok(pb::LiftAnomalyResponse::default()),
                }
            }
            org => parse_id("org_id", org)?,
        };
        self.authority(actor, org)
            .await?
            .require(Action::RestoreKey)?;
        let (freed, change) = self.let_go(actor, anomaly, org).await?;
        let change = match change {
            Some(change) => change,
            // It was lifted before: whoever has applied the log up to now knows.
            None => self.store.position().await?,
        };
        let (confirmed_gateways, pending_gateways) = self.confirm(change).await?;
        Ok(pb::LiftAnomalyResponse {
            key_ids: freed.iter().map(ToString::to_string).collect(),
            confirmed_gateways,
            pending_gateways,
        })
    }

    /// Lifts an anomaly, once: the keys it held as the last one, and the position gateways have to
    /// apply. `None`: no key has changed.
    async fn let_go(
        &self,
        actor: Actor,
        anomaly: AnomalyId,
        org: OrgId,
    ) -> Result<(Vec<KeyId>, Option<i64>)> {
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        tx.lock_organisation(org).await?;
        match tx.lock_anomaly(anomaly).await? {
            Some(Known { org: of, .. }) if of != Some(org) => {
                return Err(Error::not_found("anomaly", anomaly));
            }
            Some(Known {
                is_lifted: true, ..
            }) => return Ok((Vec::new(), None)),
            Some(_) => tx.mark_lifted(anomaly).await?,
            None if tx.lift_unheard(anomaly, org).await? => {}
            None => return Err(Error::not_found("anomaly", anomaly)),
        }
        let relieved = relieve(&mut tx, anomaly).await?;
        let freed: Vec<KeyId> = relieved
            .iter()
            .filter(|it| it.is_free)
            .map(|it| it.key.id)
            .collect();
        let keys: Vec<String> = freed.iter().map(ToString::to_string).collect();
        let details = json!({ "restored": keys });
        tx.audit(Some(org), "anomaly.lifted", anomaly, details);
        for it in relieved.iter().filter(|it| it.is_free) {
            let mut details = difference(&it.key.facts(), &it.after.facts());
            details["anomaly"] = json!(anomaly.to_string());
            tx.audit(Some(org), "key.restored", it.key.id, details);
        }
        let changed: Vec<KeyId> = relieved.iter().map(|it| it.key.id).collect();
        tx.announce_keys(&changed);
        let change = tx.commit().await?;
        self.committed();
        Ok((freed, (!changed.is_empty()).then_some(change)))
    }
}

/// Takes an anomaly off the keys it holds. Those that it changes.
async fn relieve(tx: &mut Tx, anomaly: AnomalyId) -> Result<Vec<Relieved>> {
    let mut relieved = Vec::new();
    for (id, restraint) in tx.held_by(anomaly).await? {
        let key = match tx.lock_key(OrgScope::Every, id).await {
            Ok(key) => key,
            // Deleted since.
            Err(Error::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        let mut others: Vec<Hold> = tx.holds_on(id).await?;
        others.retain(|hold| hold.anomaly != anomaly);
        let outcome = anomaly::relieve(&key, restraint, &others);
        if outcome == Outcome::now(&key) {
            continue;
        }
        relieved.push(Relieved {
            after: after(&key, &outcome),
            is_free: !others.iter().any(|hold| hold.restraint == restraint),
            key,
        });
    }
    for Relieved { after, .. } in &relieved {
        tx.save_key(after.id, &after.settings, &after.restraints)
            .await?;
    }
    tx.let_go(anomaly).await?;
    Ok(relieved)
}
