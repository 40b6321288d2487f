//! What a transaction says of itself: entries of the audit log, and what it announces in the
//! change log. It is collected, and written as the last thing before the commit, because all
//! writers of both logs take turns.

use ipnet::IpNet;
use jiff_sqlx::ToSqlx;
use serde_json::Value;
use types::{KeyId, OrgId};
use uuid::Uuid;

use super::Tx;
use crate::{
    domain::audit_chain::{Hash, Head, Row},
    error::Result,
};

/// What a transaction has to say and has not written.
#[derive(Debug, Default)]
pub(super) struct Said {
    entries: Vec<Entry>,
    /// Keys that have changed.
    keys: Vec<Uuid>,
    /// Has anything changed that is no key?
    other: bool,
}

/// An entry of the audit log that has no place in it yet.
#[derive(Debug)]
struct Entry {
    org: Option<Uuid>,
    actor: String,
    action: &'static str,
    target: String,
    details: Value,
}

/// Entries in their places, a column each.
#[derive(Default)]
struct Columns {
    id: Vec<i64>,
    org: Vec<Option<Uuid>>,
    actor: Vec<String>,
    action: Vec<String>,
    target: Vec<String>,
    details: Vec<Value>,
    prev_hash: Vec<Vec<u8>>,
    hash: Vec<Vec<u8>>,
}

impl Columns {
    fn push(&mut self, entry: Entry, id: i64, prev_hash: &Hash, hash: &Hash) {
        self.id.push(id);
        self.org.push(entry.org);
        self.actor.push(entry.actor);
        self.action.push(entry.action.to_owned());
        self.target.push(entry.target);
        self.details.push(entry.details);
        self.prev_hash.push(prev_hash.to_vec());
        self.hash.push(hash.to_vec());
    }
}

impl Tx {
    /// Notes who did what. An entry that names an organisation is shown to its members.
    pub(crate) fn audit(
        &mut self,
        org: Option<OrgId>,
        action: &'static str,
        target: impl ToString,
        details: Value,
    ) {
        self.said.entries.push(Entry {
            org: org.map(OrgId::uuid),
            actor: self.actor.clone(),
            action,
            target: target.to_string(),
            details,
        });
    }

    /// Announces that keys have changed, under each hash a gateway may hold them by.
    pub(crate) fn announce_keys(&mut self, keys: &[KeyId]) {
        self.said.keys.extend(keys.iter().map(|key| key.uuid()));
    }

    /// Announces a change of no key: of the catalogue, or of an organisation's origins.
    pub(crate) fn announce_change(&mut self) {
        self.said.other = true;
    }

    /// Writes what was collected. From here to the commit nobody else writes to either log: the
    /// chain has the order of the commits, and ids of the change log become visible in their
    /// order. Whoever is here asks for no lock that somebody who waits for it may hold.
    pub(super) async fn write_logs(&mut self) -> Result<()> {
        let said = std::mem::take(&mut self.said);
        if said.entries.is_empty() && said.keys.is_empty() && !said.other {
            return Ok(());
        }
        let mut head = self.hold_audit_head().await?;
        let mut columns = Columns::default();
        for entry in said.entries {
            let id = head.id + 1;
            let row = Row {
                id,
                org: entry.org,
                actor: &entry.actor,
                action: entry.action,
                target: &entry.target,
                details: &entry.details,
                at: self.at,
                address: self.address,
            };
            let hash = row.hash(&head.hash);
            columns.push(entry, id, &head.hash, &hash);
            head = Head {
                id,
                entries: head.entries + 1,
                hash,
            };
        }
        let announced = self.append(&columns, &head, &said.keys, said.other);
        if let Some(position) = announced.await? {
            self.position = position;
        }
        Ok(())
    }

    /// Writes to both logs at once. The last id in the change log, if there is one.
    async fn append(
        &mut self,
        entries: &Columns,
        head: &Head,
        keys: &[Uuid],
        other: bool,
    ) -> Result<Option<i64>> {
        let append = sqlx::query_file_scalar!(
            "src/append.sql",
            &entries.id,
            &entries.org as &[Option<Uuid>],
            &entries.actor,
            &entries.action,
            &entries.target,
            &entries.details,
            &entries.prev_hash,
            &entries.hash,
            self.at.to_sqlx() as _,
            self.address.map(IpNet::from) as _,
            head.id,
            head.entries,
            &head.hash[..],
            keys,
            other,
        );
        Ok(append.fetch_one(&mut *self.inner).await?)
    }
}
