//! Live keys whose creator has left: owners and admins decide whether they go on.

use axum::{Json, extract::State};
use http::StatusCode;
use proto::keys::v1 as pb;
use serde::Serialize;
use types::{KeyId, OrgId};
use utoipa::ToSchema;

use super::{
    App,
    access::Caller,
    extract::{Page, Path, Query, id},
    key_use::Uses,
    keys::Key,
    wire::moment,
};
use crate::{domain, error::Result};

/// A live key whose creator has left.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyReview {
    key: Key,
    /// E-mail address of who left.
    email: String,
    #[schema(format = DateTime)]
    left_at: String,
}

fn shown(it: pb::KeyReview, uses: &Uses) -> Option<KeyReview> {
    Some(KeyReview {
        left_at: moment(it.left_at.as_ref()),
        email: it.email,
        key: Key::new(it.key?, uses),
    })
}

/// A page of reviews, the newest keys first.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyReviews {
    reviews: Vec<KeyReview>,
    /// Absent on the last page.
    next_cursor: Option<String>,
}

/// Lists live keys whose creator has left, as long as they work and nobody has decided to keep
/// them. Whoever does not want one revokes, rotates or deletes it.
#[utoipa::path(get, path = "/v1/organisations/{org}/key-reviews", tag = "keys", params(Page),
    responses((status = 200, body = KeyReviews, description = "One page")))]
pub(super) async fn list_key_reviews(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<KeyReviews>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::ListKeyReviewsRequest {
        org_id: org.to_string(),
        page_size: page.size()?,
        page_token: page.token()?,
    })?;
    let found = app.keys.clone().list_key_reviews(request).await?;
    let found = found.into_inner();
    let keys: Vec<_> = found
        .reviews
        .iter()
        .filter_map(|it| it.key.clone())
        .collect();
    let uses = app.uses(&caller, &keys).await;
    let reviews = found.reviews.into_iter().filter_map(|it| shown(it, &uses));
    Ok(Json(KeyReviews {
        reviews: reviews.collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}

/// Decides that a key whose creator has left goes on.
#[utoipa::path(post, path = "/v1/organisations/{org}/key-reviews/{key}/keep", tag = "keys",
    responses((status = 204, description = "It goes on")))]
pub(super) async fn keep_key(
    State(app): App,
    caller: Caller,
    Path((org, key)): Path<(String, String)>,
) -> Result<StatusCode> {
    let (org, key): (OrgId, KeyId) = (id("organisation", &org)?, id("key", &key)?);
    let request = caller.request(pb::KeepKeyRequest {
        key_id: key.to_string(),
        org_id: org.to_string(),
    })?;
    app.keys.clone().keep_key(request).await?;
    Ok(StatusCode::NO_CONTENT)
}
