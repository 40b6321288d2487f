//! Leases that a database has forgotten, in whole or in part.

use jiff::SignedDuration;
use proptest::prelude::*;
use types::{Credits, OrgId};
use uuid::{Builder, Uuid};

use super::{DAYS_30, NOON, credits, journal, lease, lease_id, live_wallet, test_wallet};
use crate::domain::*;

fn wallet(balance: i64, reserved: i64) -> Wallet {
    Wallet {
        id: live_wallet(),
        epoch: None,
        balance: credits(balance),
        reserved: credits(reserved),
        level: None,
    }
}

fn lent(granted_cum: i64, returned_cum: i64) -> Lent {
    Lent {
        lease: lease_id(1),
        journal: journal(1),
        account: Account::Org(OrgId::new(Uuid::from_u128(9))),
        granted_cum: credits(granted_cum),
        returned_cum: credits(returned_cum),
    }
}

proptest! {
    /// Whatever was forgotten: what is there is reserved, never more, and telling it twice is once.
    #[test]
    fn what_was_forgotten_is_reserved_as_far_as_it_is_there(
        known in 0_i64..50, settled in 0_i64..50, others in 0_i64..50, free in 0_i64..100,
        more in 0_i64..100, returned in 0_i64..100,
    ) {
        let settled = settled.min(known);
        let held = known - settled;
        let mut book = Book::new(
            [wallet(held + others + free, held + others)],
            [Lease { settled_cum: credits(settled), ..lease(1, 1, known) }],
        );
        // An owner gives back nothing that it has spent.
        let returned = returned.min(known + more - settled);
        let told = lent(known + more, returned);
        let missing = book.take_over(&told).get();
        let lease = book.lease(lease_id(1)).expect("known").clone();
        let wallet = book.wallet(live_wallet()).clone();
        prop_assert!(wallet.reserved <= wallet.balance, "I2");
        prop_assert_eq!(wallet.reserved.get() - others, lease.granted.get() - settled);
        if more > 0 {
            let wanted = known + more - returned;
            prop_assert_eq!(missing, wanted - lease.granted.get());
            prop_assert_eq!(missing > 0, wanted - known > free);
            let again = book.take_over(&told).get();
            prop_assert_eq!(again, missing);
            prop_assert_eq!(book.lease(lease_id(1)), Some(&lease));
        } else {
            prop_assert_eq!(lease.granted.get(), known, "nothing was forgotten");
        }
    }
}

#[test]
fn nothing_is_taken_over_for_who_does_not_own_it_or_after_its_end() {
    for (state, owner) in [
        (LeaseState::Active, 2),
        (LeaseState::Closed, 1),
        (LeaseState::WrittenOff, 1),
    ] {
        let known = Lease {
            state,
            ..lease(1, owner, 5)
        };
        let mut book = Book::new([wallet(100, 5)], [known.clone()]);
        assert_eq!(book.take_over(&lent(50, 0)), Credits::ZERO);
        assert_eq!(book.lease(lease_id(1)), Some(&known));
    }
}

/// As a wallet makes them.
fn lease_made_at(at: jiff::Timestamp) -> types::LeaseId {
    let millis = u64::try_from(at.as_millisecond()).expect("after 1970");
    types::LeaseId::new(Builder::from_unix_timestamp_millis(millis, &[7; 10]).into_uuid())
}

#[test]
fn only_what_was_lent_before_a_failover_can_be_forgotten() {
    let second = SignedDuration::from_secs(1);
    assert!(may_be_lost(lease_made_at(NOON - second), NOON));
    assert!(!may_be_lost(lease_made_at(NOON + second), NOON));
    assert!(!may_be_lost(lease_id(1), NOON), "no id of a lease");
    assert_eq!(made_at(lease_made_at(NOON)), Some(NOON));
    assert!(is_awaited(NOON, NOON + second));
    assert!(!is_awaited(NOON, NOON + SignedDuration::from_hours(1)));
}

#[test]
fn lending_goes_on_when_everybody_who_may_live_has_told() {
    let orphan = std::time::Duration::from_secs(10);
    let after = |seconds| NOON + SignedDuration::from_secs(seconds);
    let told = |untold, alive_before| Told {
        failed_over_at: NOON,
        untold,
        alive_before,
    };
    // Untold, alive before, seconds after; whether that is enough.
    let cases = [
        (0, 0, 4, false), // those who live had no time to say anything
        (0, 0, 5, true),
        (1, 1, 5, false),
        (1, 1, 3_600, false), // heard of, and silent about its leases
        (0, 1, 9, false),     // it may be heard of yet
        (0, 1, 10, true),     // dead: its journal will tell
    ];
    for (untold, alive_before, seconds, is_enough) in cases {
        assert_eq!(
            told(untold, alive_before).is_enough(orphan, after(seconds)),
            is_enough,
            "{untold} {alive_before} after {seconds} s"
        );
    }
}

#[test]
fn a_frozen_wallet_repeats_what_it_has_lent_and_lends_no_more() {
    let open = Situation {
        is_retired: false,
        is_frozen: false,
        live_gateways: 1,
        replayed: None,
        open: Some(lease_id(1)),
    };
    let on = |situation: Situation| decide(credits(4), credits(1), credits(100), &situation);
    assert_eq!(on(open), Decision::Lend(Some(lease_id(1)), credits(4)));
    let frozen = Situation {
        is_frozen: true,
        ..open
    };
    assert_eq!(on(frozen), Decision::Frozen);
    let replayed = Some(lease_id(2));
    let repeated = Situation { replayed, ..frozen };
    assert_eq!(on(repeated), Decision::Replay(lease_id(2)));
    // An ended journal is not even told again: what it was lent is closed.
    let is_retired = true;
    let retired = Situation {
        is_retired,
        ..repeated
    };
    assert_eq!(on(retired), Decision::Retired);
    let short = decide(credits(4), credits(1), Credits::ZERO, &open);
    assert_eq!(short, Decision::Short);
}

#[test]
fn a_forgotten_lease_of_test_credits_is_of_the_epoch_it_was_lent_in() {
    let third = Epoch {
        number: 2,
        reset_at: NOON + DAYS_30 * 3,
    };
    let hour = SignedDuration::from_hours(1);
    for (at, number) in [
        (NOON + DAYS_30 * 2 + hour, 2),
        (NOON + DAYS_30 * 3 - hour, 2),
        (NOON + DAYS_30 + hour, 1),
        (NOON + hour, 0),
        (NOON - hour, 0),
    ] {
        assert_eq!(third.number_at(at), number, "{at}");
    }
    // Nothing of an ended epoch is reserved: it has expired.
    let mut wallet = wallet(100, 0);
    wallet.id = test_wallet();
    wallet.epoch = Some(third);
    let old = Lease {
        wallet: test_wallet(),
        epoch: 1,
        wallet_epoch: Some(third),
        ..lease(1, 1, 0)
    };
    let mut book = Book::new([wallet], [old]);
    assert_eq!(book.take_over(&lent(30, 0)), Credits::ZERO);
    assert_eq!(book.wallet(test_wallet()).reserved, Credits::ZERO);
    assert_eq!(book.lease(lease_id(1)).expect("known").granted, credits(30));
}
