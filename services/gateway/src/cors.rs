//! Web pages that call from elsewhere (CORS, the Fetch standard).
//!
//! - The gateway says which pages may read answers, and the upstream has no say in it: preflights
//!   carry no key, so they are answered here, from memory and for nothing.
//! - A preflight passes when some organisation allows the page's origin. The call behind it is
//!   judged by the organisation of its key: from a page that is not on its list it is refused
//!   before anything is taken. An organisation without a list refuses nobody, and no page may read
//!   its answers.
//! - Calls without an `Origin`, or from the gateway's own, are none of this.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
        ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
    },
};
use proto::keys::v1::SyncResponse;
use types::{OrgId, Refusal};

use crate::{body::EdgeBody, edge::Edge, refuse::Refused};

/// What a page may read of an answer: everything, and for browsers that do not know `*`, what we
/// say ourselves.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "*, x-request-id, tollgate-cost, ratelimit, ratelimit-policy, retry-after, \
     idempotency-replayed, tollgate-original-request-id",
);
/// Browsers ask again after two hours, the longest that all of them take. Calls are judged anew.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const ANY: HeaderValue = HeaderValue::from_static("*");
const PREFLIGHT_VARY: HeaderValue = HeaderValue::from_static(
    "origin, access-control-request-method, access-control-request-headers",
);
const CALL_VARY: HeaderValue = HeaderValue::from_static("origin");

/// The origin of the page that calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Page(HeaderValue);

/// What an organisation says of a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    /// It has no list.
    Unlisted,
    /// The answer says so.
    Allowed(HeaderValue),
    Refused,
}

/// The lists of all organisations that have one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins {
    /// Position in the change log up to which this is all.
    pub(crate) change: i64,
    lists: HashMap<OrgId, Arc<[HeaderValue]>>,
    /// What stands in any of them.
    everybody: HashSet<HeaderValue>,
}

impl Origins {
    /// Takes what `keys` sent; nothing when there is no news.
    ///
    /// # Errors
    /// It makes no sense.
    pub(crate) fn with(&self, news: &SyncResponse) -> anyhow::Result<Option<Self>> {
        let is_old = news.origins.is_empty() && !news.origins_reset;
        if is_old && news.origins_change == self.change {
            return Ok(None);
        }
        let mut new = match news.origins_reset {
            true => Self::default(),
            false => self.clone(),
        };
        new.change = news.origins_change;
        for said in &news.origins {
            let list = said.allowed_origins.iter().map(HeaderValue::try_from);
            let list: Vec<_> = list.collect::<Result<_, _>>()?;
            match list.is_empty() {
                true => new.lists.remove(&said.org_id.parse()?),
                false => new.lists.insert(said.org_id.parse()?, list.into()),
            };
        }
        if !is_old {
            let all = new.lists.values().flat_map(|list| list.iter().cloned());
            new.everybody = all.collect();
        }
        Ok(Some(new))
    }

    /// What this organisation says of a page.
    pub(crate) fn judge(&self, org: &OrgId, page: &Page) -> Judgement {
        let Some(list) = self.lists.get(org) else {
            return Judgement::Unlisted;
        };
        match list
            .iter()
            .find(|origin| **origin == ANY || **origin == page.0)
        {
            Some(origin) => Judgement::Allowed(origin.clone()),
            None => Judgement::Refused,
        }
    }

    /// What may be said to a page of which only the origin is known.
    fn of_some(&self, page: &Page) -> Option<HeaderValue> {
        let knows = |origin| self.everybody.contains(origin);
        match knows(&ANY) {
            true => Some(ANY),
            false => knows(&page.0).then(|| page.0.clone()),
        }
    }
}

impl Page {
    /// Of a request that a browser sent for a page from elsewhere. Most have none.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        let origin = request.headers().get(ORIGIN)?;
        let host = request.headers().get(HOST).map(HeaderValue::as_bytes);
        let authority = request.uri().authority().map(|it| it.as_str().as_bytes());
        let is_own = |host: &[u8]| authority_of(origin).is_some_and(|own| same(own, host));
        let is_own = host.or(authority).is_some_and(is_own);
        (!is_own).then(|| Self(origin.clone()))
    }

    /// Answers a preflight; nothing for a request that is none.
    pub(crate) fn preflight<B>(
        &self,
        request: &Request<B>,
        origins: &Origins,
    ) -> Option<Result<Response<EdgeBody>, Refused>> {
        let asked = request.headers();
        let method = asked.get(ACCESS_CONTROL_REQUEST_METHOD)?;
        if request.method() != Method::OPTIONS {
            return None;
        }
        let Some(allowed) = origins.of_some(self) else {
            return Some(Err(Refusal::OriginNotAllowed.into()));
        };
        // What is not allowed is refused by the call itself, where the page can read why.
        let mut response = Response::new(EdgeBody::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
        if let Some(wanted) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        headers.insert(VARY, PREFLIGHT_VARY);
        Some(Ok(response))
    }

    /// Says on the answer to a call what its organisation says.
    pub(crate) fn allow(&self, origins: &Origins, org: &OrgId, headers: &mut HeaderMap) {
        match origins.judge(org, self) {
            Judgement::Allowed(origin) => put(headers, Some(origin)),
            Judgement::Unlisted | Judgement::Refused => put(headers, None),
        }
    }

    /// Lets a page read why it was refused, if some organisation allows it: nothing of a customer
    /// is in a refusal.
    pub(crate) fn explain(&self, origins: &Origins, headers: &mut HeaderMap) {
        put(headers, origins.of_some(self));
    }
}

fn put(headers: &mut HeaderMap, allowed: Option<HeaderValue>) {
    headers.append(VARY, CALL_VARY);
    if let Some(origin) = allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}

/// Why a call from a page is refused.
pub(crate) fn refusal(edge: &Edge, org: &OrgId, page: &Page) -> Option<Refusal> {
    let judged = edge.origins.load().judge(org, page);
    (judged == Judgement::Refused).then_some(Refusal::OriginNotAllowed)
}

/// What stands behind the scheme.
fn authority_of(origin: &HeaderValue) -> Option<&[u8]> {
    let text = origin.as_bytes();
    let at = memchr::memmem::find(text, b"://")?;
    text.get(at.checked_add(b"://".len())?..)
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.eq_ignore_ascii_case(b)
}

#[cfg(test)]
mod tests;
