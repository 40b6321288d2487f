//! What the keys of an anomaly get: the organisation's policy, in one transaction with the entries
//! of the audit log and the mails. An anomaly that comes again changes nothing but, while it is not
//! lifted, keys that it did not name before.

use std::sync::Arc;

use proto::events::v1::AnomalyFlagged;
use runtime::{
    Follow, FollowError, crash_point,
    streams::{self, Layout},
};
use serde_json::json;
use tracing::{info, warn};
use types::{KeyId, OrgId, Role};

use crate::{
    SYSTEM,
    domain::{
        anomaly::{self, Anomaly, Hold, Outcome, Restraint},
        difference,
        key::{ApiKey, Settings},
        mail::{Done, Letter, NamedKey, Place},
        policy::AnomalyAction,
        rights::OrgScope,
    },
    error::{Error, Result},
    grpc::Keys,
    store::{Heard, Tx},
};

/// Who is told of one.
const READERS: [Role; 2] = [Role::Owner, Role::Admin];
/// What is done with an anomaly that was lifted before it was heard of.
const LIFTED: &str = "lifted before";

/// Follows flagged anomalies.
pub(crate) struct Anomalies(pub(crate) Arc<Keys>);

impl Follow for Anomalies {
    const STREAM: Layout = streams::ANOMALY;
    const SUBJECT: &'static str = "anomaly.v1.flagged.*";
    const NAME: &'static str = "keys-anomalies";
    const SCHEMA: &'static str = "keys";
    type Event = AnomalyFlagged;

    async fn apply(&self, event: AnomalyFlagged) -> std::result::Result<(), FollowError> {
        let anomaly = read(event).map_err(FollowError::Poison)?;
        match self.act_on(&anomaly).await {
            Ok(()) => Ok(()),
            // Organisations are never deleted: this one never was.
            Err(error @ Error::NotFound { .. }) => Err(FollowError::Poison(error.to_string())),
            Err(error) => Err(FollowError::Failed(error.into())),
        }
    }
}

/// Reads an event; the error says which rule it breaks.
pub(crate) fn read(event: AnomalyFlagged) -> std::result::Result<Anomaly, String> {
    let id = event.anomaly_id.parse();
    let org = match event.org_id.as_str() {
        "" => None,
        org => Some(org.parse().map_err(|error| format!("org_id: {error}"))?),
    };
    let named = event.key_ids.iter().chain([&event.key_id]);
    let keys: std::result::Result<Vec<KeyId>, _> = named
        .filter(|key| !key.is_empty())
        .map(|key| key.parse())
        .collect();
    Anomaly::new(
        id.map_err(|error| format!("anomaly_id: {error}"))?,
        org,
        event.kind,
        event.summary,
        keys.map_err(|error| format!("key_ids: {error}"))?,
    )
}

/// A key of an anomaly and what it becomes; `None`: it is left alone.
struct Concerned {
    key: ApiKey,
    outcome: Option<Outcome>,
}

impl Concerned {
    /// The key as it is afterwards, when that is different for gateways: another anomaly may have
    /// done the same before.
    fn changed(&self) -> Option<(&ApiKey, ApiKey)> {
        let outcome = self.outcome.as_ref()?;
        (*outcome != Outcome::now(&self.key)).then(|| (&self.key, after(&self.key, outcome)))
    }
}

impl Anomalies {
    async fn act_on(&self, anomaly: &Anomaly) -> Result<()> {
        let Some(org) = anomaly.org else {
            return self.note(anomaly).await;
        };
        let mut tx = self.begin().await?;
        tx.lock_organisation(org).await?;
        let policy = tx.policy(org).await?;
        let heard = tx.hear_of(anomaly).await?;
        let action = match heard {
            Heard::Over => return Ok(()),
            Heard::Lifted => None,
            Heard::First | Heard::Again => Some(policy.anomaly_action),
        };
        let own = match action {
            Some(action) => own_keys(&mut tx, anomaly, org, action).await?,
            None => Vec::new(),
        };
        if heard == Heard::Again && own.is_empty() {
            return Ok(());
        }
        let changed: Vec<_> = own.iter().filter_map(Concerned::changed).collect();
        for (_, after) in &changed {
            tx.save_key(after.id, &after.settings, &after.restraints)
                .await?;
        }
        let entry = match heard {
            Heard::Again => "anomaly.extended",
            _ => "anomaly.flagged",
        };
        let done = action.map_or(LIFTED, AnomalyAction::as_str);
        let facts = anomaly.facts(own.iter().map(|it| it.key.id), done);
        tx.audit(Some(org), entry, anomaly.id, facts);
        let restraint = action.and_then(Restraint::of);
        for (before, after) in &changed {
            let mut details = difference(&before.facts(), &after.facts());
            details["anomaly"] = json!(anomaly.id.to_string());
            let entry = restraint.map_or("key.updated", Restraint::audited);
            tx.audit(Some(org), entry, after.id, details);
        }
        if heard == Heard::First {
            self.tell(&mut tx, anomaly, org, policy.anomaly_action, &own)
                .await?;
        }
        let keys: Vec<KeyId> = changed.iter().map(|(key, _)| key.id).collect();
        tx.announce_keys(&keys);
        tx.commit().await?;
        crash_point!("keys.anomaly_committed");
        self.0.nudge.notify_one();
        self.0.mail_nudge.notify_one();
        if let Some(restraint) = restraint {
            self.0.metrics.restrained(restraint, changed.len());
        }
        info!(
            anomaly.id = %anomaly.id,
            anomaly.kind = anomaly.kind,
            org.id = %org,
            action = done,
            keys.changed = changed.len(),
            "an anomaly was acted on"
        );
        Ok(())
    }

    async fn begin(&self) -> Result<Tx> {
        let now = self.0.host.clock().now();
        self.0.store.work(SYSTEM, now).await
    }

    /// Notes an anomaly of the whole platform: there is no policy, and there are nobody's keys.
    async fn note(&self, anomaly: &Anomaly) -> Result<()> {
        let mut tx = self.begin().await?;
        if tx.hear_of(anomaly).await? == Heard::First {
            let facts = anomaly.facts(anomaly.keys.iter().copied(), "notify");
            tx.audit(None, "anomaly.flagged", anomaly.id, facts);
            tx.commit().await?;
        }
        Ok(())
    }

    /// Writes to whoever may lift the anomaly. Of a policy that acts, the keys it acted on.
    async fn tell(
        &self,
        tx: &mut Tx,
        anomaly: &Anomaly,
        org: OrgId,
        action: AnomalyAction,
        own: &[Concerned],
    ) -> Result<()> {
        let organisation = tx.organisation(org).await?;
        let named = own
            .iter()
            .filter(|it| action == AnomalyAction::Notify || it.outcome.is_some());
        let keys: Vec<NamedKey<'_>> = named
            .map(|it| NamedKey {
                name: &it.key.settings.name,
                hint: &it.key.hint,
            })
            .collect();
        let letter = Letter::Anomaly {
            organisation: Place {
                name: &organisation.name,
                slug: &organisation.slug,
            },
            kind: &anomaly.kind,
            summary: &anomaly.summary,
            keys: &keys,
            done: match action {
                AnomalyAction::Notify => Done::Nothing,
                AnomalyAction::Throttle => Done::Throttled,
                AnomalyAction::Suspend => Done::Suspended,
            },
        };
        let readers = tx.readers(org, &READERS, None).await?;
        self.0.write_to(tx, &readers, &letter).await
    }
}

/// The organisation's own keys among those of an anomaly that it was not told of before, and what
/// becomes of each. All are locked before anything is written behind them.
async fn own_keys(
    tx: &mut Tx,
    anomaly: &Anomaly,
    org: OrgId,
    action: AnomalyAction,
) -> Result<Vec<Concerned>> {
    let hold = Restraint::of(action).map(|restraint| Hold {
        anomaly: anomaly.id,
        kind: anomaly.kind.clone(),
        restraint,
    });
    let known = tx.keys_of(anomaly.id).await?;
    let mut own = Vec::new();
    for id in anomaly.keys.iter().filter(|id| !known.contains(id)) {
        let key = match tx.lock_key(OrgScope::Every, *id).await {
            Ok(key) => key,
            // Deleted, or never there.
            Err(Error::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        if key.org != org {
            warn!(
                anomaly.id = %anomaly.id,
                org.id = %org,
                key.id = %id,
                "an anomaly names a key of another organisation, which is left alone"
            );
            continue;
        }
        let holds = tx.holds_on(*id).await?;
        let outcome = hold
            .as_ref()
            .and_then(|hold| anomaly::impose(&key, &holds, hold));
        own.push(Concerned { key, outcome });
    }
    for it in &own {
        let hold = hold.as_ref().filter(|_| it.outcome.is_some());
        let restraint = hold.map(|hold| hold.restraint);
        tx.note_key(anomaly.id, org, it.key.id, restraint).await?;
    }
    Ok(own)
}

/// The key as it is afterwards.
pub(crate) fn after(key: &ApiKey, outcome: &Outcome) -> ApiKey {
    ApiKey {
        settings: Settings {
            active: outcome.active,
            ..key.settings.clone()
        },
        restraints: outcome.restraints.clone(),
        ..key.clone()
    }
}
