//! Quotas: permits for calls, lent like credits, as many in each period as the quota says.

use types::{Credits, Id, KeyId, OrgId, QuotaKind};

use super::{Bucket, Wallet, WalletId, minus, plus};

/// What a gateway knows of a key's quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Quota {
    /// Under which it is counted: the first of a lineage of rotated keys.
    pub(crate) key: KeyId,
    pub(crate) org: OrgId,
    pub(crate) kind: QuotaKind,
    /// Calls in one period, at least 1.
    pub(crate) calls: i64,
    /// Key that says so; the newest counts, in its newest version.
    pub(crate) stated_by: KeyId,
    pub(crate) key_version: i64,
}

/// The permits of a period as something to lend from. A quota that was lowered below what is
/// issued has nothing left to lend, and takes nothing back from those who hold permits.
pub(crate) fn permits(id: Id<Bucket>, quota: Credits, used: Credits, reserved: Credits) -> Wallet {
    Wallet {
        id: WalletId::Quota(id),
        epoch: None,
        balance: minus(quota.max(plus(used, reserved)), used),
        reserved,
        level: None,
    }
}
