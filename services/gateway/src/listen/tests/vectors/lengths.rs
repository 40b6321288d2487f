//! Where a request ends.

use super::{Vector, broken_off, forwarded, refused, second_refused};

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
        "POST /api/v1/echo/a HTTP/1.0\r\nhost: edge\r\nx-api-key: {KEY}\r\n\
         transfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}",
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
    // --- chunks
    broken_off(
        "a chunk with a sign",
        "{POST}transfer-encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a chunk with 0x",
        "{POST}transfer-encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a chunk without a size",
        "{POST}transfer-encoding: chunked\r\n\r\n\r\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a chunk behind a blank",
        "{POST}transfer-encoding: chunked\r\n\r\n 2\r\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a chunk's size with a blank inside",
        "{POST}transfer-encoding: chunked\r\n\r\n0 2\r\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a chunk's size with an underscore",
        "{POST}transfer-encoding: chunked\r\n\r\n0_2\r\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a chunk beyond 64 bits",
        "{POST}transfer-encoding: chunked\r\n\r\n10000000000000002\r\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a chunk's size that ends in LF",
        "{POST}transfer-encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a chunk's size that ends in CR",
        "{POST}transfer-encoding: chunked\r\n\r\n2\rok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "an LF in a chunk's extension",
        "{POST}transfer-encoding: chunked\r\n\r\n2;a\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a CR in a chunk's extension",
        "{POST}transfer-encoding: chunked\r\n\r\n2;a\rb\r\nok\r\n0\r\n\r\n{EVIL}",
        "",
    ),
    broken_off(
        "a chunk that ends in LF",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n{EVIL}",
        "ok",
    ),
    broken_off(
        "a chunk that is longer than it says",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n{EVIL}",
        "ok",
    ),
    broken_off(
        "a chunk that is shorter than it says",
        "{POST}transfer-encoding: chunked\r\n\r\n4\r\nok\r\n0\r\n\r\n{EVIL}",
        "ok\r\n",
    ),
    broken_off(
        "a last chunk that ends in LF",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\n\n{EVIL}",
        "ok",
    ),
    broken_off(
        "a length in the trailers",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ncontent-length: 44\r\n\r\n{EVIL}",
        "ok",
    ),
    broken_off(
        "a trailer that goes on",
        "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-a: b\r\n c\r\n\r\n{EVIL}",
        "ok",
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
        "{POST}connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n2\r\n\
         ok\r\n0\r\n\r\n",
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
            "{POST}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n\
             {POST}transfer-encoding: chunked\r\n\r\n2\r\nko\r\n0\r\n\r\n",
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
];
