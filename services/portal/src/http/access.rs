//! Who asks, and what that lets them see.

use std::{fmt, net::IpAddr, sync::Arc};

use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, header, request::Parts};
use jiff::Timestamp;
use proto::keys::v1 as pb;
use runtime::Tenant;
use sha2::{Digest, Sha256};
use tonic::metadata::{Ascii, MetadataValue};
use types::{OrgId, UserId};

use super::{
    Portal,
    extract::{id, peer},
    listen::Peer,
};
use crate::{
    domain::{self, Action, SessionId},
    error::{Error, Result},
};

/// What a session's token begins with, so that scanners know it.
pub(super) const TOKEN_PREFIX: &str = "tgs_";
/// Who acts.
const ACTOR: &str = "tollgate-actor";
/// Where.
const CLIENT_ADDRESS: &str = "tollgate-client-address";
/// When the second factor was presented, unix seconds.
const SECOND_FACTOR_AT: &str = "tollgate-second-factor-at";

/// Whom a request comes from, and from where.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) who: Who,
    address: IpAddr,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) enum Who {
    Operator,
    User(Person),
}

/// Somebody signed in.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) user: UserId,
    pub(super) email: String,
    pub(super) session: SessionId,
    /// Sessions of another epoch have ended.
    pub(super) epoch: i64,
    pub(super) second_factor_at: Option<Timestamp>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Operator => f.write_str("operator"),
            Who::User(person) => fmt::Display::fmt(&person.user, f),
        }
    }
}

fn ascii(text: &str) -> Result<MetadataValue<Ascii>> {
    text.parse()
        .map_err(|error| Error::Internal(anyhow::Error::new(error)))
}

/// A message of the portal itself, for somebody at this address who is nobody yet.
pub(super) fn as_operator<T>(address: IpAddr, message: T) -> Result<tonic::Request<T>> {
    let who = Who::Operator;
    Caller { who, address }.request(message)
}

impl Caller {
    /// A message with who acts, and where.
    pub(super) fn request<T>(&self, message: T) -> Result<tonic::Request<T>> {
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(ACTOR, ascii(&self.to_string())?);
        metadata.insert(CLIENT_ADDRESS, ascii(&self.address.to_string())?);
        if let Who::User(person) = &self.who
            && let Some(at) = person.second_factor_at
        {
            let seconds = at.as_second().to_string();
            metadata.insert(SECOND_FACTOR_AT, ascii(&seconds)?);
        }
        Ok(request)
    }

    /// The person, where operators have no business.
    pub(super) fn person(&self) -> Result<&Person> {
        match &self.who {
            Who::User(person) => Ok(person),
            Who::Operator => Err(Error::PeopleOnly),
        }
    }

    /// Whose rows of the portal a request is about.
    pub(super) fn tenant(&self) -> Tenant {
        match &self.who {
            Who::Operator => Tenant::Every,
            Who::User(person) => Tenant::User(person.user),
        }
    }

    /// Refuses everybody but operators.
    pub(super) fn operators_only(&self) -> Result<()> {
        match &self.who {
            Who::Operator => Ok(()),
            Who::User(_) => Err(Error::OperatorsOnly),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Error::Internal(anyhow::anyhow!("the route is not closed")))
    }
}

/// What of a token is stored and looked for.
pub(super) fn token_hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn ended() -> Error {
    Error::Unauthenticated("the session has ended: sign in again")
}

impl Portal {
    async fn caller(&self, headers: &HeaderMap, address: IpAddr) -> Result<Caller> {
        let value = headers.get(header::AUTHORIZATION);
        let token = value
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(str::trim)
            .ok_or(Error::Unauthenticated(
                "send `Authorization: Bearer` and the token of POST /v1/login",
            ))?;
        if self.host.is_operator(token) {
            let who = Who::Operator;
            return Ok(Caller { who, address });
        }
        if !token.starts_with(TOKEN_PREFIX) {
            return Err(Error::Unauthenticated(
                "the token is no session's: get one with POST /v1/login",
            ));
        }
        let now = self.host.clock().now();
        let Some(session) = self.store.session(&token_hash(token)).await? else {
            return Err(ended());
        };
        if !domain::is_alive(session.last_seen_at, session.expires_at, now) {
            return Err(ended());
        }
        let mut person = Person {
            user: session.user,
            email: String::new(),
            session: session.id,
            epoch: session.epoch,
            second_factor_at: session.second_factor_at,
        };
        let who = Who::User(person.clone());
        let user = self.user(&Caller { who, address }).await?;
        if user.session_epoch != session.epoch {
            return Err(ended());
        }
        self.store.touch_session(&session, now).await?;
        person.email = user.email;
        let who = Who::User(person);
        Ok(Caller { who, address })
    }

    /// The user that a session belongs to.
    pub(super) async fn user(&self, caller: &Caller) -> Result<pb::User> {
        let request = caller.request(pb::GetUserRequest {
            user_id: caller.to_string(),
        })?;
        let found = self.people.clone().get_user(request).await?.into_inner();
        found
            .user
            .ok_or_else(|| Error::Internal(anyhow::anyhow!("keys answered without the user")))
    }

    /// The organisation of a path, if its caller may do this there. To strangers it does not exist.
    ///
    /// For what services hold that know organisations, but not their members.
    pub(super) async fn scope(&self, caller: &Caller, org: &str, action: Action) -> Result<OrgId> {
        let org: OrgId = id("organisation", org)?;
        let Who::User(person) = &caller.who else {
            let request = caller.request(pb::GetOrganisationRequest {
                org_id: org.to_string(),
            })?;
            self.keys.clone().get_organisation(request).await?;
            return Ok(org);
        };
        let request = caller.request(pb::ListOrganisationsOfRequest {
            user_id: person.user.to_string(),
        })?;
        let found = self.people.clone().list_organisations_of(request).await?;
        let memberships = found.into_inner().memberships;
        let text = org.to_string();
        let Some(membership) = memberships.iter().find(|it| it.org_id == text) else {
            return Err(Error::NotFound("organisation"));
        };
        let role = membership
            .role
            .parse()
            .map_err(|error| Error::Internal(anyhow::Error::new::<types::NameError>(error)))?;
        match domain::permits(role, action) {
            true => Ok(org),
            false => Err(Error::Forbidden {
                role,
                what: action.words(),
            }),
        }
    }
}

/// Lets nobody through who is not known.
pub(super) async fn authenticate(
    State(portal): State<Arc<Portal>>,
    mut request: Request,
    next: Next,
) -> Result<Response> {
    let Peer(address) = peer(request.extensions())?;
    let caller = portal.caller(request.headers(), address).await?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}
