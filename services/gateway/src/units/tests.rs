use http::HeaderValue;
use proptest::prelude::*;
use types::{UNIT_NAME_BYTES_MAX, UnitPrice, Unreported};

use super::*;

fn fields(values: &[&str]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for value in values {
        fields.append(USAGE, HeaderValue::from_str(value).expect("a value"));
    }
    fields
}

fn named(units: &Units) -> Vec<(&str, u64)> {
    let units = units.0.iter();
    units.map(|unit| (unit.name.as_str(), unit.count)).collect()
}

fn price(pointers: &[(&str, &str)]) -> Price {
    let units = pointers.iter().map(|(unit, pointer)| UnitPrice {
        unit: (*unit).to_owned(),
        credits: 1,
        per: 1,
        pointer: (*pointer).to_owned(),
        bytes_per_unit: 0,
    });
    Price::new(0, units.collect(), 10, Unreported::MaxCost).expect("a price")
}

fn report(value: &str) -> Units {
    let mut units = Units::default();
    units.read_fields(&fields(&[value]));
    units
}

#[test]
fn units_are_read_and_nonsense_is_left_out() {
    assert_eq!(
        named(&report("pages=5, tokens=1500")),
        [("pages", 5), ("tokens", 1500)]
    );
    assert_eq!(
        named(&report(" a = 0 ,b=-1,c=1.5,d,=4,e=1=2,f=+7")),
        [("a", 0), ("f", 7)]
    );
    let most = i64::MAX.unsigned_abs();
    assert_eq!(named(&report("a=9223372036854775807")), [("a", most)]);
    assert_eq!(named(&report("a=9223372036854775808")), []);
    assert_eq!(named(&report("a=9223372036854775807,a=1")), [("a", most)]);
    let long = "n".repeat(UNIT_NAME_BYTES_MAX + 1);
    assert_eq!(named(&report(&format!("{long}=1, ok=1"))), [("ok", 1)]);
    let many: Vec<String> = (0..100).map(|at| format!("u{at}=1")).collect();
    assert_eq!(named(&report(&many.join(","))).len(), UNITS_MAX);
}

#[test]
fn one_report_counts_together_and_a_later_one_replaces_it() {
    let mut units = Units::default();
    units.read_fields(&fields(&["tokens=1, tokens=2", "tokens=4, pages=1"]));
    assert_eq!(named(&units), [("tokens", 7), ("pages", 1)]);
    units.read_fields(&fields(&["tokens=5"]));
    assert_eq!(named(&units), [("tokens", 5), ("pages", 1)]);
    units.read_json(
        &price(&[("pages", "/usage/pages"), ("x", "/usage/x")]),
        br#"{"usage": {"pages": 9, "x": -1}}"#,
    );
    assert_eq!(named(&units), [("tokens", 5), ("pages", 9)]);
    for nonsense in [
        &br#"{"usage": {"pages": 1.5}}"#[..],
        br#"{"usage": {"pages": "3"}}"#,
        br#"{"usage": [3]}"#,
        b"{",
    ] {
        units.read_json(&price(&[("pages", "/usage/pages")]), nonsense);
        assert_eq!(units.count("pages"), Some(9));
    }
}

/// Reads a stream in pieces of so many bytes.
fn stream(text: &[u8], piece: usize, price: &Price) -> Units {
    let (mut events, mut units) = (Events::default(), Units::default());
    for bytes in text.chunks(piece) {
        events.read(bytes, price, &mut units);
    }
    events.end(price, &mut units);
    units
}

#[test]
fn the_last_event_that_has_units_counts_however_the_stream_is_cut() {
    let price = price(&[("tokens", "/usage/total_tokens")]);
    let long = format!(
        "data: {{\"usage\": {{\"total_tokens\": 1, \"x\": \"{}\"}}}}",
        "x".repeat(EVENT_BYTES_MAX)
    );
    let cases: [(&str, Option<u64>); 9] = [
        (
            "data: {\"usage\": {\"total_tokens\": 3}}\n\ndata: {\"choices\": []}\n\ndata: \
             {\"usage\": {\"total_tokens\": 8}}\n\ndata: [DONE]\n\n",
            Some(8),
        ),
        (
            ": hello\r\nevent: x\r\nid: 1\r\ndata: {\"usage\":\r\ndata: {\"total_tokens\": 5}}\r\n\r\n",
            Some(5),
        ),
        ("data:{\"usage\":{\"total_tokens\":4}}\r\r", Some(4)),
        ("data: {\"usage\": {\"total_tokens\": 6}}", Some(6)),
        ("data: {\"usage\": null}\n\n", None),
        ("{\"usage\": {\"total_tokens\": 6}}\n\n", None),
        ("data: {\"usage\": {\"total_tokens\": 6}\n\n", None),
        (&format!("{long}\n\n"), None),
        (
            &format!("{long}\n\ndata: {{\"usage\": {{\"total_tokens\": 2}}}}\n\n"),
            Some(2),
        ),
    ];
    for (text, tokens) in cases {
        for piece in [1, 2, 3, 7, 1_000_000] {
            let units = stream(text.as_bytes(), piece, &price);
            let shown = text.get(..80).unwrap_or(text);
            assert_eq!(units.count("tokens"), tokens, "{piece}: {shown:?}");
        }
    }
}

proptest! {
    #[test]
    fn reports_never_panic_and_keep_their_limits(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut fields = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            fields.insert(USAGE, value);
        }
        let mut units = Units::default();
        units.read_fields(&fields);
        prop_assert!(units.0.len() <= UNITS_MAX);
        for unit in units.0 {
            prop_assert!((1..=UNIT_NAME_BYTES_MAX).contains(&unit.name.len()));
            prop_assert!(i64::try_from(unit.count).is_ok());
        }
    }

    /// However a stream is cut into pieces, it says the same.
    #[test]
    fn a_stream_says_the_same_in_any_pieces(
        text in r"(data: \{.t.:[0-9]{1,3}\}|data: |x|\n|\r|\r\n){0,30}",
        piece in 1..9_usize,
    ) {
        let text = text.replace("{.t.", "{\"t\"");
        let price = price(&[("t", "/t")]);
        let whole = stream(text.as_bytes(), 1_000_000, &price);
        let cut = stream(text.as_bytes(), piece, &price);
        prop_assert_eq!(named(&whole), named(&cut));
    }
}
