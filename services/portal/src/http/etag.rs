//! Entity tags: an answer carries the version of what it shows, and a change may ask for the one
//! that was seen. Whether it still is that one is decided by the service, where nobody comes
//! between.

use axum::{
    Json,
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header, request::Parts};
use serde::Serialize;

use crate::{
    domain,
    error::{Error, Result},
};

/// `If-Match`, when the client wants to change only what it has seen.
pub(super) struct IfMatch(pub(super) Option<i64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else {
            return Ok(Self(None));
        };
        let text = value.to_str().unwrap_or_default();
        domain::if_match(text).map(|version| Self(Some(version)))
    }
}

/// An answer with its version as the `ETag`.
pub(super) struct Tagged<T> {
    pub(super) version: i64,
    pub(super) body: T,
}

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let tag = HeaderValue::from_str(&format!("\"{}\"", self.version));
        let mut response = Json(self.body).into_response();
        if let Ok(tag) = tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}
