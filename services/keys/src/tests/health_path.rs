//! What upstreams are asked for to see whether they are well.

use tonic::codegen::http::uri::PathAndQuery;
use types::ServiceName;

use super::problem;
use crate::domain::catalogue::{ServiceSettings, ServiceWish, health_path};

fn name() -> ServiceName {
    "pdf".parse().unwrap()
}

fn wish(path: Option<&str>) -> ServiceWish {
    ServiceWish {
        upstream_url: Some("http://h:1".to_owned()),
        health_path: path.map(str::to_owned),
        ..ServiceWish::default()
    }
}

fn settings(path: Option<&str>, now: Option<&ServiceSettings>) -> ServiceSettings {
    wish(path).apply(&name(), now).unwrap()
}

#[test]
fn a_health_path_stays_until_it_is_changed_or_emptied() {
    let new = settings(None, None);
    assert_eq!(new.manner.health_path, "", "nobody asks unless told to");
    let asked = settings(Some("/healthz?deep=1"), Some(&new));
    assert_eq!(asked.manner.health_path, "/healthz?deep=1");
    assert_eq!(asked.facts()["health_path"], "/healthz?deep=1");
    assert_ne!(asked, new, "or the change would not be saved");
    assert_eq!(settings(None, Some(&asked)), asked);
    assert_eq!(settings(Some(""), Some(&asked)), new);
}

#[test]
fn a_refused_health_path_says_what_is_wrong_and_what_would_be_right() {
    let long = format!("/{}", "h".repeat(256));
    let bad = [
        ("health", "such as /healthz"),
        ("http://h:1/health", "such as /healthz"),
        (" /health", "such as /healthz"),
        ("?deep", "such as /healthz"),
        (" ", "such as /healthz"),
        (long.as_str(), "at most 256 bytes, not 257"),
        ("/how are you", "' ': percent-encode it"),
        ("/health#top", "'#': percent-encode it"),
        ("/health HTTP/1.1", "' '"),
        ("/health\r\nx-a: b", "'\\r'"),
        ("/health\n", "'\\n'"),
        ("/health\t", "'\\t'"),
        ("/health\0", "'\\0'"),
        ("/health\u{7f}", "'\\u{7f}'"),
        ("/gesundheit/ä", "'ä'"),
    ];
    for (text, part) in bad {
        let problem = problem(wish(Some(text)).apply(&name(), None));
        assert!(problem.starts_with("`health_path` must "), "{problem}");
        assert!(problem.contains(part), "{text:?}: {problem}");
    }
    let longest = long.get(..256).unwrap();
    assert_eq!(health_path(longest).unwrap(), longest);
}

/// What is saved here is sent there: no gateway meets a path that it cannot ask for.
#[test]
fn every_health_path_that_is_saved_can_be_asked_for() {
    let mut saved = 0;
    for byte in 0..=127_u8 {
        let it = char::from(byte);
        let text = format!("/{it}?{it}");
        if health_path(&text).is_err() {
            continue;
        }
        saved += 1;
        let parsed: PathAndQuery = text.parse().unwrap();
        assert_eq!(parsed.as_str(), text);
    }
    assert_eq!(saved, 94 - 5, "visible ones but #, \", <, > and `");
}
