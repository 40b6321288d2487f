use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn without_trusted_hops_a_forged_header_changes_nothing() {
    assert_eq!(client_address(PEER, ["1.1.1.1", "2.2.2.2"].iter(), 0), PEER);
}

#[test]
fn each_hop_is_one_entry_from_the_right_over_all_headers() {
    let headers = ["9.9.9.9, 1.1.1.1", "2.2.2.2 ,\t3.3.3.3"];
    let expected = [
        "203.0.113.9",
        "3.3.3.3",
        "2.2.2.2",
        "1.1.1.1",
        "9.9.9.9",
        "9.9.9.9",
    ];
    for (hops, address) in (0..).zip(expected) {
        assert_eq!(
            client_address(PEER, headers.iter(), hops),
            ip(address),
            "{hops} hops"
        );
    }
}

#[test]
fn a_malformed_entry_ends_the_walk_at_the_last_trustworthy_address() {
    for bad in [
        "",
        " ",
        "unknown",
        "_hidden",
        "256.1.1.1",
        "1.2.3",
        "010.0.0.1",
        "1.2.3.4:99999",
        "1.2.3.4 5.6.7.8",
        "[::1",
        "::1]",
        "[1.2.3.4]",
        "fe80::1%eth0",
        "\"1.2.3.4\"",
        "for=1.1.1.1",
    ] {
        let value = format!("1.1.1.1,{bad},3.3.3.3");
        assert_eq!(
            client_address(PEER, [&value].into_iter(), 3),
            ip("3.3.3.3"),
            "{bad:?}"
        );
        assert_eq!(client_address(PEER, [bad].into_iter(), 1), PEER, "{bad:?}");
    }
    let long = "1".repeat(16 * 1024);
    assert_eq!(client_address(PEER, [long].iter(), 1), PEER);
}

#[test]
fn ports_brackets_and_mapped_addresses_are_understood() {
    for (entry, address) in [
        ("1.2.3.4:80", "1.2.3.4"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("[::FFFF:1.2.3.4]:80", "1.2.3.4"),
        ("0:0:0:0:0:ffff:0102:0304", "1.2.3.4"),
    ] {
        assert_eq!(
            client_address(PEER, [entry].into_iter(), 1),
            ip(address),
            "{entry}"
        );
    }
    let peer = IpAddr::V6(Ipv4Addr::new(1, 2, 3, 4).to_ipv6_mapped());
    assert_eq!(
        client_address(peer, std::iter::empty::<&str>(), 1),
        ip("1.2.3.4")
    );
}

#[test]
fn a_header_that_is_not_text_is_a_malformed_entry() {
    let values = || [&b"1.1.1.1"[..], b"\xff", b"3.3.3.3"].into_iter();
    assert_eq!(client_address(PEER, values(), 1), ip("3.3.3.3"));
    assert_eq!(client_address(PEER, values(), 3), ip("3.3.3.3"));
}

#[test]
fn the_walk_has_an_end() {
    let value = (0..100)
        .map(|n| format!("10.0.0.{n}"))
        .collect::<Vec<_>>()
        .join(",");
    assert_eq!(
        client_address(PEER, [&value].into_iter(), u8::MAX),
        ip("10.0.0.84")
    );
}

proptest! {
    #[test]
    fn the_walk_agrees_with_splitting_the_joined_list(
        values in prop::collection::vec(
            prop::collection::vec(prop_oneof![
                4 => any::<u32>().prop_map(|n| Ipv4Addr::from(n).to_string()),
                3 => any::<u128>().prop_map(|n| Ipv6Addr::from(n).to_string()),
                1 => "[0-9a-f:. x]{0,12}",
            ], 1..6).prop_map(|entries| entries.join(", ")),
            0..5,
        ),
        hops in 0_u8..20,
    ) {
        let joined = values.join(",");
        let mut expected = PEER;
        for entry in joined.rsplit(',').take(usize::from(hops.min(HOPS_MAX))) {
            match entry.trim().parse::<IpAddr>() {
                Ok(address) => expected = address.to_canonical(),
                Err(_) => break,
            }
        }
        // The reference knows neither ports nor brackets, so entries with them are left out.
        prop_assume!(joined.split(',').all(|entry| {
            entry.trim().parse::<IpAddr>().is_ok() || parse(entry.as_bytes()).is_none()
        }));
        prop_assert_eq!(client_address(PEER, values.iter(), hops), expected);
    }

    #[test]
    fn entries_left_of_the_trusted_ones_change_nothing(
        forged in ".{0,40}", hops in 0_u8..3,
    ) {
        let honest = client_address(PEER, ["1.1.1.1, 2.2.2.2"].into_iter(), hops);
        let value = format!("{forged},1.1.1.1, 2.2.2.2");
        prop_assert_eq!(client_address(PEER, [value].into_iter(), hops), honest);
    }
}
