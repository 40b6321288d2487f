//! Who is written to.

use runtime::Actor;
use types::{Environment, OrgId, Role, UserId};

use super::Keys;
use crate::{
    domain::{
        key::{ApiKey, Settings},
        mail::{self, Language, Letter, NamedKey, Place, Reader},
    },
    error::Result,
    store::{NewKeyRow, Tx},
};

/// A live key that has come or gone.
pub(super) struct LiveKey<'a> {
    org: OrgId,
    created_by: UserId,
    environment: Environment,
    named: NamedKey<'a>,
}

impl<'a> LiveKey<'a> {
    pub(super) fn new(row: &'a NewKeyRow, settings: &'a Settings) -> Self {
        Self {
            org: row.org,
            created_by: row.created_by,
            environment: row.environment,
            named: NamedKey {
                name: &settings.name,
                hint: &row.hint,
            },
        }
    }

    pub(super) fn of(key: &'a ApiKey) -> Self {
        Self {
            org: key.org,
            created_by: key.created_by,
            environment: key.environment,
            named: NamedKey {
                name: &key.settings.name,
                hint: &key.hint,
            },
        }
    }
}

impl Keys {
    /// Puts a letter to each of these into the outbox of a transaction.
    pub(crate) async fn write_to(
        &self,
        tx: &mut Tx,
        readers: &[Reader],
        letter: &Letter<'_>,
    ) -> Result<()> {
        for reader in readers {
            let mail = mail::write(reader, &self.portal_url, letter);
            self.post(tx, &mail).await?;
        }
        Ok(())
    }

    /// What somebody reads.
    pub(super) async fn language_of(&self, tx: &mut Tx, actor: Actor) -> Result<Language> {
        match actor {
            Actor::User(user) => Ok(tx.reader(user).await?.language),
            Actor::Operator => Ok(Language::default()),
        }
    }

    /// Tells the owners, and who made it, of a live key that somebody has made or ended: whoever
    /// did not expect it can act. Test keys spend nobody's money, and come and go.
    pub(super) async fn tell_of(
        &self,
        tx: &mut Tx,
        actor: Actor,
        key: &LiveKey<'_>,
        revoked_for: Option<&str>,
    ) -> Result<()> {
        if key.environment == Environment::Test {
            return Ok(());
        }
        let by = match actor {
            Actor::User(user) => Some(tx.reader(user).await?.address),
            Actor::Operator => None,
        };
        let organisation = tx.organisation(key.org).await?;
        let organisation = Place {
            name: &organisation.name,
            slug: &organisation.slug,
        };
        let (named, by) = (key.named, by.as_deref());
        let letter = match revoked_for {
            None => Letter::KeyCreated {
                organisation,
                key: named,
                by,
            },
            Some(reason) => Letter::KeyRevoked {
                organisation,
                key: named,
                by,
                reason,
            },
        };
        let readers = tx
            .readers(key.org, &[Role::Owner], Some(key.created_by))
            .await?;
        self.write_to(tx, &readers, &letter).await
    }
}
