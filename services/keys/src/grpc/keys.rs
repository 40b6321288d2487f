//! Keys, as people make and end them.

use jiff::Timestamp;
use proto::{
    convert::{from_timestamp, page, parse_id},
    keys::v1 as pb,
};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use tracing::warn;
use types::{Environment, KeyId, NewKey, OrgId, UserId};
use zeroize::Zeroizing;

use super::{Keys, letters::LiveKey, member, page_of, scope, wire};
use crate::{
    domain::{
        anomaly::{self, Restraint},
        difference, expect_version,
        key::{self, ApiKey, Draft, Edit},
        pace,
        policy::Policy,
        rights::{Action, Authority, Concerned},
    },
    error::{Error, Result},
    store::{KeyFilter, NewKeyRow, Tx},
};

/// The key that the page before ended with.
pub(super) fn before(page_token: &str) -> std::result::Result<Option<KeyId>, Status> {
    match page_token {
        "" => Ok(None),
        token => Ok(Some(parse_id("page_token", token)?)),
    }
}

/// Locks an organisation; what somebody is in it. To strangers it does not exist.
async fn lock_authority(tx: &mut Tx, actor: Actor, org: OrgId) -> Result<Authority> {
    tx.lock_organisation(org).await?;
    match actor {
        Actor::Operator => Ok(Authority::Operator),
        Actor::User(user) => member(org, user, tx.role(org, user).await?),
    }
}

impl Keys {
    /// A key somebody may see, and what they are in its organisation.
    pub(super) async fn visible(&self, actor: Actor, key: KeyId) -> Result<(ApiKey, Authority)> {
        let key = self.store.key(scope(actor), key).await?;
        let authority = self.authority(actor, key.org).await?;
        Ok((key, authority))
    }

    /// A key, as the matrix looks at it.
    pub(super) fn concerned(key: &ApiKey, authority: Authority, policy: &Policy) -> Concerned {
        Concerned {
            environment: key.environment,
            own: authority.is(key.created_by),
            open: policy.developers_may_create_live_keys,
        }
    }

    /// Refuses to make many keys at once: somebody may be collecting them. Operators are asked by
    /// nobody. The organisation is locked; the transaction is given back when keys may be made,
    /// and ends with an entry in the audit log, once an hour, when not.
    pub(super) async fn check_pace(&self, mut tx: Tx, actor: Actor, org: OrgId) -> Result<Tx> {
        let max = self.keys_per_hour_max;
        let now = tx.at();
        let oldest = match actor {
            Actor::Operator => None,
            Actor::User(_) => tx.key_created(org, max).await?,
        };
        let wait = oldest.and_then(|oldest| pace::wait(oldest, now));
        let Some(wait) = wait else {
            return Ok(tx);
        };
        self.metrics.creation_refused();
        if tx.first_refusal(org, pace::start(now)).await? {
            let details = json!({ "keys_per_hour_max": max });
            tx.audit(Some(org), "key.creation_refused", org, details);
            tx.commit().await?;
            warn!(org.id = %org, max, "an organisation makes too many keys");
        }
        Err(Error::TooManyKeys { max, wait })
    }

    pub(super) async fn issue(
        &self,
        actor: Actor,
        second_factor: Option<Timestamp>,
        request: pb::CreateKeyRequest,
    ) -> std::result::Result<pb::CreateKeyResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        let user: UserId = parse_id("user_id", &request.user_id)?;
        let environment: Environment = request.environment.parse().map_err(Error::from)?;
        let end_of_life = request
            .expires_at
            .as_ref()
            .map(|at| from_timestamp("expires_at", at));
        let draft = Draft {
            expires_at: end_of_life.transpose()?,
            name: request.name,
            scopes: request.scopes,
            daily_quota: request.daily_quota,
            monthly_quota: request.monthly_quota,
            rate_per_second: request.rate_per_second,
            burst: request.burst,
            allow: request.allow,
            metadata: request.metadata.into_iter().collect(),
        };
        let now = self.host.clock().now();
        let mut tx = self.store.begin(actor, now).await?;
        let authority = lock_authority(&mut tx, actor, org).await?;
        let policy = tx.policy(org).await?;
        authority.require(Action::CreateKey(Concerned {
            environment,
            own: authority.is(user),
            open: policy.developers_may_create_live_keys,
        }))?;
        let settings = draft.check(&tx.scopes().await?, &policy, now)?;
        if actor != Actor::Operator {
            policy.check_second_factor(environment, second_factor, now)?;
        }

        let random = Zeroizing::new(self.host.random());
        let new = NewKey::from_random(environment, &random);
        let row = NewKeyRow {
            id: self.host.ids().new_id(),
            org,
            created_by: user,
            hashes: self.peppers.load().hashes(&new.presented()),
            hint: new.hint(),
            environment,
            rotated_from: None,
        };
        let mut tx = self.check_pace(tx, actor, org).await?;
        if !tx.hold_membership(org, user).await? {
            let problem = "is not a member of the organisation: add the member first";
            return Err(Error::invalid("user_id", problem).into());
        }
        tx.insert_key(&row, &settings).await?;
        self.tell_of(&mut tx, actor, &LiveKey::new(&row, &settings), None)
            .await?;
        let details = json!({
            "environment": environment.as_str(),
            "created_by": user.to_string(),
            "after": settings.facts(),
        });
        tx.audit(Some(org), "key.created", row.id, details);
        tx.announce_created(row.id).await?;
        // A gateway may have noted that there is no such key.
        tx.announce_keys(&[row.id]);
        tx.commit().await?;
        self.committed();
        Ok(pb::CreateKeyResponse {
            key_id: row.id.to_string(),
            key: new.reveal().to_owned(),
        })
    }

    pub(super) async fn key(
        &self,
        actor: Actor,
        request: pb::GetKeyRequest,
    ) -> std::result::Result<pb::GetKeyResponse, Status> {
        let (key, authority) = self
            .visible(actor, parse_id("key_id", &request.key_id)?)
            .await?;
        authority.require(Action::ViewKeys)?;
        Ok(pb::GetKeyResponse {
            key: Some(wire::key(&key, self.host.clock().now())),
        })
    }

    pub(super) async fn keys(
        &self,
        actor: Actor,
        request: pb::ListKeysRequest,
    ) -> std::result::Result<pb::ListKeysResponse, Status> {
        let org = parse_id("org_id", &request.org_id)?;
        self.authority(actor, org)
            .await?
            .require(Action::ViewKeys)?;
        let size = page(request.page_size);
        let filter = KeyFilter {
            before: before(&request.page_token)?,
            limit: size + 1,
            status: key::status_wish(&request.status)?,
            name: key::name_part(&request.name)?,
            among: None,
        };
        let now = self.host.clock().now();
        let keys = self.store.keys(scope(actor), org, &filter, now).await?;
        let (keys, next_page_token) = page_of(keys, size, |key| key.id.to_string());
        let keys = keys.iter().map(|key| wire::key(key, now)).collect();
        Ok(pb::ListKeysResponse {
            keys,
            next_page_token,
        })
    }

    pub(super) async fn change(
        &self,
        actor: Actor,
        request: pb::UpdateKeyRequest,
    ) -> std::result::Result<pb::UpdateKeyResponse, Status> {
        let id: KeyId = parse_id("key_id", &request.key_id)?;
        let expected = request.expected_version;
        let end_of_life = request
            .expires_at
            .as_ref()
            .map(|at| from_timestamp("expires_at", at));
        let edit = Edit {
            expires_at: end_of_life.transpose()?,
            name: request.name,
            scopes: request.scopes,
            daily_quota: request.daily_quota,
            monthly_quota: request.monthly_quota,
            rate_per_second: request.rate_per_second,
            burst: request.burst,
            allow: request.set_allow.then_some(request.allow),
            metadata: request
                .set_metadata
                .then(|| request.metadata.into_iter().collect()),
            active: request.active,
        };
        let (key, authority) = self.visible(actor, id).await?;
        let policy = self.store.policy(scope(actor), key.org).await?;
        let concerned = Self::concerned(&key, authority, &policy);
        authority.require(Action::ChangeKey(concerned))?;
        let known = self.store.scopes().await?;

        let now = self.host.clock().now();
        let mut tx = self.store.begin(actor, now).await?;
        let key = tx.lock_key(scope(actor), id).await?;
        expect_version(expected, key.version)?;
        let changed = ApiKey {
            settings: edit.apply(&key, &known, &policy, now)?,
            restraints: anomaly::by_hand(&key.restraints, edit.active),
            version: key.version + 1,
            ..key.clone()
        };
        let is_restrained = !key.settings.active || key.restraints.throttle.is_some();
        if edit.active == Some(true) && is_restrained {
            authority.require(Action::RestoreKey)?;
        }
        if changed.settings == key.settings && changed.restraints == key.restraints {
            return Ok(pb::UpdateKeyResponse {
                key: Some(wire::key(&key, now)),
            });
        }
        tx.save_key(id, &changed.settings, &changed.restraints)
            .await?;
        match edit.active {
            Some(true) => tx.free_key(id, None).await?,
            // No anomaly that is lifted restores what a person suspended.
            Some(false) => tx.free_key(id, Some(Restraint::Suspend)).await?,
            None => {}
        }
        let details = difference(&key.facts(), &changed.facts());
        tx.audit(Some(key.org), key.change_to(&changed), id, details);
        tx.announce_keys(&[id]);
        tx.commit().await?;
        self.committed();
        Ok(pb::UpdateKeyResponse {
            key: Some(wire::key(&changed, now)),
        })
    }

    pub(super) async fn revoke(
        &self,
        actor: Actor,
        request: pb::RevokeKeyRequest,
    ) -> std::result::Result<pb::RevokeKeyResponse, Status> {
        let id = parse_id("key_id", &request.key_id)?;
        let reason = key::reason(&request.reason)?;
        let (key, authority) = self.visible(actor, id).await?;
        let policy = self.store.policy(scope(actor), key.org).await?;
        let concerned = Self::concerned(&key, authority, &policy);
        authority.require(Action::RevokeKey(concerned))?;
        let change = match self.end(actor, id, &reason).await? {
            Some(change) => change,
            // It was revoked before: whoever has applied the log up to now knows.
            None => self.store.position().await?,
        };
        let (confirmed_gateways, pending_gateways) = self.confirm(change).await?;
        Ok(pb::RevokeKeyResponse {
            confirmed_gateways,
            pending_gateways,
        })
    }

    /// Revokes a key for good. The position gateways have to apply; `None` when it was revoked.
    async fn end(&self, actor: Actor, id: KeyId, reason: &str) -> Result<Option<i64>> {
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let key = tx.lock_key(scope(actor), id).await?;
        if key.revoked.is_some() {
            return Ok(None);
        }
        tx.revoke_key(id, reason).await?;
        self.tell_of(&mut tx, actor, &LiveKey::of(&key), Some(reason))
            .await?;
        let details = json!({
            "before": { "active": key.settings.active },
            "after": { "active": false, "reason": reason },
        });
        tx.audit(Some(key.org), "key.revoked", id, details);
        tx.announce_keys(&[id]);
        let change = tx.commit().await?;
        self.committed();
        Ok(Some(change))
    }
}
