//! How keys end: rotated, deleted.

use jiff::Timestamp;
use proto::{
    convert::{parse_id, timestamp},
    keys::v1 as pb,
};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::{KeyId, NewKey};
use zeroize::Zeroizing;

use super::{Keys, letters::LiveKey, scope};
use crate::{
    domain::{
        key::{self, Settings},
        rights::Action,
    },
    store::NewKeyRow,
};

impl Keys {
    pub(super) async fn rotate(
        &self,
        actor: Actor,
        second_factor: Option<Timestamp>,
        request: pb::RotateKeyRequest,
    ) -> std::result::Result<pb::RotateKeyResponse, Status> {
        let id: KeyId = parse_id("key_id", &request.key_id)?;
        let (key, authority) = self.visible(actor, id).await?;
        let policy = self.store.policy(scope(actor), key.org).await?;
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
        let mut tx = self.check_pace(tx, actor, key.org).await?;
        let row = NewKeyRow {
            id: self.host.ids().new_id(),
            org: key.org,
            created_by: match actor {
                Actor::User(user) => user,
                Actor::Operator => key.created_by,
            },
            hashes: self.peppers.load().hashes(&new.presented()),
            hint: new.hint(),
            environment: key.environment,
            rotated_from: Some((id, key.limits_key)),
        };
        tx.insert_key(&row, &rotation.settings).await?;
        let ending = Settings {
            expires_at: Some(rotation.old_ends_at),
            ..key.settings.clone()
        };
        tx.save_key(id, &ending, &key.restraints).await?;
        let made = LiveKey::new(&row, &rotation.settings);
        self.tell_of(&mut tx, actor, &made, None).await?;
        let details = json!({
            "rotated_to": row.id.to_string(),
            "before": { "expires_at": key.settings.expires_at.map(|at| at.to_string()) },
            "after": { "expires_at": rotation.old_ends_at.to_string() },
        });
        tx.audit(Some(key.org), "key.rotated", id, details);
        tx.announce_keys(&[id, row.id]);
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
            self.tell_of(&mut tx, actor, &LiveKey::of(&key), Some(key::DELETED))
                .await?;
        }
        tx.bury_key(id).await?;
        let details = json!({ "before": key.settings.facts() });
        tx.audit(Some(key.org), "key.deleted", id, details);
        tx.announce_keys(&[id]);
        let change = tx.commit().await?;
        self.committed();
        let (confirmed_gateways, pending_gateways) = self.confirm(change).await?;
        Ok(pb::DeleteKeyResponse {
            confirmed_gateways,
            pending_gateways,
        })
    }
}
