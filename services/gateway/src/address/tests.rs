use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts
        .iter()
        .map(|text| text.parse().expect("a network"))
        .collect()
}

#[test]
fn an_empty_list_admits_everyone_and_any_other_only_its_networks() {
    assert!(allowed(&[], ip("1.2.3.4")));
    let list = nets(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]);
    for inside in [
        "10.255.0.1",
        "192.0.2.7",
        "2001:db8:1::1",
        "::ffff:10.1.1.1",
    ] {
        assert!(allowed(&list, ip(inside)), "{inside}");
    }
    for outside in [
        "11.0.0.1",
        "192.0.2.8",
        "2001:db9::1",
        "::ffff:11.0.0.1",
        "::10.1.1.1",
    ] {
        assert!(!allowed(&list, ip(outside)), "{outside}");
    }
}

#[test]
fn a_mapped_network_admits_ipv4_but_a_wide_ipv6_network_does_not() {
    assert!(allowed(&nets(&["::ffff:10.0.0.0/104"]), ip("10.1.2.3")));
    assert!(allowed(&nets(&["::ffff:0.0.0.0/96"]), ip("10.1.2.3")));
    assert!(!allowed(&nets(&["::ffff:10.0.0.0/104"]), ip("11.1.2.3")));
    assert!(!allowed(&nets(&["::/0"]), ip("10.1.2.3")));
    assert!(!allowed(&nets(&["::ffff:0.0.0.0/95"]), ip("10.1.2.3")));
    assert!(allowed(&nets(&["::/0"]), ip("2001:db8::1")));
    assert!(!allowed(&nets(&["0.0.0.0/0"]), ip("2001:db8::1")));
}
