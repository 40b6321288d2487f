//! What clients say of themselves, and paths with two readings, from outside.

use super::with_front;

/// Names that only the gateway may say, in spellings that an upstream could take for them.
const SPOOFED: &[&str] = &[
    "tollgate-principal",
    "Tollgate-Principal",
    "tollgate_principal",
    "Tollgate_Principal",
    "tollgate.principal",
    "tollgate-cost",
    "TOLLGATE-ANYTHING",
    "x-request-id",
    "X_Request_Id",
    "x-forwarded-for",
    "X_Forwarded_For",
    "x-forwarded-host",
    "X-Forwarded-Proto",
    "x_forwarded_prefix",
    "forwarded",
    "x-real-ip",
    "X_Real_IP",
    "x-original-url",
    "X-Rewrite-URL",
    "traceparent",
    "tracestate",
    "baggage",
    "proxy-authorization",
    "proxy_connection",
    "keep-alive",
    "transfer_encodin",
];

#[test]
fn an_upstream_hears_only_from_the_gateway_what_is_the_gateways_to_say() {
    with_front(&[], async |front| {
        let mut fields = String::new();
        for name in SPOOFED {
            fields += &format!("{name}: spoofed-{name}\r\n{name}: again\r\n");
        }
        let nominated = "connection: tollgate-principal, x-request-id, x-forwarded-for, via\r\n\
                         connection: x-secret\r\nx-secret: 1\r\nx-kept: 1\r\n";
        let mut client = front.connect().await;
        for fields in [fields.as_str(), nominated] {
            let request = front.request("GET /api/v1/echo/a", fields);
            client.send(request.as_bytes()).await;
            let answer = client.answer().await.expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let got = front.upstream.take();
        assert_eq!(got.len(), 2);
        for got in &got {
            let kept = "\r\ntransfer_encodin: spoofed-transfer_encodin\r\n";
            let fields = got.fields.replace(kept, "\r\n");
            assert!(!fields.contains("spoofed-"), "{fields}");
            for ours in [
                "tollgate-principal",
                "x-request-id",
                "x-forwarded-for",
                "forwarded",
                "via",
                "host",
            ] {
                let count = fields.matches(&format!("\r\n{ours}: ")).count();
                assert_eq!(count, 1, "{ours}: {fields}");
            }
            assert!(
                fields.contains("\r\nx-forwarded-for: 127.0.0.1\r\n"),
                "{fields}"
            );
            assert!(
                fields.contains("\r\nx-forwarded-proto: http\r\n"),
                "{fields}"
            );
            let whole = "\r\nforwarded: for=127.0.0.1;proto=http;host=edge\r\n";
            assert!(fields.contains(whole), "{fields}");
            for hidden in [front.rig.key.reveal(), "x-secret", "authorization"] {
                assert!(!fields.contains(&hidden.to_lowercase()), "{fields}");
            }
        }
        assert!(got[1].fields.contains("\r\nx-kept: 1\r\n"));
        // A scheme in the target is no proof of TLS.
        let line = "GET https://edge/api/v1/echo/a";
        client.send(front.request(line, "").as_bytes()).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200);
        let got = front.upstream.take();
        assert!(
            got[0].fields.contains("\r\nx-forwarded-proto: http\r\n"),
            "{got:?}"
        );
    });
}

#[test]
fn behind_trusted_proxies_both_ways_of_saying_it_name_the_same_client() {
    let hops = [("TOLLGATE_GATEWAY_TRUSTED_HOPS", "1")];
    with_front(&hops, async |front| {
        let mut client = front.connect().await;
        for (told, plain, quoted) in [
            ("9.9.9.9, 192.0.2.7", "192.0.2.7", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7", "\"[2001:db8::7]\""),
        ] {
            let fields = format!("x-forwarded-for: {told}\r\nforwarded: for=9.9.9.9\r\n");
            // Both ways of a call: OPTIONS is hyper's.
            for method in ["GET", "OPTIONS"] {
                let line = format!("{method} /api/v1/echo/a");
                client.send(front.request(&line, &fields).as_bytes()).await;
                assert_eq!(client.answer().await.expect("an answer").status, 200);
                let got = front.upstream.take();
                for whole in [
                    format!("\r\nx-forwarded-for: {plain}\r\n"),
                    format!("\r\nforwarded: for={quoted};proto=http;host=edge\r\n"),
                ] {
                    assert!(got[0].fields.contains(&whole), "{whole}: {got:?}");
                }
                assert!(!got[0].fields.contains("9.9.9.9"), "{got:?}");
            }
        }
    });
}

/// Paths that some upstream reads as another path.
const CONFUSED: &[&str] = &[
    "/..",
    "/../echo/a",
    "/a/../b",
    "/a/./b",
    "/.",
    "/a//b",
    "//a",
    "/a/..",
    "/a/../../keys",
    "/a%2fb",
    "/a%2Fb",
    "/%2e%2e/b",
    "/%2e/b",
    "/a%5cb",
    "/a\\b",
    "/..\\b",
    "/a;b",
    "/a;/../b",
    "/a%3bb",
    "/a%00b",
    "/a%0d%0aHost:%20x",
    "/a%0a",
    "/%252e%252e/b",
    "/a%252fb",
    "/a%25%32%66b",
    "/a%25252fb",
    "/%61dmin",
    "/a%",
    "/a%2",
    "/a%zz",
    "/%c0%af",
    "/%c0%ae%c0%ae/b",
    "/%e0%80%af",
    "/%ff",
    "/a%7fb",
    "/a%u002fb",
    "/a#b",
    "/a/%2E%2E;/b",
    "/a..;/b",
    "/%ed%a0%80",
    "/a%09b",
];

#[test]
fn a_path_with_two_readings_goes_nowhere() {
    with_front(&[], async |front| {
        for path in CONFUSED {
            let mut client = front.connect().await;
            let request = front.request(&format!("GET /api/v1/echo{path}"), "");
            client.send(request.as_bytes()).await;
            let answer = client.answer().await.expect("an answer");
            assert_eq!(answer.status, 400, "{path}: {answer:?}");
            assert_eq!(front.upstream.take(), [], "{path}");
        }
        for mount in [
            "/api/v1/echo/../keys",
            "/api//v1/echo/a",
            "/api/v1//a",
            "/API/V1/echo/a",
            "/api/v1/%65cho/a",
            "/./api/v1/echo/a",
            "*",
            "/api/v1/echo%2fa",
        ] {
            let mut client = front.connect().await;
            let request = front.request(&format!("OPTIONS {mount}"), "");
            client.send(request.as_bytes()).await;
            let answer = client.answer().await.expect("an answer");
            assert!([400, 404].contains(&answer.status), "{mount}: {answer:?}");
            assert_eq!(front.upstream.take(), [], "{mount}");
        }
        // What arrives are the bytes that were matched.
        for path in [
            "/a%20b", "/%C3%A9", "/a/", "/a+b", "/a,b=c&d", "/a%25b", "/~a/-._",
        ] {
            let mut client = front.connect().await;
            let request = front.request(&format!("GET /api/v1/echo{path}?x=%2e%2e/;"), "");
            client.send(request.as_bytes()).await;
            let answer = client.answer().await.expect("an answer");
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            let got = front.upstream.take();
            assert_eq!(
                got[0].line,
                format!("GET {path}?x=%2e%2e/;"),
                "the same bytes"
            );
        }
    });
}
