use super::*;

const SECOND: u64 = 1_000_000_000;

fn address(n: u32) -> IpAddr {
    IpAddr::from(n.to_be_bytes())
}

#[test]
fn an_address_that_asks_too_often_waits_and_no_other_does() {
    let pace = Pace::default();
    for _ in 0..RATE.burst {
        pace.take(address(1), 0).unwrap();
    }
    let refused = pace.take(address(1), 0).unwrap_err();
    assert!(matches!(refused, Error::TooMany { wait_seconds: 1 }));
    pace.take(address(2), 0).unwrap();
    pace.take(address(1), SECOND).unwrap();
}

#[test]
fn a_household_of_ipv6_is_one_address() {
    let pace = Pace::default();
    let inside = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 7, 0, 0, 0, n]);
    for n in 0..30 {
        pace.take(inside(n), 0).unwrap();
    }
    assert!(pace.take(inside(99), 0).is_err());
    let next_door = IpAddr::from([0x2001, 0xdb8, 0, 8, 0, 0, 0, 1]);
    pace.take(next_door, 0).unwrap();
}

#[test]
fn memory_has_a_bound_and_who_has_rested_makes_room() {
    let pace = Pace::default();
    for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
        pace.take(address(n), 0).unwrap();
    }
    let newcomer = address(u32::MAX);
    assert!(pace.take(newcomer, 0).is_err(), "everybody is busy");
    pace.take(newcomer, 2 * SECOND).unwrap();
    assert_eq!(pace.0.lock().len(), 1, "the others have rested");
}
