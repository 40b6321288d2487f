//! The money protocol, in small, with every interleaving: that it holds, and that the simpler
//! designs do not.
//!
//! Modelled: gateways as process lives with a journal each (acquire with a reply that may be lost,
//! repeated or overtaken by the end of its journal; hold; completion, where number, total and
//! record are one step; giving back; heartbeats and recall answers as totals that only grow, late
//! and repeated; orderly stop; `kill -9`; restart with `RetireJournal` and final counts), the
//! stream (batches of any cut, lost after their acknowledgement, repeated, reordered, shipped
//! again), the wallet (lending of any size, settlement by the highest total with an inbox,
//! watermark and trimming, orphans, write-off, journals that come back late or never, epochs).
//!
//! Not modelled: time (whatever a timer may do may happen at once), PostgreSQL's locks (each
//! transaction is one step), the bytes of a journal, power loss, other consumers than the wallet,
//! permits, and records that concern no credits. Calls are counted when their record is written;
//! what a client saw of a call that was killed between record and last byte is the journal's
//! matter. Each scope is exhausted up to collisions of 64-bit fingerprints.
//!
//! Each rejected design differs from the protocol in one rule, and is accused of breaking one
//! invariant; the trace that is printed is a shortest one.

mod properties;
mod protocol;
mod state;
mod step;
mod wallet;

use std::time::Instant;

use stateright::{Checker as _, Expectation, Model as _};

use protocol::{Action, Protocol, Scope, Variant};

/// One gateway, two credits, one crash, a stream that loses and repeats.
const SMALL: Scope = Scope {
    gateways: 1,
    credits: 2,
    want: 2,
    holds: &[1, 2],
    at_once: 1,
    asks: 1,
    calls: 2,
    kills: 1,
    epochs: 0,
    messages: 1,
    stream_loses: true,
    recall: false,
    late_reports: false,
    silence: false,
    disk_loss: false,
};

/// One credit that is lent, comes back in some way, and is lent again.
const TWICE_LENT: Scope = Scope {
    credits: 1,
    want: 1,
    holds: &[1],
    asks: 2,
    ..SMALL
};

/// Exhausts a scope: every invariant holds, and what must be possible is.
fn holds(name: &str, scope: Scope) {
    let begun = Instant::now();
    let protocol = Protocol {
        scope,
        variant: Variant::Sound,
        accused: None,
    };
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!(
        "{name}: {states} states, {} steps tried, depth {depth}, {:.1?}",
        checker.state_count(),
        begun.elapsed()
    );
    let discoveries = checker.discoveries();
    for property in checker.model().properties() {
        let found = discoveries.get(property.name);
        let should_be_found = property.expectation == Expectation::Sometimes;
        assert_eq!(
            found.is_some(),
            should_be_found,
            "{name}: {} ({:?})\n{}",
            property.name,
            property.expectation,
            found.map_or_else(String::new, |path| trace(&path.clone().into_actions()))
        );
    }
}

/// Finds the shortest way in which a rejected design breaks an invariant.
fn is_guilty(variant: Variant, accused: &'static str, scope: Scope) {
    let begun = Instant::now();
    let protocol = Protocol {
        scope,
        variant,
        accused: Some(accused),
    };
    // One thread, so that the first find is a shortest.
    let checker = protocol.checker().spawn_bfs().join();
    let states = checker.unique_state_count();
    let found = checker.discovery(accused);
    let found = found.unwrap_or_else(|| panic!("{variant:?} keeps \"{accused}\", {states} states"));
    let actions = found.into_actions();
    println!(
        "{variant:?} breaks \"{accused}\" in {} steps ({states} states, {:.1?}):\n{}",
        actions.len(),
        begun.elapsed(),
        trace(&actions)
    );
    // The same scope is no trouble for the protocol itself.
    let sound = Protocol {
        scope,
        variant: Variant::Sound,
        accused: Some(accused),
    };
    let depth = actions.len() + 1;
    let sound = sound.checker().target_max_depth(depth).spawn_bfs().join();
    assert!(
        sound.discovery(accused).is_none(),
        "{accused} is broken without {variant:?} too"
    );
}

fn trace(actions: &[Action]) -> String {
    let steps = actions.iter().map(|action| format!("    {action:?}"));
    steps.collect::<Vec<_>>().join("\n")
}

#[test]
fn one_gateway_loses_nothing_in_a_crash_and_a_lossy_stream() {
    holds("one gateway, crash, lossy stream", SMALL);
}

#[test]
fn messages_may_overtake_each_other() {
    let scope = Scope {
        credits: 3,
        want: 3,
        messages: 2,
        ..SMALL
    };
    holds("two messages at once", scope);
}

#[test]
fn two_crashes_in_a_row_lose_nothing() {
    let scope = Scope {
        holds: &[1],
        kills: 2,
        ..SMALL
    };
    holds("two crashes", scope);
}

#[test]
fn two_gateways_share_a_wallet() {
    let scope = Scope {
        gateways: 2,
        credits: 2,
        want: 1,
        asks: 2,
        kills: 0,
        holds: &[1],
        ..SMALL
    };
    holds("two gateways", scope);
}

#[test]
fn what_is_given_back_may_be_told_late_and_twice() {
    let scope = Scope {
        recall: true,
        late_reports: true,
        kills: 0,
        asks: 2,
        ..SMALL
    };
    holds("recall, late reports", scope);
}

#[test]
fn a_write_off_never_takes_from_the_customer_twice() {
    let scope = Scope {
        silence: true,
        calls: 1,
        ..TWICE_LENT
    };
    holds("silence, write-off, late journal", scope);
}

#[test]
fn a_destroyed_journal_costs_what_no_heartbeat_told() {
    let scope = Scope {
        holds: &[1],
        silence: true,
        disk_loss: true,
        ..SMALL
    };
    holds("destroyed journal", scope);
}

#[test]
fn late_calls_settle_in_their_own_epoch() {
    let scope = Scope {
        epochs: 1,
        kills: 0,
        ..TWICE_LENT
    };
    holds("epochs", scope);
}

#[test]
fn rejected_credits_return_by_timer() {
    is_guilty(Variant::TimerRefusesLate, properties::NO_LOSS, SMALL);
    is_guilty(Variant::TimerChargesLate, properties::AVAILABLE, TWICE_LENT);
}

#[test]
fn rejected_trim_on_acknowledgement() {
    is_guilty(Variant::TrimOnAcknowledgement, properties::NO_LOSS, SMALL);
}

#[test]
fn rejected_deduplication_by_message_id() {
    is_guilty(Variant::TrustIdWindow, properties::NO_DOUBLE, SMALL);
    let reliable = Scope {
        stream_loses: false,
        ..SMALL
    };
    is_guilty(Variant::TrustDuplicateAnswer, properties::NO_LOSS, reliable);
}

#[test]
fn rejected_record_after_answer() {
    is_guilty(Variant::RecordAfterAnswer, properties::NO_LOSS, SMALL);
}

#[test]
fn rejected_number_before_record() {
    let concurrent = Scope {
        at_once: 2,
        ..SMALL
    };
    is_guilty(
        Variant::NumberBeforeRecord,
        properties::NO_DOUBLE,
        concurrent,
    );
}

#[test]
fn rejected_adding_each_delivery() {
    is_guilty(Variant::AddEachDelivery, properties::NO_DOUBLE, SMALL);
}

#[test]
fn rejected_close_without_fence() {
    is_guilty(Variant::CloseWithoutFence, properties::NOT_STRANDED, SMALL);
}

#[test]
fn rejected_close_from_journal_alone() {
    is_guilty(Variant::CloseFromJournalAlone, properties::NO_BREACH, SMALL);
}

#[test]
fn rejected_write_off_that_debits_late() {
    let silent = Scope {
        silence: true,
        ..TWICE_LENT
    };
    is_guilty(Variant::WriteOffDebitsLate, properties::AVAILABLE, silent);
}

#[test]
fn rejected_setting_a_balance() {
    let epochs = Scope { epochs: 1, ..SMALL };
    is_guilty(Variant::SetBalance, properties::OWN_EPOCH, epochs);
}

#[test]
fn rejected_recall_by_difference() {
    let late = Scope {
        recall: true,
        late_reports: true,
        ..SMALL
    };
    is_guilty(Variant::RecallByDifference, properties::NO_OVERSPEND, late);
}
