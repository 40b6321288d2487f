use super::*;

fn parsed(text: &str) -> Option<String> {
    WebOrigin::parse(text).ok().map(|origin| origin.to_string())
}

#[test]
fn an_origin_is_kept_as_browsers_write_it() {
    for (text, kept) in [
        ("https://app.example.com", "https://app.example.com"),
        ("HTTPS://App.Example.COM", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80", "http://app.example.com"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://localhost:03000", "http://localhost:3000"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[::1]", "http://[::1]"),
        (
            "https://xn--bcher-kva.example",
            "https://xn--bcher-kva.example",
        ),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
    ] {
        assert_eq!(parsed(text).as_deref(), Some(kept), "{text}");
        assert_eq!(parsed(kept).as_deref(), Some(kept), "{text}, again");
    }
}

#[test]
fn what_is_no_origin_is_refused() {
    let long = format!("https://{}.example", "a".repeat(ORIGIN_CHARS_MAX));
    for text in [
        "",
        "null",
        "example.com",
        "https://",
        "https://:443",
        "://example.com",
        "https:/example.com",
        "https://example.com/",
        "https://example.com/app",
        "https://example.com?x",
        "https://user@example.com",
        "https://*.example.com",
        "https://**",
        "https://bücher.example",
        "https://exa mple.com",
        "https://example.com:",
        "https://example.com:x",
        "https://example.com:0x50",
        "https://example.com:+80",
        "https://example.com:65536",
        "https://example.com:000080",
        "https://[::1",
        "https://[::1]x",
        "https://[1.2.3.4]",
        "https://::1",
        "1https://example.com",
        "https://example.com,https://other.example",
        " https://example.com",
        "https://example.com\r\nx: y",
        long.as_str(),
    ] {
        assert_eq!(parsed(text), None, "{text}");
    }
}
