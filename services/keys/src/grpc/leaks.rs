//! Keys that were found in public.

use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::{KeyDigest, PresentedKey, Role, parse_key_name};
use zeroize::Zeroizing;

use proto::keys::v1 as pb;

use super::{Keys, operators_only};
use crate::{
    domain::{
        anomaly::Restraint,
        key::{ApiKey, Settings},
        leak::{Named, Signed},
        mail::{Done, Letter, NamedKey, Place},
        policy::LeakAction,
        rights::OrgScope,
        throttle,
    },
    error::{Error, Result},
    store::Tx,
};

/// Characters of the address a key was found at.
const URL_CHARS_MAX: usize = 500;
/// Why a key is revoked or suspended that was reported.
const LEAKED: &str = "reported as leaked";

/// A report, checked.
struct Report {
    source: String,
    url: String,
    /// The key's identifier, when the report was signed.
    signed_with: Option<String>,
}

impl Keys {
    pub(super) async fn report(
        &self,
        actor: Actor,
        request: pb::ReportLeakedKeyRequest,
    ) -> std::result::Result<pb::ReportLeakedKeyResponse, Status> {
        operators_only(actor, "report leaked keys")?;
        let text = Zeroizing::new(request.key);
        let digest = match text.is_empty() {
            false => None,
            true => {
                let problem = "must be 32 bytes, or `key` must be set";
                let digest = KeyDigest::from_slice(&request.key_hash);
                Some(digest.ok_or_else(|| Error::invalid("key_hash", problem))?)
            }
        };
        if request.url.chars().count() > URL_CHARS_MAX || request.url.chars().any(char::is_control)
        {
            let problem = format!("must be at most {URL_CHARS_MAX} characters");
            return Err(Error::invalid("url", problem).into());
        }
        let signed = Signed {
            payload: &request.payload,
            signature: &request.signature,
            key_identifier: &request.key_identifier,
        };
        let verified = match request.signature.is_empty() {
            true => None,
            false => {
                let named = match &digest {
                    Some(digest) => Named::Digest(digest),
                    None => Named::Text(&text),
                };
                Some(self.scanners.source_of(signed, named)?.to_owned())
            }
        };
        let said = match &verified {
            Some(source) => source.clone(),
            None => parse_key_name("source", &request.source).map_err(Error::from)?,
        };
        let report = Report {
            source: said,
            url: request.url,
            signed_with: verified.is_some().then_some(request.key_identifier),
        };
        let verified_source = verified.unwrap_or_default();
        let Some(found) = self.find_reported(&text, digest.as_ref()).await? else {
            return Ok(pb::ReportLeakedKeyResponse {
                action: "none".to_owned(),
                key_id: String::new(),
                verified_source,
            });
        };
        let action = self.act_on_leak(actor, &found, &report).await?;
        Ok(pb::ReportLeakedKeyResponse {
            action,
            key_id: found.id.to_string(),
            verified_source,
        })
    }

    /// The key of a text or of its plain hash, under either pepper.
    async fn find_reported(
        &self,
        text: &str,
        digest: Option<&KeyDigest>,
    ) -> Result<Option<ApiKey>> {
        let peppers = self.peppers.load_full();
        if let Some(digest) = digest {
            let Some(id) = self.store.key_of_report(peppers.reports(digest)).await? else {
                return Ok(None);
            };
            return match self.store.key(OrgScope::Every, id).await {
                Ok(key) => Ok(Some(key)),
                // Deleted: it cannot be used.
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            };
        }
        // What is no key of ours belongs to nobody here.
        let Ok(key) = PresentedKey::parse(text) else {
            return Ok(None);
        };
        let hashes = peppers.hashes(&key);
        self.store
            .key_of(&hashes.hash, hashes.previous_hash.as_ref())
            .await
    }

    /// Applies the organisation's policy to a key that was found in public, and tells its owners:
    /// once for each place it was found at.
    async fn act_on_leak(&self, actor: Actor, found: &ApiKey, report: &Report) -> Result<String> {
        let now = self.host.clock().now();
        let mut tx = self.store.begin(actor, now).await?;
        tx.lock_organisation(found.org).await?;
        if let Some(before) = tx.leak_action(found.id, &report.url).await? {
            return Ok(before);
        }
        let policy = tx.policy(found.org).await?;
        let key = match tx.lock_key(OrgScope::Every, found.id).await {
            Ok(key) if key.revoked.is_none() => key,
            // Deleted or revoked: it cannot be used.
            Ok(_) | Err(Error::NotFound { .. }) => return Ok("none".to_owned()),
            Err(error) => return Err(error),
        };
        let (action, done) = apply_policy(&mut tx, &key, policy.leak_action).await?;
        tx.note_leak(&key, &report.url, &report.source, action)
            .await?;
        // Whoever has the key can report it from many places: beyond a few mails only the log says.
        let limit = throttle::LEAK_MAIL;
        if self.store.try_once(limit, &key.id.to_string(), now).await? {
            self.tell_of_leak(&mut tx, &key, report, done).await?;
        }
        let details = json!({
            "source": report.source,
            "signed_with": report.signed_with,
            "url": report.url,
            "action": action,
            "before": { "active": key.settings.active },
        });
        tx.audit(Some(key.org), "key.leak_reported", key.id, details);
        if done != Done::Nothing {
            tx.announce_keys(&[key.id]);
        }
        tx.commit().await?;
        self.committed();
        Ok(action.to_owned())
    }

    async fn tell_of_leak(
        &self,
        tx: &mut Tx,
        key: &ApiKey,
        report: &Report,
        done: Done,
    ) -> Result<()> {
        let organisation = tx.organisation(key.org).await?;
        let letter = Letter::KeyLeaked {
            organisation: Place {
                name: &organisation.name,
                slug: &organisation.slug,
            },
            key: NamedKey {
                name: &key.settings.name,
                hint: &key.hint,
            },
            source: &report.source,
            url: &report.url,
            done,
        };
        let owners = tx.readers(key.org, &[Role::Owner], None).await?;
        self.write_to(tx, &owners, &letter).await
    }
}

/// Does to a leaked key what the policy says: in a word, and as owners are told.
async fn apply_policy(
    tx: &mut Tx,
    key: &ApiKey,
    action: LeakAction,
) -> Result<(&'static str, Done)> {
    match action {
        LeakAction::Notify => Ok(("notified", Done::Nothing)),
        LeakAction::Suspend => {
            let suspended = Settings {
                active: false,
                ..key.settings.clone()
            };
            let reason = Some(LEAKED.to_owned());
            let restraints = key.restraints.suspended_because(reason);
            tx.save_key(key.id, &suspended, &restraints).await?;
            // No anomaly that is lifted restores it.
            tx.free_key(key.id, Some(Restraint::Suspend)).await?;
            Ok(("suspended", Done::Suspended))
        }
        LeakAction::Revoke => {
            tx.revoke_key(key.id, LEAKED).await?;
            Ok(("revoked", Done::Revoked))
        }
    }
}
