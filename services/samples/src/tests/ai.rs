use std::time::{Duration, Instant};

use hyper::StatusCode;
use serde_json::{Value, json};

use super::{get, post, send, upstreams};
use crate::ai::{Turn, extract, tokens};

fn conversation(question: &str) -> Value {
    json!({
        "model": "any",
        "messages": [
            { "role": "system", "content": "Credits are bought in advance. Bananas are yellow." },
            { "role": "user", "content": [
                { "type": "text", "text": "A lease lends credits to one gateway." },
                { "type": "text", "text": question },
            ]},
        ],
    })
}

#[test]
fn tokens_are_counted_as_documented() {
    let text = "Tollgates bill, exactly.";
    let pieces: Vec<&str> = tokens(text).map(|token| &text[token]).collect();
    assert_eq!(pieces, ["Tollga", "tes", "bill", ",", "exactl", "y", "."]);
    assert_eq!(tokens(" \n ").count(), 0);
    assert_eq!(tokens("été à 10 €").count(), 4);
}

#[test]
fn the_sentence_about_the_question_is_chosen() {
    let turns = |question: &str| {
        let text = format!(
            "The tower is 330 metres high. It was painted in 1968. Paris has 2.1 million people. \
             Tickets are sold at the entrance. {question}"
        );
        vec![Turn {
            is_user: true,
            text,
        }]
    };
    let answer = extract(&turns("How high is the tower in metres?"));
    assert!(
        answer.starts_with("The tower is 330 metres high."),
        "{answer}"
    );
    assert_eq!(
        extract(&turns("Where are tickets sold?")),
        "Tickets are sold at the entrance."
    );
    assert_eq!(extract(&turns("Why?")), extract(&turns("Why?")));
}

#[tokio::test]
async fn a_completion_has_openais_shape_and_counts_its_tokens() {
    let (running, _stop) = upstreams(None).await;
    let question = conversation("What does a lease lend?");
    let reply = send(running.ai, post("/chat/completions", &question)).await;
    assert_eq!(reply.status, StatusCode::OK);
    let body = reply.json();
    assert_eq!(body["object"], "chat.completion");
    let answer = body["choices"][0]["message"]["content"]
        .as_str()
        .expect("an answer");
    assert!(
        answer.contains("A lease lends credits to one gateway."),
        "{answer}"
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["completion_tokens"], tokens(answer).count());
    let total = body["usage"]["total_tokens"].as_u64().expect("a count");
    assert_eq!(reply.headers["tollgate-usage"], format!("tokens={total}"));
    assert_eq!(
        send(running.ai, get("/models")).await.json()["data"][0]["object"],
        "model"
    );
}

#[tokio::test]
async fn max_tokens_cuts_the_answer_at_a_token() {
    let (running, _stop) = upstreams(None).await;
    let mut question = conversation("What does a lease lend?");
    question["max_tokens"] = json!(4);
    let body = send(running.ai, post("/chat/completions", &question))
        .await
        .json();
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["usage"]["completion_tokens"], 4);
    let answer = body["choices"][0]["message"]["content"]
        .as_str()
        .expect("an answer");
    assert_eq!(tokens(answer).count(), 4);
}

/// Events of a stream; asserts its framing on the way.
fn events(text: &str) -> Vec<Value> {
    let mut events: Vec<&str> = text.split("\n\n").collect();
    assert_eq!(
        events.pop(),
        Some(""),
        "the last event is ended by an empty line"
    );
    assert_eq!(events.pop(), Some("data: [DONE]"));
    let data = events
        .into_iter()
        .map(|event| event.strip_prefix("data: ").expect("a data line"));
    data.map(|data| serde_json::from_str(data).expect("a JSON chunk"))
        .collect()
}

#[tokio::test]
async fn a_stream_carries_the_same_answer_and_ends_with_its_usage() {
    let (running, _stop) = upstreams(None).await;
    let mut question = conversation("What does a lease lend?");
    let whole = send(running.ai, post("/chat/completions", &question))
        .await
        .json();
    question["stream"] = json!(true);
    question["stream_options"] = json!({ "include_usage": true });
    let reply = send(running.ai, post("/chat/completions", &question)).await;
    assert_eq!(
        reply.headers["content-type"],
        "text/event-stream; charset=utf-8"
    );
    let chunks = events(reply.text());
    let [first, middle @ .., finish, last] = chunks.as_slice() else {
        panic!("too few chunks")
    };
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    let pieces = middle
        .iter()
        .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    let answer: String = pieces
        .map(|piece| piece.expect("a piece of text"))
        .collect();
    assert_eq!(whole["choices"][0]["message"]["content"], answer);
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!(finish["usage"], Value::Null);
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], whole["usage"]);
    let tokens = format!("tokens={}", whole["usage"]["total_tokens"]);
    assert_eq!(reply.trailers["tollgate-usage"], tokens);
}

#[tokio::test]
async fn without_a_wish_the_usage_is_on_the_finishing_chunk() {
    let (running, _stop) = upstreams(None).await;
    let mut question = conversation("What does a lease lend?");
    question["stream"] = json!(true);
    let reply = send(running.ai, post("/chat/completions", &question)).await;
    let chunks = events(reply.text());
    let last = chunks.last().expect("a chunk");
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert!(last["usage"]["total_tokens"].is_u64());
}

#[tokio::test]
async fn a_bad_chat_request_gets_openais_error() {
    let (running, _stop) = upstreams(None).await;
    let image = json!([{ "type": "image_url", "image_url": { "url": "x" } }]);
    for (body, param) in [
        (
            json!({ "messages": [{ "role": "user", "content": "x" }] }),
            json!("model"),
        ),
        (json!({ "model": "any" }), json!("messages")),
        (
            json!({ "model": "any", "messages": [{ "role": "user", "content": image }] }),
            json!("messages[0].content[0]"),
        ),
        (
            json!({ "model": "any", "messages": [{ "role": "king", "content": "x" }] }),
            json!("messages[0].role"),
        ),
        (
            json!({ "model": "any", "delay_ms": 60_001 }),
            json!("delay_ms"),
        ),
        (json!("text"), Value::Null),
    ] {
        let reply = send(running.ai, post("/chat/completions", &body)).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
        let error = &reply.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["param"], param, "{error}");
    }
}

#[tokio::test]
async fn a_pause_is_kept_before_the_answer_and_before_each_chunk() {
    let (running, _stop) = upstreams(None).await;
    let mut question = conversation("What does a lease lend?");
    question["delay_ms"] = json!(20);
    let started = Instant::now();
    send(running.ai, post("/chat/completions", &question)).await;
    assert!(started.elapsed() >= Duration::from_millis(20));
    question["stream"] = json!(true);
    let started = Instant::now();
    let reply = send(running.ai, post("/chat/completions", &question)).await;
    let chunks = u32::try_from(events(reply.text()).len()).expect("a few");
    assert!(started.elapsed() >= Duration::from_millis(20) * chunks);
}
