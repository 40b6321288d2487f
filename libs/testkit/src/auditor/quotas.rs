//! Permits: what a quota has issued is what calls have used and gateways still hold.
#![expect(
    clippy::disallowed_methods,
    reason = "an oracle writes its own statements and is not compiled against the schema"
)]

use std::collections::{BTreeMap, HashMap};

use sqlx::Row;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::discards::Discards;
use super::money::Lease;
use super::rows::{Uses, number_of};
use super::unitemised::Unitemised;
use super::{Findings, Kind};

/// All buckets, and the leases of their permits.
#[derive(Default)]
pub(super) struct Quotas {
    buckets: BTreeMap<Uuid, Bucket>,
    pub(super) leases: HashMap<Uuid, Lease>,
}

struct Bucket {
    name: String,
    organisation: Uuid,
    quota_max: i128,
    used: i128,
    reserved: i128,
}

impl Quotas {
    /// Reads the buckets in the snapshot at hand.
    pub(super) async fn read(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "select id, key_id, org_id, kind, quota_max, used, reserved, \
                   to_char(period_start at time zone 'UTC', 'YYYY-MM-DD') as period \
                   from wallet.quota_buckets";
        for row in sqlx::query(sql).fetch_all(connection).await? {
            let key: Uuid = row.try_get("key_id")?;
            let (kind, period): (String, String) = (row.try_get("kind")?, row.try_get("period")?);
            let bucket = Bucket {
                name: format!("{kind} quota of key_{} for {period}", key.simple()),
                organisation: row.try_get("org_id")?,
                quota_max: number_of(&row, "quota_max")?,
                used: number_of(&row, "used")?,
                reserved: number_of(&row, "reserved")?,
            };
            self.buckets.insert(row.try_get("id")?, bucket);
        }
        Ok(())
    }

    /// Used is what the leases have settled, reserved what they may still use, and both together
    /// are never more than the quota was.
    pub(super) fn check(&self, findings: &mut Findings) {
        let mut sums: HashMap<Uuid, (i128, i128)> = HashMap::new();
        for (id, lease) in &self.leases {
            let (used, reserved) = sums.entry(lease.owner).or_default();
            *used += lease.settled - lease.late_spend;
            if lease.is_open() {
                *reserved += lease.granted - lease.settled;
            }
            let over = lease.settled.max(lease.known) - lease.granted;
            if over > 0 {
                let text = format!("lease {id} has used {over} permits more than it was granted");
                findings.add(Kind::Overspent(over), text);
            }
            if !self.buckets.contains_key(&lease.owner) {
                findings.add(Kind::Sum, format!("lease {id} is of no quota"));
            }
        }
        for (id, bucket) in &self.buckets {
            let (used, reserved) = sums.get(id).copied().unwrap_or_default();
            let name = &bucket.name;
            findings.same(|| format!("used permits of the {name}"), bucket.used, used);
            findings.same(
                || format!("lent permits of the {name}"),
                bucket.reserved,
                reserved,
            );
            let over = used + reserved - bucket.quota_max;
            if over > 0 {
                let text = format!("the {name} has issued {over} permits too many");
                findings.add(Kind::Overspent(over), text);
            }
        }
    }

    /// What is settled of a lease is how many calls used a permit of it, and they are of the
    /// organisation whose key has the quota.
    pub(super) fn check_uses(
        &self,
        uses: &HashMap<Uuid, Uses>,
        unitemised: &Unitemised,
        discards: &Discards,
        findings: &mut Findings,
    ) {
        let discarded = discards.by_permit();
        let is_discarded = |id: &Uuid, missing: i128| {
            let most = discarded.get(id).copied().unwrap_or(0);
            0 < missing && missing <= i128::from(most)
        };
        for (id, lease) in &self.leases {
            let calls = uses.get(id).map_or(0, |it| i128::from(it.calls));
            let over = lease.settled - calls;
            // As for credits: what the owner had told before it was given up is used, and so are
            // the permits of calls whose records are lost, of each at most one.
            let told = if lease.is_told() { over } else { 0 };
            let most = told.max(unitemised.lost_of(lease.journal));
            if (0..=most).contains(&over) || is_discarded(id, -over) {
                continue;
            }
            let text = format!(
                "lease {id} of jrn_{}: {} permits settled, {calls} calls used one",
                lease.journal.simple(),
                lease.settled,
            );
            findings.add(if over > 0 { Kind::Double } else { Kind::Sum }, text);
        }
        for (id, uses) in uses {
            let lease = self.leases.get(id);
            let Some(bucket) = lease.and_then(|lease| self.buckets.get(&lease.owner)) else {
                if is_discarded(id, uses.calls.into()) {
                    continue;
                }
                let text = format!("{} calls used permits of an unknown lease {id}", uses.calls);
                findings.add(Kind::Sum, text);
                continue;
            };
            if uses.organisations != [bucket.organisation] {
                let text = format!("lease {id} of the {} served calls of others", bucket.name);
                findings.add(Kind::Sum, text);
            }
        }
    }
}
