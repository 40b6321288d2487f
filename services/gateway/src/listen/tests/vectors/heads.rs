//! What a head is made of, and whom it is for.

use super::{Vector, forwarded, refused};

pub(super) const VECTORS: &[Vector] = &[
    // --- lines
    refused(
        "lines that end in LF",
        "GET /api/v1/echo/a HTTP/1.1\nhost: edge\nx-api-key: {KEY}\n\n",
    ),
    refused("a head that ends in LF", "{GET}\n"),
    refused("a CR in a value", "{GET}x-a: b\rc\r\n\r\n"),
    refused("a CR before the end of a line", "{GET}x-a: b\r\r\n\r\n"),
    refused("a NUL in a value", "{GET}x-a: b\0c\r\n\r\n"),
    refused("a NUL in a name", "{GET}x-\0a: b\r\n\r\n"),
    refused("a field without a colon", "{GET}x-a\r\n\r\n"),
    refused("a field without a name", "{GET}: b\r\n\r\n"),
    refused("a space in a name", "{GET}x a: b\r\n\r\n"),
    refused("a name beyond ASCII", "{GET}x-\u{e9}: b\r\n\r\n"),
    refused("a line that goes on", "{GET}x-a: b\r\n c\r\n\r\n"),
    refused("two blank lines before a request", "\r\n\r\n{GET}\r\n"),
    forwarded(
        "a blank line before a request",
        "\r\n{GET}\r\n",
        &[("a", "")],
    ),
    // --- the request line
    refused(
        "two spaces in the request line",
        "GET  /api/v1/echo/a HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "a tab in the request line",
        "GET\t/api/v1/echo/a HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "a space in the target",
        "GET /api/v1/echo/a b HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "a request line in the target",
        "GET /api/v1/echo/a HTTP/1.1 HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "no version",
        "GET /api/v1/echo/a\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "HTTP/1.2",
        "GET /api/v1/echo/a HTTP/1.2\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "HTTP/2.0 in text",
        "GET /api/v1/echo/a HTTP/2.0\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "a version in small letters",
        "GET /api/v1/echo/a http/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "something behind the version",
        "GET /api/v1/echo/a HTTP/1.1 \r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "a method that is no token",
        "G(T /api/v1/echo/a HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "a control character in the target",
        "GET /api/v1/echo/a\u{1} HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "TRACE",
        "TRACE /api/v1/echo/a HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "CONNECT",
        "CONNECT edge:80 HTTP/1.1\r\nhost: edge:80\r\nx-api-key: {KEY}\r\n\r\n{EVIL}",
    ),
    // --- whom it is for
    refused(
        "no host",
        "GET /api/v1/echo/a HTTP/1.1\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused("two hosts", "{GET}host: other\r\n\r\n"),
    refused("two hosts that agree", "{GET}Host: edge\r\n\r\n"),
    refused(
        "a host with a space",
        "GET /api/v1/echo/a HTTP/1.1\r\nhost: edge other\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "a host with a path",
        "GET /api/v1/echo/a HTTP/1.1\r\nhost: edge/other\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "a host with a user",
        "GET /api/v1/echo/a HTTP/1.1\r\nhost: other@edge\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    refused(
        "a list of hosts",
        "GET /api/v1/echo/a HTTP/1.1\r\nhost: edge, other\r\nx-api-key: {KEY}\r\n\r\n",
    ),
    Vector {
        closes: false,
        ..refused(
            "a target for another host",
            "GET http://other/api/v1/echo/a HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
        )
    },
    Vector {
        closes: false,
        ..refused(
            "a target with a user",
            "GET http://u@edge/api/v1/echo/a HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
        )
    },
    forwarded(
        "a target that says the host again",
        "GET http://edge/api/v1/echo/a HTTP/1.1\r\nhost: edge\r\nx-api-key: {KEY}\r\n\r\n",
        &[("a", "")],
    ),
    // --- switching protocols
    forwarded(
        "h2c",
        "{GET}connection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
         http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        &[("a", "")],
    ),
    forwarded(
        "h2c with a body",
        "{POST}connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\nok",
        &[("a", "ok")],
    ),
    Vector {
        answers: &[200, 200],
        ..forwarded(
            "an upgrade that nobody grants",
            "{GET}connection: upgrade\r\nupgrade: tunnel\r\n\r\n{GET}\r\n",
            &[("a", ""), ("a", "")],
        )
    },
    // --- expectations
    forwarded(
        "an expectation",
        "{POST}expect: 100-continue\r\ncontent-length: 2\r\n\r\nok",
        &[("a", "ok")],
    ),
    forwarded(
        "an expectation of a GET",
        "{GET}expect: 100-continue\r\n\r\n",
        &[("a", "")],
    ),
    refused(
        "another expectation",
        "{POST}expect: y 100-continue\r\ncontent-length: 2\r\n\r\nok{EVIL}",
    ),
    refused(
        "an expectation in a list",
        "{POST}expect: 100-continue, x\r\ncontent-length: 2\r\n\r\nok{EVIL}",
    ),
    refused(
        "a line behind an expectation",
        "{POST}expect:\r\n 100-continue\r\ncontent-length: 2\r\n\r\nok{EVIL}",
    ),
];
