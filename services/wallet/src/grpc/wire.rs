//! Requests as domain types, domain types as answers.

use jiff::Timestamp;
use proto::{
    convert::{parse_id, status, timestamp},
    wallet::v1 as wire,
};
use tonic::Status;
use types::{Code, Credits, JournalId, LeaseId, QuotaKind};

use crate::{
    domain::{Account, Ask, Lease, Lent, Quota, Report, Wish},
    error::Error,
    store::{LedgerLine, QuotaUse},
};

/// Characters of a gateway's name.
const NAME_CHARS_MAX: usize = 80;

pub(super) fn invalid(field: &'static str, problem: &'static str) -> Status {
    Error::Invalid { field, problem }.into()
}

pub(super) fn check_text(
    field: &'static str,
    text: &str,
    min: usize,
    max: usize,
) -> Result<(), Status> {
    if text.chars().any(char::is_control) {
        return Err(invalid(field, "has control characters"));
    }
    match (min..=max).contains(&text.chars().count()) {
        true => Ok(()),
        false => Err(invalid(field, "is missing or too long")),
    }
}

pub(super) fn check_gateway(name: &str) -> Result<(), Status> {
    check_text("gateway", name, 0, NAME_CHARS_MAX)
}

pub(super) fn lease_id(bytes: &[u8]) -> Result<LeaseId, Status> {
    LeaseId::from_slice(bytes)
        .map_err(|error| status(Code::Invalid, format!("`lease_id`: {error}")))
}

/// Entries are read below this id.
pub(super) fn page_token(token: &str) -> Result<i64, Status> {
    if token.is_empty() {
        return Ok(i64::MAX);
    }
    let before: Option<i64> = token.parse().ok();
    before.ok_or_else(|| invalid("page_token", "is none this service has given out"))
}

pub(super) fn ask(it: wire::Ask) -> Result<Ask, Status> {
    let account = account(&it.account.unwrap_or_default())?;
    let Ok(nonce) = it.nonce.try_into() else {
        return Err(invalid("nonce", "must be 16 bytes"));
    };
    let (want, minimum) = (Credits::new(it.want), Credits::new(it.minimum));
    if minimum <= Credits::ZERO || want < minimum {
        return Err(invalid("minimum", "must be from 1 to `want`"));
    }
    let wish = Wish {
        nonce,
        want,
        minimum,
    };
    Ok(Ask { account, wish })
}

/// Whose credits, or which permits.
pub(crate) fn account(it: &wire::Account) -> Result<Account, Status> {
    Ok(match (it.org_id.as_str(), it.user_id.as_str(), &it.quota) {
        ("", "", None) => return Err(invalid("account", "is missing")),
        (org, "", None) => Account::Org(parse_id("account.org_id", org)?),
        ("", user, None) => Account::User(parse_id("account.user_id", user)?),
        ("", "", Some(it)) => Account::Quota(quota(it)?),
        _ => return Err(invalid("account", "must be one of the three, not several")),
    })
}

fn quota(it: &wire::Quota) -> Result<Quota, Status> {
    let kind = match it.kind() {
        wire::QuotaKind::Daily => QuotaKind::Daily,
        wire::QuotaKind::Monthly => QuotaKind::Monthly,
        wire::QuotaKind::Unspecified => return Err(invalid("account.quota.kind", "is missing")),
    };
    if it.quota < 1 {
        return Err(invalid("account.quota.quota", "must be at least 1"));
    }
    Ok(Quota {
        key: parse_id("account.quota.key_id", &it.key_id)?,
        org: parse_id("account.quota.org_id", &it.org_id)?,
        kind,
        calls: it.quota,
        stated_by: parse_id("account.quota.stated_by", &it.stated_by)?,
        key_version: it.key_version,
    })
}

pub(super) fn use_to_wire(it: &QuotaUse) -> wire::QuotaUse {
    let kind = match it.kind.as_str() {
        "daily" => wire::QuotaKind::Daily,
        "monthly" => wire::QuotaKind::Monthly,
        _ => wire::QuotaKind::Unspecified,
    };
    wire::QuotaUse {
        key_id: it.key.to_string(),
        kind: kind.into(),
        used: it.used.get(),
        reserved: it.reserved.get(),
        ends_at: Some(timestamp(it.ends_at)),
    }
}

pub(super) fn report_of(journal: JournalId, report: &wire::LeaseReport) -> Result<Report, Status> {
    let (cum, returned_cum) = (Credits::new(report.cum), Credits::new(report.returned_cum));
    Ok(Report {
        journal,
        lease: lease_id(&report.lease_id)?,
        cum,
        returned_cum,
    })
}

/// What a report of all says of a lease; nothing when it tells only what has changed.
pub(super) fn lent_of(
    journal: JournalId,
    report: &wire::LeaseReport,
) -> Result<Option<Lent>, Status> {
    let Some(owner) = report.account.as_ref().filter(|_| report.granted_cum > 0) else {
        return Ok(None);
    };
    let returned_cum = Credits::new(report.returned_cum);
    if returned_cum.is_negative() || report.granted_cum < report.returned_cum {
        return Err(invalid("leases", "returns more than was granted"));
    }
    Ok(Some(Lent {
        lease: lease_id(&report.lease_id)?,
        journal,
        account: account(owner)?,
        granted_cum: Credits::new(report.granted_cum),
        returned_cum,
    }))
}

pub(super) fn lease_to_wire(lease: &Lease, now: Timestamp) -> wire::Lease {
    wire::Lease {
        lease_id: lease.id.bytes().to_vec(),
        granted_cum: lease.granted_cum().get(),
        returned_cum: lease.returned_cum.get(),
        spend_for_micros: lease.spend_until().map(|end| {
            let left = end.as_microsecond().saturating_sub(now.as_microsecond());
            left.max(0)
        }),
        settled_cum: lease.settled_cum.get(),
        known_cum: lease.spent().get(),
    }
}

pub(super) fn entry_to_wire(line: LedgerLine) -> wire::LedgerEntry {
    wire::LedgerEntry {
        id: line.id,
        kind: line.kind,
        credits: line.credits.get(),
        balance_after: line.balance_after.get(),
        reason: line.reason,
        at: Some(timestamp(line.at)),
    }
}
