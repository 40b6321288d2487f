//! Keys that are made.

use proto::{convert::parse_id, events::v1::KeyCreated};
use runtime::{
    Follow, FollowError,
    streams::{self, Layout},
};
use types::{KeyId, OrgId};

use super::{Desk, moment};
use crate::{
    domain::{
        Rule,
        key_mass_creation::{self, Created},
        windows::WINDOW,
    },
    store::{self, told},
};

/// Follows the making of keys, for `key_mass_creation`.
pub(crate) struct CreatedKeys(pub(crate) Desk);

impl Follow for CreatedKeys {
    const STREAM: Layout = streams::KEYS;
    const SUBJECT: &'static str = "keys.v1.created.*";
    const NAME: &'static str = "anomaly-detector-created-keys";
    const SCHEMA: &'static str = "anomaly_detector";
    type Event = KeyCreated;

    async fn apply(&self, event: KeyCreated) -> Result<(), FollowError> {
        let (org, new) = read(&event).map_err(FollowError::Poison)?;
        let usual = self.0.config.created_keys;
        let mut transaction = self.0.store.begin().await?;
        store::lock_org(&mut transaction, org).await?;
        told::add_created(&mut transaction, org, new).await?;
        let created = told::created(&mut transaction, org).await?;
        // Windows of older ones end before anything that is kept.
        let since = created.first().map_or(new.at, |first| first.at) - WINDOW;
        let known = store::known(&mut transaction, Rule::KeyMassCreation, org, since).await?;
        let verdict = key_mass_creation::judge(&created, &known, usual);
        for flag in &verdict.new {
            let finding = key_mass_creation::finding(org, flag.at, &created, usual);
            self.0.flag(&mut transaction, &finding, "").await?;
        }
        for (id, was_at) in known {
            let moved = verdict.moved.iter().find(|(moved, _)| *moved == id);
            let at = moved.map_or(was_at, |(_, flag)| flag.at);
            let is_near = new.at.abs_diff(at) <= WINDOW.unsigned_abs();
            if is_near || moved.is_some() {
                let finding = key_mass_creation::finding(org, at, &created, usual);
                store::rewrite(&mut transaction, id, &finding).await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }
}

fn read(event: &KeyCreated) -> Result<(OrgId, Created), String> {
    let said = |status: tonic::Status| status.message().to_owned();
    let org = parse_id("org_id", &event.org_id).map_err(said)?;
    let key: KeyId = parse_id("key_id", &event.key_id).map_err(said)?;
    let at = moment("at_unix_micros", event.at_unix_micros)?;
    Ok((org, Created { key, at }))
}
