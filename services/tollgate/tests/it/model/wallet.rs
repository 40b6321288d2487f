//! The wallet's side: lending, settlement, reports, write-off, epochs.

use super::{
    Protocol, Variant,
    state::{Credits, Lease, LeaseState, Record, Request, State},
};

/// What a message says about one lease.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Claim {
    lease: usize,
    cum: Credits,
    is_final: bool,
}

impl Protocol {
    fn is_current(&self, state: &State, lease: usize) -> bool {
        self.is(Variant::SetBalance) || state.leases[lease].epoch == state.wallet.epoch
    }

    pub(super) fn must_drain(&self, state: &State, lease: usize) -> bool {
        let is_active = matches!(
            state.leases[lease].state,
            LeaseState::Active | LeaseState::Orphaned
        );
        !self.is_current(state, lease) || !is_active
    }

    /// Credits that open leases reserve.
    pub(super) fn lent(&self, state: &State) -> Credits {
        let leases = state.leases.iter().enumerate();
        let open =
            leases.filter(|(index, lease)| lease.is_open() && self.is_current(state, *index));
        open.map(|(_, lease)| lease.granted - lease.settled).sum()
    }

    /// Lends to a journal: extends its open lease, or makes one.
    pub(super) fn lend(&self, state: &mut State, journal: usize, credits: Credits) {
        let epoch = state.wallet.epoch;
        let open = state.leases.iter().position(|lease| {
            let is_open = matches!(lease.state, LeaseState::Active | LeaseState::Orphaned);
            lease.journal == journal && lease.epoch == epoch && is_open
        });
        let lease = open.unwrap_or_else(|| {
            state.leases.push(Lease {
                journal,
                epoch,
                state: LeaseState::Active,
                granted: 0,
                returned: 0,
                settled: 0,
                known: 0,
                final_cum: None,
                late: 0,
                hand: None,
                closed_by_owner: false,
                pending_close: None,
                report: None,
                spent: 0,
            });
            state.leases.len() - 1
        });
        state.wallet.reserved += credits;
        let lent = &mut state.leases[lease];
        lent.granted += credits;
        lent.state = LeaseState::Active;
        let granted_cum = lent.granted_cum();
        state.journals[journal].request = Some(Request::Lent { lease, granted_cum });
    }

    /// Merges a report: both counters only grow.
    pub(super) fn report(&self, state: &mut State, lease: usize, cum: Credits, returned: Credits) {
        if !state.leases[lease].is_open() {
            return;
        }
        let is_current = self.is_current(state, lease);
        let known = &mut state.leases[lease];
        let granted_cum = known.granted_cum();
        let back = (returned - known.returned).max(0);
        let over_granted = known.granted < cum;
        known.known = known.known.max(cum);
        known.returned += back;
        known.granted = granted_cum - known.returned;
        if over_granted || known.granted < known.known.max(known.settled) {
            state.breach = true;
        }
        known.state = match known.state {
            LeaseState::Active | LeaseState::Orphaned if !is_current => LeaseState::Draining,
            LeaseState::Orphaned => LeaseState::Active,
            other => other,
        };
        if is_current {
            state.wallet.reserved -= back;
        }
    }

    /// Applies a message of the stream.
    pub(super) fn settle(&self, state: &mut State, journal: usize, range: (usize, usize)) {
        if self.is(Variant::AddEachDelivery) || self.is(Variant::TrustIdWindow) {
            for seq in range.0..range.1 {
                let Record { lease, cost, .. } = state.journals[journal].records[seq];
                let cum = state.leases[lease].settled + cost;
                self.debit(state, lease, cum);
            }
        }
        let from = &state.journals[journal];
        let fresh: Vec<usize> = (range.0..range.1)
            .filter(|seq| !from.inbox.contains(seq))
            .collect();
        let records: Vec<Record> = fresh.iter().map(|seq| from.records[*seq]).collect();
        let Some(claims) = self.claims(state, &records) else {
            state.breach = true;
            return;
        };
        for claim in claims {
            self.apply(state, claim);
        }
        let inbox = &mut state.journals[journal].inbox;
        inbox.extend(fresh);
        inbox.sort_unstable();
    }

    /// Takes the records of a message together; `None` when they break a rule.
    fn claims(&self, state: &State, records: &[Record]) -> Option<Vec<Claim>> {
        let mut claims: Vec<Claim> = Vec::new();
        let checks = !self.is(Variant::NumberBeforeRecord);
        for record in records {
            let lease = &state.leases[record.lease];
            let at = claims.iter().position(|claim| claim.lease == record.lease);
            let before = at.map_or(0, |at| claims[at].cum);
            let is_final = at.is_some_and(|at| claims[at].is_final);
            let inconsistent = record.cum < before + record.cost;
            if checks && (inconsistent || (is_final && before < record.cum)) {
                return None;
            }
            let claim = Claim {
                lease: record.lease,
                cum: record.cum.max(before),
                is_final: is_final || record.is_final,
            };
            let beyond = lease.final_cum.is_some_and(|end| end < claim.cum);
            let below = claim.is_final && claim.cum < lease.settled;
            if checks && (lease.granted < claim.cum || beyond || below) {
                return None;
            }
            match at {
                Some(at) => claims[at] = claim,
                None => claims.push(claim),
            }
        }
        Some(claims)
    }

    fn apply(&self, state: &mut State, claim: Claim) {
        let Claim {
            lease: id,
            cum,
            is_final,
        } = claim;
        let lease = &state.leases[id];
        let delta = (cum - lease.settled).max(0);
        match lease.state {
            LeaseState::Expired if self.is(Variant::TimerRefusesLate) => return,
            LeaseState::WrittenOff if !self.is(Variant::WriteOffDebitsLate) => {
                state.leases[id].late += delta;
                state.leases[id].settled += delta;
            }
            LeaseState::Expired | LeaseState::WrittenOff => {
                state.wallet.balance -= delta;
                state.wallet.used += delta;
                state.leases[id].settled += delta;
            }
            _ => self.debit(state, id, cum),
        }
        if is_final {
            state.leases[id].final_cum = Some(cum);
            if state.leases[id].is_open() {
                self.release(state, id);
                state.leases[id].state = LeaseState::Closed;
            }
        }
    }

    /// Debits what a lease has spent up to a total.
    fn debit(&self, state: &mut State, lease: usize, cum_to: Credits) {
        let delta = (cum_to - state.leases[lease].settled).max(0);
        if self.is_current(state, lease) {
            state.wallet.reserved -= delta;
        } else {
            state.wallet.balance += delta;
            state.wallet.expired -= delta;
        }
        state.wallet.balance -= delta;
        state.wallet.used += delta;
        state.leases[lease].settled += delta;
    }

    /// Takes back what a lease will not spend any more.
    fn release(&self, state: &mut State, lease: usize) {
        if self.is_current(state, lease) {
            state.wallet.reserved -= state.leases[lease].granted - state.leases[lease].settled;
        }
    }

    /// Gives up a lease whose owner stays silent.
    pub(super) fn write_off(&self, state: &mut State, lease: usize) {
        let known = state.leases[lease].known;
        self.debit(state, lease, known);
        self.release(state, lease);
        state.leases[lease].state = LeaseState::WrittenOff;
    }

    /// Releases a lease because time has passed. Rejected.
    pub(super) fn expire(&self, state: &mut State, lease: usize) {
        self.release(state, lease);
        state.leases[lease].state = LeaseState::Expired;
    }

    /// Ends an epoch of a test wallet and begins the next.
    pub(super) fn roll_over(&self, state: &mut State) {
        let wallet = &mut state.wallet;
        wallet.expired += wallet.balance;
        wallet.balance = self.scope.credits;
        wallet.granted += self.scope.credits;
        wallet.epoch += 1;
        if !self.is(Variant::SetBalance) {
            wallet.reserved = 0;
        }
    }
}
