//! Who comes in.

use std::{net::IpAddr, sync::Arc};

use super::{Census, Full};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn an_address_has_its_share_and_leaves_room_for_others() {
    let census = Arc::new(Census::new(3, Some(2)));
    let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
    let first = census.enter(one).expect("room");
    let second = census.enter(one).expect("room");
    assert_eq!(census.enter(one).expect_err("full"), Full::Address);
    let third = census.enter(other).expect("room");
    assert_eq!(census.enter(other).expect_err("full"), Full::All);
    drop(first);
    assert!(census.enter(one).is_ok(), "who leaves makes room");
    drop((second, third));
    assert_eq!(census.all(), 0);
    assert!(census.of.lock().is_empty(), "nobody is remembered");
}

#[test]
fn a_subscriber_of_ipv6_is_one_address() {
    let census = Arc::new(Census::new(10, Some(1)));
    let _first = census.enter(address("2001:db8:1:2::1")).expect("room");
    let again = census.enter(address("2001:db8:1:2:ffff::9"));
    assert_eq!(again.expect_err("full"), Full::Address);
    assert!(census.enter(address("2001:db8:1:3::1")).is_ok());
    let _mapped = census.enter(address("::ffff:192.0.2.1")).expect("room");
    assert!(
        census.enter(address("192.0.2.1")).is_err(),
        "one address, written in two ways"
    );
}

#[test]
fn behind_proxies_addresses_are_not_counted() {
    let census = Arc::new(Census::new(3, None));
    let guests: Vec<_> = (0..3).map(|_| census.enter(address("192.0.2.1"))).collect();
    assert!(guests.iter().all(Result::is_ok));
    assert!(census.enter(address("192.0.2.1")).is_err());
}
