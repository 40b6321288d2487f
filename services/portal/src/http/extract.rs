//! What handlers take, with problem documents for what does not fit.

use std::net::IpAddr;

use axum::extract::{
    FromRequest, FromRequestParts, Request,
    rejection::{BytesRejection, JsonRejection},
};
use http::{Extensions, StatusCode, header, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};
use types::{Id, Kind};
use utoipa::IntoParams;

use super::{access::as_operator, listen::Peer};
use crate::{
    domain,
    error::{Error, Result},
};

/// Placeholders of the path.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let found = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        // Bytes that are no text name nothing.
        found.map_or(Err(Error::NotFound("thing")), |found| Ok(Self(found.0)))
    }
}

/// An id of the path. What is not an id names nothing.
pub(super) fn id<K: Kind>(what: &'static str, text: &str) -> Result<Id<K>> {
    text.parse().map_or(Err(Error::NotFound(what)), Ok)
}

/// The query.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(found) => Ok(Self(found.0)),
            Err(refused) => Err(Error::BadRequest(refused.body_text())),
        }
    }
}

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(found) => Ok(Self(found.0)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Error::UnsupportedMediaType),
            Err(JsonRejection::BytesRejection(refused)) => Err(unread(&refused)),
            Err(refused) => Err(Error::BadRequest(refused.body_text())),
        }
    }
}

fn unread(refused: &BytesRejection) -> Error {
    match refused.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::BodyTooLarge,
        _ => Error::BadRequest(refused.body_text()),
    }
}

/// Where a request comes from, as a session remembers it.
pub(super) struct Client {
    pub(super) address: IpAddr,
    pub(super) user_agent: String,
}

impl Client {
    /// A message of the portal itself, for whoever this is.
    pub(super) fn request<T>(&self, message: T) -> Result<tonic::Request<T>> {
        as_operator(self.address, message)
    }
}

/// Where a request comes from, as the listener noted it.
pub(super) fn peer(extensions: &Extensions) -> Result<Peer> {
    let peer = extensions.get::<Peer>().copied();
    peer.ok_or_else(|| Error::Internal(anyhow::anyhow!("the listener did not note the peer")))
}

/// Characters of a user agent that are kept.
const USER_AGENT_CHARS_MAX: usize = 200;

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let Peer(address) = peer(&parts.extensions)?;
        let agent = parts.headers.get(header::USER_AGENT);
        let agent = agent.and_then(|value| value.to_str().ok()).unwrap_or("");
        Ok(Self {
            address,
            user_agent: agent.chars().take(USER_AGENT_CHARS_MAX).collect(),
        })
    }
}

/// Which page of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Entries of a page at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub(super) limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(max_length = 400)]
    pub(super) cursor: Option<String>,
}

impl Page {
    pub(super) fn size(&self) -> Result<u32> {
        size(self.limit)
    }

    pub(super) fn token(&self) -> Result<String> {
        domain::page_token(self.cursor.as_deref())
    }
}

/// Entries of a page when the client does not say.
const PAGE_DEFAULT: u32 = 100;
/// Entries of a page at most.
const PAGE_MAX: u32 = 1000;

pub(super) fn size(limit: Option<u32>) -> Result<u32> {
    match limit.unwrap_or(PAGE_DEFAULT) {
        limit @ 1..=PAGE_MAX => Ok(limit),
        _ => Err(Error::invalid("limit", "must be from 1 to 1000")),
    }
}

/// Cuts a page from a list that a service gives whole.
pub(super) fn cut<T>(
    all: Vec<T>,
    page: &Page,
    id: impl Fn(&T) -> &str,
) -> Result<(Vec<T>, Option<String>)> {
    let (size, after) = (page.size()?, page.token()?);
    let begin = match after.is_empty() {
        true => 0,
        // What the cursor names may have gone by now: then the list has ended.
        false => all
            .iter()
            .position(|it| id(it) == after)
            .map_or(all.len(), |at| at.saturating_add(1)),
    };
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let is_last = all.len().saturating_sub(begin) <= size;
    let page: Vec<T> = all.into_iter().skip(begin).take(size).collect();
    let next = match page.last() {
        Some(last) if !is_last => domain::cursor(id(last)),
        _ => None,
    };
    Ok((page, next))
}
