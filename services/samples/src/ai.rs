//! `POST /chat/completions` and `GET /models` in OpenAI's shape, answered by extraction.
//!
//! Any model name is taken and echoed: the same extraction answers them all. Fault tests may add
//! `delay_ms` to the body or the query: a pause before the answer, or before each chunk of it.

mod answer;
mod tokens;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::problem::{Problem, delay, read_json};
use crate::transcript::now;

pub(crate) use answer::{Turn, extract};
pub(crate) use tokens::tokens;

/// Most messages in one conversation.
const MESSAGES_MAX: usize = 2_048;

const MODEL: &str = "sample-extractive";

/// What the customer is metered by, as an answer's header or a stream's trailer.
const USAGE: HeaderName = HeaderName::from_static("tollgate-usage");

pub(crate) fn routes() -> Router {
    Router::new()
        .route("/chat/completions", post(chat))
        .route("/models", get(models))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(Completions::default())
}

/// Numbers the answers of this process.
#[derive(Clone, Debug, Default)]
struct Completions {
    answered: Arc<AtomicU64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ChatRequest {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    n: Option<u64>,
    delay_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ChatQuery {
    delay_ms: Option<u64>,
}

/// An error as OpenAI's clients read it.
#[derive(Debug)]
struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
}

impl ApiError {
    fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let status = StatusCode::BAD_REQUEST;
        ApiError {
            status,
            message: message.into(),
            param: Some(param.into()),
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> ApiError {
        let status = match problem.status {
            // OpenAI answers every bad field with 400.
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            status => status,
        };
        ApiError {
            status,
            message: problem.detail,
            param: problem.field.map(str::to_owned),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = json!({
            "message": self.message,
            "type": "invalid_request_error",
            "param": self.param,
            "code": null,
        });
        (self.status, Json(json!({ "error": error }))).into_response()
    }
}

async fn no_route(uri: Uri) -> ApiError {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {}", uri.path()),
    )
    .into()
}

async fn no_method(uri: Uri) -> ApiError {
    let detail = format!("{} does not take this method", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).into()
}

async fn models() -> Json<Value> {
    let model = json!({ "id": MODEL, "object": "model", "created": 0, "owned_by": "samples" });
    Json(json!({ "object": "list", "data": [model] }))
}

async fn chat(
    State(completions): State<Completions>,
    query: Result<Query<ChatQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid("delay_ms", error.body_text()))?;
    let request: ChatRequest = read_json(body)?;
    let pause = delay(request.delay_ms.or(query.delay_ms))?;
    let number = completions.answered.fetch_add(1, Ordering::Relaxed);
    let created = now().as_second();
    let completion = Completion::answer(&request, format!("chatcmpl-{created:x}{number:06x}"))?;
    if request.stream.unwrap_or(false) {
        let usage = request
            .stream_options
            .and_then(|options| options.include_usage);
        let chunks = completion.chunks(created, usage);
        return Ok(event_stream(chunks, pause, completion.usage_header()));
    }
    tokio::time::sleep(pause).await;
    let mut headers = HeaderMap::new();
    headers.insert(USAGE, completion.usage_header());
    Ok((headers, Json(completion.whole(created))).into_response())
}

impl ChatRequest {
    /// The conversation as plain text, or what is wrong with it.
    fn turns(&self) -> Result<Vec<Turn>, ApiError> {
        if self.n.is_some_and(|n| n != 1) {
            return Err(ApiError::invalid("n", "only one choice is offered"));
        }
        let messages = self.messages.as_deref().unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::invalid(
                "messages",
                "at least one message is needed",
            ));
        }
        if messages.len() > MESSAGES_MAX {
            let message = format!("at most {MESSAGES_MAX} messages are read");
            return Err(ApiError::invalid("messages", message));
        }
        let turns = messages
            .iter()
            .enumerate()
            .map(|(index, message)| message.turn(index));
        let turns = turns.collect::<Result<Vec<Turn>, ApiError>>()?;
        if turns.iter().all(|turn| turn.text.trim().is_empty()) {
            return Err(ApiError::invalid("messages", "the messages have no text"));
        }
        Ok(turns)
    }
}

impl Message {
    fn turn(&self, index: usize) -> Result<Turn, ApiError> {
        let is_user = match self.role.as_str() {
            "user" => true,
            "system" | "developer" | "assistant" | "tool" | "function" => false,
            _ => {
                let param = format!("messages[{index}].role");
                return Err(ApiError::invalid(param, "is not a role"));
            }
        };
        let text = match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => {
                let mut texts = Vec::new();
                for (part_index, part) in parts.iter().enumerate() {
                    let (true, Some(text)) = (part.r#type == "text", &part.text) else {
                        let param = format!("messages[{index}].content[{part_index}]");
                        return Err(ApiError::invalid(param, "only text can be read"));
                    };
                    texts.push(text.as_str());
                }
                texts.join("\n")
            }
        };
        Ok(Turn { is_user, text })
    }
}

/// A finished answer, in whichever form it is then sent.
pub(crate) struct Completion {
    id: String,
    model: String,
    text: String,
    finish_reason: &'static str,
    prompt_tokens: usize,
    completion_tokens: usize,
}

impl Completion {
    fn answer(request: &ChatRequest, id: String) -> Result<Completion, ApiError> {
        let model = request.model.clone().filter(|model| !model.is_empty());
        let model = model.ok_or_else(|| ApiError::invalid("model", "is missing"))?;
        let turns = request.turns()?;
        let mut text = extract(&turns);
        let ends: Vec<usize> = tokens(&text).map(|token| token.end).collect();
        let mut completion_tokens = ends.len();
        let mut finish_reason = "stop";
        let tokens_max = request.max_completion_tokens.or(request.max_tokens);
        if let Some(tokens_max) = tokens_max.filter(|&most| most < completion_tokens) {
            let Some(last) = tokens_max.checked_sub(1) else {
                return Err(ApiError::invalid("max_tokens", "must be at least 1"));
            };
            text.truncate(ends[last]);
            completion_tokens = tokens_max;
            finish_reason = "length";
        }
        let prompt_tokens = tokens::of_conversation(turns.iter().map(|turn| turn.text.as_str()));
        Ok(Completion {
            id,
            model,
            text,
            finish_reason,
            prompt_tokens,
            completion_tokens,
        })
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        })
    }

    fn usage_header(&self) -> HeaderValue {
        let tokens = self.prompt_tokens + self.completion_tokens;
        HeaderValue::try_from(format!("tokens={tokens}")).expect("a word and digits")
    }

    /// The body of an answer that is not streamed.
    fn whole(&self, created: i64) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": { "role": "assistant", "content": self.text, "refusal": null },
                "logprobs": null,
                "finish_reason": self.finish_reason,
            }],
            "usage": self.usage(),
        })
    }

    /// The bodies of the events of a streamed answer: the role, each token, the finish, the usage.
    ///
    /// With `include_usage: true` the usage has a last chunk without choices, as OpenAI sends it.
    /// Without a wish it is on the finishing chunk, where clients that look at `choices[0]` live
    /// with it, and a meter finds it all the same.
    fn chunks(&self, created: i64, include_usage: Option<bool>) -> Vec<Value> {
        let chunk = |delta: Value, finish_reason: Option<&str>| {
            let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish_reason });
            let mut chunk = self.chunk(created, json!([choice]));
            if include_usage == Some(true) {
                chunk["usage"] = Value::Null;
            }
            chunk
        };
        let mut chunks = vec![chunk(json!({ "role": "assistant", "content": "" }), None)];
        let mut sent = 0;
        for token in tokens(&self.text) {
            chunks.push(chunk(
                json!({ "content": &self.text[sent..token.end] }),
                None,
            ));
            sent = token.end;
        }
        let mut finish = chunk(json!({}), Some(self.finish_reason));
        if include_usage.is_none() {
            finish["usage"] = self.usage();
        }
        chunks.push(finish);
        if include_usage == Some(true) {
            let mut last = self.chunk(created, json!([]));
            last["usage"] = self.usage();
            chunks.push(last);
        }
        chunks
    }

    fn chunk(&self, created: i64, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// Sends each chunk as a server-sent event after its pause, then `[DONE]`, then the usage as a
/// trailer for those who read trailers (`TE: trailers`).
fn event_stream(chunks: Vec<Value>, pause: Duration, usage: HeaderValue) -> Response {
    let body = Body::new(StreamBody::new(frames(chunks, pause, usage)));
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::TRAILER, HeaderValue::from_static("tollgate-usage")),
    ];
    (headers, body).into_response()
}

fn frames(
    chunks: Vec<Value>,
    pause: Duration,
    usage: HeaderValue,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    let events = chunks.into_iter().map(|chunk| format!("data: {chunk}\n\n"));
    let events = stream::iter(events).then(move |event| async move {
        tokio::time::sleep(pause).await;
        Frame::data(Bytes::from(event))
    });
    let done = Frame::data(Bytes::from_static(b"data: [DONE]\n\n"));
    let trailers = Frame::trailers(HeaderMap::from_iter([(USAGE, usage)]));
    events.chain(stream::iter([done, trailers])).map(Ok)
}
