use std::net::IpAddr;

use super::{Networks, is_public};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn nothing_that_only_our_machines_reach_is_public() {
    let refused = [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.255.255",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "168.63.129.16",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2002:0a00:0001::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ];
    for text in refused {
        assert!(!is_public(address(text)), "{text}");
    }
}

#[test]
fn the_internet_is_public_up_to_its_edges() {
    let allowed = [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
        "2001:200::1",
        "2002:0101:0101::1",
        "2606:4700:4700::1111",
        "2a00:1450::1",
    ];
    for text in allowed {
        assert!(is_public(address(text)), "{text}");
    }
}

#[test]
fn a_list_adds_its_networks_and_nothing_else() {
    let listed = Networks::parse(" 127.0.0.0/8, fd12::/64,10.1.2.3 ").expect("networks");
    for text in [
        "127.0.0.1",
        "::ffff:127.9.9.9",
        "fd12::9",
        "10.1.2.3",
        "1.1.1.1",
    ] {
        assert!(listed.allow(address(text)), "{text}");
    }
    for text in [
        "10.1.2.4",
        "fd13::1",
        "::1",
        "169.254.169.254",
        "64:ff9b::7f00:1",
    ] {
        assert!(!listed.allow(address(text)), "{text}");
    }
    assert_eq!(Networks::parse(""), Ok(Networks::default()));
    assert!(!Networks::default().allow(address("127.0.0.1")));
    for text in ["loopback", "127.0.0.1/33", "10.0.0.0/8 ::1"] {
        let problem = Networks::parse(text).expect_err("no networks");
        assert!(problem.contains("must be networks such as"), "{problem}");
    }
}
