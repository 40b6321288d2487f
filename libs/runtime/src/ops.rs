//! The ops listener: health, readiness, metrics, version. Apart from traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::node::Shared;

/// Upper bounds of the lag histogram, seconds.
const LAG_BUCKETS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0,
];

/// PostgreSQL that takes longer for a first answer is as good as away.
const POSTGRES_LIMIT: Duration = Duration::from_secs(1);

#[derive(Clone, Hash, PartialEq, Eq, Debug, EncodeLabelSet)]
struct ConsumerLabel {
    consumer: String,
}

/// Metrics of the consumers of this process.
pub(crate) struct UsageMetrics {
    lag: Family<ConsumerLabel, Histogram, fn() -> Histogram>,
    dead_letters: Family<ConsumerLabel, Counter>,
    gap_records: Family<ConsumerLabel, Counter>,
    stream_fill: Gauge<f64, AtomicU64>,
}

impl UsageMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let lag: Family<ConsumerLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(LAG_BUCKETS));
        let dead_letters = Family::default();
        registry.register(
            "usage_lag_seconds",
            "From the end of a call to its durable effect",
            lag.clone(),
        );
        registry.register("dead_letters", "Batches put aside", dead_letters.clone());
        let gap_records = Family::default();
        registry.register(
            "usage_gap_records",
            "Records of journals that are lost for good",
            gap_records.clone(),
        );
        let stream_fill = Gauge::<f64, AtomicU64>::default();
        registry.register(
            "usage_stream_fill_ratio",
            "How much of its limits the stream of usage has used, of 1; 0 without limits",
            stream_fill.clone(),
        );
        Self {
            lag,
            dead_letters,
            gap_records,
            stream_fill,
        }
    }

    pub(crate) fn lag(&self, consumer: &str, seconds: f64) {
        let label = ConsumerLabel {
            consumer: consumer.to_owned(),
        };
        self.lag.get_or_create(&label).observe(seconds);
    }

    pub(crate) fn stream_fill(&self, share: f64) {
        self.stream_fill.set(share);
    }

    pub(crate) fn dead_letters(&self, consumer: &str) {
        let label = ConsumerLabel {
            consumer: consumer.to_owned(),
        };
        self.dead_letters.get_or_create(&label).inc();
    }

    pub(crate) fn gap_records(&self, consumer: &str, records: u64) {
        let label = ConsumerLabel {
            consumer: consumer.to_owned(),
        };
        self.gap_records.get_or_create(&label).inc_by(records);
    }
}

pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/startupz", get(ready))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/metrics.json", get(metrics_json))
        .route("/version", get(version))
        .with_state(shared);
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the ops listener has died");
    }
}

/// Ready: started, not stopping, and the stores that are needed answer.
async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let mut problems = Vec::new();
    if !shared.ready.load(Ordering::Acquire) {
        problems.push("starting or stopping".to_owned());
    }
    for (service, why) in shared.starting.lock().iter() {
        problems.push(format!("{service}: {why}"));
    }
    let stores = shared.stores.lock().clone();
    for (service, pools) in &stores {
        let asked = tokio::time::timeout(POSTGRES_LIMIT, pools.own.acquire()).await;
        if !matches!(asked, Ok(Ok(_))) {
            problems.push(format!("{service}: PostgreSQL does not answer"));
            // The others would say the same, each after its time.
            break;
        }
    }
    let nats = shared.nats.connection_state();
    if !stores.is_empty() && nats != async_nats::connection::State::Connected {
        problems.push("NATS is not connected".to_owned());
    }
    // A gateway serves from its leases while everything behind it is down.
    let status = if problems.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(json!({"ready": problems.is_empty(), "problems": problems})),
    )
}

fn text(shared: &Shared) -> Result<String, StatusCode> {
    let mut text = String::new();
    match encode(&mut text, &shared.registry.lock()) {
        Ok(()) => Ok(text),
        Err(error) => {
            tracing::error!(%error, "metrics could not be written");
            Err(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Result<impl IntoResponse, StatusCode> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text(&shared)?))
}

/// The same samples as `/metrics`: `{"name{labels}": value}`.
async fn metrics_json(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, StatusCode> {
    let text = text(&shared)?;
    let mut samples = Map::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let sample = line.split(" # ").next().unwrap_or(line);
        if let Some((name, value)) = sample.rsplit_once(' ') {
            let value = value
                .parse::<f64>()
                .map_or_else(|_| json!(value), |value| json!(value));
            samples.insert(name.to_owned(), value);
        }
    }
    Ok(Json(Value::Object(samples)))
}

async fn version() -> Json<Value> {
    Json(json!({
        "name": "tollgate",
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("TOLLGATE_COMMIT").unwrap_or("unknown"),
        "crash_points": cfg!(debug_assertions),
        "mutant": crate::crash::mutant(),
    }))
}
