//! An OTLP receiver with a small viewer, for `tollgate dev` and for tests that follow a call.
//!
//! - Spans of one trace may come from several processes, in several batches, in any order.
//! - A span exported twice is kept once.
//! - Memory is bounded: the oldest trace goes when the next one needs its place.
//! - Whatever a span contains is text on the page, never markup; nothing on it is executed.

mod page;
mod store;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use opentelemetry_proto::tonic::collector::trace::v1 as otlp;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server as otlp_server;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use store::{Event, Link, Span, Summary, Trace};

use store::Store;

/// Largest export that is taken; the exporters' own batches stay far below.
const EXPORT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long open requests may go on after the stop.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// The pages run nothing, and load nothing but the style sheet.
const POLICY: &str = "default-src 'none'; style-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// The receiver while it runs. Dropping it closes both ports.
#[derive(Debug)]
pub struct Receiver {
    store: Arc<Store>,
    otlp: SocketAddr,
    page: SocketAddr,
    tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
}

/// Listens on loopback for OTLP over gRPC and for browsers; port 0 takes a free one.
pub async fn serve(
    otlp_port: u16,
    page_port: u16,
    stop: CancellationToken,
) -> anyhow::Result<Receiver> {
    let store = Arc::new(Store::default());
    let (otlp_listener, otlp) = listen("OTLP receiver", otlp_port).await?;
    let (page_listener, page) = listen("trace viewer", page_port).await?;
    let mut tasks = JoinSet::new();
    let exports = Exports {
        store: store.clone(),
    };
    let exports =
        otlp_server::TraceServiceServer::new(exports).max_decoding_message_size(EXPORT_BYTES_MAX);
    let receiver = tonic::transport::Server::builder().add_service(exports);
    let stopped = stop.clone().cancelled_owned();
    let receiver =
        receiver.serve_with_incoming_shutdown(TcpListenerStream::new(otlp_listener), stopped);
    tasks.spawn(async move { receiver.await.context("OTLP receiver") });
    let viewer = axum::serve(page_listener, routes(store.clone()))
        .with_graceful_shutdown(stop.clone().cancelled_owned());
    tasks.spawn(async move { viewer.await.context("trace viewer") });
    Ok(Receiver {
        store,
        otlp,
        page,
        tasks,
        stop,
    })
}

async fn listen(what: &str, port: u16) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .with_context(|| format!("{what} listens on port {port}"))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Receiver {
    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to (protocol `grpc`).
    pub fn otlp_endpoint(&self) -> String {
        format!("http://{}", self.otlp)
    }

    /// Where the list of traces is.
    pub fn page_url(&self) -> String {
        format!("http://{}/", self.page)
    }

    /// What has come in of a trace so far; `trace_id` is its 32 hex digits.
    pub fn trace(&self, trace_id: &str) -> Option<Trace> {
        self.store.trace(trace_id)
    }

    /// Every trace kept, the newest first.
    pub fn traces(&self) -> Vec<Summary> {
        self.store.summaries("")
    }

    /// Waits for the stop, then for open requests, at most 2 s.
    pub async fn finished(mut self) -> anyhow::Result<()> {
        self.stop.cancelled().await;
        let drain = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.context("a task of the trace receiver panicked")??;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(DRAIN_MAX, drain).await {
            Ok(ended) => ended,
            Err(_elapsed) => {
                warn!("the trace receiver still had open requests at the end of the drain");
                self.tasks.shutdown().await;
                Ok(())
            }
        }
    }
}

/// The OTLP side.
struct Exports {
    store: Arc<Store>,
}

#[tonic::async_trait]
impl otlp_server::TraceService for Exports {
    async fn export(
        &self,
        request: tonic::Request<otlp::ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<otlp::ExportTraceServiceResponse>, tonic::Status> {
        let rejected_spans = self.store.take(request.into_inner().resource_spans);
        let partial_success = (rejected_spans > 0).then(|| otlp::ExportTracePartialSuccess {
            rejected_spans,
            error_message: "a trace id has 16 bytes and a span id 8".to_owned(),
        });
        Ok(tonic::Response::new(otlp::ExportTraceServiceResponse {
            partial_success,
        }))
    }
}

fn routes(store: Arc<Store>) -> Router {
    Router::new()
        .route("/", get(list_page))
        .route("/trace/{trace_id}", get(trace_page))
        .route("/style.css", get(style))
        .route("/api/traces", get(list_json))
        .route("/api/traces/{trace_id}", get(trace_json))
        .with_state(store)
}

#[derive(Debug, Deserialize)]
struct Search {
    #[serde(default)]
    q: String,
}

async fn list_page(State(store): State<Arc<Store>>, Query(search): Query<Search>) -> Response {
    let traces = store.summaries(&search.q);
    let body = page::list(&traces, &store.services(), &search.q, store.dropped());
    html(StatusCode::OK, body)
}

async fn trace_page(State(store): State<Arc<Store>>, Path(trace_id): Path<String>) -> Response {
    match store.trace(&trace_id) {
        Some(trace) => html(StatusCode::OK, page::trace(&trace, &store.services())),
        None => html(StatusCode::NOT_FOUND, page::unknown(&trace_id)),
    }
}

async fn list_json(State(store): State<Arc<Store>>, Query(search): Query<Search>) -> Response {
    let traces = store.summaries(&search.q);
    Json(json!({ "traces": traces, "dropped": store.dropped() })).into_response()
}

async fn trace_json(State(store): State<Arc<Store>>, Path(trace_id): Path<String>) -> Response {
    match store.trace(&trace_id) {
        Some(trace) => Json(trace).into_response(),
        None => (
            StatusCode::NOT_FOUND,
            Json(json!({ "error": "unknown trace" })),
        )
            .into_response(),
    }
}

async fn style() -> Response {
    let kind = [(header::CONTENT_TYPE, "text/css; charset=utf-8")];
    (kind, include_str!("traces/style.css")).into_response()
}

fn html(status: StatusCode, body: String) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(POLICY),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body).into_response()
}
