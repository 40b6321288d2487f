use std::collections::HashMap;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use opentelemetry::trace::{
    Link, SpanContext, SpanKind, Status, TraceContextExt, TraceFlags, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::page::{self, Nanos};
use super::store::{SPANS_PER_TRACE_MAX, Store, TRACES_MAX};
use super::{Receiver, serve};

/// A span as an exporter sends it; `number` makes its id, 0 means no parent.
fn span(trace: u16, number: u8, parent: u8) -> otlp::Span {
    let id = |number: u8| {
        if number == 0 {
            Vec::new()
        } else {
            vec![number; 8]
        }
    };
    otlp::Span {
        trace_id: [[0; 14].as_slice(), trace.to_be_bytes().as_slice()].concat(),
        span_id: id(number),
        parent_span_id: id(parent),
        name: format!("span {number}"),
        start_time_unix_nano: 1_000_000 + u64::from(number) * 1_000,
        end_time_unix_nano: 2_000_000,
        ..otlp::Span::default()
    }
}

fn batch(spans: Vec<otlp::Span>) -> Vec<otlp::ResourceSpans> {
    let scope_spans = vec![otlp::ScopeSpans {
        spans,
        ..otlp::ScopeSpans::default()
    }];
    vec![otlp::ResourceSpans {
        scope_spans,
        ..otlp::ResourceSpans::default()
    }]
}

fn id(trace: u16) -> String {
    format!("{trace:032x}")
}

#[test]
fn the_oldest_trace_makes_room_for_the_newest() {
    let store = Store::default();
    let last = u16::try_from(TRACES_MAX).expect("a small number") + 2;
    for trace in 1..=last {
        store.take(batch(vec![span(trace, 1, 0)]));
    }
    assert_eq!(store.summaries("").len(), TRACES_MAX);
    assert_eq!(store.dropped(), 2);
    assert!(store.trace(&id(2)).is_none());
    assert!(store.trace(&id(3)).is_some());
    assert_eq!(store.summaries("")[0].trace_id, id(last));
}

#[test]
fn a_trace_takes_a_bounded_number_of_spans() {
    let store = Store::default();
    let spans = (0..SPANS_PER_TRACE_MAX + 5).map(|number| otlp::Span {
        span_id: u64::try_from(number)
            .expect("a small number")
            .to_be_bytes()
            .to_vec(),
        ..span(1, 1, 0)
    });
    store.take(batch(spans.collect()));
    let trace = store.trace(&id(1)).expect("the trace");
    assert_eq!(trace.spans.len(), SPANS_PER_TRACE_MAX);
    assert_eq!(trace.spans_dropped, 5);
}

#[test]
fn an_export_sent_twice_or_out_of_order_makes_the_same_trace() {
    let store = Store::default();
    store.take(batch(vec![span(1, 3, 2)]));
    store.take(batch(vec![span(1, 2, 1)]));
    assert_eq!(
        store.summaries("")[0].root,
        "span 2",
        "until its parent comes in"
    );
    store.take(batch(vec![span(1, 1, 0), span(1, 2, 1)]));
    let trace = store.trace(&id(1)).expect("the trace");
    let names: Vec<&str> = trace.spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["span 1", "span 2", "span 3"]);
    assert_eq!(store.summaries("")[0].root, "span 1");
    assert_eq!(store.summaries("span 3").len(), 1);
    assert!(store.summaries("span 4").is_empty());
}

#[test]
fn a_span_without_usable_ids_is_rejected_and_the_rest_taken() {
    let store = Store::default();
    let nameless = otlp::Span {
        trace_id: vec![1; 3],
        ..span(1, 2, 0)
    };
    assert_eq!(
        store.take(batch(vec![nameless, span(1, 0, 0), span(1, 1, 0)])),
        2
    );
    assert_eq!(store.trace(&id(1)).expect("the trace").spans.len(), 1);
}

#[test]
fn every_span_is_shown_once_even_if_parents_form_a_ring() {
    let store = Store::default();
    store.take(batch(vec![
        span(1, 1, 2),
        span(1, 2, 1),
        span(1, 3, 9),
        span(1, 4, 4),
    ]));
    let trace = store.trace(&id(1)).expect("the trace");
    let html = page::trace(&trace, &store.services());
    for number in 1..=4 {
        assert_eq!(
            html.matches(&format!(">span {number} <")).count(),
            1,
            "span {number}"
        );
    }
    assert!(html.contains("(not received)"));
}

#[test]
fn what_a_span_says_cannot_become_markup() {
    let store = Store::default();
    let evil = "<script>alert(1)</script>\"'&";
    let named = otlp::Span {
        name: evil.to_owned(),
        ..span(1, 1, 0)
    };
    store.take(batch(vec![named]));
    let trace = store.trace(&id(1)).expect("the trace");
    let pages = [
        page::trace(&trace, &store.services()),
        page::list(&store.summaries(""), &store.services(), evil, 0),
        page::unknown(evil),
    ];
    for html in pages {
        assert!(
            !html.contains("<script") && !html.contains("\"'&"),
            "{html}"
        );
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"));
    }
}

#[test]
fn durations_read_well() {
    let shown = [
        0,
        999,
        1_234,
        45_678,
        999_999,
        12_345_678,
        1_500_000_000,
        125_000_000_000,
    ];
    let shown = shown.map(|nanos| Nanos(nanos).to_string());
    let expected = [
        "0 ns", "999 ns", "1.23 µs", "45.6 µs", "999 µs", "12.3 ms", "1.50 s", "125 s",
    ];
    assert_eq!(shown, expected);
}

fn provider(receiver: &Receiver, service: &'static str) -> SdkTracerProvider {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(receiver.otlp_endpoint())
        .build()
        .expect("an exporter");
    let resource = Resource::builder_empty().with_service_name(service).build();
    SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build()
}

fn shut_down(provider: &SdkTracerProvider) {
    // Flushing blocks its thread until the receiver, on this runtime, has answered.
    tokio::task::block_in_place(|| provider.shutdown()).expect("everything is exported");
}

async fn fetch(receiver: &Receiver, path: &str) -> (u16, HashMap<String, String>, String) {
    let address = receiver.page_url();
    let address = address
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let stream = TcpStream::connect(&address)
        .await
        .expect("the viewer listens");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a connection");
    let request = http::Request::get(path).header("host", address);
    let request = request
        .body(Empty::<Bytes>::new())
        .expect("a valid request");
    let exchange = async {
        let (head, body) = sender
            .send_request(request)
            .await
            .expect("a reply")
            .into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let header = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
        let headers = head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), header(value)));
        (
            head.status.as_u16(),
            headers.collect(),
            String::from_utf8_lossy(&body).into_owned(),
        )
    };
    tokio::select! {
        reply = exchange => reply,
        ended = connection => panic!("the connection ended before the reply: {ended:?}"),
    }
}

/// A call through two services, and a batch elsewhere that links to it. Returns both trace ids.
fn export_a_call(receiver: &Receiver) -> (String, String) {
    let (gateway, wallet) = (provider(receiver, "gateway"), provider(receiver, "wallet"));
    let tracer = gateway.tracer("edge");
    let edge = tracer
        .span_builder("POST /api/v1/pdf/render")
        .with_kind(SpanKind::Server)
        .with_attributes([
            KeyValue::new("request.id", "req_1"),
            KeyValue::new("status", 200),
        ])
        .start(&tracer);
    let edge = Context::new().with_span(edge);
    edge.span()
        .add_event("admitted", vec![KeyValue::new("credits", 1)]);
    let remote = edge.span().span_context().clone();
    let remote = Context::new().with_remote_span_context(SpanContext::new(
        remote.trace_id(),
        remote.span_id(),
        TraceFlags::SAMPLED,
        true,
        remote.trace_state().clone(),
    ));
    let tracer = wallet.tracer("settler");
    let settle = tracer.start_with_context("settle", &remote);
    let settle = remote.with_span(settle);
    settle.span().set_status(Status::error("lease <closed>"));
    settle.span().end();
    let linked = Link::new(edge.span().span_context().clone(), vec![], 0);
    let batch = tracer.span_builder("settle batch").with_links(vec![linked]);
    let batch = Context::new().with_span(batch.start_with_context(&tracer, &Context::new()));
    batch.span().end();
    edge.span().end();
    let ids = [&edge, &batch].map(|context| context.span().span_context().trace_id().to_string());
    // The child's process reports before its parent's.
    shut_down(&wallet);
    shut_down(&gateway);
    ids.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_exported_by_two_processes_are_one_trace() {
    let stop = CancellationToken::new();
    let receiver = serve(0, 0, stop.clone()).await.expect("it starts");
    let (call, batch) = export_a_call(&receiver);

    let trace = receiver.trace(&call).expect("the call's trace");
    assert_eq!(
        trace.services().into_iter().collect::<Vec<_>>(),
        ["gateway", "wallet"]
    );
    let root = trace.root().expect("a root");
    assert_eq!(root.name, "POST /api/v1/pdf/render");
    assert_eq!(
        (root.kind, &root.attributes["status"]),
        ("server", &Value::from(200))
    );
    assert_eq!(root.events[0].name, "admitted");
    let settle = trace
        .spans
        .iter()
        .find(|span| span.service == "wallet")
        .expect("its child");
    assert_eq!(settle.parent_span_id.as_ref(), Some(&root.span_id));
    assert_eq!(settle.error.as_deref(), Some("lease <closed>"));
    assert_eq!(trace.linked_from, std::slice::from_ref(&batch));

    let (status, headers, html) = fetch(&receiver, &format!("/trace/{call}")).await;
    assert_eq!(status, 200);
    assert!(headers["content-security-policy"].starts_with("default-src 'none'"));
    assert!(!html.contains("style=") && !html.contains("<script"));
    assert!(html.contains("lease &lt;closed&gt;"));
    assert!(html.contains(&format!("href=\"/trace/{batch}\"")));
    let (_, _, html) = fetch(&receiver, &format!("/trace/{batch}")).await;
    assert!(html.contains(&format!("href=\"/trace/{call}#span-{}\"", root.span_id)));
    let (_, _, html) = fetch(&receiver, "/?q=req_1").await;
    assert!(html.contains(&call) && !html.contains(&batch));
    assert_eq!(fetch(&receiver, "/trace/none").await.0, 404);
    assert_eq!(
        fetch(&receiver, "/style.css").await.1["content-type"],
        "text/css; charset=utf-8"
    );

    let (_, _, json) = fetch(&receiver, "/api/traces").await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["traces"].as_array().expect("a list").len(), 2);
    let (_, _, json) = fetch(&receiver, &format!("/api/traces/{call}")).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["spans"][0]["attributes"]["request.id"], "req_1");
    assert_eq!(fetch(&receiver, "/api/traces/none").await.0, 404);
    stop.cancel();
    receiver.finished().await.expect("a clean stop");
}
