use std::{net::SocketAddr, rc::Rc};

use tokio::time::Instant;
use types::Networks;

use super::{
    super::health::{FAILURES_MAX, Fault, REST_MIN},
    Targets,
};

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn targets(last: impl IntoIterator<Item = u8>) -> (Targets, Networks) {
    let networks = Networks::parse("10.0.0.0/24").expect("a network");
    let targets = Targets::new();
    let found = last.into_iter().map(address);
    targets.take(found, &networks).expect("allowed");
    (targets, networks)
}

#[test]
fn connections_are_spread_over_all_addresses() {
    let (targets, _) = targets([1, 2, 3]);
    let mut counts = [0_u32; 4];
    for _ in 0..30 {
        let chosen = targets.choose(&[], Instant::now()).expect("an address");
        chosen.target.opened();
        let SocketAddr::V4(v4) = chosen.target.address else {
            panic!("IPv4");
        };
        let [.., last] = v4.ip().octets();
        if let Some(count) = counts.get_mut(usize::from(last)) {
            *count += 1;
        }
    }
    assert_eq!(counts, [0, 10, 10, 10]);
}

#[test]
fn an_address_that_fails_is_left_out_until_one_call_tries_it() {
    let (targets, _) = targets([1, 2]);
    let now = Instant::now();
    let bad = targets.choose(&[], now).expect("an address").target;
    for attempt in 1..=FAILURES_MAX {
        assert_eq!(bad.failed(Fault::Connect, now), attempt == FAILURES_MAX);
    }
    for _ in 0..4 {
        let chosen = targets.choose(&[], now).expect("the other one");
        assert!(!Rc::ptr_eq(&chosen.target, &bad) && chosen.trial.is_none());
        let none = targets.choose(&[chosen.target], now).expect_err("no third");
        assert_eq!(none, Some(REST_MIN));
    }
    let later = now + REST_MIN;
    let first = targets.choose(&[], later).expect("tried");
    assert!(Rc::ptr_eq(&first.target, &bad) && first.trial.is_some());
    let second = targets.choose(&[], later).expect("the other one");
    assert!(!Rc::ptr_eq(&second.target, &bad), "by one call at a time");
    drop(first); // its client has gone
    let third = targets
        .choose(&[], Instant::now() + REST_MIN)
        .expect("tried again");
    assert!(Rc::ptr_eq(&third.target, &bad));
    bad.answered();
    drop(third);
    assert!(bad.is_used());
}

#[test]
fn what_a_name_stands_for_no_more_is_used_no_more_and_the_rest_is_remembered() {
    let (targets, networks) = targets([1, 2]);
    let now = Instant::now();
    let one = targets.choose(&[], now).expect("an address").target;
    let two = targets
        .choose(&[Rc::clone(&one)], now)
        .expect("an address")
        .target;
    for _ in 0..FAILURES_MAX {
        one.failed(Fault::Connect, now);
    }
    let renewed = [one.address, address(3)].into_iter();
    targets.take(renewed, &networks).expect("allowed");
    assert!(!two.is_used(), "gone");
    let three = targets.choose(&[], now).expect("the new one").target;
    assert_eq!(three.address, address(3));
    assert_eq!(
        targets.choose(&[three], now).expect_err("resting"),
        Some(REST_MIN)
    );
}

#[test]
fn an_address_that_is_not_allowed_is_no_target() {
    let (targets, networks) = targets([]);
    let inside: SocketAddr = "169.254.169.254:80".parse().expect("an address");
    let refused = targets.take([inside].into_iter(), &networks);
    assert_eq!(refused.expect_err("refused").0, inside.ip());
    assert!(targets.choose(&[], Instant::now()).is_err());
    // Beside an allowed one it is left out.
    targets
        .take([inside, address(1)].into_iter(), &networks)
        .expect("one is left");
    let only = targets
        .choose(&[], Instant::now())
        .expect("an address")
        .target;
    assert_eq!(only.address, address(1));
    assert!(targets.choose(&[only], Instant::now()).is_err());
}

#[test]
fn calls_that_fail_never_end_the_use_of_more_than_half_of_all_addresses() {
    for count in 1..=7_u8 {
        let (targets, _) = targets(1..=count);
        let now = Instant::now();
        for _ in 0..u32::from(count) * FAILURES_MAX * 4 {
            let chosen = targets.choose(&[], now).expect("one is used");
            // All are asked alike, and none answers.
            chosen.target.opened();
            chosen.target.failed(Fault::Call, now);
        }
        let list = targets.list.borrow();
        let used = list.iter().filter(|target| target.is_used()).count();
        assert_eq!(used, usize::from(count).div_ceil(2), "of {count}");
    }
}
