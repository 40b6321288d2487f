use hyper::StatusCode;
use serde_json::json;

use super::{get, post, send, upstreams};
use crate::pdf::{render, win_ansi};

/// The file as text in which every byte is one, so that offsets stay.
fn text_of(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| {
            if byte.is_ascii() {
                char::from(byte)
            } else {
                '?'
            }
        })
        .collect()
}

#[test]
fn every_cross_reference_points_at_its_object() {
    let document = render(&"one two three \n".repeat(300), Some("Title"));
    let text = text_of(&document.bytes);
    let table = text.find("xref\n0 ").expect("a table");
    let start: usize = text
        .rsplit("startxref\n")
        .next()
        .and_then(|tail| tail.split('\n').next())
        .and_then(|digits| digits.parse().ok())
        .expect("an offset");
    assert_eq!(start, table);
    let entries = text[table..]
        .lines()
        .skip(2)
        .take_while(|line| line.len() == 19);
    let mut objects = 0;
    for (number, entry) in entries.enumerate().skip(1) {
        let offset: usize = entry[..10].parse().expect("ten digits");
        assert!(
            text[offset..].starts_with(&format!("{number} 0 obj\n")),
            "object {number}"
        );
        objects += 1;
    }
    assert_eq!(objects, 4 + 2 * document.pages);
}

#[test]
fn a_long_text_takes_as_many_pages_as_it_says() {
    assert_eq!(render("short", None).pages, 1);
    let document = render(&"line\n".repeat(200), None);
    let text = text_of(&document.bytes);
    assert!(document.pages > 3);
    assert_eq!(text.matches("/Type /Page ").count(), document.pages);
    assert!(text.contains(&format!("/Count {} ", document.pages)));
    assert_eq!(text.matches("(line)").count(), 200);
}

#[test]
fn wrapping_loses_no_word_and_breaks_words_longer_than_a_line() {
    let words: Vec<String> = (0..200).map(|number| format!("word{number}")).collect();
    let text = text_of(&render(&words.join(" "), None).bytes);
    for word in &words {
        let ends = [format!("{word} "), format!("{word})")];
        let shown: usize = ends
            .iter()
            .map(|end| text.matches(end.as_str()).count())
            .sum();
        assert_eq!(shown, 1, "{word}");
    }
    let long = text_of(&render(&"@".repeat(500), None).bytes);
    assert_eq!(long.matches('@').count(), 500);
    assert!(!long.contains(&"@".repeat(60)), "wider than the page");
}

#[test]
fn characters_are_encoded_and_delimiters_escaped() {
    assert_eq!(win_ansi("é€–œ"), [0xe9, 0x80, 0x96, 0x9c]);
    assert_eq!(win_ansi("日\u{7}a\tb"), b"?a    b");
    let text = text_of(&render("a(b)\\c é", None).bytes);
    assert!(text.contains(r"(a\(b\)\\c \351) Tj"));
    assert!(text_of(&render("x", Some("é")).bytes).contains("/Title <FEFF00E9>"));
}

#[tokio::test]
async fn a_rendered_document_says_its_pages() {
    let (running, _stop) = upstreams(None).await;
    let body = json!({ "text": "Hello.\n".repeat(100), "title": "Greetings" });
    let reply = send(running.pdf, post("/render", &body)).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["content-type"], "application/pdf");
    assert_eq!(reply.headers["tollgate-usage"], "pages=3");
    assert!(reply.body.starts_with(b"%PDF-1.4\n"));
    assert!(reply.body.ends_with(b"%%EOF\n"));
}

#[tokio::test]
async fn a_bad_render_request_names_what_is_wrong() {
    let (running, _stop) = upstreams(None).await;
    let reply = send(running.pdf, post("/render", &json!({ "text": " " }))).await;
    assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(reply.headers["content-type"], "application/problem+json");
    assert_eq!(reply.json()["field"], "text");
    let reply = send(running.pdf, post("/render", &json!([]))).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    let large = json!({ "text": "x".repeat(1024 * 1024) });
    let reply = send(running.pdf, post("/render", &large)).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(
        send(running.pdf, get("/render")).await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(
        send(running.pdf, get("/nowhere")).await.json()["status"],
        404
    );
}
