use super::*;

fn head(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

#[test]
fn one_protocol_is_wanted_when_the_connection_names_it() {
    let wants = |fields: &[_]| wanted(&head(fields)).is_some();
    for (connection, upgrade) in [
        ("Upgrade", "websocket"),
        ("keep-alive, Upgrade", "websocket"),
        ("close ,\tUPGRADE", "WebSocket"),
        ("upgrade", "SPDY/3.1"),
        ("upgrade", "tcp"),
    ] {
        let fields = [("connection", connection), ("upgrade", upgrade)];
        assert!(wants(&fields), "{connection}: {upgrade}");
    }
    for (connection, upgrade) in [
        ("close", "websocket"),
        ("upgraded", "websocket"),
        ("upgrade", "websocket, x"),
        ("upgrade", "websocket;q=1"),
        ("upgrade", ""),
        ("upgrade", "/13"),
        ("upgrade", "websocket/13/1"),
        // Calls could pass through these.
        ("upgrade, http2-settings", "h2c"),
        ("upgrade", "H2C"),
        ("upgrade", "h2"),
        ("upgrade", "HTTP/2.0"),
        ("upgrade", "TLS/1.2"),
    ] {
        let fields = [("connection", connection), ("upgrade", upgrade)];
        assert!(!wants(&fields), "{connection}: {upgrade}");
    }
    assert!(!wants(&[("upgrade", "websocket")]));
    assert!(!wants(&[("connection", "upgrade")]));
    let twice = [
        ("connection", "upgrade"),
        ("upgrade", "a"),
        ("upgrade", "b"),
    ];
    assert!(!wants(&twice));
    let split = [
        ("connection", "keep-alive"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
    ];
    assert!(wants(&split), "in another field of the same name");
}
