//! Live keys whose creator has left: owners and admins decide whether they go on.

use std::collections::BTreeMap;

use proto::{
    convert::{page, parse_id, timestamp},
    keys::v1 as pb,
};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::{KeyId, OrgId};

use super::{Keys, keys::before, page_of, scope, wire};
use crate::{domain::rights::Action, error::Error, store::KeyFilter};

impl Keys {
    pub(super) async fn reviews(
        &self,
        actor: Actor,
        request: pb::ListKeyReviewsRequest,
    ) -> Result<pb::ListKeyReviewsResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        self.authority(actor, org)
            .await?
            .require(Action::ReviewKeys)?;
        let (before, size) = (before(&request.page_token)?, page(request.page_size));
        let now = self.host.clock().now();
        let rows = self
            .store
            .reviews(scope(actor), org, (before, size + 1), now)
            .await?;
        let (rows, next_page_token) = page_of(rows, size, |row| row.key.to_string());
        let filter = KeyFilter {
            limit: size,
            among: Some(rows.iter().map(|row| row.key).collect()),
            ..KeyFilter::default()
        };
        let keys = self.store.keys(scope(actor), org, &filter, now).await?;
        let keys: BTreeMap<KeyId, _> = keys.iter().map(|key| (key.id, key)).collect();
        // One that was deleted between the two statements is not shown any more.
        let reviews = rows.into_iter().filter_map(|row| {
            let key = keys.get(&row.key)?;
            Some(pb::KeyReview {
                key: Some(wire::key(key, now)),
                left_at: Some(timestamp(row.left_at)),
                email: row.email,
            })
        });
        Ok(pb::ListKeyReviewsResponse {
            reviews: reviews.collect(),
            next_page_token,
        })
    }

    pub(super) async fn keep(
        &self,
        actor: Actor,
        request: pb::KeepKeyRequest,
    ) -> Result<pb::KeepKeyResponse, Status> {
        let id: KeyId = parse_id("key_id", &request.key_id)?;
        let (key, authority) = self.visible(actor, id).await?;
        if !request.org_id.is_empty() && request.org_id != key.org.to_string() {
            return Err(Error::not_found("key", id).into());
        }
        authority.require(Action::ReviewKeys)?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let key = tx.lock_key(scope(actor), id).await?;
        if key.revoked.is_some() || !tx.keep_key(id).await? {
            return Err(Error::not_found("review of key", id).into());
        }
        let details = json!({ "created_by": key.created_by.to_string() });
        tx.audit(Some(key.org), "key.kept", id, details);
        tx.commit().await?;
        Ok(pb::KeepKeyResponse {})
    }
}
