#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test that is wrong about its own data may panic"
)]

use std::collections::BTreeMap;
use std::fs;

use maxminddb_writer::Database;
use maxminddb_writer::metadata::IpVersion;
use maxminddb_writer::paths::IpAddrWithMask;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const GEOIP: &str = "# a comment\n\
    16777216,16777471,AU\n\
    \n\
    134744064,134744319,US\n\
    134744320,134744575,US\n\
    134744576,134744831,??\n\
    134744832,134745087,EU\n\
    3232235520,3232301055,FR\n\
    3261296640,3261296895,DE\r\n\
    4294967295,4294967295,NZ\n";
const GEOIP6: &str = "# a comment\n\
    2001:db8::,2001:db8:ffff:ffff:ffff:ffff:ffff:ffff,JP\n\
    2a00:1450::,2a00:1450:ffff:ffff:ffff:ffff:ffff:ffff,ie\n\
    fc00::,fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff,IT\n";

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    folder
}

fn country(countries: &Countries, address: &str) -> String {
    countries
        .country(address.parse().expect("an address"))
        .as_str()
        .to_owned()
}

fn refusal(files: &[(&str, &[u8])], open: &str) -> String {
    let folder = folder(files);
    match Countries::open(&folder.path().join(open)) {
        Ok(_) => panic!("opened"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn the_codes_are_sorted_and_complete() {
    let (codes, rest) = CODES.as_bytes().as_chunks::<2>();
    assert_eq!((codes.len(), rest.len()), (250, 0));
    assert!(codes.is_sorted_by(|a, b| a < b));
    for code in codes {
        let code = str::from_utf8(code).expect("ASCII");
        assert_eq!(Country::from_code(code).as_str(), code);
        assert_eq!(Country::from_code(&code.to_lowercase()).as_str(), code);
    }
}

#[test]
fn what_is_no_country_is_unknown() {
    for code in [
        "ZZ", "??", "A1", "A2", "T1", "O1", "EU", "AP", "UK", "XX", "", "D", "DEU", "é",
    ] {
        assert_eq!(Country::from_code(code), Country::UNKNOWN, "{code}");
    }
    assert_eq!(Country::UNKNOWN.as_str(), "ZZ");
}

#[test]
fn without_a_database_every_address_is_unknown() {
    let none = Countries::none();
    for address in [
        "8.8.8.8",
        "0.0.0.0",
        "255.255.255.255",
        "2a00:1450::1",
        "::1",
    ] {
        assert_eq!(country(&none, address), "ZZ", "{address}");
    }
}

#[test]
fn either_text_file_or_their_folder_opens_both() {
    let folder = folder(&[("geoip", GEOIP.as_bytes()), ("geoip6", GEOIP6.as_bytes())]);
    for name in ["", "geoip", "geoip6"] {
        let countries = Countries::open(&folder.path().join(name)).expect("opens");
        for (address, code) in [
            ("1.0.0.0", "AU"),
            ("1.0.0.255", "AU"),
            ("1.0.1.0", "ZZ"),
            ("0.255.255.255", "ZZ"),
            ("8.8.7.255", "ZZ"),
            ("8.8.8.0", "US"),
            ("8.8.8.8", "US"),
            ("8.8.9.255", "US"),
            ("8.8.10.1", "ZZ"),
            ("8.8.11.1", "ZZ"),
            ("194.99.144.80", "ZZ"),
            ("194.99.112.80", "DE"),
            ("::ffff:8.8.8.8", "US"),
            ("2a00:1450::5", "IE"),
            ("2a00:144f:ffff::", "ZZ"),
            ("2a00:1451::", "ZZ"),
            ("2001:db8::1", "JP"),
        ] {
            assert_eq!(
                country(&countries, address),
                code,
                "{address} with {name:?}"
            );
        }
    }
}

#[test]
fn one_text_file_alone_is_enough_and_its_name_is_free() {
    let folder = folder(&[("countries.csv", GEOIP6.as_bytes()), ("geoip", b"nonsense")]);
    let countries = Countries::open(&folder.path().join("countries.csv")).expect("opens");
    assert_eq!(country(&countries, "2a00:1450::1"), "IE");
    assert_eq!(country(&countries, "8.8.8.8"), "ZZ");
}

#[test]
fn an_address_that_is_not_public_has_no_country_whatever_the_database_says() {
    let all = b"0,4294967295,FR\n::,ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff,FR\n";
    let folder = folder(&[("all", all)]);
    let countries = Countries::open(&folder.path().join("all")).expect("opens");
    for address in [
        "0.0.0.0",
        "10.0.0.1",
        "127.0.0.1",
        "100.64.0.1",
        "169.254.1.1",
        "172.16.0.1",
        "192.168.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::1",
    ] {
        assert_eq!(country(&countries, address), "ZZ", "{address}");
    }
    for address in [
        "1.1.1.1",
        "100.63.0.1",
        "100.128.0.1",
        "223.255.255.255",
        "2a00::1",
    ] {
        assert_eq!(country(&countries, address), "FR", "{address}");
    }
}

#[test]
fn a_malformed_line_is_named_with_file_and_number() {
    for (line, why) in [
        ("1,2", "expected low,high,country"),
        ("1,2,DE,x", "expected low,high,country"),
        ("1,2,DEU", "two letters"),
        ("1,x,DE", "decimal number"),
        ("1,4294967296,DE", "decimal number"),
        ("-1,2,DE", "decimal number"),
        ("1.0.0.0,1.0.0.255,DE", "decimal number"),
        ("2001::,x:y,DE", "invalid IPv6"),
        ("1,2001::,DE", "mixes"),
        ("9,8,DE", "ends before"),
        ("100,200,DE", "overlaps"),
        ("50,60,DE", "out of order"),
        (
            "4294967295,4294967295,DE\n4294967295,4294967295,DE",
            "overlaps",
        ),
    ] {
        let text = format!("# header\n100,100,FR\n{line}\n");
        let error = refusal(&[("geoip", text.as_bytes())], "geoip");
        let number = if line.contains('\n') { 4 } else { 3 };
        assert!(
            error.contains(&format!("geoip:{number}: ")),
            "{line}: {error}"
        );
        assert!(error.contains(why), "{line}: {error}");
    }
}

#[test]
fn what_is_no_database_is_refused() {
    assert!(refusal(&[], "absent").contains("absent"));
    assert!(refusal(&[], "").contains("neither geoip nor geoip6"));
    assert!(refusal(&[("geoip", b"")], "geoip").contains("holds no country"));
    assert!(refusal(&[("geoip", b"# only words\n")], "geoip").contains("holds no country"));
    assert!(refusal(&[("geoip", b"1,2,??\n")], "geoip").contains("holds no country"));
    assert!(refusal(&[("geoip", b"\xff\xfe\x00")], "geoip").contains("neither a MaxMind"));
    assert!(refusal(&[("geoip6", b"x")], "geoip").contains("geoip"));
}

fn mmdb(version: IpVersion, networks: &[(&str, &str, &str)]) -> Vec<u8> {
    let mut database = Database::default();
    database.metadata.ip_version = version;
    database.metadata.binary_format_major_version = 2;
    database.metadata.database_type = "Test-Country".to_owned();
    for (network, field, code) in networks {
        let record = BTreeMap::from([(*field, BTreeMap::from([("iso_code", *code)]))]);
        let data = database.insert_value(record).expect("a record");
        database.insert_node(network.parse::<IpAddrWithMask>().expect("a network"), data);
    }
    database.write_to(Vec::new()).expect("written")
}

#[test]
fn a_maxmind_database_is_known_by_its_content() {
    let bytes = mmdb(
        IpVersion::V6,
        &[
            ("::8.8.8.0/120", "country", "US"),
            ("::193.99.144.0/116", "country", "DE"),
            ("::9.9.9.0/120", "registered_country", "CH"),
            ("::7.7.7.0/120", "country", "T1"),
            ("2a00:1450::/32", "country", "IE"),
        ],
    );
    let folder = folder(&[("geoip.txt", &bytes)]);
    let countries = Countries::open(&folder.path().join("geoip.txt")).expect("opens");
    for (address, code) in [
        ("8.8.8.8", "US"),
        ("8.8.9.1", "ZZ"),
        ("193.99.144.80", "DE"),
        ("193.99.159.255", "DE"),
        ("193.99.160.0", "ZZ"),
        ("9.9.9.9", "ZZ"),
        ("7.7.7.7", "ZZ"),
        ("2a00:1450::1", "IE"),
        ("2a00:1451::1", "ZZ"),
        ("::ffff:8.8.8.8", "US"),
    ] {
        assert_eq!(country(&countries, address), code, "{address}");
    }
}

#[test]
fn a_maxmind_database_of_ipv4_only_knows_no_ipv6() {
    let bytes = mmdb(IpVersion::V4, &[("8.8.8.0/24", "country", "US")]);
    let folder = folder(&[("v4.mmdb", &bytes)]);
    let countries = Countries::open(&folder.path().join("v4.mmdb")).expect("opens");
    assert_eq!(country(&countries, "8.8.8.8"), "US");
    assert_eq!(country(&countries, "2a00:1450::1"), "ZZ");
}

#[test]
fn a_maxmind_database_without_countries_is_refused() {
    let bytes = mmdb(IpVersion::V4, &[("8.8.8.0/24", "autonomous_system", "US")]);
    assert!(refusal(&[("asn.mmdb", &bytes)], "asn.mmdb").contains("holds no country"));
}

proptest! {
    #[test]
    fn the_search_agrees_with_a_linear_scan(
        steps in prop::collection::vec((0_u32..20, 0_u32..20, 0_usize..6), 0..60),
        from_top in any::<bool>(),
    ) {
        const SOME: [&str; 6] = ["DE", "FR", "US", "ZZ", "EU", "JP"];
        let mut next = if from_top { u32::MAX - 900 } else { 0 };
        let mut ranges = Vec::new();
        let mut table = Table::<u32>::default();
        for (gap, length, code) in steps {
            let Some(low) = next.checked_add(gap) else { break };
            let high = low.saturating_add(length);
            let country = Country::from_code(SOME[code]);
            table.push(low, high, country).expect("ascending");
            ranges.push((low, high, country));
            let Some(after) = high.checked_add(1) else { break };
            next = after;
        }
        table.finish();
        let first = ranges.first().map_or(0, |range| range.0).saturating_sub(2);
        for address in (first..first.saturating_add(2500)).chain([0, u32::MAX]) {
            let found = ranges.iter().find(|(low, high, _)| (*low..=*high).contains(&address));
            let expected = found.map_or(Country::UNKNOWN, |range| range.2);
            prop_assert_eq!(table.get(address), expected, "{}", address);
        }
    }

    #[test]
    fn a_range_out_of_order_is_refused_and_changes_nothing(
        low in 1_u128..1000, length in 0_u128..50, again in 0_u128..1049, backwards in 1_u128..50,
    ) {
        let mut table = Table::<u128>::default();
        table.push(low, low + length, Country::from_code("DE")).expect("the first");
        prop_assume!(again <= low + length);
        prop_assert!(table.push(again, u128::MAX, Country::from_code("FR")).is_err());
        prop_assert!(table.push(2000, 2000 - backwards, Country::from_code("FR")).is_err());
        table.finish();
        prop_assert_eq!(table.get(low), Country::from_code("DE"));
        prop_assert_eq!(table.get(low + length + 1), Country::UNKNOWN);
    }

    #[test]
    fn any_bytes_open_or_are_refused_but_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut countries = Countries::none();
        if read::text(&bytes, Path::new("x"), &mut countries).is_ok() {
            countries.v4.finish();
        }
    }

    #[test]
    fn a_damaged_maxmind_database_opens_or_is_refused_but_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = mmdb(IpVersion::V6, &[
            ("::8.8.8.0/120", "country", "US"), ("2a00:1450::/32", "country", "IE"),
        ]);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let mut countries = Countries::none();
        if read::mmdb(bytes, &mut countries).is_ok() {
            countries.v6.finish();
        }
    }
}
