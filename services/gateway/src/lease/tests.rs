#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use types::LeaseId;
use uuid::Uuid;

use super::*;

const NOW: i64 = 1_000;

fn lease(granted: i64) -> Arc<Lease> {
    let lease = Arc::new(Lease::new(LeaseId::new(Uuid::from_u128(1))));
    assert!(
        lease.extend(granted, 0, NOW).is_none(),
        "nothing was asked for"
    );
    lease
}

fn spend(hold: Hold, cost: i64) {
    hold.spend(cost);
    hold.settle(cost);
}

/// What a lease must be at any moment when nothing is under way.
fn check(lease: &Lease, granted: i64, held: i64) {
    let (remaining, is_held, _) = lease.figures();
    assert!(remaining >= 0, "remaining {remaining}");
    assert_eq!(is_held, held);
    assert_eq!(
        granted,
        remaining + held + lease.cum() + lease.returned_cum(),
        "nothing is lost and nothing is made"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Hold(i64),
    /// Ends the n-th open hold at a share of its credits.
    Settle(usize, i64),
    Drop(usize),
    GiveBack(i64),
    Extend(i64, i64),
    OldNews,
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..40_i64).prop_map(Step::Hold),
        6 => (any::<usize>(), 0..=100_i64).prop_map(|(n, share)| Step::Settle(n, share)),
        2 => any::<usize>().prop_map(Step::Drop),
        1 => (0..20_i64).prop_map(Step::GiveBack),
        3 => (1..60_i64, 0..80_i64).prop_map(|(more, credits)| Step::Extend(more, credits)),
        1 => Just(Step::OldNews),
        1 => Just(Step::Drain),
    ]
}

/// The same lease, as a book-keeper would do it.
#[derive(Default)]
struct Model {
    granted: i64,
    remaining: i64,
    returned: i64,
    cum: i64,
    draining: bool,
}

proptest! {
    #[test]
    fn a_lease_does_what_a_book_keeper_would(steps in prop::collection::vec(step(), 1..80)) {
        let cell = lease(100);
        let mut model = Model { granted: 100, remaining: 100, ..Model::default() };
        let mut open: Vec<Hold> = Vec::new();
        for step in steps {
            match step {
                Step::Hold(credits) => {
                    let expected = !model.draining && model.remaining >= credits;
                    let hold = cell.hold(credits, NOW);
                    prop_assert_eq!(hold.is_some(), expected);
                    if expected {
                        model.remaining -= credits;
                    }
                    open.extend(hold);
                }
                Step::Settle(n, share) if !open.is_empty() => {
                    let hold = open.swap_remove(n % open.len());
                    let cost = hold.credits() * share / 100;
                    model.cum += cost;
                    model.remaining += hold.credits() - cost;
                    prop_assert_eq!(hold.spend(cost), model.cum);
                    hold.settle(cost);
                }
                Step::Drop(n) if !open.is_empty() => {
                    let hold = open.swap_remove(n % open.len());
                    model.remaining += hold.credits();
                }
                Step::Settle(..) | Step::Drop(_) => {}
                Step::GiveBack(kept) => {
                    let kept = kept.min(model.remaining);
                    model.returned += model.remaining - kept;
                    model.remaining = kept;
                    prop_assert_eq!(cell.give_back(kept), model.returned);
                }
                Step::Extend(more, credits) => {
                    model.granted += more;
                    model.remaining += more;
                    let expected = !model.draining && (1..=more).contains(&credits);
                    prop_assert!(cell.is_news(model.granted));
                    let hold = cell.extend(model.granted, credits, NOW);
                    prop_assert_eq!(hold.is_some(), expected);
                    if expected {
                        model.remaining -= credits;
                    }
                    open.extend(hold);
                }
                Step::OldNews => {
                    prop_assert!(!cell.is_news(model.granted));
                    prop_assert!(cell.extend(model.granted, 1, NOW).is_none());
                    prop_assert!(cell.extend(model.granted - 1, 1, NOW).is_none());
                }
                Step::Drain => {
                    model.draining = true;
                    cell.drain();
                }
            }
            prop_assert_eq!(cell.figures().0, model.remaining);
            prop_assert_eq!(cell.is_spent(), model.draining && open.is_empty());
            check(&cell, model.granted, open.iter().map(|hold| hold.credits()).sum());
        }
    }
}

#[test]
fn nothing_is_spent_after_the_end() {
    let lease = Arc::new(Lease::new(LeaseId::new(Uuid::from_u128(1))));
    lease.end_at(NOW);
    assert!(lease.extend(10, 5, NOW).is_none());
    assert!(lease.hold(1, NOW).is_none());
    let hold = lease.hold(1, NOW - 1).expect("a moment before");
    spend(hold, 1);
    check(&lease, 10, 0);
}

#[test]
fn the_wallet_is_told_what_has_changed_since_it_was_told() {
    let lease = lease(10);
    let unspent = (0, 0);
    assert_eq!(lease.news(), Some(unspent), "it was never told");
    lease.was_told(0, 0);
    assert_eq!(lease.news(), None);
    spend(lease.hold(3, NOW).expect("enough"), 2);
    assert_eq!(lease.news(), Some((2, 0)));
    lease.was_told(2, 0);
    lease.give_back(0);
    assert_eq!(lease.news(), Some((2, 8)));
}

#[test]
fn the_newest_key_of_a_lineage_states_the_quota() {
    let id = |n| Uuid::from_u128(n);
    let account = Account::new(Owner::Quota {
        org: OrgId::new(id(1)),
        key: KeyId::new(id(2)),
        kind: QuotaKind::Daily,
    });
    assert_eq!(account.owner.exhausted(), Refusal::DailyQuotaExceeded);
    let stated = |by, version, calls| Stated {
        by: KeyId::new(id(by)),
        version,
        calls,
    };
    for (said, counts) in [
        (stated(2, 5, 20), 20),
        (stated(2, 4, 30), 20),
        (stated(2, 6, 10), 10),
        (stated(3, 1, 40), 40),
        (stated(2, 9, 50), 40),
    ] {
        account.state(said);
        assert_eq!(
            account.stated().map(|it| it.calls),
            Some(counts),
            "{said:?}"
        );
    }
}

#[test]
#[should_panic(expected = "at most its hold")]
fn a_call_cannot_cost_more_than_its_hold() {
    lease(10).hold(3, NOW).expect("enough").spend(4);
}

#[test]
fn a_close_is_claimed_once_unless_it_failed() {
    let lease = lease(1);
    assert!(!lease.claim_close(), "it may still be spent from");
    lease.drain();
    assert!(lease.claim_close());
    assert!(!lease.claim_close());
    lease.unclaim_close();
    assert!(lease.claim_close());
}

#[test]
fn a_poor_wallet_refuses_only_who_asks_for_as_much() {
    let account = Account::new(Owner::Organisation(OrgId::new(Uuid::from_u128(1))));
    let seen = account.begun();
    let attempt = account.begin();
    account.fail(attempt, Refusal::CreditsExhausted, 20);
    assert_eq!(account.failed_since(seen, 19), None);
    assert_eq!(
        account.failed_since(seen, 20),
        Some(Refusal::CreditsExhausted)
    );
    assert_eq!(account.failed_since(attempt, 20), None, "asked afterwards");
    account.fail(attempt, Refusal::CreditsUnavailable, 20);
    assert_eq!(
        account.failed_since(seen, 1),
        Some(Refusal::CreditsUnavailable)
    );
}

#[test]
fn a_renewal_is_claimed_once_when_half_is_gone() {
    let account = Account::new(Owner::Organisation(OrgId::new(Uuid::from_u128(1))));
    assert!(!account.claim_renewal(), "nothing to renew");
    account.replace(lease(10));
    let half = account.hold(5, NOW).expect("enough");
    assert!(!account.claim_renewal(), "half is left");
    let more = account.hold(1, NOW).expect("enough");
    assert!(account.claim_renewal());
    assert_eq!((account.tick(), account.rate()), (0, 6));
    assert!(!account.claim_renewal(), "it is under way");
    account.not_renewed();
    assert!(!account.claim_renewal(), "it has just failed");
    assert_eq!(account.tick(), 1);
    assert!(
        account.claim_renewal(),
        "a tick later it may be tried again"
    );
    assert_eq!((account.tick(), account.tick()), (2, 3));
    drop((half, more));
}

#[test]
fn an_idle_account_keeps_what_it_may_and_no_more_than_it_has() {
    for (may_keep, kept) in [(0, 0), (7, 7), (200, 100)] {
        let account = Account::new(Owner::Organisation(OrgId::new(Uuid::from_u128(1))));
        account.give_back_idle(); // nothing to give back
        account.replace(lease(100));
        account.may_keep(may_keep);
        account.give_back_idle();
        assert_eq!(account.in_hand(), kept, "{may_keep}");
        let given = account.lease().expect("its lease").returned_cum();
        assert_eq!(given, 100 - kept, "{may_keep}");
    }
}

#[test]
fn what_is_kept_idle_is_renewed_when_half_of_it_is_gone() {
    let account = Account::new(Owner::Organisation(OrgId::new(Uuid::from_u128(1))));
    account.replace(lease(100));
    account.may_keep(10);
    account.give_back_idle();
    let half = account.hold(5, NOW).expect("enough");
    assert!(!account.claim_renewal(), "half is left");
    let more = account.hold(1, NOW).expect("enough");
    assert!(account.claim_renewal());
    drop((half, more));
}

#[test]
fn the_pace_of_a_lease_is_what_is_used_of_it_in_a_second() {
    let lease = lease(1_000);
    lease.extend(3_000, 0, 5_000_000);
    assert_eq!(
        lease.pace(5_000_000),
        0,
        "what was left before is used first"
    );
    let used = lease.hold(2_000, NOW).expect("enough");
    for (now, pace) in [
        (5_000_000, 10_000), // in no time: as if in a tenth of a second
        (5_100_000, 10_000),
        (5_500_000, 2_000),
        (9_000_000, 250),
        (4_000_000, 10_000), // a clock that another thread has read before
    ] {
        assert_eq!(lease.pace(now), pace, "{now}");
    }
    drop(used);
}

/// Threads do everything at once; one of them drains in the end, and another closes as soon as
/// nothing is held. The total that is closed is final.
#[test]
fn threads_lose_nothing_and_spend_nothing_after_the_close() {
    for round in 0..5 {
        stress(round);
    }
}

fn stress(round: i64) {
    let cell = lease(500);
    let spent = AtomicI64::new(0);
    let granted = AtomicI64::new(500);
    let done = AtomicBool::new(false);
    let closed = parking_lot::Mutex::new(None);
    std::thread::scope(|scope| {
        for worker in 0..3_i64 {
            let (cell, spent, done) = (&cell, &spent, &done);
            scope.spawn(move || {
                let mut turn = worker + round;
                while !done.load(Ordering::Acquire) {
                    turn += 1;
                    let credits = turn % 7 + 1;
                    let Some(hold) = cell.hold(credits, NOW) else {
                        continue;
                    };
                    match turn % 3 {
                        0 => drop(hold),
                        part => {
                            let cost = credits * part / 2;
                            spent.fetch_add(cost, Ordering::SeqCst);
                            spend(hold, cost);
                        }
                    }
                }
            });
        }
        let (cell, spent, done) = (&cell, &spent, &done);
        let (granted, closed) = (&granted, &closed);
        scope.spawn(move || {
            for n in 0..400 {
                let total = granted.fetch_add(30, Ordering::SeqCst) + 30;
                if let Some(hold) = cell.extend(total, n % 40, NOW) {
                    spent.fetch_add(1, Ordering::SeqCst);
                    spend(hold, 1);
                }
                if n % 5 == 0 {
                    cell.give_back(0);
                }
            }
            cell.drain();
            while !cell.claim_close() {
                std::thread::yield_now();
            }
            *closed.lock() = Some(cell.cum());
            for _ in 0..100 {
                std::thread::yield_now();
            }
            done.store(true, Ordering::Release);
        });
    });
    check(&cell, granted.load(Ordering::SeqCst), 0);
    assert_eq!(cell.cum(), spent.load(Ordering::SeqCst));
    assert_eq!(*closed.lock(), Some(cell.cum()), "spent after the close");
}
