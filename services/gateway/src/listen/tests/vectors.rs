//! Bytes that two readers could take for different requests. `{POST}` and `{GET}` are a request
//! line, a host and a key; `{EVIL}` is a whole request that must never arrive.

/// What the gateway does with one vector.
pub(super) struct Vector {
    pub(super) name: &'static str,
    pub(super) sent: &'static str,
    /// What arrives: path and body.
    pub(super) arrives: &'static [(&'static str, &'static str)],
    /// What is answered.
    pub(super) answers: &'static [u16],
    /// Whether the connection ends then, without a word from the client.
    pub(super) closes: bool,
}

const fn refused(name: &'static str, sent: &'static str) -> Vector {
    Vector {
        name,
        sent,
        arrives: &[],
        answers: &[400],
        closes: true,
    }
}

/// The first request is in order.
const fn second_refused(name: &'static str, sent: &'static str) -> Vector {
    Vector {
        arrives: &[("a", "")],
        answers: &[200, 400],
        ..refused(name, sent)
    }
}

const fn forwarded(
    name: &'static str,
    sent: &'static str,
    arrives: &'static [(&'static str, &'static str)],
) -> Vector {
    Vector {
        name,
        sent,
        arrives,
        answers: &[200],
        closes: false,
    }
}

pub(super) const VECTORS: &[Vector] = &[
    // --- one length and another
    refused(
        "CL.TE",
        "{POST}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "TE.CL",
        "{POST}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n5c\r\n{EVIL}\r\n0\r\n\r\n",
    ),
    refused(
        "CL: 0 and TE",
        "{POST}content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "TE, then CL in capitals",
        "{POST}Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 5\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "two lengths",
        "{POST}content-length: 0\r\ncontent-length: 44\r\n\r\n{EVIL}",
    ),
    refused(
        "two lengths that agree",
        "{POST}content-length: 2\r\ncontent-length: 2\r\n\r\nok{EVIL}",
    ),
    refused(
        "a list of lengths",
        "{POST}content-length: 2, 2\r\n\r\nok{EVIL}",
    ),
    refused(
        "a list of two lengths",
        "{POST}content-length: 0, 44\r\n\r\n{EVIL}",
    ),
    refused(
        "a length with a plus",
        "{POST}content-length: +2\r\n\r\nok{EVIL}",
    ),
    refused(
        "a negative length",
        "{POST}content-length: -1\r\n\r\n{EVIL}",
    ),
    refused(
        "a length with zeros before",
        "{POST}content-length: 0010\r\n\r\n01234567{EVIL}",
    ),
    refused(
        "a hexadecimal length",
        "{POST}content-length: 0x2\r\n\r\nok{EVIL}",
    ),
    refused(
        "a length with a space inside",
        "{POST}content-length: 1 0\r\n\r\n{EVIL}",
    ),
    refused(
        "a length with an underscore",
        "{POST}content-length: 1_0\r\n\r\n{EVIL}",
    ),
    refused("a fraction", "{POST}content-length: 2.0\r\n\r\nok{EVIL}"),
    refused("an exponent", "{POST}content-length: 1e1\r\n\r\n{EVIL}"),
    refused("an empty length", "{POST}content-length:\r\n\r\n{EVIL}"),
    refused(
        "a length beyond 64 bits",
        "{POST}content-length: 18446744073709551617\r\n\r\n{EVIL}",
    ),
    refused(
        "a length in quotes",
        "{POST}content-length: \"2\"\r\n\r\nok{EVIL}",
    ),
    refused(
        "a length of other digits",
        "{POST}content-length: \u{0662}\r\n\r\nok{EVIL}",
    ),
    refused(
        "a space before the colon of a length",
        "{POST}content-length : 2\r\n\r\nok{EVIL}",
    ),
    refused(
        "a length spelt with an underscore",
        "{POST}content_length: 2\r\n\r\nok{EVIL}",
    ),
    refused(
        "a length spelt with a dot",
        "{POST}content.length: 2\r\n\r\nok{EVIL}",
    ),
    refused(
        "a tab in the name of a length",
        "{POST}content-length\t: 2\r\n\r\nok{EVIL}",
    ),
    // --- transfer codings
    refused(
        "a space before the colon of a coding",
        "{POST}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "xchunked",
        "{POST}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "chunked twice in one field",
        "{POST}transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "chunked twice in two fields",
        "{POST}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "chunked, identity",
        "{POST}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "identity, chunked",
        "{POST}transfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "gzip, chunked",
        "{POST}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "identity",
        "{POST}transfer-encoding: identity\r\n\r\n{EVIL}",
    ),
    refused(
        "an empty coding",
        "{POST}transfer-encoding:\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "chunked with a parameter",
        "{POST}transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "chunked in quotes",
        "{POST}transfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "chunked behind a vertical tab",
        "{POST}transfer-encoding: \u{b}chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "chunked behind a form feed",
        "{POST}transfer-encoding: \u{c}chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "chunked before a NUL",
        "{POST}transfer-encoding: chunked\0\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a coding spelt with an underscore",
        "{POST}transfer_encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a coding on the next line",
        "{POST}transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a coding behind a line that goes on",
        "{POST}x-a: b\r\n\ttransfer-encoding: chunked\r\n\r\n{EVIL}",
    ),
    refused(
        "a field that begins with a space",
        "{POST} transfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a coding behind a lone CR",
        "{POST}x-a: b\rtransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a coding behind a lone LF",
        "{POST}x-a: b\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a coding in HTTP/1.0",
        "POST /api/v1/echo/a HTTP/1.0\r\nhost: edge\r\nx-api-key: {KEY}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    forwarded(
        "a coding in capitals",
        "{POST}TRANSFER-ENCODING: CHUNKED\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        &[("a", "ok")],
    ),
    forwarded(
        "a coding with blanks around it",
        "{POST}transfer-encoding:\t chunked \t\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        &[("a", "ok")],
    ),
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
    // --- chunks
    refused(
        "a chunk with a sign",
        "{POST}transfer-encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk with 0x",
        "{POST}transfer-encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk without a size",
        "{POST}transfer-encoding: chunked\r\n\r\n\r\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk behind a blank",
        "{POST}transfer-encoding: chunked\r\n\r\n 2\r\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk's size with a blank inside",
        "{POST}transfer-encoding: chunked\r\n\r\n0 2\r\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk's size with an underscore",
        "{POST}transfer-encoding: chunked\r\n\r\n0_2\r\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk beyond 64 bits",
        "{POST}transfer-encoding: chunked\r\n\r\n10000000000000002\r\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk's size that ends in LF",
        "{POST}transfer-encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk's size that ends in CR",
        "{POST}transfer-encoding: chunked\r\n\r\n2\rok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "an LF in a chunk's extension",
        "{POST}transfer-encoding: chunked\r\n\r\n2;a\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a CR in a chunk's extension",
        "{POST}transfer-encoding: chunked\r\n\r\n2;a\rb\r\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk that ends in LF",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk that is longer than it says",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a chunk that is shorter than it says",
        "{POST}transfer-encoding: chunked\r\n\r\n4\r\nok\r\n0\r\n\r\n{EVIL}",
    ),
    refused(
        "a last chunk that ends in LF",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\n\n{EVIL}",
    ),
    refused(
        "a length in the trailers",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ncontent-length: 44\r\n\r\n{EVIL}",
    ),
    refused(
        "a trailer that goes on",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-a: b\r\n c\r\n\r\n{EVIL}",
    ),
    forwarded(
        "a chunk with an extension",
        "{POST}transfer-encoding: chunked\r\n\r\n2;a=\"b\"\r\nok\r\n0\r\n\r\n",
        &[("a", "ok")],
    ),
    forwarded(
        "a chunk's size in capitals, with zeros",
        "{POST}transfer-encoding: chunked\r\n\r\n00A\r\n0123456789\r\n000\r\n\r\n",
        &[("a", "0123456789")],
    ),
    // --- what only looks like a body, or a request
    forwarded(
        "a body of a GET",
        "{GET}content-length: 8\r\n\r\nGET / HT",
        &[("a", "GET / HT")],
    ),
    forwarded(
        "a chunked body of a GET",
        "{GET}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        &[("a", "ok")],
    ),
    forwarded(
        "a request as a body",
        "{POST}content-length: 44\r\n\r\nGET /api/v1/echo/smuggled HTTP/1.1\r\nhost: \r\n",
        &[("a", "GET /api/v1/echo/smuggled HTTP/1.1\r\nhost: \r\n")],
    ),
    forwarded(
        "a length that Connection names",
        "{POST}connection: content-length\r\ncontent-length: 2\r\n\r\nok",
        &[("a", "ok")],
    ),
    forwarded(
        "a coding that Connection names",
        "{POST}connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        &[("a", "ok")],
    ),
    forwarded(
        "a host that Connection names",
        "{GET}connection: host\r\n\r\n",
        &[("a", "")],
    ),
    Vector {
        answers: &[200, 200],
        ..forwarded(
            "two requests at once",
            "{GET}\r\n{POST}content-length: 2\r\n\r\nok",
            &[("a", ""), ("a", "ok")],
        )
    },
    Vector {
        answers: &[200, 200],
        ..forwarded(
            "two chunked requests at once",
            "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{POST}transfer-encoding: chunked\r\n\r\n2\r\nko\r\n0\r\n\r\n",
            &[("a", "ok"), ("a", "ko")],
        )
    },
    second_refused(
        "a bad request behind a good one",
        "{GET}\r\n{POST}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}",
    ),
    second_refused(
        "rubbish behind a good one",
        "{GET}\r\nGET  / HTTP/1.1\r\n\r\n{EVIL}",
    ),
    // --- switching protocols
    forwarded(
        "h2c",
        "{GET}connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
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
