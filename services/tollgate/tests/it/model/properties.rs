//! The invariants of the money, by the names they have in the auditor.

use stateright::Property;

use super::{
    Protocol,
    state::{Credits, Journal, Lease, Phase, Request, State},
};

pub(crate) const CONSERVATION: &str = "I1 conservation";
pub(crate) const RESERVED: &str = "I2 reserved is what is lent";
pub(crate) const AVAILABLE: &str = "available is never below zero";
pub(crate) const NO_OVERSPEND: &str = "I3 no overspend";
pub(crate) const NO_DOUBLE: &str = "I4 no double";
pub(crate) const NO_LOSS: &str = "I5 no loss";
pub(crate) const NOT_STRANDED: &str = "nothing is stranded";
pub(crate) const NO_BREACH: &str = "no batch breaks a rule";
pub(crate) const OWN_EPOCH: &str = "an epoch pays for its own calls only";
/// Held against every path that ends.
pub(crate) const ENDS: &str = "everything ends settled and removed";

pub(super) fn invariants() -> Vec<Property<Protocol>> {
    vec![
        Property::always(CONSERVATION, |_, state: &State| {
            let wallet = &state.wallet;
            wallet.granted - wallet.expired - wallet.used == wallet.balance
        }),
        Property::always(RESERVED, |protocol: &Protocol, state: &State| {
            state.wallet.reserved == protocol.lent(state)
        }),
        Property::always(AVAILABLE, |_, state: &State| {
            state.wallet.available() >= 0 && state.wallet.reserved >= 0 && state.wallet.balance >= 0
        }),
        Property::always(NO_OVERSPEND, |_, state: &State| {
            state.leases.iter().all(is_within_grant)
        }),
        Property::always(NO_DOUBLE, |_, state: &State| {
            let debited: Credits = state.leases.iter().map(|it| it.settled - it.late).sum();
            let over = |lease: &Lease| lease.settled > lease.spent;
            debited == state.wallet.used && !state.leases.iter().any(over)
        }),
        Property::always(NO_LOSS, |_, state: &State| {
            !is_finished(state) || state.leases.iter().all(|lease| is_complete(state, lease))
        }),
        Property::always(NOT_STRANDED, |_, state: &State| {
            !is_finished(state)
                || (state.wallet.reserved == 0 && !state.leases.iter().any(Lease::is_open))
        }),
        Property::always(NO_BREACH, |_, state: &State| !state.breach),
        Property::always(OWN_EPOCH, |protocol: &Protocol, state: &State| {
            let own = |lease: &&Lease| lease.epoch == state.wallet.epoch;
            let debits = state.leases.iter().filter(own);
            let debited: Credits = debits.map(|lease| lease.settled - lease.late).sum();
            state.wallet.balance == protocol.scope.credits - debited
        }),
        Property::eventually(ENDS, |_, state: &State| is_finished(state)),
    ]
}

/// What has to be possible, or the scope proves nothing.
pub(super) fn witnesses(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let scope = &protocol.scope;
    let mut witnesses = vec![Property::sometimes(
        "every credit is spent and settled",
        |protocol: &Protocol, state: &State| {
            is_finished(state) && state.wallet.used >= protocol.scope.credits
        },
    )];
    if scope.kills > 0 {
        witnesses.push(Property::sometimes(
            "a record is settled after its process was killed",
            |_, state: &State| {
                state.leases.iter().any(|lease| {
                    let journal = &state.journals[lease.journal];
                    journal.phase == Phase::Removed && !lease.closed_by_owner && lease.settled > 0
                })
            },
        ));
        witnesses.push(Property::sometimes(
            "a request reaches the wallet after its journal is retired",
            |_, state: &State| {
                let late = |it: &Journal| it.retired && matches!(it.request, Some(Request::Sent));
                state.journals.iter().any(late)
            },
        ));
    }
    if scope.recall {
        witnesses.push(Property::sometimes(
            "what was given back is lent again",
            |protocol: &Protocol, state: &State| {
                let lent: Credits = state.leases.iter().map(Lease::granted_cum).sum();
                lent > protocol.scope.credits
            },
        ));
    }
    if scope.silence {
        witnesses.push(Property::sometimes(
            "a late record is the provider's loss",
            |_, state: &State| state.leases.iter().any(|lease| lease.late > 0),
        ));
    }
    if scope.epochs > 0 {
        witnesses.push(Property::sometimes(
            "a call is settled after the end of its epoch",
            |_, state: &State| {
                let late = |it: &Lease| it.epoch < state.wallet.epoch && it.settled > 0;
                state.wallet.expired < state.wallet.granted - state.wallet.balance
                    && state.leases.iter().any(late)
            },
        ));
    }
    witnesses
}

fn is_within_grant(lease: &Lease) -> bool {
    let in_hand = lease.hand.as_ref().is_none_or(|hand| {
        let held: Credits = hand.holds.iter().sum();
        let all = hand.cum + held + hand.remaining + hand.returned_cum;
        hand.remaining >= 0 && all == hand.granted_cum && lease.spent + held <= lease.granted
    });
    in_hand && lease.spent <= lease.granted
}

/// Nothing is left to do: no process has work, no journal keeps anything, no request is under way.
fn is_finished(state: &State) -> bool {
    let is_idle = |lease: &Lease| {
        let lost = state.journals[lease.journal].phase == Phase::Destroyed;
        lease.hand.is_none() && !(lost && lease.is_open())
    };
    let is_done = |journal: &Journal| {
        journal.is_gone()
            && journal.request != Some(Request::Sent)
            && journal.stream.iter().all(|it| journal.is_applied(it))
    };
    state.journals.iter().all(is_done) && state.leases.iter().all(is_idle)
}

fn is_complete(state: &State, lease: &Lease) -> bool {
    if state.journals[lease.journal].phase == Phase::Destroyed {
        // The promise then: at most what was spent since the last heartbeat.
        return lease.settled >= lease.known;
    }
    lease.settled == lease.spent
}
