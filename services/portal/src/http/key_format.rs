//! What a key looks like, for scanners of code and logs. Nothing here is secret.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use types::{Environment, KEY_BODY_CHARS, KEY_RANDOM_BYTES, PresentedKey};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::{
    App,
    extract::{Body, Client},
};
use crate::error::Result;

/// One prefix.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyPrefix {
    /// `production` or `test`.
    environment: &'static str,
    /// What such a key begins with.
    prefix: String,
    /// Matches such a key and nothing longer.
    regex: String,
}

/// How the last bytes follow from the others.
#[derive(Serialize, ToSchema)]
pub(super) struct Checksum {
    /// CRC-32 as in IEEE 802.3, zlib and PNG.
    algorithm: &'static str,
    /// What it is computed over.
    input: String,
    /// Where it stands.
    place: String,
}

/// The form of a key.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyFormat {
    prefixes: Vec<KeyPrefix>,
    /// Characters behind the prefix.
    body_chars: usize,
    /// How bytes are written in the body.
    encoding: &'static str,
    checksum: Checksum,
    /// Finds keys in a text; check what it finds with the checksum.
    search_regex: String,
    /// Where a found key is reported.
    report_to: &'static str,
}

/// Tells what a key looks like, so that scanners can find one and check it offline.
#[utoipa::path(get, path = "/v1/key-format", tag = "scanners",
    responses((status = 200, body = KeyFormat, description = "The form of a key")))]
pub(super) async fn get_key_format() -> Json<KeyFormat> {
    let characters = format!("[A-Za-z0-9_-]{{{KEY_BODY_CHARS}}}");
    let prefix = |environment: Environment| {
        let prefix = format!("{}_", environment.key_prefix());
        KeyPrefix {
            environment: environment.as_str(),
            regex: format!("^{prefix}{characters}$"),
            prefix,
        }
    };
    Json(KeyFormat {
        prefixes: [Environment::Production, Environment::Test]
            .map(prefix)
            .into(),
        body_chars: KEY_BODY_CHARS,
        encoding: "base64url without padding (RFC 4648, section 5)",
        checksum: Checksum {
            algorithm: "CRC-32/ISO-HDLC",
            input: format!("the prefix as ASCII, then the first {KEY_RANDOM_BYTES} decoded bytes"),
            place: "the last 4 decoded bytes, big-endian".to_owned(),
        },
        search_regex: format!("\\bsk_(?:live|test)_{characters}(?![A-Za-z0-9_-])"),
        report_to: "/v1/leaked-keys",
    })
}

/// A text that may be a key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MaybeKey {
    #[schema(max_length = 200)]
    key: String,
}

/// What form and checksum say of it.
#[derive(Serialize, ToSchema)]
pub(super) struct CheckedKey {
    /// Form and checksum are right. Whether it was ever issued is not looked up.
    valid: bool,
    /// `production` or `test`, as the prefix says. Absent when it is not valid.
    environment: Option<&'static str>,
}

/// Checks form and checksum of a text. Nothing is looked up, and the text is not kept.
#[utoipa::path(post, path = "/v1/key-format/check", tag = "scanners", request_body = MaybeKey,
    responses((status = 200, body = CheckedKey, description = "What its form says")))]
pub(super) async fn check_key_format(
    State(app): App,
    client: Client,
    Body(it): Body<MaybeKey>,
) -> Result<Json<CheckedKey>> {
    app.strangers(&client)?;
    let text = Zeroizing::new(it.key);
    let parsed = PresentedKey::parse(text.trim()).ok();
    Ok(Json(CheckedKey {
        valid: parsed.is_some(),
        environment: parsed.map(|key| key.environment().as_str()),
    }))
}
