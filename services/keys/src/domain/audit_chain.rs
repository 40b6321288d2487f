//! The chain of hashes through the audit log: what is altered, removed or put in does not fit.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The hash of a row.
pub(crate) type Hash = [u8; 32];
/// What the first row follows.
pub(crate) const GENESIS: Hash = [0; 32];
/// Hashes remembered to tell rows that were put in from rows that are missing.
const LOOK_BACK: usize = 4096;
/// Problems that are named.
const PROBLEMS_MAX: usize = 100;
/// Hashed first: a hash of ours is one of nothing else.
const TAG: &[u8] = b"tollgate.keys.audit_log.v1";

/// A row without its hashes.
#[derive(Clone, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) id: i64,
    pub(crate) org: Option<Uuid>,
    pub(crate) actor: &'a str,
    pub(crate) action: &'a str,
    pub(crate) target: &'a str,
    pub(crate) details: &'a Value,
    pub(crate) at: Timestamp,
    /// Where whoever acted was.
    pub(crate) address: Option<IpAddr>,
}

impl Row<'_> {
    /// The hash of this row behind another.
    pub(crate) fn hash(&self, previous: &Hash) -> Hash {
        let mut sha = Sha256::new();
        let mut field = |bytes: &[u8]| {
            // With its length, so that no two rows read alike.
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            sha.update(length.to_be_bytes());
            sha.update(bytes);
        };
        field(TAG);
        field(&self.id.to_be_bytes());
        field(
            self.org
                .as_ref()
                .map_or(&[], |org| org.as_bytes().as_slice()),
        );
        field(self.actor.as_bytes());
        field(self.action.as_bytes());
        field(self.target.as_bytes());
        field(canonical(self.details).as_bytes());
        // The table keeps microseconds.
        field(&self.at.as_microsecond().to_be_bytes());
        let address = self.address.map(|address| address.to_string());
        field(address.unwrap_or_default().as_bytes());
        field(previous);
        sha.finalize().into()
    }
}

/// JSON with sorted names and no spaces: `jsonb` keeps neither order nor spaces.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let entries: Vec<String> = sorted
                .into_iter()
                .map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(canonical).collect();
            format!("[{}]", values.join(","))
        }
        plain => plain.to_string(),
    }
}

/// What is wrong with a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Problem {
    Altered,
    /// Rows before it are missing.
    Removed,
    Inserted,
}

impl Problem {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Altered => "altered",
            Self::Removed => "removed",
            Self::Inserted => "inserted",
        }
    }
}

/// The end of the log as its writers noted it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    pub(crate) id: i64,
    pub(crate) entries: i64,
    pub(crate) hash: Hash,
}

/// Follows the chain, row by row in the order of ids.
#[derive(Debug)]
pub(crate) struct Verifier {
    expected: Hash,
    /// The latest rows: id and hash.
    seen: VecDeque<(i64, Hash)>,
    rows: i64,
    problems: BTreeMap<i64, Problem>,
}

impl Default for Verifier {
    fn default() -> Self {
        Self {
            expected: GENESIS,
            seen: VecDeque::from([(0, GENESIS)]),
            rows: 0,
            problems: BTreeMap::new(),
        }
    }
}

impl Verifier {
    /// The next row, with the hashes that are stored for it.
    pub(crate) fn row(&mut self, row: &Row<'_>, previous: Hash, hash: Hash) {
        self.rows = self.rows.saturating_add(1);
        if row.hash(&previous) != hash {
            self.note(row.id, Problem::Altered);
        }
        if previous != self.expected {
            self.break_at(row.id, previous);
        }
        self.expected = hash;
        self.seen.push_back((row.id, hash));
        if self.seen.len() > LOOK_BACK {
            self.seen.pop_front();
        }
    }

    /// A row does not follow the one before it. When it follows an older one, the rows in between
    /// were put in; else the rows it followed are gone.
    fn break_at(&mut self, id: i64, previous: Hash) {
        let older = self.seen.iter().rposition(|(_, hash)| *hash == previous);
        match older {
            Some(position) => {
                let between: Vec<i64> = self
                    .seen
                    .iter()
                    .skip(position + 1)
                    .map(|(id, _)| *id)
                    .collect();
                for id in between {
                    self.note(id, Problem::Inserted);
                }
            }
            // A row whose own hash was changed leaves its follower without one.
            None => {
                let altered = self.seen.back().and_then(|(id, _)| self.problems.get(id));
                if altered != Some(&Problem::Altered) {
                    self.note(id, Problem::Removed);
                }
            }
        }
    }

    fn note(&mut self, id: i64, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX || self.problems.contains_key(&id) {
            self.problems.insert(id, problem);
        }
    }

    /// Rows read, and what is wrong with which. Rows missing at the end are told by the head.
    pub(crate) fn finish(mut self, head: &Head) -> (i64, BTreeMap<i64, Problem>) {
        let complete = self.rows == head.entries && self.expected == head.hash;
        if !complete && self.problems.is_empty() {
            let problem = match self.rows > head.entries {
                true => Problem::Inserted,
                false => Problem::Removed,
            };
            let last = self.seen.back().map_or(0, |(id, _)| *id);
            self.note(last.max(head.id), problem);
        }
        (self.rows, self.problems)
    }
}
