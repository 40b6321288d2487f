//! The service on the wire: parse, decide or store, reply.

mod account;
mod anomalies;
mod audit;
mod catalogue;
mod endings;
mod gateways;
mod invitations;
mod keys;
mod leaks;
mod letters;
mod organisations;
mod people;
mod peppers;
mod policy;
mod reviews;
mod roles;
mod second_factor;
mod sign_in;
mod upstream;
mod wire;

use std::sync::Arc;

use jiff::Timestamp;
use proto::{
    convert::page_of,
    keys::v1::{self as pb, keys_service_server::KeysService},
};
use runtime::{Actor, Host, actor, crash_point};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};
use types::{Networks, OrgId, Role, UserId};

use crate::{
    domain::{
        leak::Scanners,
        rights::{Authority, OrgScope},
    },
    error::{Error, Result},
    metrics::Metrics,
    passwords::Passwords,
    peppers::Current,
    store::Store,
};

type Reply<T> = std::result::Result<Response<T>, Status>;

/// When a user presented a second factor, in unix seconds; set by the portal.
const SECOND_FACTOR_AT: &str = "tollgate-second-factor-at";

/// The control plane.
pub(crate) struct Keys {
    pub(crate) host: Host,
    pub(crate) store: Store,
    pub(crate) peppers: Current,
    /// Whose signatures under reports of leaked keys are believed.
    pub(crate) scanners: Scanners,
    /// Wakes the relay of key changes.
    pub(crate) nudge: Arc<Notify>,
    /// Wakes the mailroom.
    pub(crate) mail_nudge: Arc<Notify>,
    pub(crate) passwords: Passwords,
    /// Where links in mails lead, without a slash at the end.
    pub(crate) portal_url: String,
    /// Keys that members of an organisation make in an hour.
    pub(crate) keys_per_hour_max: i64,
    /// Where services may be beside the public internet.
    pub(crate) upstream_networks: Networks,
    pub(crate) metrics: Metrics,
}

/// What a user of this role is in an organisation. To strangers it does not exist.
fn member(org: OrgId, user: UserId, role: Option<Role>) -> Result<Authority> {
    role.map(|role| Authority::Member { user, role })
        .ok_or_else(|| Error::not_found("organisation", org))
}

impl Keys {
    /// What somebody is in an organisation. To strangers it does not exist.
    async fn authority(&self, actor: Actor, org: OrgId) -> Result<Authority> {
        match actor {
            Actor::Operator => {
                self.store.organisation(OrgScope::Every, org).await?;
                Ok(Authority::Operator)
            }
            Actor::User(user) => member(org, user, self.store.role(org, user).await?),
        }
    }

    /// Wakes relay and mailroom. A hint: the rows in change log and outbox are the promise.
    fn committed(&self) {
        crash_point!("keys.change_committed");
        self.nudge.notify_one();
        self.mail_nudge.notify_one();
    }
}

fn scope(actor: Actor) -> OrgScope {
    match actor {
        Actor::Operator => OrgScope::Every,
        Actor::User(user) => OrgScope::MemberOf(user),
    }
}

fn operators_only(actor: Actor, what: &'static str) -> Result<()> {
    match actor {
        Actor::Operator => Ok(()),
        Actor::User(_) => Err(Error::OperatorsOnly { what }),
    }
}

/// When the user presented a second factor, as the portal says; it acts with our token.
fn second_factor_at<T>(request: &Request<T>) -> Result<Option<Timestamp>> {
    let Some(value) = request.metadata().get(SECOND_FACTOR_AT) else {
        return Ok(None);
    };
    let seconds = value.to_str().ok().and_then(|text| text.parse().ok());
    let at = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    match at {
        Some(at) => Ok(Some(at)),
        None => Err(Error::invalid(SECOND_FACTOR_AT, "must be unix seconds")),
    }
}

#[tonic::async_trait]
impl KeysService for Keys {
    async fn verify_key(
        &self,
        request: Request<pb::VerifyKeyRequest>,
    ) -> Reply<pb::VerifyKeyResponse> {
        Ok(Response::new(self.verify(request.into_inner()).await?))
    }

    async fn sync(&self, request: Request<pb::SyncRequest>) -> Reply<pb::SyncResponse> {
        Ok(Response::new(self.synchronise(request.into_inner()).await?))
    }

    async fn touch_keys(
        &self,
        request: Request<pb::TouchKeysRequest>,
    ) -> Reply<pb::TouchKeysResponse> {
        Ok(Response::new(self.touch(request.into_inner()).await?))
    }

    async fn create_organisation(
        &self,
        request: Request<pb::CreateOrganisationRequest>,
    ) -> Reply<pb::CreateOrganisationResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.found(actor, request.into_inner()).await?,
        ))
    }

    async fn get_organisation(
        &self,
        request: Request<pb::GetOrganisationRequest>,
    ) -> Reply<pb::GetOrganisationResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.organisation(actor, request.into_inner()).await?,
        ))
    }

    async fn update_organisation(
        &self,
        request: Request<pb::UpdateOrganisationRequest>,
    ) -> Reply<pb::UpdateOrganisationResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.change_organisation(actor, request.into_inner())
                .await?,
        ))
    }

    async fn list_organisations(
        &self,
        request: Request<pb::ListOrganisationsRequest>,
    ) -> Reply<pb::ListOrganisationsResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.organisations(actor, request.into_inner()).await?,
        ))
    }

    async fn add_member(
        &self,
        request: Request<pb::AddMemberRequest>,
    ) -> Reply<pb::AddMemberResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.admit(actor, request.into_inner()).await?,
        ))
    }

    async fn list_members(
        &self,
        request: Request<pb::ListMembersRequest>,
    ) -> Reply<pb::ListMembersResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.members(actor, request.into_inner()).await?,
        ))
    }

    async fn remove_member(
        &self,
        request: Request<pb::RemoveMemberRequest>,
    ) -> Reply<pb::RemoveMemberResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.dismiss(actor, request.into_inner()).await?,
        ))
    }

    async fn list_key_reviews(
        &self,
        request: Request<pb::ListKeyReviewsRequest>,
    ) -> Reply<pb::ListKeyReviewsResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.reviews(actor, request.into_inner()).await?,
        ))
    }

    async fn keep_key(&self, request: Request<pb::KeepKeyRequest>) -> Reply<pb::KeepKeyResponse> {
        let actor = actor(&request);
        Ok(Response::new(self.keep(actor, request.into_inner()).await?))
    }

    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Reply<pb::CreateKeyResponse> {
        let (actor, factor) = (actor(&request), second_factor_at(&request)?);
        let reply = self.issue(actor, factor, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn get_key(&self, request: Request<pb::GetKeyRequest>) -> Reply<pb::GetKeyResponse> {
        let actor = actor(&request);
        Ok(Response::new(self.key(actor, request.into_inner()).await?))
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Reply<pb::ListKeysResponse> {
        let actor = actor(&request);
        Ok(Response::new(self.keys(actor, request.into_inner()).await?))
    }

    async fn update_key(
        &self,
        request: Request<pb::UpdateKeyRequest>,
    ) -> Reply<pb::UpdateKeyResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.change(actor, request.into_inner()).await?,
        ))
    }

    async fn revoke_key(
        &self,
        request: Request<pb::RevokeKeyRequest>,
    ) -> Reply<pb::RevokeKeyResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.revoke(actor, request.into_inner()).await?,
        ))
    }

    async fn set_service(
        &self,
        request: Request<pb::SetServiceRequest>,
    ) -> Reply<pb::SetServiceResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.offer(actor, request.into_inner()).await?,
        ))
    }

    async fn list_services(
        &self,
        _: Request<pb::ListServicesRequest>,
    ) -> Reply<pb::ListServicesResponse> {
        Ok(Response::new(self.services().await?))
    }

    async fn set_route(
        &self,
        request: Request<pb::SetRouteRequest>,
    ) -> Reply<pb::SetRouteResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.route(actor, request.into_inner()).await?,
        ))
    }

    async fn list_audit_log(
        &self,
        request: Request<pb::ListAuditLogRequest>,
    ) -> Reply<pb::ListAuditLogResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.audit_log(actor, request.into_inner()).await?,
        ))
    }

    async fn lift_anomaly(
        &self,
        request: Request<pb::LiftAnomalyRequest>,
    ) -> Reply<pb::LiftAnomalyResponse> {
        let actor = actor(&request);
        Ok(Response::new(self.lift(actor, request.into_inner()).await?))
    }

    async fn rotate_key(
        &self,
        request: Request<pb::RotateKeyRequest>,
    ) -> Reply<pb::RotateKeyResponse> {
        let (actor, factor) = (actor(&request), second_factor_at(&request)?);
        let reply = self.rotate(actor, factor, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn delete_key(
        &self,
        request: Request<pb::DeleteKeyRequest>,
    ) -> Reply<pb::DeleteKeyResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.delete(actor, request.into_inner()).await?,
        ))
    }

    async fn report_leaked_key(
        &self,
        request: Request<pb::ReportLeakedKeyRequest>,
    ) -> Reply<pb::ReportLeakedKeyResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.report(actor, request.into_inner()).await?,
        ))
    }

    async fn get_peppers(
        &self,
        request: Request<pb::GetPeppersRequest>,
    ) -> Reply<pb::GetPeppersResponse> {
        let actor = actor(&request);
        Ok(Response::new(self.pepper_state(actor).await?))
    }

    async fn get_policy(
        &self,
        request: Request<pb::GetPolicyRequest>,
    ) -> Reply<pb::GetPolicyResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.policy(actor, request.into_inner()).await?,
        ))
    }

    async fn set_policy(
        &self,
        request: Request<pb::SetPolicyRequest>,
    ) -> Reply<pb::SetPolicyResponse> {
        let actor = actor(&request);
        Ok(Response::new(
            self.change_policy(actor, request.into_inner()).await?,
        ))
    }

    async fn verify_audit_log(
        &self,
        request: Request<pb::VerifyAuditLogRequest>,
    ) -> Reply<pb::VerifyAuditLogResponse> {
        let actor = actor(&request);
        Ok(Response::new(self.check_audit_log(actor).await?))
    }
}
