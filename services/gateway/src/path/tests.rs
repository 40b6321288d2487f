#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test that is wrong about its own data may panic"
)]

use proptest::prelude::*;

use super::*;

#[test]
fn a_path_is_split_at_the_service() {
    for (path, expected) in [
        ("/api/v1/pdf/render", Some(("pdf", "/render"))),
        ("/api/v1/pdf/", Some(("pdf", "/"))),
        ("/api/v1/pdf", Some(("pdf", ""))),
        ("/api/v1/pdf//x", Some(("pdf", "//x"))),
        ("/api/v1/../x", Some(("..", "/x"))),
        ("/api/v1/%70df/x", Some(("%70df", "/x"))),
        ("/api/v1/", None),
        ("/api/v1//x", None),
        ("/api/v1", None),
        ("/api/v2/pdf/x", None),
        ("/API/v1/pdf/x", None),
        ("//api/v1/pdf/x", None),
        ("api/v1/pdf/x", None),
        ("*", None),
        ("", None),
    ] {
        assert_eq!(split(path), expected, "{path}");
    }
}

#[test]
fn ordinary_paths_pass() {
    for rest in [
        "",
        "/",
        "/render",
        "/render/",
        "/a/b/c",
        "/chat/completions",
        "/v1.2/x",
        "/...",
        "/.hidden",
        "/a..b",
        "/..a",
        "/a%20b",
        "/a%2Bb",
        "/me%40example.org",
        "/100%25",
        "/100%25%20off",
        "/100%2520off",
        "/caf%C3%A9",
        "/caf%c3%a9",
        "/%e2%82%ac",
        "/%F0%9F%98%80",
        "/café",
        "/a:b",
        "/@me",
        "/a,b=c&d!$'()*+",
        "/~user",
        "/a%3Fb",
        "/a%23b",
        "/a%5b0%5d",
        "/50%25zz",
        "/%25",
        "/%25%25",
        "/%252525",
    ] {
        assert_eq!(check(rest), Ok(()), "{rest}");
    }
    assert_eq!(
        check(&format!("/{}", "a".repeat(PATH_BYTES_MAX - 1))),
        Ok(())
    );
}

/// Ways in which gateways and upstreams were made to disagree, from published reports.
const CONFUSING: &[&str] = &[
    // dot segments, plain, escaped, doubly escaped, mixed
    "/..",
    "/.",
    "/../admin",
    "/x/../admin",
    "/x/./admin",
    "/x/..",
    "/x/.",
    "/%2e%2e/admin",
    "/%2E%2E/admin",
    "/.%2e/admin",
    "/%2e./admin",
    "/x/%2e/admin",
    "/%252e%252e/admin",
    "/%25252e/admin",
    "/%2525252E/admin",
    "/x/..%2fadmin",
    "/x/..%2Fadmin",
    "/..%252fadmin",
    "/%2e%2e%2fadmin",
    "/x%2f..%2fadmin",
    // slashes: doubled, escaped, backwards
    "//",
    "//admin",
    "/x//admin",
    "/admin//",
    "/%2fadmin",
    "/x%2fadmin",
    "/x%2Fadmin",
    "/x%252fadmin",
    "/x%5cadmin",
    "/x%5Cadmin",
    "/x\\admin",
    "/..\\admin",
    "/x%255c..%255cadmin",
    "\\admin",
    "/\\admin",
    "///",
    "/x///y",
    // path parameters
    "/;/admin",
    "/..;/admin",
    "/x;a=b/admin",
    "/admin;",
    "/admin%3b",
    "/admin%3B/x",
    "/..%3b/admin",
    "/%253badmin",
    "/admin;.css",
    // unreserved characters in disguise
    "/%61dmin",
    "/%41dmin",
    "/adm%69n",
    "/%7euser",
    "/a%2Db",
    "/a%5Fb",
    "/%2561dmin",
    "/%30",
    // control characters and what cuts strings
    "/admin\0",
    "/admin%00",
    "/admin%00.css",
    "/admin%2500",
    "/a%0d%0aX:%20y",
    "/a\r\nb",
    "/a\tb",
    "/admin%09",
    "/admin%0a",
    "/admin%1f",
    "/admin%7f",
    "/a\x7fb",
    "/%250a",
    // malformed escapes
    "/%",
    "/a%",
    "/a%2",
    "/a%zz",
    "/a%2g",
    "/%%32%65",
    "/%2%65",
    "/%u002e%u002e/admin",
    "/%+f",
    "/% 2",
    "/a%é",
    // not UTF-8, overlong, surrogates, beyond Unicode, cut off
    "/%ff",
    "/%c0%ae%c0%ae/admin",
    "/%c0%af",
    "/%e0%80%ae",
    "/%f0%80%80%ae",
    "/%ed%a0%80",
    "/%f4%90%80%80",
    "/%f8%88%80%80%80",
    "/%80",
    "/%c3",
    "/%c3x",
    "/%c3%",
    "/%e2%82",
    "/%e2%82x",
    "/%c3é",
    "/%c3%c3",
    "/%c1%9c",
    // no path at all
    "admin",
    "*",
    "http://other/admin",
    "/admin?x",
    "/admin#x",
    " /admin",
];

#[test]
fn confusing_paths_are_refused() {
    for rest in CONFUSING {
        assert!(check(rest).is_err(), "{rest:?}");
    }
    assert!(check(&format!("/{}", "a".repeat(PATH_BYTES_MAX))).is_err());
}

#[test]
fn a_prefix_ends_at_a_segment() {
    for (prefix, path) in [
        ("/", ""),
        ("/", "/"),
        ("/", "/x"),
        ("/a", "/a"),
        ("/a", "/a/"),
        ("/a", "/a/b"),
        ("/a/", "/a"),
        ("/a/", "/a/b"),
        ("/a/b", "/a/b/c"),
        ("", "/x"),
    ] {
        assert!(matches(prefix, path), "{prefix} {path}");
    }
    for (prefix, path) in [
        ("/a", ""),
        ("/a", "/"),
        ("/a", "/ab"),
        ("/a", "/A"),
        ("/a/b", "/a"),
        ("/a/b", "/a/bc"),
        ("/a", "/x/a"),
        ("/a", "/a%20"),
    ] {
        assert!(!matches(prefix, path), "{prefix} {path}");
    }
}

/// The same rules, written down naively over whole decoded strings.
fn accepts(rest: &str) -> bool {
    if rest.is_empty() {
        return true;
    }
    let forbidden = |c: char| c.is_ascii_control() || "\\;?#".contains(c);
    let dots = rest
        .split('/')
        .any(|segment| segment == "." || segment == "..");
    let shape = rest.len() <= PATH_BYTES_MAX && rest.starts_with('/') && !rest.contains("//");
    let decoded = decode(rest.as_bytes());
    let utf8 = decoded.is_some_and(|bytes| String::from_utf8(bytes).is_ok());
    let mut flat = rest.to_ascii_lowercase();
    while flat.contains("%25") {
        flat = flat.replace("%25", "%");
    }
    let escapes = (0..=127_u8)
        .filter(|byte| {
            byte.is_ascii_control() || byte.is_ascii_alphanumeric() || b"/\\;.-_~".contains(byte)
        })
        .any(|byte| flat.contains(&format!("%{byte:02x}")));
    shape && !dots && !rest.contains(forbidden) && utf8 && !escapes
}

fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if text[at] != b'%' {
            bytes.push(text[at]);
            at += 1;
            continue;
        }
        let digits = str::from_utf8(text.get(at + 1..at + 3)?).ok()?;
        if !digits.chars().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        at += 3;
    }
    Some(bytes)
}

/// What the most careless upstream makes of a path: decodes as often as it can up to three times,
/// turns backslashes, cuts parameters and at NUL, merges slashes, resolves dots.
fn careless_upstream(path: &str, decodings: usize) -> String {
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..decodings {
        bytes = decode(&bytes).unwrap_or(bytes);
    }
    let text = String::from_utf8_lossy(&bytes).replace('\\', "/");
    let text = text.split('\0').next().unwrap_or_default();
    let mut segments = Vec::new();
    for segment in text
        .split('/')
        .map(|segment| segment.split(';').next().unwrap_or_default())
    {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

fn nasty() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "/",
        "/",
        "/",
        "admin",
        "keys",
        "a",
        ".",
        "..",
        "%2e",
        "%2F",
        "%5C",
        "%3b",
        ";",
        "\\",
        "%00",
        "%25",
        "25",
        "2e",
        "2f",
        "61",
        "%61",
        "%",
        "%c3",
        "%a9",
        "é",
        "%C3%A9",
        "%20",
        "%40",
        "\0",
        "%7f",
        "%0a",
        "?",
        "#",
        "%e2%82%ac",
        "/admin",
        "/admin/keys",
    ]);
    prop::collection::vec(pieces, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_check_agrees_with_the_naive_one(rest in nasty(), noise in "(/[ -~é]{0,6}){0,4}") {
        for rest in [format!("/{rest}"), rest.clone(), noise.clone(), format!("{noise}{rest}")] {
            prop_assert_eq!(check(&rest).is_ok(), accepts(&rest), "{:?}", rest);
        }
    }

    #[test]
    fn no_accepted_path_reaches_another_route_at_a_careless_upstream(
        rest in nasty(), decodings in 0_usize..4,
    ) {
        let rest = format!("/{rest}");
        if check(&rest).is_ok() {
            let served = careless_upstream(&rest, decodings);
            for prefix in ["/", "/admin", "/admin/keys", "/a", "/keys/"] {
                prop_assert_eq!(matches(prefix, &rest), matches(prefix, &served), "{}", rest);
            }
        }
    }

    #[test]
    fn a_prefix_matches_whole_segments(
        prefix in "(/[ab]{1,2}){0,3}/?", path in "(/[ab]{1,2}){0,4}/?",
    ) {
        let segments = |text: &str| -> Vec<String> {
            text.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
        };
        let expected = segments(&path).starts_with(&segments(&prefix));
        prop_assert_eq!(matches(&prefix, &path), expected);
    }

    #[test]
    fn what_is_split_can_be_joined(path in "(/api/v1)?(/[a-z.%]{0,5}){0,4}") {
        if let Some((service, rest)) = split(&path) {
            prop_assert_eq!(format!("{MOUNT}{service}{rest}"), path.as_str());
            prop_assert!(!service.is_empty() && !service.contains('/'));
            prop_assert!(rest.is_empty() || rest.starts_with('/'));
        }
    }
}
