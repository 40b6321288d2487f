use proptest::prelude::*;

use super::*;

type Lines = Vec<(String, String)>;

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        headers.append(name, HeaderValue::from_str(value).expect("a value"));
    }
    headers
}

fn lines(headers: &HeaderMap) -> Lines {
    let mut lines: Lines = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
        .collect();
    lines.sort();
    lines
}

fn request(before: &[(&str, &str)], after: &[(&str, &str)]) {
    let mut headers = map(before);
    strip_request(&mut headers);
    assert_eq!(lines(&headers), lines(&map(after)), "{before:?}");
}

#[test]
fn an_ordinary_request_loses_its_key_and_nothing_else() {
    let kept = [
        ("host", "api.example.org"),
        ("accept", "*/*"),
        ("content-type", "application/json"),
        ("content-length", "12"),
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("trailer", "x-checksum"),
        ("x-custom", "1"),
        ("tollgateway", "not ours"),
        ("x-forward", "not ours"),
        ("via", "1.1 a"),
    ];
    let mut sent = kept.to_vec();
    sent.extend([
        ("Authorization", "Bearer sk_live_x"),
        ("Connection", "keep-alive"),
    ]);
    request(&sent, &kept);
}

#[test]
fn every_spelling_of_our_names_is_removed() {
    for name in [
        "tollgate-principal",
        "Tollgate-Principal",
        "TOLLGATE-PRINCIPAL",
        "tollgate_principal",
        "Tollgate_Principal",
        "tollgate.principal",
        "tollgate-",
        "tollgate-anything-else",
        "X-Request-Id",
        "x_request_id",
        "x-request_id",
        "X-API-Key",
        "x_api_key",
        "authorization",
        "traceparent",
        "tracestate",
        "baggage",
        "forwarded",
        "X-Forwarded-For",
        "x_forwarded_for",
        "x-forwarded-anything",
        "x-real-ip",
        "X-Original-URL",
        "x-rewrite-url",
        "proxy-authorization",
        "Proxy-Connection",
        "keep-alive",
        "upgrade",
        "http2-settings",
        "transfer-encoding",
        "transfer_encoding",
        "proxy-authenticate",
    ] {
        request(
            &[(name, "forged"), (name, "twice"), ("accept", "*/*")],
            &[("accept", "*/*")],
        );
    }
}

#[test]
fn connection_removes_what_it_names_in_every_value() {
    request(
        &[
            ("connection", "close, X-One"),
            ("connection", "connection,, @bad name ,x-two,te"),
            ("connection", "x-three"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("x-four", "4"),
        ],
        &[("x-four", "4")],
    );
}

#[test]
fn connection_cannot_remove_what_the_gateway_adds() {
    let mut headers = map(&[
        (
            "connection",
            "tollgate-principal, x-request-id, traceparent",
        ),
        ("tollgate-principal", "forged"),
    ]);
    strip_request(&mut headers);
    headers.insert("tollgate-principal", HeaderValue::from_static("ours"));
    headers.insert("x-request-id", HeaderValue::from_static("req_1"));
    assert_eq!(
        lines(&headers),
        lines(&map(&[
            ("tollgate-principal", "ours"),
            ("x-request-id", "req_1")
        ]))
    );
}

#[test]
fn of_te_only_trailers_stays() {
    for value in [
        "trailers",
        "Trailers",
        "gzip, trailers",
        "deflate;q=0.5 , trailers",
    ] {
        request(
            &[("te", value), ("connection", "TE")],
            &[("te", "trailers")],
        );
    }
    request(&[("te", "gzip"), ("te", "trailers")], &[("te", "trailers")]);
    for value in ["", "gzip", "trailersx", "x-trailers;q=1"] {
        request(&[("te", value)], &[]);
    }
}

#[test]
fn more_forbidden_names_than_one_batch_are_all_removed() {
    let names: Vec<String> = (0..100).map(|n| format!("tollgate-{n}")).collect();
    let mut sent: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    for count in [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 100] {
        request(sent.get(..count).expect("that many"), &[]);
    }
    sent.push(("accept", "*/*"));
    request(&sent, &[("accept", "*/*")]);
}

#[test]
fn a_response_keeps_its_own_and_loses_ours() {
    let mut headers = map(&[
        ("content-type", "text/plain"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("trailer", "grpc-status"),
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "trailers"),
        ("Tollgate-Cost", "0"),
        ("tollgate_cost", "0"),
        ("X-Request-Id", "theirs"),
        ("www-authenticate", "Basic"),
        ("proxy-authenticate", "Basic"),
        ("retry-after", "1"),
    ]);
    strip_response(&mut headers);
    let kept = [
        ("content-type", "text/plain"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("trailer", "grpc-status"),
        ("www-authenticate", "Basic"),
        ("retry-after", "1"),
    ];
    assert_eq!(lines(&headers), lines(&map(&kept)));
}

/// The same rules, written down naively.
fn is_forbidden(name: &str, request: bool) -> bool {
    let sign = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(sign).collect();
    let always = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "proxy-authorization",
        "proxy-authenticate",
        "x-request-id",
    ];
    let requests = [
        "authorization",
        "x-api-key",
        "traceparent",
        "tracestate",
        "baggage",
        "forwarded",
        "x-real-ip",
        "x-original-url",
        "x-rewrite-url",
    ];
    always.contains(&name.as_str())
        || name.starts_with("tollgate-")
        || (request && (requests.contains(&name.as_str()) || name.starts_with("x-forwarded-")))
        || (!request && name == "te")
}

fn name() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "tollgate-principal",
        "tollgate-",
        "tollgate",
        "authorization",
        "x-api-key",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-",
        "x-forwarded",
        "keep-alive",
        "upgrade",
        "x-request-id",
        "proxy-connection",
        "transfer-encoding",
        "traceparent",
        "baggage",
        "x-real-ip",
        "accept",
        "content-type",
        "x-a",
        "x-b",
        "x-c",
        "x-d",
        "proxy-authenticate",
        "connection-x",
    ]);
    (
        words,
        prop::sample::select(vec!['-', '_', '.', '~']),
        any::<u64>(),
    )
        .prop_map(|(word, sign, cases)| {
            let letter = |(at, c): (usize, char)| match c {
                '-' => sign,
                c if cases >> (at % 64) & 1 == 1 => c.to_ascii_uppercase(),
                c => c,
            };
            word.chars().enumerate().map(letter).collect()
        })
}

proptest! {
    #[test]
    fn no_forbidden_name_comes_through_and_nothing_else_is_lost(
        sent in prop::collection::vec(name(), 0..30),
        connection in prop::collection::vec(prop::collection::vec(name(), 0..4), 0..4),
        request in any::<bool>(),
    ) {
        let connection: Vec<String> = connection.iter().map(|names| names.join(" , ")).collect();
        let mut all: Vec<(&str, &str)> = sent.iter().map(|name| (name.as_str(), "x")).collect();
        all.extend(connection.iter().map(|names| ("Connection", names.as_str())));
        let nominated: Vec<String> = connection
            .iter()
            .flat_map(|names| names.split(','))
            .map(|name| name.trim().to_ascii_lowercase())
            .collect();
        let kept: Vec<(&str, &str)> = all
            .iter()
            .copied()
            .filter(|(name, _)| {
                !is_forbidden(name, request) && !nominated.contains(&name.to_ascii_lowercase())
            })
            .collect();
        let mut headers = map(&all);
        let strip = if request { strip_request } else { strip_response };
        strip(&mut headers);
        prop_assert_eq!(lines(&headers), lines(&map(&kept)));
        for name in headers.keys() {
            prop_assert!(!is_forbidden(name.as_str(), request), "{}", name);
        }
    }
}
