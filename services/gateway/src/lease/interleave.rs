//! The cell under a scheduler that tries out how threads can take turns: every way where there are
//! few, and many where there are too many. Shuttle runs all atomics in one order, as `SeqCst` does,
//! which is what the cell's handshake between holding and draining asks for.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

/// The same file as the product's, made of a scheduler's atomics.
#[path = "cell.rs"]
#[expect(clippy::duplicate_mod, reason = "with other atomics")]
#[expect(dead_code, reason = "not all of the cell is about threads")]
mod cell;

mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicI64, Ordering};
}

use std::sync::Arc;

use shuttle::thread;
use types::LeaseId;
use uuid::Uuid;

use cell::{Hold, Lease};

const NOW: i64 = 1_000;
/// Schedules that are tried where there are too many for all.
const SCHEDULES: usize = 3_000;
/// Changes of thread that a bug may need.
const DEPTH: usize = 4;

fn lease(granted: i64) -> Arc<Lease> {
    let lease = Arc::new(Lease::new(LeaseId::new(Uuid::from_u128(1))));
    assert!(lease.extend(granted, 0, NOW).is_none());
    lease
}

/// A call from admission to record: what it has cost.
fn serve(hold: Option<Hold>, cost: i64) -> i64 {
    let Some(hold) = hold else { return 0 };
    hold.spend(cost);
    hold.settle(cost);
    cost
}

/// The final count, when it may be written.
fn close(lease: &Lease) -> Option<i64> {
    lease.claim_close().then(|| lease.cum())
}

/// Nothing is lost and nothing is made.
fn check(lease: &Lease, spent: i64) {
    let (remaining, held, granted) = lease.figures();
    assert!(remaining >= 0);
    assert_eq!(held, 0);
    assert_eq!((lease.cum(), lease.recorded()), (spent, spent));
    assert_eq!(granted, remaining + spent + lease.returned_cum());
}

fn every_schedule(test: impl Fn() + Send + Sync + 'static) {
    shuttle::check_dfs(test, None);
}

fn many_schedules(test: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_pct(test.clone(), SCHEDULES, DEPTH);
    shuttle::check_random(test, SCHEDULES);
}

#[test]
fn a_final_count_is_final_for_whoever_holds_meanwhile() {
    every_schedule(|| {
        let lease = lease(5);
        let own = Arc::clone(&lease);
        let call = thread::spawn(move || serve(own.hold(3, NOW), 2));
        lease.drain();
        let closed = close(&lease);
        let spent = call.join().expect("ends");
        assert!(closed.is_none_or(|cum| cum == spent), "spent after the end");
        check(&lease, spent);
    });
}

#[test]
fn a_final_count_is_final_for_a_grant_that_comes_late() {
    every_schedule(|| {
        let lease = lease(5);
        let own = Arc::clone(&lease);
        let grant = thread::spawn(move || serve(own.extend(9, 4, NOW), 4));
        lease.drain();
        let closed = close(&lease);
        let spent = grant.join().expect("ends");
        assert!(closed.is_none_or(|cum| cum == spent), "spent after the end");
        check(&lease, spent);
    });
}

#[test]
fn the_last_credit_is_taken_once() {
    every_schedule(|| {
        let lease = lease(3);
        let own = Arc::clone(&lease);
        let other = thread::spawn(move || own.hold(2, NOW));
        let here = lease.hold(2, NOW);
        let there = other.join().expect("ends");
        assert!(here.is_some() ^ there.is_some());
        drop((here, there));
        check(&lease, 0);
    });
}

#[test]
fn what_is_given_back_is_neither_held_nor_left() {
    every_schedule(|| {
        let lease = lease(6);
        let own = Arc::clone(&lease);
        let call = thread::spawn(move || serve(own.hold(4, NOW), 1));
        let told = lease.give_back(0);
        let spent = call.join().expect("ends");
        assert!(told == 6 || told == 2 || told == 5, "{told}");
        check(&lease, spent);
    });
}

#[test]
fn calls_grants_recalls_and_the_end_come_in_any_order() {
    many_schedules(|| {
        let lease = lease(6);
        let calls: Vec<_> = [(3, 2), (4, 4)]
            .into_iter()
            .map(|(credits, cost)| {
                let own = Arc::clone(&lease);
                thread::spawn(move || serve(own.hold(credits, NOW), cost))
            })
            .collect();
        let own = Arc::clone(&lease);
        let grants = thread::spawn(move || {
            let first = serve(own.extend(9, 3, NOW), 3);
            own.give_back(0);
            first + serve(own.extend(11, 1, NOW), 0)
        });
        lease.give_back(0);
        lease.drain();
        let closed = close(&lease);
        let calls = calls.into_iter().map(|call| call.join().expect("ends"));
        let spent = calls.sum::<i64>() + grants.join().expect("ends");
        assert!(closed.is_none_or(|cum| cum == spent), "spent after the end");
        check(&lease, spent);
    });
}
