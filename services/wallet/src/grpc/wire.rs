//! Requests as domain types, domain types as answers.

use proto::{
    convert::{parse_id, status, timestamp},
    wallet::v1 as wire,
};
use tonic::Status;
use types::{Code, Credits, JournalId, LeaseId};

use crate::{
    domain::{Account, Ask, Lease, Report},
    error::Error,
    store::LedgerLine,
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

pub(super) fn ask(it: wire::AcquireRequest) -> Result<Ask, Status> {
    let account = it.account.unwrap_or_default();
    let account = match (account.org_id.as_str(), account.user_id.as_str()) {
        ("", "") => return Err(invalid("account", "is missing")),
        (org, "") => Account::Org(parse_id("account.org_id", org)?),
        ("", user) => Account::User(parse_id("account.user_id", user)?),
        _ => return Err(invalid("account", "must be one of the two, not both")),
    };
    let Ok(nonce) = it.nonce.try_into() else {
        return Err(invalid("nonce", "must be 16 bytes"));
    };
    let (want, minimum) = (Credits::new(it.want), Credits::new(it.minimum));
    if minimum <= Credits::ZERO || want < minimum {
        return Err(invalid("minimum", "must be from 1 to `want`"));
    }
    check_gateway(&it.gateway)?;
    let journal = parse_id("journal_id", &it.journal_id)?;
    Ok(Ask {
        account,
        journal,
        nonce,
        want,
        minimum,
        gateway: it.gateway,
    })
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

pub(super) fn lease_to_wire(lease: &Lease) -> wire::Lease {
    wire::Lease {
        lease_id: lease.id.bytes().to_vec(),
        granted_cum: lease.granted_cum().get(),
        returned_cum: lease.returned_cum.get(),
        spend_until: lease.spend_until().map(timestamp),
        settled_cum: lease.settled_cum.get(),
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
