//! A key's record as the edge uses it.

use std::sync::{Arc, OnceLock, atomic::AtomicI64};

use ipnet::IpNet;
use proto::keys::v1::KeyRecord;
use smallvec::SmallVec;
use types::{Gcra, KeyId, OrgId, QuotaKind, Rate, UserId};

use crate::{
    lease::{Account, Owner, Quotas, Stated},
    lender::Lender,
    limits::Pace,
    metrics::Source,
    principal::Beginning,
};

/// Bytes of scopes that need no memory of their own.
const SCOPES_BYTES: usize = 40;

/// A key as the edge uses it. What a call reads stands here and not behind pointers: with many keys
/// each place in memory costs a call more than what it does there.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: KeyId,
    pub(crate) org: OrgId,
    pub(crate) user: UserId,
    pub(crate) test: bool,
    pub(crate) scopes: Scopes,
    pub(crate) active: bool,
    pub(crate) revoked: bool,
    /// Unix microseconds.
    pub(crate) expires_at: Option<i64>,
    /// Shared by the keys of a lineage.
    pub(crate) rate: Option<Pace>,
    /// While an anomaly throttles the key.
    pub(crate) throttle: Option<Pace>,
    pub(crate) allow: Vec<IpNet>,
    pub(crate) version: i64,
    pub(crate) account: Arc<Account>,
    /// The day's, then the month's.
    pub(crate) quotas: Quotas,
    /// Minute of the last use that was reported.
    pub(crate) touched: AtomicI64,
    /// For its upstreams; made by its first call.
    pub(crate) principal: OnceLock<Beginning>,
    /// Monotonic nanoseconds; the record is not older.
    pub(super) read_at: u64,
    /// Where it was read.
    pub(super) source: Source,
}

/// The scopes of a key, a space between two.
#[derive(Debug)]
pub(crate) struct Scopes(SmallVec<[u8; SCOPES_BYTES]>);

impl Scopes {
    pub(crate) fn new<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Self {
        let mut text = SmallVec::new();
        for scope in scopes {
            if !text.is_empty() {
                text.push(b' ');
            }
            text.extend_from_slice(scope.as_bytes());
        }
        Self(text)
    }

    pub(crate) fn contain(&self, scope: &str) -> bool {
        let mut each = self.0.split(|byte| *byte == b' ');
        each.any(|one| one == scope.as_bytes())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a limiter limits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Limited {
    /// The keys of a lineage, by the one that holds their limits.
    Lineage(KeyId),
    /// A key that an anomaly throttles.
    Throttled(KeyId),
}

/// The limiters of all copies of records; about 100 bytes each, kept as long as the process lives.
#[derive(Default)]
pub(super) struct Limiters(papaya::HashMap<Limited, Arc<Gcra>>);

impl Limiters {
    fn pace(&self, limited: Limited, rate: Rate) -> Pace {
        let limiters = self.0.pin();
        let limiter = Arc::clone(limiters.get_or_insert_with(limited, Arc::default));
        Pace { rate, limiter }
    }
}

/// Reads a record that is not older than `read_at`.
///
/// # Errors
/// A part of it makes no sense.
pub(super) fn read(
    record: &KeyRecord,
    source: Source,
    read_at: u64,
    limiters: &Limiters,
    lender: &Lender,
) -> anyhow::Result<Entry> {
    let key: KeyId = record.key_id.parse()?;
    let org: OrgId = record.org_id.parse()?;
    let user: UserId = record.created_by.parse()?;
    let holder = holder_of_limits(record)?;
    let owner = if record.test {
        Owner::TestUser(user)
    } else {
        Owner::Organisation(org)
    };
    let expires_at = match &record.expires_at {
        Some(at) => Some(proto::convert::from_timestamp("expires_at", at)?.as_microsecond()),
        None => None,
    };
    let pace = |limited, per_second: Option<u32>, burst: u32| {
        let rate = Rate {
            per_second: per_second?,
            burst: burst.max(1),
        };
        Some(limiters.pace(limited, rate))
    };
    Ok(Entry {
        key,
        org,
        user,
        test: record.test,
        scopes: Scopes::new(record.scopes.iter().map(String::as_str)),
        active: record.active,
        revoked: record.revoked,
        expires_at,
        rate: pace(
            Limited::Lineage(holder),
            record.rate_per_second,
            record.burst,
        ),
        throttle: pace(Limited::Throttled(key), record.throttle_per_second, 1),
        allow: record
            .allow
            .iter()
            .map(|net| net.parse())
            .collect::<Result<_, _>>()?,
        version: record.version,
        account: lender.account(owner),
        quotas: quotas(record, org, (key, holder), lender),
        touched: AtomicI64::new(0),
        principal: OnceLock::new(),
        read_at,
        source,
    })
}

/// The accounts of a key's quotas, which its lineage shares.
fn quotas(record: &KeyRecord, org: OrgId, (by, holder): (KeyId, KeyId), lender: &Lender) -> Quotas {
    let quotas = [
        (QuotaKind::Daily, record.daily_quota),
        (QuotaKind::Monthly, record.monthly_quota),
    ];
    let accounts = quotas.into_iter().filter_map(|(kind, calls)| {
        let (calls, version) = (calls?, record.version);
        let key = holder;
        let account = lender.account(Owner::Quota { org, key, kind });
        account.state(Stated { by, version, calls });
        Some(account)
    });
    accounts.collect()
}

/// The key under which limits are counted: the first of a lineage.
fn holder_of_limits(record: &KeyRecord) -> anyhow::Result<KeyId> {
    Ok(match record.limits_key_id.as_str() {
        "" => record.key_id.parse()?,
        first => first.parse()?,
    })
}
