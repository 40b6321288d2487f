//! How keys end: rotated, deleted, reported as leaked.

use jiff::Timestamp;
use proto::{
    convert::{parse_id, timestamp},
    keys::v1 as pb,
};
use runtime::Actor;
use serde_json::{Value, json};
use tonic::Status;
use types::{KeyHash, KeyId, NewKey, PresentedKey, parse_key_name};
use zeroize::Zeroizing;

use super::{Keys, operators_only, scope};
use crate::{
    domain::{
        key::{self, ApiKey, Settings},
        mail::{self, LeakedKey},
        policy::LeakAction,
        rights::{Action, OrgScope},
    },
    error::{Error, Result},
    store::{NewKeyRow, Tx},
};

/// Characters of the address a key was found at.
const URL_CHARS_MAX: usize = 500;
/// Why a key is revoked that was reported.
const LEAKED: &str = "reported as leaked";

impl Keys {
    pub(super) async fn rotate(
        &self,
        actor: Actor,
        second_factor: Option<Timestamp>,
        request: pb::RotateKeyRequest,
    ) -> std::result::Result<pb::RotateKeyResponse, Status> {
        let id: KeyId = parse_id("key_id", &request.key_id)?;
        let (key, authority) = self.visible(actor, id).await?;
        let policy = self.store.policy(key.org).await?;
        let concerned = Self::concerned(&key, authority, &policy);
        authority.require(Action::RotateKey(concerned))?;
        let now = self.host.clock().now();
        if actor != Actor::Operator {
            policy.check_second_factor(key.environment, second_factor, now)?;
        }

        let random = Zeroizing::new(self.host.random());
        let new = NewKey::from_random(key.environment, &random);
        let mut tx = self.store.begin(actor, now).await?;
        tx.lock_organisation(key.org).await?;
        let key = tx.lock_key(scope(actor), id).await?;
        let rotation = key.rotate(request.overlap_seconds, now)?;
        self.check_pace(&mut tx, actor, key.org).await?;
        let row = NewKeyRow {
            id: self.host.ids().new_id(),
            org: key.org,
            created_by: match actor {
                Actor::User(user) => user,
                Actor::Operator => key.created_by,
            },
            hash: new.presented().hash(&self.pepper),
            pepper_id: self.pepper.id(),
            hint: new.hint(),
            environment: key.environment,
            rotated_from: Some((id, key.limits_key)),
        };
        tx.insert_key(&row, &rotation.settings).await?;
        let ending = Settings {
            expires_at: Some(rotation.old_ends_at),
            ..key.settings.clone()
        };
        tx.save_key(id, &ending).await?;
        let details = json!({
            "rotated_to": row.id.to_string(),
            "before": { "expires_at": key.settings.expires_at.map(|at| at.to_string()) },
            "after": { "expires_at": rotation.old_ends_at.to_string() },
        });
        tx.audit(Some(key.org), "key.rotated", id, &details).await?;
        tx.announce_keys(&[id, row.id]).await?;
        tx.commit().await?;
        self.committed();
        Ok(pb::RotateKeyResponse {
            key_id: row.id.to_string(),
            key: new.reveal().to_owned(),
            old_expires_at: Some(timestamp(rotation.old_ends_at)),
        })
    }

    pub(super) async fn delete(
        &self,
        actor: Actor,
        request: pb::DeleteKeyRequest,
    ) -> std::result::Result<pb::DeleteKeyResponse, Status> {
        let id: KeyId = parse_id("key_id", &request.key_id)?;
        let (_, authority) = self.visible(actor, id).await?;
        authority.require(Action::DeleteKey)?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let key = tx.lock_key(scope(actor), id).await?;
        if key.revoked.is_none() {
            tx.revoke_key(id, key::DELETED).await?;
        }
        tx.bury_key(id).await?;
        let details = json!({ "before": key.settings.facts() });
        tx.audit(Some(key.org), "key.deleted", id, &details).await?;
        let change = tx.announce_keys(&[id]).await?;
        tx.commit().await?;
        self.committed();
        let (confirmed_gateways, pending_gateways) = self.confirm(change).await?;
        Ok(pb::DeleteKeyResponse {
            confirmed_gateways,
            pending_gateways,
        })
    }

    pub(super) async fn report(
        &self,
        actor: Actor,
        request: pb::ReportLeakedKeyRequest,
    ) -> std::result::Result<pb::ReportLeakedKeyResponse, Status> {
        operators_only(actor, "report leaked keys")?;
        let text = Zeroizing::new(request.key);
        let source = parse_key_name("source", &request.source).map_err(Error::from)?;
        if request.url.chars().count() > URL_CHARS_MAX || request.url.chars().any(char::is_control)
        {
            let problem = format!("must be at most {URL_CHARS_MAX} characters");
            return Err(Error::invalid("url", problem).into());
        }
        let Some(found) = self.find_reported(&text, &request.key_hash).await? else {
            return Ok(pb::ReportLeakedKeyResponse {
                action: "none".to_owned(),
                key_id: String::new(),
            });
        };
        let action = self
            .act_on_leak(actor, &found, &source, &request.url)
            .await?;
        Ok(pb::ReportLeakedKeyResponse {
            action: action.to_owned(),
            key_id: found.id.to_string(),
        })
    }

    /// The key of a text or stored hash, under either pepper.
    async fn find_reported(&self, text: &str, hash: &[u8]) -> Result<Option<ApiKey>> {
        if text.is_empty() {
            let hash = KeyHash::from_slice(hash);
            let problem = "must be 32 bytes, or `key` must be set";
            let hash = hash.ok_or_else(|| Error::invalid("key_hash", problem))?;
            return self.store.key_of(&hash, None).await;
        }
        // What is no key of ours belongs to nobody here.
        let Ok(key) = PresentedKey::parse(text) else {
            return Ok(None);
        };
        let previous = self.pepper_previous.as_ref().map(|pepper| key.hash(pepper));
        self.store
            .key_of(&key.hash(&self.pepper), previous.as_ref())
            .await
    }

    /// Applies the organisation's policy to a key that was found in public, and tells its owners.
    async fn act_on_leak(
        &self,
        actor: Actor,
        found: &ApiKey,
        source: &str,
        url: &str,
    ) -> Result<&'static str> {
        let policy = self.store.policy(found.org).await?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        tx.lock_organisation(found.org).await?;
        let key = match tx.lock_key(OrgScope::Every, found.id).await {
            Ok(key) if key.revoked.is_none() => key,
            // Deleted or revoked: it cannot be used.
            Ok(_) | Err(Error::NotFound { .. }) => return Ok("none"),
            Err(error) => return Err(error),
        };
        let (done, sentence) = apply_policy(&mut tx, &key, policy.leak_action).await?;
        let details: Value = json!({
            "source": source,
            "url": url,
            "action": done,
            "before": { "active": key.settings.active },
        });
        let told = LeakedKey {
            name: &key.settings.name,
            hint: &key.hint,
            source,
            url,
            done: sentence,
        };
        for owner in tx.owners_addresses(key.org).await? {
            self.post(&mut tx, &mail::leaked_key(&owner, &told)).await?;
        }
        tx.audit(Some(key.org), "key.leak_reported", key.id, &details)
            .await?;
        if done != "notified" {
            tx.announce_keys(&[key.id]).await?;
        }
        tx.commit().await?;
        self.committed();
        self.mail_nudge.notify_one();
        Ok(done)
    }
}

/// Does to a leaked key what the policy says: in a word, and as owners are told.
async fn apply_policy(
    tx: &mut Tx,
    key: &ApiKey,
    action: LeakAction,
) -> Result<(&'static str, &'static str)> {
    match action {
        LeakAction::Notify => Ok((
            "notified",
            "Nothing was done to it: your organisation's policy is to notify only.",
        )),
        LeakAction::Suspend => {
            let suspended = Settings {
                active: false,
                ..key.settings.clone()
            };
            tx.save_key(key.id, &suspended).await?;
            Ok(("suspended", "It is suspended until somebody restores it."))
        }
        LeakAction::Revoke => {
            tx.revoke_key(key.id, LEAKED).await?;
            Ok(("revoked", "It is revoked for good."))
        }
    }
}
