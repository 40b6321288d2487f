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

#[test]
fn where_a_call_came_from_is_quoted_as_the_standard_wants_it() {
    let said = |client: &str, scheme, host: Option<&str>| {
        let mut text = Vec::new();
        write_forwarded(&mut text, (ip(client), scheme), host.map(str::as_bytes));
        String::from_utf8(text).expect("a text")
    };
    assert_eq!(
        said("192.0.2.7", "http", Some("edge")),
        "for=192.0.2.7;proto=http;host=edge"
    );
    // Colons and brackets stand in quotation marks, an IPv6 address in both.
    assert_eq!(
        said("2001:db8::1", "https", Some("edge:8443")),
        "for=\"[2001:db8::1]\";proto=https;host=\"edge:8443\""
    );
    assert_eq!(
        said("::1", "http", Some("[::1]:80")),
        "for=\"[::1]\";proto=http;host=\"[::1]:80\""
    );
    assert_eq!(said("10.0.0.1", "http", None), "for=10.0.0.1;proto=http");
    // Nobody ends a quotation and says something more.
    assert_eq!(
        said("10.0.0.1", "http", Some("a\";for=evil\\")),
        "for=10.0.0.1;proto=http;host=\"a\\\";for=evil\\\\\""
    );
}
