//! Reports of keys that were found in public. Who reports learns nothing about them.

use axum::{Json, body::Bytes, extract::State};
use http::{HeaderMap, StatusCode, header};
use proto::keys::v1 as pb;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{App, extract::Client};
use crate::error::{Error, Result};

/// Reports of one request.
const REPORTS_MAX: usize = 100;
/// Bytes of a hash.
const HASH_BYTES: usize = 32;
/// Names the public key of a signed report.
const KEY_IDENTIFIER: &str = "github-public-key-identifier";
/// Signs the body.
const SIGNATURE: &str = "github-public-key-signature";
/// Who reports, when nobody says.
const ANONYMOUS: &str = "a public report";

/// A key that was found. `token` and `type` are what scanners call it.
#[derive(Deserialize, ToSchema)]
pub(super) struct FoundKey {
    /// The key as it was found; it is hashed and forgotten.
    #[serde(alias = "token")]
    #[schema(max_length = 200)]
    key: Option<String>,
    /// Instead of `key`: SHA-256 of its text, 64 hex digits.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    hash: Option<String>,
    /// Who reports, or where the key was found.
    #[schema(max_length = 80)]
    source: Option<String>,
    /// Where it was found.
    #[schema(max_length = 500)]
    url: Option<String>,
}

/// One found key, or several as scanners report them.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum LeakReport {
    One(FoundKey),
    Many(Vec<FoundKey>),
}

impl FoundKey {
    /// What of the report goes on.
    fn message(self) -> Result<pb::ReportLeakedKeyRequest> {
        let hash = self.hash.map(hex::decode).transpose();
        let problem = "must be 64 hex digits, or `key` must be set";
        let hash = hash.map_err(|_not_hex| Error::invalid("hash", problem))?;
        let (key, key_hash) = match (self.key, hash) {
            (Some(key), None) => (key, Vec::new()),
            (None, Some(hash)) if hash.len() == HASH_BYTES => (String::new(), hash),
            (Some(_), Some(_)) => {
                return Err(Error::invalid("hash", "must be absent beside `key`"));
            }
            (None, _) => return Err(Error::invalid("hash", problem)),
        };
        Ok(pb::ReportLeakedKeyRequest {
            key,
            key_hash,
            source: self.source.unwrap_or_else(|| ANONYMOUS.to_owned()),
            url: self.url.unwrap_or_default(),
            ..pb::ReportLeakedKeyRequest::default()
        })
    }
}

fn read(headers: &HeaderMap, body: &Bytes) -> Result<Vec<pb::ReportLeakedKeyRequest>> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/json") {
        return Err(Error::UnsupportedMediaType);
    }
    let found = match Json::from_bytes(body) {
        Ok(Json(LeakReport::One(found))) => vec![found],
        Ok(Json(LeakReport::Many(found))) => found,
        Err(refused) => return Err(Error::BadRequest(refused.body_text())),
    };
    if !(1..=REPORTS_MAX).contains(&found.len()) {
        let problem = format!("must have from 1 to {REPORTS_MAX} entries");
        return Err(Error::invalid("body", problem));
    }
    found.into_iter().map(FoundKey::message).collect()
}

fn text(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

/// Takes reports of keys that were found in public, and does to each what its organisation wants.
/// The answer is the same whether there is such a key or not. Scanners sign the body, as secret
/// scanning at GitHub does; a wrong signature is refused.
#[utoipa::path(post, path = "/v1/leaked-keys", tag = "scanners", request_body = LeakReport,
    params(
        ("github-public-key-identifier" = Option<String>, Header,
            description = "Names the public key of the signature"),
        ("github-public-key-signature" = Option<String>, Header,
            description = "ECDSA (P-256, SHA-256) over the body: DER in base64"),
    ),
    responses((status = 202, description = "Taken")))]
pub(super) async fn report_leaked_keys(
    State(app): App,
    client: Client,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode> {
    let reports = read(&headers, &body)?;
    let (signature, key_identifier) = (text(&headers, SIGNATURE), text(&headers, KEY_IDENTIFIER));
    let is_signed = !signature.is_empty();
    let mut is_known = false;
    for report in reports {
        // Whose signature was right is no stranger.
        if !is_known {
            app.strangers(&client)?;
        }
        let request = client.request(pb::ReportLeakedKeyRequest {
            payload: match is_signed {
                true => body.to_vec(),
                false => Vec::new(),
            },
            signature: signature.clone(),
            key_identifier: key_identifier.clone(),
            ..report
        })?;
        let done = app.keys.clone().report_leaked_key(request).await?;
        is_known = !done.into_inner().verified_source.is_empty();
    }
    Ok(StatusCode::ACCEPTED)
}
