//! Organisations.

use axum::{Json, extract::State};
use http::StatusCode;
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use types::OrgId;
use utoipa::ToSchema;

use super::{
    App,
    access::{Caller, Who},
    etag::{IfMatch, Tagged},
    extract::{Body, Page, Path, Query, id},
    wire::moment,
};
use crate::{
    domain,
    error::{Error, Result},
};

/// An organisation.
#[derive(Serialize, ToSchema)]
pub(super) struct Organisation {
    org_id: String,
    name: String,
    /// Unique.
    slug: String,
    /// `usr_…`
    owner_id: String,
    #[schema(format = DateTime)]
    created_at: String,
    /// Grows with every change of the organisation or its policy; the ETag.
    version: i64,
}

impl From<pb::Organisation> for Tagged<Organisation> {
    fn from(it: pb::Organisation) -> Self {
        Self {
            version: it.version,
            body: it.into(),
        }
    }
}

impl From<pb::Organisation> for Organisation {
    fn from(it: pb::Organisation) -> Self {
        Self {
            created_at: moment(it.created_at.as_ref()),
            org_id: it.org_id,
            name: it.name,
            slug: it.slug,
            owner_id: it.owner_id,
            version: it.version,
        }
    }
}

/// A page of organisations, oldest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Organisations {
    pub(super) organisations: Vec<Organisation>,
    /// Absent on the last page.
    pub(super) next_cursor: Option<String>,
}

/// Lists the organisations that the caller is a member of; an operator's list has all.
#[utoipa::path(get, path = "/v1/organisations", tag = "organisations", params(Page),
    responses((status = 200, body = Organisations, description = "One page")))]
pub(super) async fn list_organisations(
    State(app): App,
    caller: Caller,
    Query(page): Query<Page>,
) -> Result<Json<Organisations>> {
    let request = caller.request(pb::ListOrganisationsRequest {
        page_size: page.size()?,
        page_token: page.token()?,
    })?;
    let found = app.keys.clone().list_organisations(request).await?;
    let found = found.into_inner();
    Ok(Json(Organisations {
        organisations: found.organisations.into_iter().map(Into::into).collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}

/// A new organisation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewOrganisation {
    #[schema(min_length = 1, max_length = 80)]
    name: String,
    /// Unique, 3–64 of `a-z0-9-`; absent: made from the name.
    #[schema(pattern = "^[a-z0-9-]{3,64}$")]
    slug: Option<String>,
    /// For operators, who must say it: the owner's e-mail address. A person owns what it creates.
    #[schema(format = Email, max_length = 254)]
    owner_email: Option<String>,
}

/// The new ids.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedOrganisation {
    org_id: String,
    /// `usr_…`, its owner.
    user_id: String,
    slug: String,
}

/// Creates an organisation.
#[utoipa::path(post, path = "/v1/organisations", tag = "organisations",
    request_body = NewOrganisation,
    responses((status = 201, body = CreatedOrganisation, description = "Created")))]
pub(super) async fn create_organisation(
    State(app): App,
    caller: Caller,
    Body(it): Body<NewOrganisation>,
) -> Result<(StatusCode, Json<CreatedOrganisation>)> {
    let owner_email = match (&caller.who, it.owner_email) {
        (_, Some(email)) => email,
        (Who::User(person), None) => person.email.clone(),
        (Who::Operator, None) => {
            return Err(Error::invalid("owner_email", "is needed from operators"));
        }
    };
    let request = caller.request(pb::CreateOrganisationRequest {
        name: it.name,
        slug: it.slug.unwrap_or_default(),
        owner_email,
    })?;
    let made = app.keys.clone().create_organisation(request).await?;
    let made = made.into_inner();
    let created = CreatedOrganisation {
        org_id: made.org_id,
        user_id: made.user_id,
        slug: made.slug,
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Reads an organisation.
#[utoipa::path(get, path = "/v1/organisations/{org}", tag = "organisations",
    responses((status = 200, body = Organisation, description = "The organisation",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn get_organisation(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
) -> Result<Tagged<Organisation>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::GetOrganisationRequest {
        org_id: org.to_string(),
    })?;
    let found = app.keys.clone().get_organisation(request).await?;
    let found = found.into_inner().organisation;
    Ok(found.ok_or(Error::NotFound("organisation"))?.into())
}

/// What shall change; the rest stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OrganisationChange {
    #[schema(min_length = 1, max_length = 80)]
    name: Option<String>,
    /// Unique, 3–64 of `a-z0-9-`.
    #[schema(pattern = "^[a-z0-9-]{3,64}$")]
    slug: Option<String>,
}

/// Changes name or slug. With `If-Match` only the version that the caller has seen.
#[utoipa::path(patch, path = "/v1/organisations/{org}", tag = "organisations",
    request_body = OrganisationChange,
    params(("if-match" = Option<String>, Header, description = "The ETag of an organisation")),
    responses((status = 200, body = Organisation, description = "As it is now",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn update_organisation(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    IfMatch(seen): IfMatch,
    Body(it): Body<OrganisationChange>,
) -> Result<Tagged<Organisation>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::UpdateOrganisationRequest {
        org_id: org.to_string(),
        name: it.name,
        slug: it.slug,
        expected_version: seen,
    })?;
    let done = app.keys.clone().update_organisation(request).await?;
    let now = done.into_inner().organisation;
    Ok(now.ok_or(Error::NotFound("organisation"))?.into())
}
