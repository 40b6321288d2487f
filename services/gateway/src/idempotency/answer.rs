//! Answers that are kept: the copy made of one on its way to the client, and the one given again.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{AGE, CONTENT_LENGTH, DATE, SET_COOKIE, TRANSFER_ENCODING, VIA},
};
use http_body::Frame;
use proto::usage_ingest::v1::{KeptAnswer, KeptHeader};
use sha2::{Digest as _, Sha256};
use types::{KEPT_BODY_BYTES_MAX, KEPT_HEADERS_BYTES_MAX, KEPT_HEADERS_MAX, RequestId};

use super::Digest;
use crate::{body::EdgeBody, edge::COST, headers};

/// Says that an answer was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// The `x-request-id` it was given with then.
const ORIGINAL: HeaderName = HeaderName::from_static("tollgate-original-request-id");

/// Not kept: credentials of the moment, what was true of that transfer only, and what is ours to
/// say.
const NOT_KEPT: [HeaderName; 7] = [
    SET_COOKIE,
    DATE,
    AGE,
    VIA,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    REPLAYED,
];

/// An answer while it passes.
#[derive(Debug)]
pub(crate) struct Transcript {
    status: u16,
    headers: Vec<KeptHeader>,
    body: Vec<u8>,
}

impl Transcript {
    /// Of an answer with this head; nothing when it is too long already.
    pub(crate) fn of(status: u16, head: &HeaderMap) -> Option<Self> {
        let announced = head.get(CONTENT_LENGTH).and_then(|it| it.to_str().ok());
        let announced: usize = announced.and_then(|it| it.parse().ok()).unwrap_or(0);
        if announced > KEPT_BODY_BYTES_MAX {
            return None;
        }
        let mut head = head.clone();
        headers::strip_response(&mut head);
        for name in &NOT_KEPT {
            head.remove(name);
        }
        let kept = |(name, value): (&HeaderName, &HeaderValue)| KeptHeader {
            name: name.as_str().to_owned(),
            value: value.as_bytes().to_vec(),
        };
        let headers: Vec<KeptHeader> = head.iter().map(kept).collect();
        let bytes: usize = headers
            .iter()
            .map(|it| it.name.len().saturating_add(it.value.len()))
            .sum();
        let fits = headers.len() <= KEPT_HEADERS_MAX && bytes <= KEPT_HEADERS_BYTES_MAX;
        fits.then(|| Self {
            status,
            headers,
            body: Vec::with_capacity(announced),
        })
    }

    /// Takes more of the body; false when it has become too long.
    #[must_use]
    pub(crate) fn take(&mut self, data: &[u8]) -> bool {
        if self.body.len().saturating_add(data.len()) > KEPT_BODY_BYTES_MAX {
            return false;
        }
        self.body.extend_from_slice(data);
        true
    }

    /// The whole answer, to a request with this body.
    pub(crate) fn into_kept(self, request_body: Digest) -> KeptAnswer {
        KeptAnswer {
            status: self.status.into(),
            headers: self.headers,
            body: self.body,
            request_body_sha256: request_body.to_vec(),
        }
    }
}

/// Digests a request's body while it passes.
#[derive(Clone, Debug, Default)]
pub(crate) struct BodyDigest(Rc<RefCell<Digesting>>);

#[derive(Debug, Default)]
struct Digesting {
    sha: Sha256,
    has_ended: bool,
}

impl BodyDigest {
    /// Takes a part; trailers end a body, and `is_last` says that nothing follows.
    pub(crate) fn pass(&self, frame: &Frame<Bytes>, is_last: bool) {
        let mut digesting = self.0.borrow_mut();
        if let Some(data) = frame.data_ref() {
            digesting.sha.update(data);
        }
        digesting.has_ended |= is_last || frame.is_trailers();
    }

    /// The body is complete.
    pub(crate) fn end(&self) {
        self.0.borrow_mut().has_ended = true;
    }

    /// Of the whole body; nothing when its end was not seen.
    pub(crate) fn digest(&self) -> Option<Digest> {
        let digesting = self.0.borrow();
        let whole = digesting.has_ended.then(|| digesting.sha.clone());
        Some(whole?.finalize().into())
    }
}

/// An answer to give again.
#[derive(Debug)]
pub(crate) struct Replay {
    /// The call that was given it first.
    pub(crate) original: RequestId,
    pub(crate) answer: KeptAnswer,
}

impl Replay {
    pub(crate) fn status(&self) -> u16 {
        u16::try_from(self.answer.status).unwrap_or_default()
    }

    /// The same status, headers and body; that it costs nothing, and whose it was.
    pub(crate) fn into_response(self) -> Response<EdgeBody> {
        let status = StatusCode::from_u16(self.status());
        let body = match self.answer.body {
            empty if empty.is_empty() => EdgeBody::empty(),
            body => EdgeBody::Full(Some(Bytes::from(body))),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        for KeptHeader { name, value } in self.answer.headers {
            let name = HeaderName::try_from(name);
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.append(name, value);
            }
        }
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
        if let Ok(original) = HeaderValue::try_from(self.original.to_string()) {
            headers.insert(ORIGINAL, original);
        }
        headers.insert(COST, HeaderValue::from_static("0"));
        headers.append(VIA, HeaderValue::from_static("1.1 tollgate"));
        response
    }
}
