//! Turning what journals say into debits: the highest total of each lease counts.

use std::collections::BTreeMap;

use runtime::mutant;
use types::{Credits, JournalId, LeaseId};

use super::{Book, Breach, EntryKind, Lease, LeaseState, book::Line, minus};

/// One charged record of a journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spend {
    pub(crate) lease: LeaseId,
    pub(crate) cost: Credits,
    /// The lease's total including this record.
    pub(crate) cum: Credits,
    /// True for the record that closes the lease.
    pub(crate) is_final: bool,
}

/// What a batch says about one lease, all its records taken together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub(crate) cum: Credits,
    pub(crate) is_final: bool,
}

/// What a message of a journal says about its leases.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) journal: JournalId,
    pub(crate) claims: BTreeMap<LeaseId, Claim>,
}

/// Takes the records of one message together, in sequence; there may be gaps between them.
pub(crate) fn claims(
    spends: impl IntoIterator<Item = Spend>,
) -> Result<BTreeMap<LeaseId, Claim>, Breach> {
    let mut claims: BTreeMap<LeaseId, Claim> = BTreeMap::new();
    for Spend {
        lease,
        cost,
        cum,
        is_final,
    } in spends
    {
        let before = claims.get(&lease).copied();
        let least = before
            .map_or(Credits::ZERO, |claim| claim.cum)
            .checked_add(cost);
        if cost.is_negative() || least.is_none_or(|least| cum < least) {
            let before = before.map_or(Credits::ZERO, |claim| claim.cum);
            return Err(Breach::Inconsistent {
                lease,
                before,
                cost,
                cum,
            });
        }
        if let Some(closed) = before.filter(|claim| claim.is_final && claim.cum < cum) {
            return Err(Breach::BeyondFinal {
                lease,
                final_cum: closed.cum,
                cum,
            });
        }
        let is_final = is_final || before.is_some_and(|claim| claim.is_final);
        claims.insert(lease, Claim { cum, is_final });
    }
    Ok(claims)
}

impl Book {
    /// Settles batches: any order, any repetition, any subset followed by a later one gives the
    /// same. On an error nothing may be written; it names the batch.
    pub(crate) fn settle(&mut self, batches: &[Batch]) -> Result<(), (usize, Breach)> {
        let mut merged: BTreeMap<LeaseId, Claim> = BTreeMap::new();
        for (index, batch) in batches.iter().enumerate() {
            for (id, claim) in &batch.claims {
                let lease = self
                    .leases
                    .get(id)
                    .ok_or((index, Breach::UnknownLease { lease: *id }))?;
                let so_far = merged.get(id).copied().unwrap_or_else(|| settled(lease));
                let claim = merge(lease, batch.journal, so_far, *claim)
                    .map_err(|breach| (index, breach))?;
                merged.insert(*id, claim);
            }
        }
        for (id, claim) in merged {
            self.apply(id, claim);
        }
        Ok(())
    }

    /// Gives up a lease whose owner stays silent: what is known to be spent is debited, the rest
    /// goes back to the wallet.
    pub(crate) fn write_off(&mut self, id: LeaseId) {
        let mut lease = self
            .leases
            .get(&id)
            .expect("locked before it is given up")
            .clone();
        assert_eq!(
            lease.state,
            LeaseState::Orphaned,
            "only a silent owner is given up"
        );
        let spent = lease.spent();
        if lease.settled_cum < spent {
            self.debit(&lease, spent, "written off");
            lease.settled_cum = spent;
        }
        let released = self.release(&lease);
        lease.state = LeaseState::WrittenOff;
        self.changes.write_offs.insert(id, released);
        self.put(lease);
    }

    /// Ends a lease whose final count an operator has discarded: what is settled is final, and the
    /// rest goes back. Only where its journal can spend no more, and nothing of it is to come.
    pub(crate) fn end(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.get(&id).filter(|lease| lease.is_open()) else {
            return;
        };
        let claim = Claim {
            cum: lease.settled_cum,
            is_final: true,
        };
        self.apply(id, claim);
    }

    fn apply(&mut self, id: LeaseId, claim: Claim) {
        let mut lease = self.leases.get(&id).expect("checked before").clone();
        if settled(&lease) == claim {
            return;
        }
        let is_written_off =
            lease.state == LeaseState::WrittenOff && !mutant!("wallet.releases_by_timer");
        let delta = minus(claim.cum, lease.settled_cum);
        if Credits::ZERO < delta && is_written_off {
            // Its credits went back to the customer and may be spent again: not his debt.
            self.changes.late_spends.insert(id, delta);
        } else if Credits::ZERO < delta {
            self.debit(&lease, claim.cum, "");
        }
        lease.settled_cum = claim.cum;
        if claim.is_final {
            lease.final_cum = Some(claim.cum);
        }
        if claim.is_final && !is_written_off {
            self.release(&lease);
            lease.state = LeaseState::Closed;
        }
        self.put(lease);
    }

    /// Debits what the lease has spent up to a total.
    fn debit(&mut self, lease: &Lease, cum_to: Credits, reason: &str) {
        let spent = minus(cum_to, lease.settled_cum);
        let taken = minus(Credits::ZERO, spent);
        let usage = Line {
            epoch: lease.epoch,
            lease: Some(lease.id),
            cum_to: Some(cum_to),
            reason,
            ..Line::default()
        };
        if lease.is_current() {
            self.reserve(lease.wallet, taken);
        } else {
            // Everything left of its epoch has expired; this part was used, so it had not.
            let reason = "used before the end of the epoch";
            let expiry = Line {
                cum_to: None,
                reason,
                ..usage
            };
            self.enter(lease.wallet, EntryKind::Expiry, spent, expiry);
        }
        self.enter(lease.wallet, EntryKind::Usage, taken, usage);
    }

    /// Takes back what a lease will not spend any more.
    fn release(&mut self, lease: &Lease) -> Credits {
        if !lease.is_current() {
            return Credits::ZERO; // expired with its epoch
        }
        let rest = minus(lease.granted, lease.settled_cum);
        if Credits::ZERO < rest {
            self.reserve(lease.wallet, minus(Credits::ZERO, rest));
        }
        rest
    }
}

fn settled(lease: &Lease) -> Claim {
    Claim {
        cum: lease.settled_cum,
        is_final: lease.final_cum.is_some(),
    }
}

/// Merges a claim into what is settled or claimed so far, or says which rule it breaks.
fn merge(lease: &Lease, journal: JournalId, so_far: Claim, claim: Claim) -> Result<Claim, Breach> {
    let (id, cum) = (lease.id, claim.cum);
    if lease.journal != journal {
        return Err(Breach::OtherJournal {
            lease: id,
            owner: lease.journal,
            journal,
        });
    }
    if lease.granted < cum {
        return Err(Breach::OverGranted {
            lease: id,
            granted: lease.granted,
            cum,
        });
    }
    if so_far.is_final && so_far.cum < cum {
        return Err(Breach::BeyondFinal {
            lease: id,
            final_cum: so_far.cum,
            cum,
        });
    }
    if claim.is_final && cum < so_far.cum {
        let settled = so_far.cum;
        return Err(Breach::FinalBelowSettled {
            lease: id,
            final_cum: cum,
            settled,
        });
    }
    Ok(Claim {
        cum: so_far.cum.max(cum),
        is_final: so_far.is_final || claim.is_final,
    })
}
